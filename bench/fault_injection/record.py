"""What became of each fault: one line of JSON each, written at once, and the record that sums them up."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import harness

Kind = Literal["kill", "flip", "fill"]
Outcome = Literal["survived", "lost", "wrong", "hung", "unnamed"]
OUTCOMES: tuple[Outcome, ...] = ("survived", "lost", "wrong", "hung", "unnamed")


@dataclass(frozen=True)
class Fault:
    """A fault and its outcome.

    Args:
        kind: what was done.
        seed: which, together with the kind, repeats it.
        what: the command that was disturbed.
        how: the victim and the moment of a kill; the file, the byte and the bit of a flip; where a disk was filled.
        outcome: ``survived``: the finished bytes are those of an undisturbed run, or the damage was named. ``lost``:
            saved work is gone, or cannot be continued. ``wrong``: another result, without a word. ``hung``: no end, or
            processes left behind. ``unnamed``: refused, but not in one line that names the file.
        detail: what was found.
    """

    kind: Kind
    seed: int
    what: str
    how: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} with seed {self.seed}: {self.what}, {self.how}" + (f": {self.detail}" * bool(self.detail))


class Log:
    """The faults tried so far, in a file that is complete whenever the campaign is stopped."""

    def __init__(self, path: Path) -> None:
        self.path, self.faults = path, list[Fault]()
        if path.exists():
            *lines, cut_short = path.read_text().split("\n")
            self.faults = [Fault(**json.loads(line)) for line in lines]
            os.truncate(path, path.stat().st_size - len(cut_short.encode()))

    def add(self, faults: Sequence[Fault]) -> None:
        """Append faults."""
        with self.path.open("a") as file:
            file.write("".join(json.dumps(asdict(fault)) + "\n" for fault in faults))
        self.faults += faults

    def count(self, kind: Kind) -> int:
        """How many faults of a kind were tried."""
        return sum(fault.kind == kind for fault in self.faults)

    def next_seed(self, kind: Kind) -> int:
        """A seed that was not used for this kind."""
        return max((fault.seed for fault in self.faults if fault.kind == kind), default=-1) + 1

    @property
    def failures(self) -> list[Fault]:
        """The faults that did not end well."""
        return [fault for fault in self.faults if fault.outcome != "survived"]


def write(log: Log, settings: dict[str, Any], output: Path) -> Path:
    """Write the record: a row for each command, with all its faults; and the failures."""
    rows: list[dict[str, Any]] = []
    for kind, what in dict.fromkeys((fault.kind, fault.what) for fault in log.faults):
        faults = [fault for fault in log.faults if (fault.kind, fault.what) == (kind, what)]
        outcomes = Counter(fault.outcome for fault in faults)
        details = Counter(fault.detail for fault in faults if kind == "flip" and fault.outcome == "survived")
        rows.append(
            {
                "fault": kind,
                "what": what,
                "tried": len(faults),
                **{outcome: outcomes[outcome] for outcome in OUTCOMES},
                **{name: count for name, count in details.items() if name},
                "faults": [f"{fault.seed}: {fault.how}" for fault in faults],
            }
        )
    settings = {**settings, **totals(log), "failures": [str(fault) for fault in log.failures]}
    with _quiet():
        return harness.write_record("faults", settings, rows, output)


def totals(log: Log) -> dict[str, int]:
    """How many kills, flips and fills were tried, and how all of them ended."""
    tried = {f"{kind}s": log.count(kind) for kind in ("kill", "flip", "fill")}
    outcomes = Counter(fault.outcome for fault in log.faults)
    return tried | {outcome: outcomes[outcome] for outcome in OUTCOMES}


@contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
