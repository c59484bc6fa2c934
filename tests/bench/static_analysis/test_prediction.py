"""The model of an H100."""

from collections import Counter

import pytest
from static_analysis.prediction import predict, resident_warps
from static_analysis.sass import Executed


def test_each_part_has_its_time() -> None:
    units = Counter({"alu": 100, "fma": 50, "mufu": 10, "lsu": 4, "tensor": 2, "other": 34})
    warps = 132 * 4 * 1755  # so many that each scheduler needs one microsecond per instruction
    found = predict(Executed(units, 64, 512 * 7, True), warps, 3_000_000, 3000.0)
    # 64 bytes for each of 32 threads are 16 cache lines, and four schedulers share a cache.
    assert found.microseconds == pytest.approx(
        {"memory": 1, "issue": 200, "alu": 200, "fma": 50, "mufu": 80, "lsu": 16 * 4, "tensor": 7}
    )


def test_the_slowest_part_bounds() -> None:
    few = Executed(Counter({"fma": 3}), 0, 0, True)
    assert predict(few, 528, 10**9, 1000.0).bound_by == "memory"
    assert predict(few, 528, 10**9, 1000.0).total == pytest.approx(1000)
    assert predict(Executed(Counter({"mufu": 3}), 0, 0, True), 528, 0, 1000.0).bound_by == "mufu"


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [
        (32, 0, 4, 64), (33, 0, 4, 48), (40, 0, 4, 48), (64, 0, 4, 32), (128, 0, 4, 16), (255, 0, 4, 8),
        (128, 0, 8, 16), (168, 0, 4, 12), (32, 72 * 1024, 4, 12), (32, 227 * 1024, 8, 8), (16, 0, 1, 32),
    ],
)  # fmt: skip
def test_resident_warps(registers: int, shared: int, warps: int, resident: int) -> None:
    """As in NVIDIA's occupancy calculator for compute capability 9.0."""
    assert resident_warps(registers, shared, warps) == resident
