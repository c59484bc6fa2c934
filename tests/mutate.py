#!/usr/bin/env python
"""Makes plausible one-line faults in the code, one at a time, and prints those that no matching test sees.

    .venv/bin/python tests/mutate.py --files kernels/lrn.py --count 20
    .venv/bin/python tests/mutate.py --seconds 600 --seed 1

Faults follow patterns: bounds, signs, operators, swapped names and arguments, dropped conditions, removed statements.
Each is made in a copy of the checkout in a temporary folder, where the test files run that mirror its file, up to the
first failure; tests that take far longer than without the fault have caught it, too. A fault that does not compile is
caught at once. ``tests/equivalent_faults.txt`` lists faults that make no difference; these are left out.

mutmut leaves out decorated functions, and so every Triton kernel; cosmic-ray edits the checkout itself and runs one
command for all files; neither reads C.

The exit status is 1 if a fault survived, 2 for bad options or tests that fail without a fault, 130 after Ctrl-C, or 0.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# ruff: noqa: E402 - `tests` is found only now
from tests.mutation.c_faults import c_edits
from tests.mutation.campaign import SURVIVED, TIME_LIMIT, Campaign, CannotTryError
from tests.mutation.faults import Fault, faults
from tests.mutation.matching import TestFiles, matching_tests
from tests.mutation.python_faults import python_edits

PACKAGES = ("kernels", "dataloading", "fastalex")
EQUIVALENT = "tests/equivalent_faults.txt"
_AT_A_TIME = 5  # faults of a file tried in a row, so that its tests need not run without a fault for each
_EDITS = {".py": python_edits, ".c": c_edits}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command in the checkout at ``root``; returns the exit status."""
    options, root = _parse(arguments), root.resolve()
    try:
        chosen = choose(root, options.files, options.seed)[: options.count]
        if options.list:
            print("\n".join(map(str, sorted(chosen, key=_place))))
            return 0
        tests = {path: _tests(path, root, options) for path in {fault.path for fault in chosen}}
        return _try(chosen, root, tests, options)
    except (CannotTryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def choose(root: Path, files: Sequence[str], seed: int) -> list[Fault]:
    """All faults of files, folders and lines (``FILE:LINE``) but the equivalent ones, in an order drawn by ``seed``.

    A few faults of a file come in a row.

    Raises:
        CannotTryError: a file does not exist or is neither Python nor C, or there are no faults in it.
    """
    equivalent = _equivalent(root)
    draw = random.Random(seed)
    rows: list[list[Fault]] = []
    for path, lines in _lines(root, files).items():
        found = [
            fault
            for fault in faults_of(root, path)
            if (lines is None or fault.line in lines) and f"{path}: {fault.change}" not in equivalent
        ]
        draw.shuffle(found)
        rows += [found[start : start + _AT_A_TIME] for start in range(0, len(found), _AT_A_TIME)]
    if not rows:
        raise CannotTryError(f"there is nothing to make a fault of in {' '.join(files)}; name more with --files")
    draw.shuffle(rows)
    return [fault for row in rows for fault in row]


def faults_of(root: Path, path: str) -> list[Fault]:
    """All faults of one file, the equivalent ones included.

    Raises:
        CannotTryError: it is not the Python that it seems to be.
    """
    text = (root / path).read_text()
    try:
        return faults(path, text, _EDITS[Path(path).suffix](text))
    except SyntaxError as error:
        raise CannotTryError(f"{path}: {error}") from None


def _lines(root: Path, files: Sequence[str]) -> dict[str, set[int] | None]:
    """The files that ``--files`` names, each with the lines that it is restricted to, if any."""
    chosen: dict[str, set[int] | None] = {}
    for name in files:
        path, _, line = name.partition(":")
        at = (root / path).resolve()
        inside = at.exists() and at.is_relative_to(root)
        sources = sorted(file for file in at.rglob("*") if file.suffix in _EDITS) if inside and at.is_dir() else [at]
        if not inside or any(source.suffix not in _EDITS for source in sources) or not (line or "0").isdecimal():
            raise CannotTryError(f"{name} is no folder, .py or .c file of {root}, or a line of one: kernels/lrn.py:58")
        for source in sources:
            key = source.relative_to(root).as_posix()
            before = chosen.get(key, set())
            chosen[key] = before | {int(line)} if line and before is not None else None
    return chosen


def _try(
    chosen: Sequence[Fault], root: Path, tests: dict[str, tuple[TestFiles, ...]], options: argparse.Namespace
) -> int:
    """Try the faults, print how they end, and return the exit status."""
    outcomes: dict[Fault, str] = {}
    status = 0
    with tempfile.TemporaryDirectory(prefix="mutate-", ignore_cleanup_errors=True) as folder:
        try:
            campaign = Campaign(Path(folder), root, tests, jobs=options.jobs, seconds=options.seconds)
            with closing(campaign.outcomes(chosen)) as ends:
                for fault, outcome in ends:
                    outcomes[fault] = outcome
                    print(f"[{len(outcomes)}/{len(chosen)}] {outcome}: {fault}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            status = 130
        except CannotTryError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    if not outcomes:
        if not status:
            print(f"error: no fault was tried within {options.seconds} seconds; allow more --seconds", file=sys.stderr)
        return status or 2
    print(_table(outcomes))
    if len(outcomes) < len(chosen):
        why = {0: "the time was up", 130: "interrupted"}.get(status, "an error ended it")
        print(f"{len(outcomes)} of {len(chosen)} faults tried; {why}")
    for outcome in (TIME_LIMIT, SURVIVED):
        listed = sorted((fault for fault in outcomes if outcomes[fault] == outcome), key=_place)
        if listed:
            print(f"\n{outcome}:", *listed, sep="\n")
    return status or int(SURVIVED in outcomes.values())


def _place(fault: Fault) -> tuple[str, int]:
    return fault.path, fault.line


def _table(outcomes: dict[Fault, str]) -> str:
    tried = Counter(fault.path for fault in outcomes)
    survived = Counter(fault.path for fault, outcome in outcomes.items() if outcome == SURVIVED)
    width = max(map(len, ["file", *tried]))
    rows = [(path, tried[path], tried[path] - survived[path], survived[path]) for path in sorted(tried)]
    rows.append(("all", tried.total(), tried.total() - survived.total(), survived.total()))
    lines = [f"{'file':{width}}  tried  caught  survived"]
    lines += [f"{path:{width}}  {all_:5}  {caught:6}  {left:8}" for path, all_, caught, left in rows]
    return "\n".join(lines)


def _tests(path: str, root: Path, options: argparse.Namespace) -> tuple[TestFiles, ...]:
    found = (tuple(options.tests),) if options.tests else matching_tests(path, root, wider=options.wider)
    missing = [test for step in found for test in step if not (root / test.partition("::")[0]).exists()]
    if missing or not found:
        raise CannotTryError(
            f"{missing[0]} does not exist" if missing else f"no tests match {path}; name some with --tests"
        )
    return found


def _equivalent(root: Path) -> set[str]:
    """Faults that make no difference, without their lines' numbers, which other changes move."""
    path = root / EQUIVALENT
    lines = path.read_text().splitlines() if path.exists() else []
    return {line for line in lines if line and not line.startswith("#")}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--files", nargs="+", default=PACKAGES, metavar="PATH", help="files, folders or FILE:LINE (default: all code)")
    add("--tests", nargs="+", metavar="PATH", help="the tests to run, instead of those that match")
    add(
        "--wider", action="store_true", help="show a fault that these do not see to the other tests of its package, too"
    )
    add("--count", type=_positive, metavar="N", help="faults to try (default: all)")
    add("--seconds", type=_positive, metavar="S", help="time for the whole (default: as long as it takes)")
    add("--seed", type=int, default=0, help="draws the faults and their order (default: 0)")
    add("--jobs", type=_positive, default=1, metavar="N", help="faults to try at a time, each in a copy (default: 1)")
    add("--list", action="store_true", help="print the faults instead of trying them")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which ends the tests, too
    sys.exit(main())
