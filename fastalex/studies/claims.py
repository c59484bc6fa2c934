"""The paper's claims as experiments: which networks are compared, and what was published about them.

A study trains variants that differ from a base in one thing. A variant is data: the options of ``fastalex.train`` in
which it differs. The base comes first and is the network of 2012 as it was run.

A published difference is the variant's error minus the base's in percentage points. "Paper" is Krizhevsky, Sutskever
and Hinton (2012); "source" are results recorded in the source code that was released in 2025
(github.com/computerhistory/AlexNet-Source-Code), in which configuration 145 is the paper's network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastalex.errors import ConfigurationError

Measure = Literal["error", "epochs"]


# ReLU against tanh: training error that the runs are timed to, in percent.
TRAINING_ERROR_GOAL = 25.0


@dataclass(frozen=True)
class Published:
    """A difference as published: top-1 and top-5 error in percentage points, where, and what goes before the figure."""

    top1: float
    top5: float | None
    where: str
    about: str = ""

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f" / {self.top5:+.1f}"
        return f"{self.about} {self.top1:+.1f}{top5}".strip()


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Args:
        name: what it is; with hyphens for spaces also the folder of its runs.
        network, training: fields of the network's and the training options in which it differs from the base.
        published: its difference from the base, or None where none was published.
    """

    name: str
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None

    @property
    def folder(self) -> str:
        """The name as a file's."""
        return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in self.name).split())


@dataclass(frozen=True)
class Study:
    """A claim and the networks that test it.

    Args:
        claim: what was said.
        variants: the base first.
        measure: ``error`` compares validation errors; ``epochs`` the epochs until the mean training error of one is
            below :data:`TRAINING_ERROR_GOAL`, between families of variants.
        network, training: options of all variants, which the user's replace.
        families: for ``epochs``: the first words of the variants' names; the fastest variant of each is compared.
        note: what a reader of the figures has to know.
    """

    name: str
    claim: str
    variants: tuple[Variant, ...]
    measure: Measure = "error"
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] = ()
    published_ratio: float | None = None
    note: str = ""


def _without(layer: str) -> Variant:
    where = "paper, section 7: removing any of the middle layers loses about 2 % top-1"
    return Variant(f"without {layer}", {"without": (layer,)}, published=Published(2.0, None, where, "about"))


DEPTH = Study(
    "depth",
    "Removing any convolutional layer costs accuracy.",
    (
        Variant("five conv layers"),
        _without("conv3"),
        _without("conv4"),
        _without("conv5"),
        Variant("with conv6", {"conv6": True}),
    ),
    note="The sixth layer was published only with pre-training on other data, so there is no figure to compare with.",
)


WIDTH = Study(
    "width",
    "More capable models recognise better: width.",
    (
        Variant("width x 1"),
        Variant("width x 0.75", {"width": 0.75}),
        Variant("width x 0.5", {"width": 0.5}),
        Variant("width x 0.25", {"width": 0.25}),
    ),
    note="Multiples of the width that is asked for. Initial weights are those of the whole width unless --init scaled.",
)


DATASET_SIZE = Study(
    "dataset-size",
    "Larger data sets give better recognition.",
    (
        Variant("100 % of the images"),
        Variant("30 % of the images", training={"fraction": 0.3}),
        Variant("10 % of the images", training={"fraction": 0.1}),
    ),
    note="All variants make about the same number of updates: smaller sets are gone through more often. The smaller "
    "sets are parts of the larger ones, and each seed has its own.",
)


DROPOUT = Study(
    "dropout",
    "Dropout in fc6 and fc7 is needed against overfitting.",
    (Variant("dropout 0.5", {"dropout": 0.5}), Variant("no dropout", {"dropout": 0.0})),
    note="The paper (section 4.2) gives no error without dropout: it says that the network overfits substantially "
    "then, and that dropout roughly doubles the iterations to converge.",
)


AUGMENTATION = Study(
    "augmentation",
    "Crops, reflections and colour noise reduce overfitting.",
    (
        Variant("crops, flips, colour", training={"random_crops": True, "flip": True, "color_noise": 0.1}),
        Variant(
            "crops, flips",
            training={"random_crops": True, "flip": True, "color_noise": 0.0},
            published=Published(1.0, None, "paper, section 4.1: colour noise gains over 1 % top-1", "more than"),
        ),
        Variant("none", training={"random_crops": False, "flip": False, "color_noise": 0.0}),
    ),
    note="The paper (section 4.1) says that without crops and reflections the network overfits substantially, and "
    "gives no figure.",
)


LRN = Study(
    "lrn",
    "Local response normalisation aids generalisation.",
    (
        Variant("with normalisation"),
        Variant(
            "without any",
            {"lrn": False},
            published=Published(
                1.4,
                1.2,
                "paper, section 3.3; source, configuration 148: 42.03 / 19.36 against 40.66 / 18.21, ten views, "
                "ILSVRC-2012 validation",
            ),
        ),
    ),
)


OVERLAP = Study(
    "overlap",
    "Overlapping pooling reduces errors.",
    (
        Variant("3x3 windows, stride 2"),
        Variant(
            "2x2 windows, stride 2",
            {"overlapping": False},
            published=Published(
                0.4,
                0.3,
                "paper, section 3.4; source, configuration 147: 41.06 / 18.51 against 40.66 / 18.21, ten views, "
                "ILSVRC-2012 validation",
            ),
        ),
    ),
)


TOWERS = Study(
    "towers",
    "Two towers on two GPUs beat the network that fits on one.",
    (
        Variant("two towers", {"arch": "krizhevsky"}),
        Variant("one tower, ungrouped", {"arch": "ungrouped"}),
        Variant(
            "half the kernels",
            {"arch": "half"},
            published=Published(
                1.7,
                1.2,
                "paper, section 3.2; source, configuration 145-half: 39.17 / 18.23 against 37.47 / 17.00, ten views, "
                "ILSVRC-2010 test",
            ),
        ),
        Variant(
            "towers never talk",
            {"arch": "separate"},
            published=Published(
                1.2,
                1.1,
                "source only, configuration 150: 41.83 / 19.33 against 40.66 / 18.21, ten views, ILSVRC-2012 "
                "validation",
            ),
        ),
    ),
)


INIT = Study(
    "init",
    "The paper's initial weights (0.01 everywhere) against those that were run (0.03 in conv3 to conv5).",
    (Variant("as run"), Variant("as in the text", {"init": "text"})),
    note="Not a claim of the paper: its text and its source differ here, and nobody published what that makes.",
)


ACTIVATION = Study(
    "activation",
    "A four-layer network of ReLUs reaches 25 % training error six times faster than one of tanh units.",
    tuple(
        Variant(f"{activation} lr {lr:g}", {"activation": activation}, {"lr": lr})
        for activation in ("relu", "tanh")
        for lr in (0.0003, 0.001, 0.003, 0.01)
    ),
    measure="epochs",
    network={"arch": "four-layer"},
    training={"recipe": "four-layer"},
    families=("relu", "tanh"),
    published_ratio=6.0,
    note="Paper, figure 1: CIFAR-10, the fastest learning rate for each, no regularisation of any kind. The paper does "
    "not say which four layers.",
)


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (DEPTH, WIDTH, DATASET_SIZE, DROPOUT, AUGMENTATION, LRN, OVERLAP, ACTIVATION, TOWERS, INIT)
}


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in STUDIES:
        raise ConfigurationError(f"unknown study {name!r}; choose one of {', '.join(STUDIES)}")
    return STUDIES[name]
