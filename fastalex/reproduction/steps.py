"""The steps of a reproduction: commands of this project, each with the file or folder that it makes.

The words of a command are those that a user would type, so every number of the page can be made again by hand.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from dataloading import DatasetError
from fastalex.reproduction.job import Job, Source
from fastalex.studies.comparison import RECORD
from fastalex.training.checkpoint import checkpoints_of, finished_epochs, publish
from fastalex.training.config import RunConfig

FEWEST_IMAGES, MOST_IMAGES = 64, 100_000
"""Training images for hand-crafted features: one per Gaussian at least; the classifiers of more would take weeks."""

FRACTIONS = (1.0, 0.3, 0.1)
"""Of the training images, on which the network and hand-crafted features are compared."""


@dataclass(frozen=True)
class Step:
    """A command and its result.

    Args:
        title: what it makes, for the plan.
        words: module and arguments, after ``python -m``.
        result: the file or folder that it writes; a file is there only when it is complete.
        forwards: images that it passes through a network without training it.
    """

    title: str
    words: tuple[str, ...]
    result: Path
    forwards: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the result is complete."""
        return self.result.exists()

    def words_now(self) -> tuple[str, ...]:
        """The command that makes the result, or what is missing of it."""
        return self.words


class Training(Step):
    """A run of ``fastalex.train``; its result is the run folder."""

    @property
    def is_done(self) -> bool:
        """Whether all epochs are finished."""
        if not self._is_begun:
            return False
        config = RunConfig.load(self.result)
        if finished_epochs(self.result) < config.recipe.epochs:
            return False
        if not self.weights.is_file():  # killed between its last checkpoint and this
            publish(self.result, checkpoints_of(self.result)[-1], config.keep)
        return True

    @property
    def weights(self) -> Path:
        """The weights after the last epoch. Like the paper's, they are not selected by their validation errors."""
        return self.result / "last.safetensors"

    @property
    def _is_begun(self) -> bool:
        return (self.result / "config.json").is_file()

    def words_now(self) -> tuple[str, ...]:
        """The command that begins the run, or resumes it."""
        return (self.words[0], "--resume", str(self.result)) if self._is_begun else self.words


@dataclass(frozen=True)
class StudyStep(Step):
    """A run of ``fastalex.study``; its result is the study's folder.

    Args:
        study: its name.
        seeds: runs per variant.
    """

    study: str = field(kw_only=True)
    seeds: int = field(kw_only=True)

    @property
    def is_done(self) -> bool:
        """Whether all variants have all their runs."""
        try:
            rows = json.loads((self.result / RECORD).read_bytes())["rows"]
            return all(len(row["runs"]) + row["diverged"] >= self.seeds for row in rows)
        except (OSError, ValueError, KeyError, TypeError):
            return False


class Baseline(Step):
    """A run of ``fastalex.baseline``; its result is the record in a folder of its own."""

    def words_now(self) -> tuple[str, ...]:
        """The command, which begins anew: what a killed one has left is removed."""
        shutil.rmtree(self.result.parent, ignore_errors=True)
        return self.words


