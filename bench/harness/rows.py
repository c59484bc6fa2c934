"""Rows of a record: what one provider took in one direction, and how fast it is beside the others of its case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.limits import Limit
from harness.turns import Contender, median_ratio

TIMES = ("ms_p20", "ms_p50", "ms_p80")
# Kinds of providers that speeds are relative to, with the beginnings of their names.
BASES = {"eager": ("torch eager", "torch.optim"), "compiled": ("torch.compile",)}
OURS = "ours"


def new_row(
    op: str, provider: str, direction: str, shape: Sequence[int], dtype: torch.dtype, memory_format: str,
    error: str | None,
) -> dict[str, Any]:  # fmt: skip
    """A row that says what is measured, and what is wrong with it if anything."""
    row = {"op": op, "provider": provider, "direction": direction, "shape": list(shape)}
    row |= {"dtype": str(dtype).removeprefix("torch."), "memory_format": memory_format}
    return row | ({"wrong": error} if error else {})


def measures(contender: Contender | None, amount: int, limit: Limit, limit_ms: Sequence[float]) -> dict[str, Any]:
    """Times, speed and share of the limit; None for all of them without a contender.

    Args:
        amount: bytes moved, or additions and multiplications, as `limit` counts them.
        limit_ms: milliseconds of the limit in each round.
    """
    speed = "gb_per_s" if limit.name.startswith("copy") else "tflop_per_s"
    counted = {} if speed == "gb_per_s" else {"operations": amount}
    if contender is None:
        return dict.fromkeys((*TIMES, "round_ms", speed, "fraction_of_limit"))
    percentiles, round_ms = contender.percentiles(), contender.round_ms
    share = median_ratio([milliseconds / limit.amount for milliseconds in limit_ms], [ms / amount for ms in round_ms])
    return {
        **{name: round(value, 4) for name, value in zip(TIMES, percentiles, strict=True)},
        "round_ms": [round(milliseconds, 4) for milliseconds in round_ms],
        **counted,
        speed: round(amount / percentiles[1] / limit.unit, 4),
        "fraction_of_limit": round(share, 4),
    }


def total(rows: Sequence[dict[str, Any]], op: str, shape: Sequence[int]) -> dict[str, Any]:
    """The sum of the rows of one provider and direction, round by round, bound by arithmetic."""
    first = rows[0]
    times = {name: round(sum(row[name] for row in rows), 4) for name in TIMES}
    # The least time of each row is the share of its limit times its time.
    least = sum(row["fraction_of_limit"] * row["ms_p50"] for row in rows)
    operations = sum(row["operations"] for row in rows)
    rounds = zip(*(row["round_ms"] for row in rows), strict=False)  # as many as the row with the fewest has
    return {
        **{name: first[name] for name in ("provider", "direction", "dtype", "memory_format")},
        "op": op,
        "shape": list(shape),
        **times,
        "round_ms": [round(sum(parts), 4) for parts in rounds],
        "operations": operations,
        "tflop_per_s": round(operations / times["ms_p50"] / 1e9, 4),
        "fraction_of_limit": round(least / times["ms_p50"], 4),
        "saved_bytes": sum(row["saved_bytes"] for row in rows),
        "peak_bytes": None,
    }


def add_speeds(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the rows of one case and direction how fast they are relative to PyTorch, eager and compiled.

    The base of each kind is its fastest provider. A speed is the median of the ratios within rounds; it is above 1 if
    the row is faster than the base, and None without a time of either.
    """
    for kind, beginnings in BASES.items():
        timed = [row for row in rows if row["ms_p50"] is not None and row["provider"].startswith(beginnings)]
        base = min(timed, key=lambda row: row["ms_p50"], default=None)
        for row in rows:
            row[kind] = base["provider"] if base else None
            row[f"speed_to_{kind}"] = None
            if base and row["ms_p50"] is not None:
                row[f"speed_to_{kind}"] = round(median_ratio(base["round_ms"], row["round_ms"]), 4)
