"""What is to be reproduced, on which data, and with which options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataloading import Dataset
from fastalex.errors import ConfigurationError

TARGETS = {
    "table1": "Table 1: errors on ILSVRC-2010's test set",
    "table2": "Table 2: errors on ILSVRC-2012's validation set",
    "figure1": "Figure 1: ReLUs against tanh units",
    "figure2": "Figure 2: the network over the devices",
    "figure3": "Figure 3: the first layer's kernels",
    "figure4": "Figure 4: predictions and nearest neighbours",
    "claims": "The paper's claims",
}
"""What can be reproduced, with its heading; ``all`` stands for all of it."""

ILSVRC2010, ILSVRC2012 = "ILSVRC2010", "ILSVRC2012"
"""Names of the data sets that are prepared from archives with ImageNet's layout."""

ILSVRC_CLASSES, ILSVRC_IMAGES = 1000, 1_200_000
"""Classes of these, and fewer training images than either has: with other numbers, it is a part or a stand-in."""


@dataclass(frozen=True)
class Source:
    """A data set in the place of one of the paper's.

    Args:
        place: the paper's data set, such as ``ILSVRC-2012``.
        data: the data set used.
        is_real: whether it is the paper's.
    """

    place: str
    data: Dataset
    is_real: bool

    @property
    def split(self) -> str:
        """The images to measure errors on: the test images where there are some, as in the paper's table 1."""
        return "test" if "test" in self.data.splits and self.data.count("test") else "val"

    @property
    def name(self) -> str:
        """What to call it: the name of its source, unless that is ImageNet's and it is not ImageNet."""
        data = self.data
        return data.name if self.is_real or data.name not in (ILSVRC2010, ILSVRC2012) else data.root.absolute().name

    @property
    def description(self) -> str:
        """The data set in one line."""
        counts = ", ".join(f"{self.data.count(split):,} {split}" for split in self.data.splits)
        what = f"{self.name}: {len(self.data.classes):,} classes, {counts} images"
        return what if self.is_real else f"{what}; not {self.place}"


@dataclass(frozen=True)
class Settings:
    """What all trainings share; None is the default of the recipe.

    Args:
        devices: as ``fastalex.train`` takes them; None for its default.
        epochs, batch_size, lr, precision: of every training.
        width: factor of the network's width.
        seeds: networks per row; None for as many as the paper has.
    """

    devices: str | None
    epochs: int | None
    batch_size: int | None
    lr: float | None
    precision: str | None
    width: float
    seeds: int | None


@dataclass(frozen=True)
class Job:
    """A reproduction, fully resolved.

    Args:
        targets: names of :data:`TARGETS`, in their order.
        first: the data set of table 1, in the place of ILSVRC-2010.
        main: the data set of all the rest, in the place of ILSVRC-2012.
        pretraining: the data set of CNN*, in the place of ImageNet's Fall 2011 release; None if there is none.
        settings: of all trainings.
        output: the folder of all results.
        plan_only: print the plan, and do nothing.
    """

    targets: tuple[str, ...]
    first: Source
    main: Source
    pretraining: Source | None
    settings: Settings
    output: Path
    plan_only: bool = False

    @property
    def sources(self) -> list[Source]:
        """The data sets that the targets need, each once."""
        needed = [self.main] if set(self.targets) - {"table1"} else []
        if "table1" in self.targets:
            needed.append(self.first)
        if self.pretraining and {"table2", "claims"} & set(self.targets):
            needed.append(self.pretraining)
        seen: dict[str, Source] = {}
        for source in needed:
            seen.setdefault(source.data.fingerprint, source)
        return list(seen.values())

    def networks(self, in_paper: int) -> int:
        """How many networks a row has: the requested number, or as many as the paper's."""
        return in_paper if self.settings.seeds is None else self.settings.seeds

    def identity(self) -> dict[str, Any]:
        """What may not change while the reproduction goes on: data and options, without targets and devices."""
        options = {name: value for name, value in asdict(self.settings).items() if name != "devices"}
        data = {"first": self.first, "main": self.main, "pretraining": self.pretraining}
        return options | {name: source.data.fingerprint if source else None for name, source in data.items()}


def _is_ilsvrc(dataset: Dataset) -> bool:
    is_whole = len(dataset.classes) == ILSVRC_CLASSES and dataset.count("train") >= ILSVRC_IMAGES
    return dataset.name in (ILSVRC2010, ILSVRC2012) and is_whole


def assign(datasets: Sequence[Dataset]) -> tuple[Source, Source, Source | None]:
    """Which data set stands for ILSVRC-2010, for ILSVRC-2012 and for the pre-training set of 2011.

    Whole sets prepared from the archives of ILSVRC are known by their names. Without any of them, the first of the
    others takes both places; a single one takes the other's place, too. The next of the others is for pre-training.

    Raises:
        ConfigurationError: one is named twice, there are too many, or one has no validation images.
    """
    for number, dataset in enumerate(datasets):
        if dataset.fingerprint in {other.fingerprint for other in datasets[:number]}:
            raise ConfigurationError(f"{dataset.root} is the same data set as one before it; name each once")
    known = {dataset.name: dataset for dataset in datasets if _is_ilsvrc(dataset)}
    others = [dataset for dataset in datasets if dataset not in known.values()]
    stand_in = others.pop(0) if others and not known else None
    found = known.get(ILSVRC2010), known.get(ILSVRC2012)
    first, main = (dataset or stand_in or next(iter(known.values())) for dataset in found)
    if len(others) > 1:
        raise ConfigurationError(
            f"{others[1].root} has no part in the paper: its data sets are ILSVRC-2010, ILSVRC-2012 and one to "
            f"pre-train on, got {len(datasets)}; leave it out"
        )
    for dataset in (first, main):
        if "val" not in dataset.splits or not dataset.count("val"):
            raise ConfigurationError(
                f"{dataset.root} has no validation images, so there are no errors to measure; prepare it with a "
                "validation set"
            )
    return (
        Source("ILSVRC-2010", first, found[0] is not None),
        Source("ILSVRC-2012", main, found[1] is not None),
        Source("ImageNet's Fall 2011 release", others[0], False) if others else None,
    )