@dataclass(frozen=True)
class Drawing(Step):
    """A page or picture of runs, which is made anew when a run has changed since.

    Args:
        sources: files that it is made from.
        also: further files that it writes.
    """

    sources: tuple[Path, ...] = field(kw_only=True)
    also: tuple[Path, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether it is there and no source is newer."""
        results = (self.result, *self.also)
        if not all(path.is_file() for path in (*results, *self.sources)):
            return False
        return min(path.stat().st_mtime_ns for path in results) > max(path.stat().st_mtime_ns for path in self.sources)


def plan(job: Job, classes: int, batch_size: int) -> Step:
    """Figure 2, and the memory and speed of training; the speed is measured."""
    devices = job.settings.devices or "default"
    result = job.output / f"plan-{devices.replace(',', '-')}.json"
    words: tuple[object, ...] = (
        "--classes",
        classes,
        "--batch-size",
        batch_size,
        "--measure",
        "--json",
        result,
        "--force",
    )
    words += ("--draw", result.with_suffix(".svg"))
    words += ("--images", job.main.data.count("train"))
    words += ("--epochs", job.settings.epochs) if job.settings.epochs else ()
    words += ("--precision", job.settings.precision) if job.settings.precision else ()
    command = _words("fastalex.plan", words, _network(job), _devices(job))
    return Step("the network over the devices; its speed", command, result)


def network(job: Job, source: Source, seed: int) -> Training:
    """The network of the paper."""
    recipe = ("--recipe", "source-145-2010") if source.is_real and source.place == "ILSVRC-2010" else ()
    return _training(job, source, "network", seed, recipe)


def pretrained(job: Job, source: Source, seed: int) -> Training:
    """The network with a sixth conv layer on the pre-training set."""
    many = len(source.data.classes) > 10_000
    return _training(job, source, "pretrained", seed, ("--conv6", *(("--bottleneck", 2048) if many else ())))


def finetuned(job: Job, source: Source, before: Training, seed: int) -> Training:
    """A pre-trained network, trained on."""
    return _training(job, source, "finetuned", seed, ("--conv6", "--init-from", before.result))


def evaluation(job: Job, source: Source, runs: list[Training], views: int, name: str) -> Step:
    """The errors of an ensemble and of each of its networks."""
    result = job.output / "evaluations" / f"{name}-{source.split}-{views}.json"
    words: tuple[object, ...] = (*(run.result for run in runs), source.data.root.absolute(), "--split", source.split)
    words += ("--crops", views, "--weights", "last", "--worst", 0, "--json", result)
    networks = f"{len(runs)} networks" if len(runs) > 1 else "1 network"
    title = f"errors of {networks} on {source.name} {source.split}, {views} view{'s' if views > 1 else ''}"
    forwards = source.data.count(source.split) * views * len(runs)
    return Step(title, _words("fastalex.evaluate", words, _first_device(job)), result, forwards)


def allows_baseline(source: Source, fraction: float = 1.0) -> bool:
    """Whether hand-crafted features are trained on a fraction of these images: they need enough, and not too many."""
    try:
        count = source.data.subset("train", fraction, seed=0).count("train")
    except DatasetError:  # a class would have no images
        return False
    return count >= FEWEST_IMAGES and source.data.count("train") <= MOST_IMAGES


def baseline(job: Job, source: Source, seed: int, fraction: float = 1.0) -> Baseline:
    """SIFT and Fisher vectors."""
    folder = job.output / "baselines" / f"{source.name}-{source.split}-{fraction:g}-{seed}"
    words = (source.data.root.absolute(), "--split", source.split, "--fraction", f"{fraction:g}", "--seed", seed)
    share = "" if fraction == 1 else f", {100 * fraction:g} % of the images"
    title = f"SIFT + Fisher vectors on {source.name}{share}, seed {seed}"
    return Baseline(title, _words("fastalex.baseline", words, ("--output", folder)), folder / "baseline.json")


def study(job: Job, source: Source, name: str) -> StudyStep:
    """One of the paper's claims."""
    settings, folder = job.settings, job.output / "studies" / f"{source.name}-{name}"
    seeds = job.networks(1 if name == "activation" else 3)
    words: tuple[object, ...] = (name, source.data.root.absolute(), "--seeds", seeds, "--output", folder)
    if name == "activation":  # a network and a recipe of its own
        words += _recipe(replace(job, settings=replace(settings, lr=None)))
    else:
        words += (*_network(job, scaled=name != "init"), *_recipe(job))
    title = f"study {name}, {seeds} seed{'s' if seeds > 1 else ''}"
    return StudyStep(title, _words("fastalex.study", words, _devices(job)), folder, study=name, seeds=seeds)


def kernels(job: Job, run: Training) -> Drawing:
    """Figure 3."""
    result = job.output / "figure3.png"
    words = (run.result, "--weights", "last", "--output", result, "--force")
    return Drawing("kernels of the first layer", _words("fastalex.show", words), result, sources=(run.weights,))


def report(job: Job, source: Source, runs: list[Training]) -> Drawing:
    """The report of the runs, with Figure 4."""
    result, figure = job.output / "report.html", job.output / "figure4.png"
    words: tuple[object, ...] = (*(run.result for run in runs), source.data.root.absolute(), "--weights", "last")
    words += ("--output", result, "--figure4", figure, "--force")
    also = tuple(figure.with_suffix(suffix) for suffix in (".png", ".svg", ".json"))
    command = _words("fastalex.report", words, _first_device(job))
    return Drawing("report of the runs", command, result, sources=tuple(run.weights for run in runs), also=also)


def _training(job: Job, source: Source, kind: str, seed: int, more: tuple[object, ...]) -> Training:
    folder = job.output / "runs" / f"{source.name}-{kind}-{seed}"
    words = (source.data.root.absolute(), "--seed", seed, "--output", folder, *more)
    command = _words("fastalex.train", words, _network(job), _recipe(job), _devices(job))
    return Training(f"{kind} on {source.name}, seed {seed}", command, folder)


def _network(job: Job, *, scaled: bool = True) -> tuple[object, ...]:
    width = job.settings.width
    if width == 1:
        return ()
    return ("--width", f"{width:g}", *(("--init", "scaled") if scaled and width < 1 else ()))


def _recipe(job: Job) -> tuple[object, ...]:
    settings = job.settings
    values = (settings.epochs, settings.batch_size, settings.lr, settings.precision)
    options = dict(zip(("--epochs", "--batch-size", "--lr", "--precision"), values, strict=True))
    return tuple(word for name, value in options.items() if value is not None for word in (name, value))


def _devices(job: Job) -> tuple[object, ...]:
    return ("--devices", job.settings.devices) if job.settings.devices else ()


def _first_device(job: Job) -> tuple[object, ...]:
    return ("--device", job.settings.devices.split(",")[0]) if job.settings.devices else ()


def _words(module: str, *parts: tuple[object, ...]) -> tuple[str, ...]:
    return (module, *(str(word) for part in parts for word in part))
