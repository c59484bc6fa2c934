"""What is disturbed: training and preparation of a tiny set, and how they go on after a fault."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from fault_injection import comparison
from fault_injection.comparison import Result
from fault_injection.moments import Pace
from fault_injection.processes import Process, Victim

CLASSES = ("blue", "green", "red")
EPOCHS = 6
NETWORK = ("-a", "four-layer", "--width", "0.25", "--init", "scaled", "--recipe", "small", "-b", "8", "--seed", "5")


@dataclass(frozen=True)
class Workplace:
    """A folder with everything that commands read, and a scratch folder for what they write.

    Contents: class folders ``photos`` of 24 training and 9 validation images in 3 classes, and the same ``prepared``.
    """

    root: Path
    _undisturbed: dict[str, tuple[Result, Pace]] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path) -> Workplace:
        """Make what is missing. What an earlier campaign was doing when it was stopped is removed."""
        place = cls(root.resolve())
        place.root.mkdir(parents=True, exist_ok=True)
        for leftover in place.root.glob("scratch-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not (place.root / "photos").exists():
            _write_photos(place.root / ".photos")
            (place.root / ".photos").rename(place.root / "photos")
        if not (place.root / "prepared").exists():
            place.run("dataloading.prepare", "photos", "prepared", *PREPARING, "--workers", "0")
        return place

    def scratch(self) -> Path:
        """A new folder; the caller removes it."""
        return Path(tempfile.mkdtemp(prefix="scratch-", dir=self.root))

    def run(self, *arguments: str, folder: Path | None = None) -> str:
        """Run a command undisturbed and return what it printed.

        Raises:
            RuntimeError: it failed.
        """
        process = Process(arguments, folder or self.root, self.root / "undisturbed.log")
        if code := process.wait():
            raise RuntimeError(f"undisturbed, {' '.join(arguments)} ends with code {code}:\n{process.output}")
        return process.output

    def undisturbed(self, job: Job) -> tuple[Result, Pace]:
        """What a job makes if nothing disturbs it, and how long it takes; computed once."""
        if job.name not in self._undisturbed:
            folder = self.scratch()
            process = Process(job.first(self), folder, folder / "log", forked=job.forked)
            pace = Pace.measure(process, job.watched(folder), job.log(folder))
            if code := process.wait():
                raise RuntimeError(f"undisturbed, {job.name} ends with code {code}:\n{process.output}")
            self._undisturbed[job.name] = job.result(folder), pace
            shutil.rmtree(folder)
        return self._undisturbed[job.name]


def _write_photos(folder: Path) -> None:
    """Noisy images, each class with a colour of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    draw = np.random.default_rng(1)
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 120, (36, 40, 3), dtype=np.uint8)
                pixels[..., 2 - label] += 110
                Image.fromarray(pixels).save(folder / split / name / f"{number:03}.jpg", quality=90)


PREPARING = ("--size", "32", "--shard-images", "3", "--no-progress")


@dataclass(frozen=True)
class Job(abc.ABC):
    """A command that goes on after a fault when it is repeated.

    Args:
        name: for the record.
        victims: who can be killed.
        forked: whether it runs in a fork of this process instead of a new Python.
        most_kills: in a row, before it may finish.
    """

    name: str
    victims: tuple[Victim, ...] = ("parent",)
    forked: bool = True
    most_kills: int = 4

    @abc.abstractmethod
    def first(self, place: Workplace) -> list[str]:
        """The command that begins."""

    def next(self, place: Workplace, folder: Path) -> list[str]:
        """The command that a user gives to go on with what is in `folder`."""
        return self.first(place)

    @abc.abstractmethod
    def watched(self, folder: Path) -> list[Path]:
        """The folders that the command writes to."""

    def log(self, folder: Path) -> Path | None:
        """The file that grows with every step."""
        return None

    @abc.abstractmethod
    def saved(self, folder: Path) -> list[int]:
        """How far the work is saved; this never decreases."""

    @abc.abstractmethod
    def is_finished(self, code: int, output: str) -> bool:
        """Whether the command says that nothing is left to do."""

    @abc.abstractmethod
    def result(self, folder: Path) -> Result:
        """What it has made."""


@dataclass(frozen=True)
class Training(Job):
    """A training run of a few epochs; resumed if it has a checkpoint, else started again."""

    devices: str = "cpu"
    epochs: int = EPOCHS

    def first(self, place: Workplace) -> list[str]:
        options = ["--epochs", str(self.epochs), "--devices", self.devices, "--output", "run"]
        return ["fastalex.train", str(place.root / "prepared"), *NETWORK, *options]

    def next(self, place: Workplace, folder: Path) -> list[str]:
        if self.saved(folder):
            return ["fastalex.train", "--resume", "run"]
        shutil.rmtree(folder / "run", ignore_errors=True)
        return self.first(place)

    def watched(self, folder: Path) -> list[Path]:
        return [folder / "run", folder / "run" / "checkpoints"]

    def log(self, folder: Path) -> Path | None:
        return folder / "run" / "metrics.jsonl"

    def saved(self, folder: Path) -> list[int]:
        """Epoch and step of the latest checkpoint."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(folder / "run" / "checkpoints")
        return max(([int(part) for part in name.split("-")] for name in names if name[0].isdigit()), default=[])

    def is_finished(self, code: int, output: str) -> bool:
        return code == 0 or (code == 2 and "is finished" in output)

    def result(self, folder: Path) -> Result:
        return comparison.trained(folder / "run")


@dataclass(frozen=True)
class Preparation(Job):
    """The preparation of class folders."""

    workers: int = 0

    def first(self, place: Workplace) -> list[str]:
        source = str(place.root / "photos")
        return ["dataloading.prepare", source, "data", *PREPARING, "--workers", str(self.workers)]

    def watched(self, folder: Path) -> list[Path]:
        return [folder / "data", folder / "data.preparing"]

    def saved(self, folder: Path) -> list[int]:
        """The number of finished shards; one more if everything is finished."""
        with contextlib.suppress(FileNotFoundError):
            return [1000 + sum(name.endswith(".tar") for name in os.listdir(folder / "data"))]
        with contextlib.suppress(FileNotFoundError):
            return [sum(name.endswith(".tar") for name in os.listdir(folder / "data.preparing"))]
        return [1000] if (folder / "data").exists() else []

    def is_finished(self, code: int, output: str) -> bool:
        return code == 0 or (code == 2 and "exists already" in output)

    def result(self, folder: Path) -> Result:
        left = {"data.preparing": "is left"} if (folder / "data.preparing").exists() else {}
        return comparison.prepared(folder / "data") | left


TRAINING = Training("training", most_kills=8)
PREPARATION = Preparation("preparation")
JOBS: dict[Job, int] = {
    TRAINING: 78,
    PREPARATION: 14,
    Preparation("preparation, two workers", ("parent", "worker", "all"), workers=2): 4,
    Training("training, new Python", forked=False): 2,
    Training("training, two workers", ("parent", "worker", "all"), forked=False, devices="cpu,cpu", most_kills=3): 2,
}
"""What is killed, and how often of a hundred times. Starting Python anew takes seconds, so it is rarer."""
