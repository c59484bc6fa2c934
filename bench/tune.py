"""The fastest launch settings of the convolution's kernels, among those that compute rightly.

    python bench/conv_relu.py --tune [--layers conv3] [--dtypes bfloat16] [--batches 128] [--seconds 500]

writes `kernels/tuned/<gpu>.json`. A candidate that does not compile, does not fit the GPU, computes something else than
PyTorch in fp64, leaves a part of its result unwritten, or does not compute the same twice, gets no time and cannot be
chosen.

All candidates are compiled first, in as many processes as there are cores; Triton keeps them on disk. Each product is
then measured in a process of its own until a candidate makes the GPU unusable for that process: the next one goes on
without that candidate. Of a product that was measured at another batch size, only the fastest candidates are tried.
What is found is written after each product, so that running out of time loses nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from pathlib import Path

import harness
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.jit import JITFunction

from kernels import conv_relu, conv_settings
from kernels.conv_settings import Direction, Entry, Problem, Settings

# Rows, columns and terms per step of a tile.
_TILES = (
    (128, 128, 64), (128, 128, 32), (128, 256, 64), (256, 128, 64), (128, 64, 64), (64, 128, 64), (128, 64, 32),
    (64, 64, 64), (64, 64, 32), (128, 32, 64),
)  # fmt: skip
_STAGES = (3, 4)
# Of one candidate's timing; and the part of all the time that may go into compiling ahead.
_SECONDS, _COMPILING = 0.03, 0.4
# Candidates that are tried at a further batch size.
_SHORTLIST = 8
# TF32 rounds the factors to 11 bits, as fp16 does.
_TF32_TOLERANCE = harness.TOLERANCES[torch.float16]

Timer = Callable[[Callable[[], Tensor], Settings | None], float]
Key = tuple[Direction, Problem]
Problems = Sequence[Key]


class DeviceLost(Exception):
    """A candidate has made the GPU unusable for this process."""

    def __init__(self, settings: Settings, reason: str) -> None:
        super().__init__(settings, reason)
        self.settings, self.reason = settings, reason


def candidates(direction: Direction, problem: Problem) -> Iterator[Settings]:
    """The heuristic's choice first; then tiles that do not mostly hang over the edge, with few and many warps."""
    first = conv_settings.heuristic(direction, problem)
    yield first
    tried = {first}
    forms = [False] if direction == "data_gradient" or not problem.can_be_rearranged() else [True, False]
    for rearranged in forms:
        computed = problem.rearranged() if rearranged else problem
        for settings in _tiles(direction, computed):
            settings = dataclasses.replace(settings, rearranged=rearranged)
            if settings not in tried:
                tried.add(settings)
                yield settings


