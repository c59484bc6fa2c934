"""Compares what was measured here with the committed records: claimed, measured here, ratio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_check.outcome import Outcome
from gpu_check.plan import Job

# What the operators are measured with. The update has neither a batch nor a dtype that can be chosen.
_BATCH, _DTYPE = 128, "bfloat16"
_PROVIDERS = ("ours", "ours, Triton alone", "ours, with bf16 copies")

Key = tuple[str, str]
"""A benchmark and one of its measurements."""


@dataclass(frozen=True)
class Claim:
    """A committed figure: milliseconds or images/s, and where it was measured."""

    value: float
    unit: str
    device: str
    date: str


@dataclass(frozen=True)
class Comparison:
    """One line of the table; `ratio` is the speed here relative to the claim, above 1 if it is faster here."""

    benchmark: str
    what: str
    unit: str
    claimed: float | None
    measured: float | None
    ratio: float | None
    device: str | None
    date: str | None


def load(results: Path, folder: str, jobs: Sequence[Job]) -> dict[Key, Claim]:
    """The committed figures for these jobs: of this device if its folder has them, else of another NVIDIA GPU.

    Args:
        results: folder of the records of all devices.
        folder: name of this device's folder.
    """
    others = sorted(path.name for path in results.glob("nvidia-*") if path.name != folder)
    claims: dict[Key, Claim] = {}
    for benchmark in dict.fromkeys(job.claim for job in jobs if job.claim):
        for name in (folder, *others):
            path = results / name / f"{benchmark}.json"
            if path.exists():
                record = json.loads(path.read_text())
                for what, value, unit in _figures(benchmark, record["rows"]):
                    claim = Claim(value, unit, record["device"], record["date"][:10])
                    claims.setdefault((benchmark, what), claim)
    return claims


def _figures(benchmark: str, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float, str]]:
    """What is compared: (measurement, value, unit) of a record's rows."""
    for row in rows:
        if benchmark == "loader":
            if "DALI" in row["reader"]:
                yield f"{row['reader']}, {row['setting']}", row["images_per_second"], "images/s"
        elif row["ms_p50"] is None:
            continue
        elif benchmark == "train_step":
            if (row["batch"], row["architecture"], row["precision"]) == (_BATCH, "krizhevsky", "bf16"):
                yield f"batch {row['batch']}, {row['variant']}", row["images_per_second"], "images/s"
        elif _is_compared(benchmark, row):
            shape = "x".join(map(str, row["shape"]))
            yield f"{row['op']} {shape}, {row['provider']}", row["ms_p50"], "ms"


def _is_compared(benchmark: str, row: dict[str, Any]) -> bool:
    """Whether a row of an operator is one of ours, forward and backward, at the size that this check measures."""
    sized = benchmark == "sgd" or (row["direction"], row["shape"][0], row["dtype"]) == ("both", _BATCH, _DTYPE)
    return sized and row["provider"] in _PROVIDERS


def compare(claims: dict[Key, Claim], jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> list[Comparison]:
    """One line per figure that was claimed or measured; a claimed figure without a measurement stays visible.

    Claims of variants that did not run, such as compiled ones without spare time, are left out.
    """
    benchmark_of = {job.name: job.claim for job in jobs if job.claim}
    measured = {
        (benchmark, what): (value, unit)
        for outcome in outcomes
        if (benchmark := benchmark_of.get(outcome.name)) is not None
        for what, value, unit in _figures(benchmark, outcome.rows)
    }
    lines = []
    for key in dict.fromkeys((*claims, *measured)):
        claim, (value, unit) = claims.get(key), measured.get(key, (None, None))
        if value is None and "ours" not in key[1]:
            continue
        ratio = None
        if claim is not None and value:
            ratio = round(claim.value / value if claim.unit == "ms" else value / claim.value, 2)
        lines.append(
            Comparison(
                benchmark=key[0],
                what=key[1],
                unit=claim.unit if claim else unit or "",
                claimed=claim.value if claim else None,
                measured=value,
                ratio=ratio,
                device=claim.device if claim else None,
                date=claim.date if claim else None,
            )
        )
    order = list(dict.fromkeys(benchmark_of.values()))
    return sorted(lines, key=lambda line: order.index(line.benchmark))


def as_rows(lines: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The table for the record."""
    return [asdict(line) for line in lines]
