"""The stand-in's archives are read as ILSVRC2012's."""

import errno
import io
import tarfile

import numpy as np
import pytest
from scipy.io import loadmat

from dataloading import DatasetError, prepare_dataset
from dataloading.standin import archives
from dataloading.standin.archives import write_standin
from dataloading.standin.classes import CLASSES
from dataloading.standin.scenes import draw_scene, jpeg_of
from tests.dataloading.small_sources import contents
from tests.dataloading.sources.listing import data, listed, opened

SMALL = {"classes": 3, "images": 7, "validation": 5, "workers": 0, "progress": False}
WORDS = [chosen.words for chosen in CLASSES[:3]]


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin") / "new" / "archives"
    write_standin(folder, **SMALL)
    return folder


def image(split: int, label: int, number: int) -> bytes:
    random = np.random.default_rng((0, split, label, number))
    return jpeg_of(draw_scene(CLASSES[label], random), random)


def test_the_source_is_ilsvrc2012(standin):
    source = opened(standin)
    assert source.name == "ILSVRC2012"
    assert source.classes == ["n90000001", "n90000002", "n90000003"]
    assert source.words == WORDS
    train = listed(standin, "train")
    assert [entry.label for entry in train] == [0, 0, 0, 1, 1, 2, 2]
    assert train[1].name == "n90000001/n90000001_2.JPEG"
    assert data(train[4]) == image(0, 1, 1)
    val = listed(standin, "val")
    assert [entry.name for entry in val] == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 6)]
    assert sorted(entry.label for entry in val) == [0, 0, 1, 1, 2]
    for number, entry in enumerate(val):
        assert data(entry) == image(1, entry.label, number)


def test_numbers_in_the_kit_follow_the_words_and_not_the_ids(standin):
    by_kit = opened(standin, label_order="devkit")
    assert by_kit.words == sorted(WORDS) != WORDS
    labels = [opened(standin).classes.index(by_kit.classes[entry.label]) for entry in by_kit.entries("val")]
    assert labels == [entry.label for entry in listed(standin, "val")]


def test_the_kit_has_the_synsets_above_the_classes(standin):
    with tarfile.open(standin / "ILSVRC2012_devkit_t12.tar.gz") as kit:
        meta = kit.extractfile("ILSVRC2012_devkit_t12/data/meta.mat").read()
    assert b"Created on" not in meta  # which would differ every time
    rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    assert [int(row["ILSVRC2012_ID"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    by_number = {int(row["ILSVRC2012_ID"]): row for row in rows}
    leaves = {row["words"]: (int(row["num_children"]), int(row["num_train_images"])) for row in rows[:3]}
    assert leaves == dict(zip(WORDS, [(0, 3), (0, 2), (0, 2)], strict=True))
    patterns, shapes, top = (np.atleast_1d(by_number[number]["children"]) for number in (4, 5, 6))
    assert {by_number[n]["words"] for n in patterns} == {WORDS[0], WORDS[2]}
    assert {by_number[n]["words"] for n in shapes} == {WORDS[1]}
    assert top.tolist() == [4, 5]
    assert [int(row["num_children"]) for row in rows[3:]] == [2, 1, 2]


def test_the_same_seed_gives_the_same_files(standin, tmp_path):
    write_standin(tmp_path / "again", **SMALL | {"workers": 1})
    assert contents(tmp_path / "again") == contents(standin)
    write_standin(tmp_path / "other", **SMALL | {"seed": 1})
    names = [name for name, content in contents(tmp_path / "other").items() if content != contents(standin)[name]]
    assert {"ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"} <= set(names)


def test_the_stand_in_is_prepared_like_imagenet(standin, tmp_path):
    dataset = prepare_dataset(standin, tmp_path / "prepared", workers=0, progress=False)
    assert dataset.made["source"] == "ILSVRC2012"
    assert dataset.made["rejected"] == 0
    assert dataset.words == WORDS
    assert (dataset.count("train"), dataset.count("val")) == (7, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": 1}, "classes must be from 2 to 24, got 1"),
        ({"classes": 25}, "classes must be from 2 to 24, got 25"),
        ({"images": 2}, "images must be at least 3, one for each class, got 2"),
        ({"validation": 2}, "validation must be at least 3, one for each class, got 2"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, given, message):
    with pytest.raises(DatasetError, match=message):
        write_standin(tmp_path / "new", **SMALL | given)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DatasetError, match="mine exists already; choose another destination"):
        write_standin(tmp_path / "mine", **SMALL)
    with pytest.raises(DatasetError, match=r"cannot write to .*letter.txt/x: a file is in the way; choose another"):
        write_standin(tmp_path / "mine" / "letter.txt" / "x", **SMALL)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_meta", full)
    with pytest.raises(DatasetError, match=r"cannot write to .*: No space left on device; choose another destination"):
        write_standin(tmp_path / "new", **SMALL | {"images": 3, "validation": 3})
    assert list(tmp_path.iterdir()) == []
