"""Finds the fastest launch settings of the convolution's kernels among those with correct results.

    python bench/conv_relu.py --tune [--layers conv3] [--dtypes bfloat16] [--batches 128] [--seconds 500]

writes `kernels/tuned/<gpu>.json`. A candidate is rejected if it does not compile, does not fit the GPU, differs from
PyTorch in fp64, leaves a part of its result unwritten, or is not deterministic.

All candidates are compiled first, in one process per core; Triton caches them on disk. The products are then measured
in a separate process. If a candidate makes the GPU unusable for that process, a new one continues without it. For a
product measured at another batch size before, only the fastest candidates are tried. The table is written after each
product, so that an interruption loses nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.jit import JITFunction

from kernels import conv_gemm, conv_relu, launch_settings
from kernels.launch_settings import Direction, Entry, Problem, Settings
from tuning.tables import write_table

# Rows, columns and terms per step of a tile (block_m, block_n, block_k).
_TILES = (
    (128, 128, 64), (128, 128, 32), (128, 256, 64), (256, 128, 64), (128, 64, 64), (64, 128, 64), (128, 64, 32),
    (64, 64, 64), (64, 64, 32), (128, 32, 64),
)  # fmt: skip
_STAGES = (3, 4)
# Seconds per candidate, and the share of the time limit for compilation.
_SECONDS, _COMPILATION_SHARE = 0.03, 0.4
# Candidates tried at further batch sizes.
_SHORTLIST = 8
# TF32 rounds operands to 11 bits, like fp16.
_TF32_TOLERANCE = harness.TOLERANCES[torch.float16]

Timer = Callable[[Callable[[], Tensor], Settings | None], float]
Key = tuple[Direction, Problem]
Problems = Sequence[Key]


class DeviceLost(Exception):
    """A candidate made the GPU unusable for this process."""

    def __init__(self, settings: Settings, reason: str) -> None:
        super().__init__(settings, reason)
        self.settings, self.reason = settings, reason


def candidates(direction: Direction, problem: Problem) -> Iterator[Settings]:
    """The heuristic's choice first, then tiles that are not much larger than the result, with 4 or 8 warps."""
    first = launch_settings.heuristic(direction, problem)
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
    # Tiles are limited by their bytes per step.
    scale = 2 / problem.itemsize
    splits = [1]
    if direction == "weight_gradient":
        default = launch_settings.heuristic(direction, problem).splits
        splits = sorted({max(1, default * factor // 2) for factor in (1, 2, 4)})
    for (block_m, block_n, block_k), num_stages, num_warps in itertools.product(_TILES, _STAGES, (4, 8)):
        # The largest tiles need the registers of 8 warps; small tiles have too little work for 8.
        if (num_warps == 8) != (block_m * block_n > 128 * 128) and block_m * block_n != 128 * 128:
            continue
        if block_m >= 2 * max(64, rows) or block_n >= 2 * max(32, columns):
            continue
        for split in splits:
            yield Settings(block_m, block_n, max(16, int(block_k * scale)), num_warps, num_stages, split)


def operands(direction: Direction, problem: Problem) -> list[Tensor]:
    """Random operands of a product: x, weight, gradient of z, and the bias if bias and ReLU are fused."""
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
    """Compute the product with our kernels."""
    if direction == "forward":
        bias = operands[2] if problem.epilogue else None
        return conv_gemm.run_forward(operands[0], operands[1], bias, problem, problem.epilogue, settings)
    if direction == "data_gradient":
        return conv_gemm.run_backward_data(operands[0], operands[1], problem, settings)
    return conv_gemm.run_backward_weight(operands[0], operands[1], problem, settings)


def run_library(direction: Direction, operands: Sequence[Tensor], problem: Problem) -> Tensor:
    """Compute the product as training does if cuDNN is chosen: PyTorch for the product, our kernels for the rest."""
    if direction == "forward":
        bias = operands[2] if problem.epilogue else None
        return conv_relu.library_forward(operands[0], operands[1], bias, problem, problem.epilogue)
    grad, other = operands
    if direction == "data_gradient":
        return conv_relu.library_backward(grad, None, other, problem, direction)
    shape = (problem.filters, problem.channels // problem.groups, *problem.kernel)
    weight = other.new_empty(shape).to(memory_format=torch.channels_last)
    return conv_relu.library_backward(grad, other, weight, problem, direction)


def definition(direction: Direction, operands: Sequence[Tensor], problem: Problem) -> Tensor:
    """The product in fp64."""
    wide = [tensor.double() for tensor in operands]
    top, bottom, left, right = problem.padding

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, bias, stride=problem.stride, groups=problem.groups)

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
    """Milliseconds of the settings with correct results, the fastest first.

    Args:
        tried: the candidates.
        time: returns the milliseconds of a piece of work.
        refused: filled with the rejected candidates and the reasons.
        in_time: returns whether there is time for another candidate.

    Raises:
        DeviceLost: the GPU is unusable for this process.
    """
    given = operands(direction, problem)
    wanted = definition(direction, given, problem)
    tolerance = _TF32_TOLERANCE if problem.precision == "tf32" else harness.TOLERANCES[given[0].dtype]
    times: dict[Settings, float] = {}
    for settings in tried:
        if not in_time():
            break
        try:
            with uninitialised_as_nan():
                found, again = (run(direction, given, problem, settings) for _ in range(2))
            if harness.CUDA:
                # Errors of a launch are reported at the next synchronisation.
                torch.cuda.synchronize()
        except Exception as error:
            # Too much shared memory or too many registers: Triton has no common type for these errors.
            refused[settings] = f"{type(error).__name__}: {error}"
            if _device_is_lost():
                raise DeviceLost(settings, refused[settings]) from None
            continue
        distance = float((found.double() - wanted).abs().max() / wanted.abs().max())
        if not distance <= tolerance:
            refused[settings] = f"is off by {distance:.1e}"
        elif not torch.equal(found, again):
            refused[settings] = "is not deterministic"
        else:
            times[settings] = time(partial(run, direction, given, problem, settings), settings)
    return dict(sorted(times.items(), key=lambda item: item[1]))


@contextlib.contextmanager
def uninitialised_as_nan() -> Iterator[None]:
    """Fill new memory with NaN. Otherwise it may hold the previous candidate's result and hide unwritten parts."""
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
    """Milliseconds of the candidates, fastest first; of cuDNN; and the rejected candidates with reasons."""
    end = time.monotonic() + seconds

    def median(work: Callable[[], Tensor], _: Settings | None) -> float:
        return harness.timed(lambda: None, lambda _: work(), _SECONDS)[1]

    refused: dict[Settings, str] = {}
    # The settings of training.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=problem.precision == "tf32"):
        times = timings(direction, problem, tried, median, refused, lambda: time.monotonic() < end)
        given = operands(direction, problem)
        library = median(lambda: run_library(direction, given, problem), None)
    return times, library, refused


def new_process() -> Executor:
    """An executor of one new process."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def tune(problems: Problems, folder: Path, seconds: float, new_executor: Callable[[], Executor] = new_process) -> Path:
    """Measure every product and write the results to this GPU's table, replacing older entries.

    Args:
        problems: the products.
        folder: folder of the table.
        seconds: time limit; no product and no candidate is started after it.
        new_executor: returns an executor in which products are measured.
    """
    gpu = torch.cuda.get_device_name()
    path = folder / launch_settings.table_path(gpu).name
    entries = dict(launch_settings.load_table(path))
    end = time.monotonic() + seconds
    # The candidates of each product at any batch: all of them, then the fastest ones of its first measurement.
    candidates_of: dict[Key, list[Settings]] = {}
    for key in problems:
        if _of_any_batch(key) not in candidates_of:
            candidates_of[_of_any_batch(key)] = list(candidates(*key))
    if harness.CUDA:
        compile_ahead(candidates_of, _COMPILATION_SHARE * seconds)
    process = _Process(new_executor)
    for number, key in enumerate(problems):
        # Products share the remaining time by their numbers of candidates.
        waiting = [len(candidates_of[product]) for product in map(_of_any_batch, problems[number:])]
        tried = candidates_of[_of_any_batch(key)]
        result = _measure(process, key, tried, end, waiting[0] / sum(waiting))
        if result is None:
            continue
        times, library, refused = result
        entry = None
        if times:
            best, ms = next(iter(times.items()))
            entry = entries[key] = Entry(best, round(ms, 5), round(library, 5))
            candidates_of[_of_any_batch(key)] = list(times)[:_SHORTLIST]
        else:
            entries.pop(key, None)
        _report(*key, len(tried), entry, refused)
        write_table(path, gpu, entries)
    process.close()
    return path


class _Process:
    """An executor in which products are measured, and which is replaced when it becomes unusable."""

    def __init__(self, new_executor: Callable[[], Executor]) -> None:
        self._new_executor = new_executor
        self._executor = new_executor()

    def run(self, *call: Any) -> Any:
        """Call a function in the executor; returns its result or raises its exception."""
        return self._executor.submit(*call).result()

    def restart(self) -> None:
        """Replace the executor."""
        self._executor.shutdown()
        self._executor = self._new_executor()

    def close(self) -> None:
        """End the executor."""
        self._executor.shutdown()


def _measure(
    process: _Process, key: Key, tried: Sequence[Settings], end: float, share: float
) -> tuple[dict[Settings, float], float, dict[Settings, str]] | None:
    """Measure a product as :func:`measured` does, without the candidates that make the GPU unusable.

    Returns None if the measurement failed or there was no time. `share` is its share of the time until `end`.
    """
    direction, problem = key
    lost: dict[Settings, str] = {}
    while (left := end - time.monotonic()) > 0:
        usable = [settings for settings in tried if settings not in lost]
        try:
            times, library, refused = process.run(measured, direction, problem, usable, left * share)
        except DeviceLost as error:
            lost[error.settings] = error.reason
            process.restart()
        except Exception as error:
            print(f"{direction} of {problem}: not measured, {harness.failure_reason(error)}")
            process.restart()
            return None
        else:
            return times, library, lost | refused
    print(f"{direction} of {problem}: no time left")
    return None


def _of_any_batch(key: Key) -> Key:
    return key[0], dataclasses.replace(key[1], batch=1)


def _report(
    direction: Direction, problem: Problem, tried: int, entry: Entry | None, refused: dict[Settings, str]
) -> None:
    print(f"{direction} of {problem}: {tried} settings, {len(refused)} refused")
    for settings, reason in refused.items():
        if "off by" in reason or "deterministic" in reason or "CUDA error" in reason:
            print(f"  wrong: {settings}: {reason}")
    if entry is not None:
        print(f"  {entry.settings}: {entry.ms} ms, cuDNN {entry.library_ms} ms", flush=True)


def compile_ahead(candidates_of: dict[Key, list[Settings]], seconds: float) -> None:
    """Compile candidates on all cores within a time limit; Triton later finds them in its cache on disk."""
    # Kernels do not depend on the batch, nor on the number of splits beyond 1. The first candidates of all products
    # come first: they are measured even if time is short.
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
    """Make launches in this process compile their kernel without running it."""
    run = JITFunction.run
    JITFunction.run = lambda self, *args, warmup, **options: run(self, *args, warmup=True, **options)


def _compile(direction: Direction, problem: Problem, settings: Settings) -> None:
    # Compilation errors show up again in the measurement.
    with contextlib.suppress(Exception):
        run(direction, operands(direction, problem), problem, settings)
