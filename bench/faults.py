"""Inject faults into training and preparation, and compare the finished bytes with those of an undisturbed run.

    python bench/faults.py --kills 1000 --flips 1000 --fills 20     # hours; continues where it was stopped
    python bench/faults.py --only flips --seed 17 --flips 1         # repeats one fault; kills at about the same moment

Kills (SIGKILL) strike the command, one of its workers or all of them at random moments; the same command then goes on.
Single bits are flipped in prepared data, checkpoints, configurations and weights: the command that reads them names the
damage, or its result does not change. Disks are filled while a command writes to them, if this is root.

Every fault is written to `<work>/faults.jsonl` at once, and the record is renewed every minute, so the campaign may be
stopped at any moment; the same command continues it. The exit code is 1 if anything was lost, wrong, hung or unnamed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
from fault_injection import fills, flips, kills, record
from fault_injection.jobs import Workplace
from fault_injection.processes import import_everything
from fault_injection.record import Fault, Kind, Log

RUNNERS: dict[Kind, Callable[[Workplace, int], list[Fault]]] = {"kill": kills.run, "flip": flips.run, "fill": fills.run}
SECONDS_BETWEEN_RECORDS = 60.0


def main() -> None:
    arguments = parse()
    wanted: dict[Kind, int] = {"kill": arguments.kills, "flip": arguments.flips, "fill": arguments.fills}
    if arguments.only:
        wanted = {kind: count for kind, count in wanted.items() if f"{kind}s" == arguments.only}
    if wanted.get("fill") and (reason := fills.obstacle()):
        print(f"no disks are filled: {reason}")
        wanted["fill"] = 0
    if arguments.work:
        log = campaign(arguments.work, wanted, arguments)
    else:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            log = campaign(Path(folder), wanted, arguments)
    for fault in log.failures:
        print(fault)
    print(", ".join(f"{count} {name}" for name, count in record.totals(log).items()))
    sys.exit(1 if log.failures else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Inject faults and compare results with undisturbed ones.")
    parser.add_argument("--kills", type=int, default=1000, help="number of kills (1000)")
    parser.add_argument("--flips", type=int, default=1000, help="number of flipped bits (1000)")
    parser.add_argument("--fills", type=int, default=20, help="number of full disks (20); needs root")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--only", choices=("kills", "flips", "fills"), help="only this kind of fault")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first fault (0); each has the next one")
    parser.add_argument("--work", type=Path, help="folder for the work and the log, to continue; else a temporary one")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    return parser.parse_args()


def campaign(work: Path, wanted: dict[Kind, int], arguments: argparse.Namespace) -> Log:
    """Inject faults until as many as wanted were tried, or the time is over; write the record."""
    import_everything()
    place, begin, written = Workplace.open(work), time.monotonic(), time.monotonic()
    log = Log(place.root / "faults.jsonl")
    settings: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "seed": arguments.seed}
    while kind := next_kind(log, wanted):
        if arguments.seconds is not None and time.monotonic() - begin > arguments.seconds:
            break
        faults = RUNNERS[kind](place, max(arguments.seed, log.next_seed(kind)))
        log.add(faults)
        for fault in faults:
            if fault.outcome != "survived":
                print(f"{fault.outcome}: {fault}", flush=True)
        if time.monotonic() - written > SECONDS_BETWEEN_RECORDS:
            written = time.monotonic()
            record.write(log, settings, arguments.output)
    print(f"wrote {record.write(log, settings, arguments.output)} after {time.monotonic() - begin:.0f} s")
    return log


def next_kind(log: Log, wanted: dict[Kind, int]) -> Kind | None:
    """The kind of which the smallest share was tried; None if everything was."""
    shares = {kind: log.count(kind) / count for kind, count in wanted.items() if log.count(kind) < count}
    return min(shares, key=shares.__getitem__, default=None)


if __name__ == "__main__":
    main()
