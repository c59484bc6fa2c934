"""Which data set stands for which of the paper's."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastalex.errors import ConfigurationError
from fastalex.reproduction.job import assign


def data(name: str, *, classes: int = 10, train: int = 100, val: int = 10, root: str = "") -> SimpleNamespace:
    """As much of a data set as is looked at."""
    counts = {"train": train, "val": val}
    return SimpleNamespace(
        name=name,
        root=SimpleNamespace(absolute=lambda: SimpleNamespace(name=root or name), __str__=lambda _: name),
        fingerprint=f"{name}{root}",
        classes=["c"] * classes,
        splits=tuple(split for split, count in counts.items() if count),
        count=counts.__getitem__,
    )


OLD, NEW = (data(name, classes=1000, train=1_250_000) for name in ("ILSVRC2010", "ILSVRC2012"))
PHOTOS, MORE = data("photos"), data("more")


@pytest.mark.parametrize(
    ("datasets", "first", "main", "pretraining"),
    [
        ([OLD, NEW, PHOTOS], OLD, NEW, PHOTOS),
        ([PHOTOS, NEW, OLD], OLD, NEW, PHOTOS),
        ([PHOTOS], PHOTOS, PHOTOS, None),
        ([PHOTOS, MORE], PHOTOS, PHOTOS, MORE),
        ([NEW], NEW, NEW, None),
        ([OLD, MORE], OLD, OLD, MORE),
    ],
)
def test_data_sets_find_their_places(datasets, first, main, pretraining):
    found = assign(datasets)
    assert [source.data if source else None for source in found] == [first, main, pretraining]
    assert [source.is_real for source in found[:2]] == [first is OLD, main is NEW]
    assert [source.place for source in found[:2]] == ["ILSVRC-2010", "ILSVRC-2012"]


@pytest.mark.parametrize("few", [{"classes": 20, "train": 1_250_000}, {"classes": 1000, "train": 2000}])
def test_a_part_or_a_stand_in_is_not_imagenet(few):
    source = assign([data("ILSVRC2012", root="standin", **few)])[1]
    assert not source.is_real
    assert source.name == "standin"
    assert source.description.endswith("; not ILSVRC-2012")


def test_each_data_set_is_named_once(job):
    """As what stands for the later of the two, which most of the page is about."""
    assert [source.place for source in job.sources] == ["ILSVRC-2012"]
    assert [source.place for source in replace(job, targets=("table1",)).sources] == ["ILSVRC-2010"]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ([PHOTOS, PHOTOS], "is the same data set as one before it; name each once"),
        ([PHOTOS, MORE, data("most")], "has no part in the paper.*, got 3; leave it out"),
        ([data("bare", val=0)], "has no validation images, so there are no errors to measure; prepare it with"),
    ],
)
def test_what_cannot_be_placed_is_refused(datasets, message):
    with pytest.raises(ConfigurationError, match=message):
        assign(datasets)
