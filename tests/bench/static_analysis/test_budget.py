"""The comparison of compiled code with the record."""

import copy
from typing import Any

import pytest
from static_analysis.budget import Budget

VERSIONS = {"triton": "3.7.1", "ptxas": "12.8.93"}
ROW = {
    "case": "lrn conv1", "direction": "forward", "kernel": "lrn_fwd_kernel", "number": 1, "registers": 32,
    "shared_bytes": 0, "resident_warps": 64, "spilled_bytes": 0, "moved_bytes": 1000, "loops_known": True,
    "per_result": {"slots": 100.0},
}  # fmt: skip


def problems(versions: dict[str, str], **changes: Any) -> list[str]:
    record = {"versions": {"python": "3.11"} | VERSIONS, "rows": [ROW]}
    row = copy.deepcopy(ROW)
    row["per_result"]["slots"] = changes.pop("slots", 100.0)
    return list(Budget.of(record, versions).problems([row | changes]))


def test_the_same_and_better_code_is_within_the_budget() -> None:
    assert problems(VERSIONS) == []
    assert problems(VERSIONS, slots=50.0, registers=30, moved_bytes=900) == []
    assert problems(VERSIONS, registers=40) == []  # without fewer warps


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slots": 103.0}, "issue slots per result 103.0, recorded 100.0"),
        ({"resident_warps": 60, "registers": 34}, r"\(34 registers, 0 bytes shared\) 60, recorded 64"),
        ({"spilled_bytes": 8}, "spilled bytes 8, recorded 0"),
        ({"moved_bytes": 1001}, "moved bytes 1,001, recorded 1,000"),
        ({"loops_known": False}, "unknown number of iterations"),
        ({"number": 2}, r"lrn conv1 \(forward\), lrn_fwd_kernel 2: is not in the record"),
    ],
)
def test_each_kind_of_growth_is_named(changes: dict[str, Any], named: str) -> None:
    (problem,) = problems(VERSIONS, **changes)
    with pytest.raises(ValueError, match=named):
        raise ValueError(problem)
    assert "bench/static.py" in problem


@pytest.mark.parametrize("versions", [VERSIONS | {"triton": "3.6.0"}, VERSIONS | {"ptxas": "13.1.80"}])
def test_other_compilers_may_cost_a_little(versions: dict[str, str]) -> None:
    assert problems(versions, slots=119.0, resident_warps=52) == []
    assert len(problems(versions, slots=121.0, resident_warps=48)) == 2
    assert len(problems(versions, spilled_bytes=4)) == 1
