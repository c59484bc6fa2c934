"""The figures of each launch, as rows of the record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from triton.compiler import CompiledKernel

from static_analysis import compilation, sass
from static_analysis.intermediate import read_and_written, trip_counts
from static_analysis.launches import Key, Launch
from static_analysis.prediction import NOMINAL_GB_PER_S, WARP, predict, resident_warps

ARCHITECTURE = 90


def rows_of(
    launches: Sequence[Launch], compiled: Sequence[CompiledKernel], gb_per_s: float = NOMINAL_GB_PER_S
) -> Iterator[dict[str, Any]]:
    """One row per launch.

    Args:
        compiled: the compiled kernel of each launch, for sm_90.
        gb_per_s: bandwidth of a copy on the GPU.
    """
    codes = sass.disassemble([kernel.asm["cubin"] for kernel in compiled], ARCHITECTURE)
    for launch, kernel, code in zip(launches, compiled, codes, strict=True):
        yield _row(launch, kernel, code, gb_per_s)


def key_of(row: dict[str, Any]) -> Key:
    """What identifies a launch in a record."""
    return row["case"], row["direction"], row["kernel"], row["number"]


def _row(launch: Launch, kernel: CompiledKernel, code: Sequence[sass.Instruction], gb_per_s: float) -> dict[str, Any]:
    executed = sass.executed(code, trip_counts(kernel.asm["ttgir"], launch.arguments))
    elements, moved = results_and_bytes(launch, kernel.asm["ttir"])
    resources = compilation.resources(kernel.asm["cubin"])
    registers, shared, warps = resources["REG"], kernel.metadata.shared, launch.options["num_warps"]
    prediction = predict(executed, launch.warps, moved, gb_per_s)
    per_result = {"slots": executed.slots} | {unit: executed.units[unit] for unit in sass.UNITS}
    return {
        **dict(zip(("case", "direction", "kernel", "number"), launch.key, strict=True)),
        "shape": list(launch.case.shape),
        "programs": launch.programs,
        "warps": launch.warps,
        "registers": registers,
        "spilled_bytes": resources["STACK"] + resources["LOCAL"],
        "shared_bytes": shared,
        "resident_warps": resident_warps(registers, shared, warps),
        "load_widths": dict(compilation.load_widths(kernel.asm["ptx"])),
        "store_widths": dict(compilation.store_widths(kernel.asm["ptx"])),
        "loops_known": executed.loops_known,
        "skipped_sometimes": round(executed.sometimes / executed.slots, 3),
        "results": elements,
        "moved_bytes": moved,
        "per_result": {name: round(count * launch.warps * WARP / elements, 3) for name, count in per_result.items()},
        "microseconds": {part: round(time, 2) for part, time in prediction.microseconds.items()},
        "bound_by": prediction.bound_by,
        "predicted_us": round(prediction.total, 2),
    }


def results_and_bytes(launch: Launch, ttir: str) -> tuple[int, int]:
    """Number of results of a launch, and the bytes that it must move: each tensor once for each way.

    The results are the elements of the largest tensor that it writes.
    """
    case = launch.case
    if case.elements is not None and case.moved is not None:
        return case.elements, case.moved
    read, written = read_and_written(ttir)
    tensors = launch.tensors
    sizes = [tensors[name].numel() for name in written]
    return max(sizes), sum(_bytes([tensors[name] for name in names]) for names in (read, written))


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors; one that is passed as several arguments counts once."""
    different = {(tensor.data_ptr(), tensor.nbytes) for tensor in tensors}
    return sum(size for _, size in different)
