"""The fastest launch settings of the convolution's kernels, among those that compute rightly.

    python bench/conv_relu.py --tune

writes `kernels/tuned/<gpu>.json`. A candidate that does not compile, does not fit the GPU, computes something else than
PyTorch in fp64, leaves a part of its result unwritten, or does not compute the same twice, gets no time and cannot be
chosen.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import conv_relu, conv_settings
from kernels.conv_settings import Direction, Entry, Problem, Settings

# Rows, columns and terms per step of a tile.
_TILES = (
    (256, 128, 64), (128, 256, 64), (128, 128, 64), (128, 128, 32), (256, 64, 64), (64, 256, 64), (128, 64, 64),
    (64, 128, 64), (128, 64, 32), (64, 128, 32), (64, 64, 64), (64, 64, 32), (128, 32, 64), (64, 32, 64),
)  # fmt: skip
_STAGES = (2, 3, 4, 5)
# TF32 rounds the factors to 11 bits, as fp16 does.
_TF32_TOLERANCE = harness.TOLERANCES[torch.float16]

Timer = Callable[[Callable[[], Tensor], Settings | None], float]


def candidates(direction: Direction, problem: Problem) -> Iterator[Settings]:
    """The heuristic's choice first; then tiles that do not mostly hang over the edge, with few and many warps."""
    first = conv_settings.heuristic(direction, problem)
    yield first
    rows, columns, _ = problem.product(direction)
    # A step's bytes are what counts.
    scale = 2 / problem.itemsize
    splits = sorted({max(1, first.splits * factor // 2) for factor in (1, 2, 4)})
    for (block_m, block_n, block_k), num_stages, num_warps in itertools.product(_TILES, _STAGES, (4, 8)):
        if num_warps == 8 and block_m * block_n < 128 * 128:
            continue
        if block_m >= 2 * max(64, rows) or block_n >= 2 * max(32, columns):
            continue
        for split in splits:
            settings = Settings(block_m, block_n, max(16, int(block_k * scale)), num_warps, num_stages, split)
            if settings != first:
                yield settings


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
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in shapes[direction]]
    dtype = getattr(torch, problem.dtype)
    return [
        tensor.to(harness.DEVICE, dtype, memory_format=torch.channels_last)
        if tensor.dim() == 4
        else tensor.to(harness.DEVICE, dtype)
        for tensor in made
    ]


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


def fastest(
    direction: Direction,
    problem: Problem,
    tried: Sequence[Settings],
    time: Timer,
    refused: dict[Settings, str],
) -> tuple[Settings, float] | None:
    """The fastest of the settings that compute rightly, and its milliseconds; None where none does.

    Args:
        tried: the candidates.
        time: what a piece of work takes, in milliseconds.
        refused: filled with the candidates that may not be chosen, and why.
    """
    given = operands(direction, problem)
    wanted = definition(direction, given, problem)
    tolerance = _TF32_TOLERANCE if problem.precision == "tf32" else harness.TOLERANCES[given[0].dtype]
    best = None
    for settings in tried:
        try:
            with uninitialised_as_nan():
                found, again = (run(direction, given, problem, settings) for _ in range(2))
        except Exception as error:
            # Too much shared memory, or more registers than there are: Triton has no common type for them.
            refused[settings] = f"{type(error).__name__}: {error}"
            continue
        distance = float((found.double() - wanted).abs().max() / wanted.abs().max())
        if not distance <= tolerance:
            refused[settings] = f"is off by {distance:.1e}"
        elif not torch.equal(found, again):
            refused[settings] = "does not compute the same twice"
        else:
            taken = time(lambda settings=settings: run(direction, given, problem, settings), settings)
            if best is None or taken < best[1]:
                best = settings, taken
    return best


@contextmanager
def uninitialised_as_nan() -> Iterator[None]:
    """Memory arrives full of NaN. It would hold the result of the candidate before, and hide what is never written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def tune(problems: Sequence[tuple[Direction, Problem]], time: Timer) -> Path:
    """Measure every problem, and write what was found to this GPU's table, in place of older entries of the same."""
    gpu = torch.cuda.get_device_name()
    path = conv_settings.table_path(gpu)
    entries = dict(conv_settings.load_table(path))
    for direction, problem in problems:
        refused: dict[Settings, str] = {}
        tried = list(candidates(direction, problem))
        best = fastest(direction, problem, tried, time, refused)
        print(f"{direction} of {problem}: {len(tried)} settings, {len(refused)} refused")
        for settings, reason in refused.items():
            if "off by" in reason or "twice" in reason:
                print(f"  wrong: {settings}: {reason}")
        if best is None:
            entries.pop((direction, problem), None)
            continue
        given = operands(direction, problem)
        library = time(lambda: run_library(direction, given, problem), None)  # noqa: B023
        entry = Entry(best[0], round(best[1], 5), round(library, 5))
        print(f"  {entry.settings}: {entry.ms} ms, cuDNN {entry.library_ms} ms")
        entries[direction, problem] = entry
        # After each, as hours of measuring may be cut short.
        write_table(path, gpu, entries)
    return path


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
