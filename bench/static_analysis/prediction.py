"""A model of one H100: the least time that each part of it needs for a launch. The longest one is the prediction.

    memory      bytes that must move / bandwidth of a copy
    issue       instructions / (132 multiprocessors x 4 schedulers x clock): a scheduler issues one a cycle
    alu         2 cycles of a scheduler's unit per instruction: 16 lanes for the 32 threads of a warp
    fma         1 cycle: 32 lanes
    mufu        8 cycles: 4 lanes
    lsu         bytes between registers or shared memory and the level-1 cache / (132 x 128 bytes x clock)
    tensor      multiplications and additions / (132 x 4 x 512 x clock), of dense 16-bit factors

Numbers of lanes: CUDA C++ Programming Guide, "Throughput of native arithmetic instructions", compute capability 9.0.
Integer multiplications have half the lanes of fma, which is left out, because they never decide. Multiprocessors and
tensor cores: white paper "NVIDIA H100 Tensor Core GPU Architecture"; its nominal bandwidth is 3.35 TB/s, and 512
products per cycle make its 989 TFLOP/s at 1.83 GHz.

The bandwidth used is that of a copy on the recorded H100. The clock is an assumption, 1.755 GHz; the SXM5 module's
maximum is 1.98 GHz, with which all times but the memory's would be 11 % shorter. All parts work at the same time.

The model knows no latency, launch overhead, partly filled last round of programs, cache misses, bank conflicts, or
waiting of one unit for another. So it is a lower limit, and near the truth only for long launches with many warps.
"""

from __future__ import annotations

from dataclasses import dataclass

from static_analysis.sass import Executed

GPU = "NVIDIA H100 80GB HBM3"
MULTIPROCESSORS = 132
SCHEDULERS = 4  # per multiprocessor, each with its own alu, fma and mufu units and its own tensor core
CLOCK_GHZ = 1.755
NOMINAL_GB_PER_S = 3350.0
CYCLES = {"alu": 2, "fma": 1, "mufu": 8}  # of a scheduler's unit per instruction of a warp
CACHE_BYTES = 128  # per cycle and multiprocessor, level-1 cache and shared memory
PRODUCTS = 512  # multiplications and additions per cycle and tensor core
WARP = 32

MAX_WARPS, MAX_PROGRAMS = 64, 32  # that a multiprocessor holds at a time
REGISTERS, REGISTER_STEP = 65536, 256  # of a multiprocessor; a warp's are a multiple of the step
SHARED_BYTES, SHARED_RESERVED = 228 * 1024, 1024  # of a multiprocessor; taken by each program


@dataclass(frozen=True)
class Prediction:
    """Microseconds of one launch by part of the GPU."""

    microseconds: dict[str, float]

    @property
    def bound_by(self) -> str:
        """The part that takes longest."""
        return max(self.microseconds, key=lambda part: self.microseconds[part])

    @property
    def total(self) -> float:
        """The predicted time: that of the slowest part."""
        return self.microseconds[self.bound_by]


def predict(executed: Executed, warps: int, moved: int, gb_per_s: float) -> Prediction:
    """The least time of a launch by part.

    Args:
        executed: what each warp issues.
        moved: bytes between the GPU's memory and its multiprocessors.
        gb_per_s: bandwidth of a copy, bytes read and written together.
    """
    # Microseconds per cycle that each scheduler, or each multiprocessor, spends for one of the warps.
    scheduler = warps / (MULTIPROCESSORS * SCHEDULERS * CLOCK_GHZ * 1e3)
    multiprocessor = warps / (MULTIPROCESSORS * CLOCK_GHZ * 1e3)
    times = {"memory": moved / gb_per_s / 1e3, "issue": executed.slots * scheduler}
    times |= {unit: cycles * executed.units[unit] * scheduler for unit, cycles in CYCLES.items()}
    times["lsu"] = WARP * executed.memory_bytes / CACHE_BYTES * multiprocessor
    times["tensor"] = executed.products / PRODUCTS * scheduler
    return Prediction(times)


def resident_warps(registers: int, shared: int, warps: int) -> int:
    """Warps that a multiprocessor holds at a time.

    Args:
        registers: per thread.
        shared: bytes of shared memory of a program.
        warps: of a program.
    """
    per_warp = -(-registers * WARP // REGISTER_STEP) * REGISTER_STEP
    programs = min(
        MAX_PROGRAMS,
        MAX_WARPS // warps,
        # A scheduler has a quarter of the registers, and a program's warps are spread evenly over the schedulers.
        REGISTERS // SCHEDULERS // per_warp * SCHEDULERS // warps,
        SHARED_BYTES // (shared + SHARED_RESERVED),
    )
    return programs * warps
