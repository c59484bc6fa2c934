"""Flipping single bits in files, and reading them: the damage is found and named, or makes no difference."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fault_injection import comparison
from fault_injection.comparison import Result, differences
from fault_injection.jobs import NETWORK, PREPARING, Training, Workplace
from fault_injection.kills import last_line
from fault_injection.processes import Hung, Process
from fault_injection.record import Fault, Outcome

HALF = "half"  # a preparation that was killed
_SHORT = Training("short training", epochs=2)
_IN_HEADER = 0.4  # share of the flips in the first kilobytes of a large file, where names, shapes and numbers are


@dataclass(frozen=True)
class Reader:
    """A command that reads damaged files.

    Args:
        name: for the record.
        arguments: the command, in a folder with the files of :func:`_copy`.
        files: patterns of the files that it reads, and how often each is chosen.
        share: how often this command is chosen.
        check: a command that finds the damage if the first one does not.
    """

    name: str
    arguments: tuple[str, ...]
    files: dict[str, int]
    share: int
    check: tuple[str, ...] = ()

    def result(self, folder: Path, output: str) -> Result:
        """What the command has made."""
        result: Result = {}
        if self.arguments[0] == "fastalex.train":
            result = comparison.trained(folder / ("new" if "new" in self.arguments else "run"))
        elif "predictions.npz" in self.arguments:
            result = comparison.predicted(folder / "predictions.npz")
        elif self.arguments[0] == "dataloading.prepare":
            result = comparison.prepared(folder / HALF)
        else:
            result["output"] = output
        return result


_DATA = {"data/*.tar": 50, "data/*.npy": 15, "data/dataset.json": 25, "data/*.csv": 10}
_READ_IN_TRAINING = {"data/*.tar": 60, "data/*.npy": 20, "data/dataset.json": 20}
_HALF = {f"{HALF}.preparing/*": 1}
_RUN = {"run/config.json": 25, "run/checkpoints/*/model.safetensors": 40, "run/checkpoints/*/trainer.safetensors": 35}
READERS = (
    Reader("check", ("dataloading.check", "data", "--no-progress"), _DATA, 30),
    Reader(
        "train",
        ("fastalex.train", "data", *NETWORK, "--epochs", "1", "--devices", "cpu", "--output", "new"),
        _READ_IN_TRAINING,
        10,
    ),
    Reader("resume", ("fastalex.train", "--resume", "run", "--epochs", "4", "--devices", "cpu"), _RUN, 30),
    Reader(
        "evaluate",
        ("fastalex.evaluate", "run", "data", "--predictions", "predictions.npz", "--devices", "cpu"),
        {"run/best.safetensors": 60, "run/config.json": 10, "data/val-*": 20, "data/dataset.json": 10},
        20,
    ),
    Reader(
        "start from weights",
        (
            *("fastalex.train", "data", *NETWORK, "--epochs", "1", "--devices", "cpu", "--output", "new"),
            *("--init-from", "run/best.safetensors"),
        ),
        {"run/best.safetensors": 1},
        10,
    ),
    Reader(
        "go on preparing",
        ("dataloading.prepare", "photos", HALF, *PREPARING, "--workers", "0"),
        _HALF,
        10,
        check=("dataloading.check", HALF, "--no-progress"),
    ),
)


def run(place: Workplace, seed: int) -> list[Fault]:
    """Flip one bit of one file, and run a command that reads it. The seed decides which."""
    draw = random.Random(f"flip {seed}")
    reader = draw.choices(READERS, [reader.share for reader in READERS])[0]
    expected = _expected(place, reader)
    with _copy(place) as folder:
        pattern = draw.choices(list(reader.files), list(reader.files.values()))[0]
        path = draw.choice(sorted(folder.glob(pattern)))
        position, bit = flip(path, draw)
        name = str(path.relative_to(folder))
        outcome, detail = _read(reader, folder, path, expected)
    return [Fault("flip", seed, reader.name, f"{name}, byte {position}, bit {bit}", outcome, detail)]


def flip(path: Path, draw: random.Random) -> tuple[int, int]:
    """Flip a random bit of a file; return its byte and its number there."""
    data = bytearray(path.read_bytes())
    end = min(len(data), 4096) if draw.random() < _IN_HEADER else len(data)
    position, bit = draw.randrange(end), draw.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return position, bit


def judge(code: int, output: str, names: Sequence[str]) -> Outcome:
    """Whether a command that fails names the damage: one line of an error, with the name of a file or its folder."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    named = (
        any(re.search(rf"(^|[\s/:]){re.escape(name)}($|[\s/:;,)])", errors[0]) for name in names) if errors else False
    )
    return "survived" if code == 2 and len(errors) == 1 and named and "Traceback" not in output else "unnamed"


def _read(reader: Reader, folder: Path, path: Path, expected: Result) -> tuple[Outcome, str]:
    process = Process(reader.arguments, folder, folder / "log")
    try:
        code = process.wait()
    except Hung as error:
        return "hung", str(error)
    if code:
        # A damaged data set is named by its file or by its folder, other files by their own names.
        names = [path.name, *([path.parent.name] if path.parent.name in ("data", f"{HALF}.preparing") else [])]
        outcome = judge(code, process.output, names)
        return outcome, "found" if outcome == "survived" else f"code {code}: {last_line(process.output)}"
    found = differences(reader.result(folder, process.output), expected)
    if found and reader.check:
        process = Process(reader.check, folder, folder / "log")
        if judge(process.wait(), process.output, [HALF]) == "survived":
            return "survived", "found"
    return ("wrong", f"differs in {', '.join(found)}") if found else ("survived", "harmless")


# --- the files --------------------------------------------------------------------------------------------------------

_results: dict[str, Result] = {}


def _expected(place: Workplace, reader: Reader) -> Result:
    """What a command makes of files that are whole; computed once."""
    if reader.name not in _results:
        with _copy(place) as folder:
            output = place.run(*reader.arguments, folder=folder)
            _results[reader.name] = reader.result(folder, output)
    return _results[reader.name]


@contextmanager
def _copy(place: Workplace) -> Iterator[Path]:
    """The files in a folder that always has the same name, as results name it.

    They are prepared ``data``, a ``run`` of two epochs on it, and half a preparation of ``photos``.
    """
    whole, folder = place.root / "whole", place.root / "scratch-copy"
    if not whole.exists():
        _make(place, whole)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make(place: Workplace, whole: Path) -> None:
    folder = place.root / "scratch-copy"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(place.root / "prepared", folder / "data")
    place.run("fastalex.train", "data", *_SHORT.first(place)[2:], folder=folder)
    for picture in (folder / "run").glob("*.png"):
        picture.unlink()
    shutil.copytree(place.root / "photos", folder / "photos")
    (prepare,) = (reader for reader in READERS if reader.name == "go on preparing")
    process, working = Process(prepare.arguments, folder, folder / "log"), folder / f"{HALF}.preparing"
    while process.poll() is None and len(list(working.glob("train-*.tar"))) < 4:
        time.sleep(0.0002)
    process.end()
    (folder / "log").unlink()
    folder.rename(whole)