def _tiles(direction: Direction, problem: Problem) -> Iterator[Settings]:
    rows, columns, _ = problem.product(direction)
    # A step's bytes are what counts.
    scale = 2 / problem.itemsize
    splits = [1]
    if direction == "weight_gradient":
        usual = conv_settings.heuristic(direction, problem).splits
        splits = sorted({max(1, usual * factor // 2) for factor in (1, 2, 4)})
    for (block_m, block_n, block_k), num_stages, num_warps in itertools.product(_TILES, _STAGES, (4, 8)):
        # Four warps have no registers for the sums of the largest tiles, and eight little to do in the small ones.
        if (num_warps == 8) != (block_m * block_n > 128 * 128) and block_m * block_n != 128 * 128:
            continue
        if block_m >= 2 * max(64, rows) or block_n >= 2 * max(32, columns):
            continue
        for split in splits:
            yield Settings(block_m, block_n, max(16, int(block_k * scale)), num_warps, num_stages, split)


def operands(direction: Direction, problem: Problem) -> list[Tensor]:
    """What a product takes: of random x, weight, gradient of z, and bias where bias and ReLU follow."""
    channels = problem.channels // problem.groups
    x_shape = (problem.batch, problem.channels, problem.height, problem.width)
    weight_shape = (problem.filters, channels, *problem.kernel)
    grad_shape = (problem.batch, problem.filters, problem.out_height, problem.out_width)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "forward": (x_shape, weight_shape, (problem.filters,)) if problem.epilogue else (x_shape, weight_shape),
        "data_gradient": (grad_shape, weight_shape),
        "weight_gradient": (grad_shape, x_shape),
    }
    generator = torch.Generator(harness.DEVICE).manual_seed(0)
    dtype = getattr(torch, problem.dtype)
    made = [torch.randn(shape, generator=generator, device=harness.DEVICE).to(dtype) for shape in shapes[direction]]
    return [tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for tensor in made]


def run(direction: Direction, operands: Sequence[Tensor], problem: Problem, settings: Settings) -> Tensor:
    """The product by our kernels."""
    if direction == "forward":
        bias = operands[2] if problem.epilogue else None
        return conv_relu._run_forward(operands[0], operands[1], bias, problem, problem.epilogue, settings)
    if direction == "data_gradient":
        return conv_relu._run_backward_data(operands[0], operands[1], problem, settings)
    return conv_relu._run_backward_weight(operands[0], operands[1], problem, settings)


def run_library(direction: Direction, operands: Sequence[Tensor], problem: Problem) -> Tensor:
    """The product as it is computed where cuDNN is chosen: by PyTorch, and what is left by our kernels."""
    if direction == "forward":
        bias = operands[2] if problem.epilogue else None
        return conv_relu._library_forward(operands[0], operands[1], bias, problem, problem.epilogue)
    grad, other = operands
    if direction == "data_gradient":
        return conv_relu._library_backward(grad, None, other, problem, direction)
    shape = (problem.filters, problem.channels // problem.groups, *problem.kernel)
    weight = other.new_empty(shape).to(memory_format=torch.channels_last)
    return conv_relu._library_backward(grad, other, weight, problem, direction)


def definition(direction: Direction, operands: Sequence[Tensor], problem: Problem) -> Tensor:
    """The product in fp64."""
    wide = [tensor.double() for tensor in operands]
    top, bottom, left, right = problem.padding

    def convolve(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, *bias, stride=problem.stride, groups=problem.groups)

    if direction == "forward":
        z = convolve(*wide)
        return z.relu() if problem.epilogue else z
    x_shape = (problem.batch, problem.channels, problem.height, problem.width)
    weight_shape = (problem.filters, problem.channels // problem.groups, *problem.kernel)
    data = direction == "data_gradient"
    sought = wide[0].new_zeros(x_shape if data else weight_shape).requires_grad_()
    z = convolve(sought, wide[1]) if data else convolve(wide[1], sought)
    return torch.autograd.grad(z, sought, wide[0])[0]


def timings(
    direction: Direction,
    problem: Problem,
    tried: Sequence[Settings],
    time: Timer,
    refused: dict[Settings, str],
    in_time: Callable[[], bool] = lambda: True,
) -> dict[Settings, float]:
    """Milliseconds of the settings that compute rightly, the fastest first.

    Args:
        tried: the candidates.
        time: what a piece of work takes, in milliseconds.
        refused: filled with the candidates that may not be chosen, and why.
        in_time: whether there is time for another candidate.

    Raises:
        DeviceLost: nothing more can be computed in this process.
    """
    given = operands(direction, problem)
    wanted = definition(direction, given, problem)
    tolerance = _TF32_TOLERANCE if problem.precision == "tf32" else harness.TOLERANCES[given[0].dtype]
    taken: dict[Settings, float] = {}
    for settings in tried:
        if not in_time():
            break
        try:
            with uninitialised_as_nan():
                found, again = (run(direction, given, problem, settings) for _ in range(2))
            if harness.CUDA:
                # What a launch does wrong is told at the next occasion, which is to be this one.
                torch.cuda.synchronize()
        except Exception as error:
            # Too much shared memory, or more registers than there are: Triton has no common type for them.
            refused[settings] = f"{type(error).__name__}: {error}"
            if _device_is_lost():
                raise DeviceLost(settings, refused[settings]) from None
            continue
        distance = float((found.double() - wanted).abs().max() / wanted.abs().max())
        if not distance <= tolerance:
            refused[settings] = f"is off by {distance:.1e}"
        elif not torch.equal(found, again):
            refused[settings] = "does not compute the same twice"
        else:
            taken[settings] = time(lambda settings=settings: run(direction, given, problem, settings), settings)
    return dict(sorted(taken.items(), key=lambda item: item[1]))


@contextlib.contextmanager
def uninitialised_as_nan() -> Iterator[None]:
    """Memory arrives full of NaN. It would hold the result of the candidate before, and hide what is never written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _device_is_lost() -> bool:
    if harness.CUDA:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
    return False


def measured(
    direction: Direction, problem: Problem, tried: Sequence[Settings], seconds: float
) -> tuple[dict[Settings, float], float, dict[Settings, str]]:
    """Milliseconds of the candidates, the fastest first; of cuDNN; and who may not be chosen, with the reasons."""
    end = time.monotonic() + seconds

    def median(work: Callable[[], Tensor], _: Settings | None) -> float:
        return harness.timed(lambda: None, lambda _: work(), _SECONDS)[1]

    refused: dict[Settings, str] = {}
    # As in training.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=problem.precision == "tf32"):
        taken = timings(direction, problem, tried, median, refused, lambda: time.monotonic() < end)
        given = operands(direction, problem)
        library = median(lambda: run_library(direction, given, problem), None)
    return taken, library, refused


def new_process() -> Executor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def tune(
    problems: Problems, folder: Path, seconds: float, new_executor: Callable[[], Executor] = new_process
) -> Path:  # fmt: skip
    """Measure every product, and write what was found to this GPU's table, in place of older entries of the same.

    Args:
        folder: of the table.
        seconds: after which no further product is begun, and no further candidate of one.
        new_executor: makes what a product is measured in.
    """
    gpu = torch.cuda.get_device_name()
    path = folder / conv_settings.table_path(gpu).name
    entries = dict(conv_settings.load_table(path))
    end = time.monotonic() + seconds
    # By product, whatever its batch: all candidates, and the fastest ones once it was measured.
    candidates_of: dict[Key, list[Settings]] = {}
    for key in problems:
        if _of_any_batch(key) not in candidates_of:
            candidates_of[_of_any_batch(key)] = list(candidates(*key))
    if harness.CUDA:
        compile_ahead(candidates_of, _COMPILING * seconds)
    executor = new_executor()
    for number, key in enumerate(problems):
        direction, problem = key
        lost: dict[Settings, str] = {}
        # What one does not need is left to the others.
        waiting = [len(candidates_of[product]) for product in map(_of_any_batch, problems[number:])]
        while (left := end - time.monotonic()) > 0:
            tried = [settings for settings in candidates_of[_of_any_batch(key)] if settings not in lost]
            share = left * waiting[0] / sum(waiting)
            try:
                taken, library, refused = executor.submit(measured, direction, problem, tried, share).result()
            except DeviceLost as error:
                lost[error.settings] = error.reason
                executor.shutdown()
                executor = new_executor()
                continue
            except Exception as error:
                print(f"{direction} of {problem}: not measured, {harness.reason(error)}")
                executor.shutdown()
                executor = new_executor()
                break
            entry = None
            if taken:
                best, ms = next(iter(taken.items()))
                entry = entries[key] = Entry(best, round(ms, 5), round(library, 5))
                candidates_of[_of_any_batch(key)] = list(taken)[:_SHORTLIST]
            else:
                entries.pop(key, None)
            _report(direction, problem, len(tried), entry, lost | refused)
            write_table(path, gpu, entries)
            break
        else:
            print(f"{direction} of {problem}: no time left")
    executor.shutdown()
    return path


def _of_any_batch(key: Key) -> Key:
    return key[0], dataclasses.replace(key[1], batch=1)


def _report(
    direction: Direction, problem: Problem, tried: int, entry: Entry | None, refused: dict[Settings, str]
) -> None:
    print(f"{direction} of {problem}: {tried} settings, {len(refused)} refused")
    for settings, reason in refused.items():
        if "off by" in reason or "twice" in reason or "CUDA error" in reason:
            print(f"  wrong: {settings}: {reason}")
    if entry is not None:
        print(f"  {entry.settings}: {entry.ms} ms, cuDNN {entry.library_ms} ms", flush=True)


def compile_ahead(candidates_of: dict[Key, list[Settings]], seconds: float) -> None:
    """Compile the candidates on all cores, for as long as that; Triton finds them on disk when they are measured."""
    # Neither the batch nor the number of splits, where there are several, is compiled into a kernel. The first
    # candidates of all come first: they are what is measured where time is short.
    turns = itertools.zip_longest(*([(*key, settings) for settings in tried] for key, tried in candidates_of.items()))
    jobs = dict.fromkeys(
        (
            direction,
            dataclasses.replace(problem, batch=1),
            dataclasses.replace(settings, splits=min(2, settings.splits)),
        )
        for direction, problem, settings in filter(None, itertools.chain.from_iterable(turns))
    )
    begin = time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), _only_compile) as pool:
        futures = [pool.submit(_compile, *job) for job in jobs]
        done, _ = wait(futures, timeout=seconds)
        pool.shutdown(cancel_futures=True)
    print(f"compiled {len(done)} of {len(jobs)} kernels in {time.monotonic() - begin:.0f} s", flush=True)


def _only_compile() -> None:
    """Let launches in this process compile their kernel and run nothing."""
    run = JITFunction.run
    JITFunction.run = lambda self, *args, warmup, **options: run(self, *args, warmup=True, **options)


def _compile(direction: Direction, problem: Problem, settings: Settings) -> None:
    # What does not compile is found out again when it is measured.
    with contextlib.suppress(Exception):
        run(direction, operands(direction, problem), problem, settings)


def write_table(path: Path, gpu: str, entries: conv_settings.Table) -> None:
    table = {
        "device": gpu,
        "versions": harness.package_versions(),
        "commit": harness.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": [conv_settings.table_entry(*key, entry) for key, entry in entries.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(table, indent=1) + "\n")
    unfinished.replace(path)
    # What was read from the table before holds no longer.
    conv_settings.load_table.cache_clear()
    conv_settings.choose.cache_clear()
