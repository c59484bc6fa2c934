"""Opening and reading a prepared data set."""

import contextlib
import errno
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloading import Dataset, DatasetError, Loader, is_prepared, prepare_dataset
from dataloading import dataset as dataset_module
from dataloading.errors import DamagedSample
from dataloading.preparation.images import ImageOptions, prepare_image
from dataloading.shards import INDEX_DTYPE
from dataloading.subset import balanced_subset
from tests.dataloading.damage import changed_index, copied, flip_bit, overwritten, rewritten


def test_a_data_set_says_what_it_is(small):
    assert is_prepared(small.root)
    assert not is_prepared(small.root.parent)
    assert "3 classes, 24 train, 12 val" in repr(small)
    assert small.splits == ("train", "val")
    assert small.index("train").dtype == INDEX_DTYPE
    assert len(small.fingerprint) == 64
    assert (small.color_deviations.shape, small.color_vectors.shape) == ((3,), (3, 3))


def test_a_data_set_travels_to_other_processes(small):
    assert bytes(pickle.loads(pickle.dumps(small)).read("val", 3)) == bytes(small.read("val", 3))


def test_a_subset_is_a_data_set_of_some_of_the_samples(small):
    chosen = balanced_subset(small.labels("train"), 0.5, seed=3)
    half = small.subset("train", 0.5, seed=3)
    for dataset in (half, pickle.loads(pickle.dumps(half))):
        assert (dataset.count("train"), dataset.count("val")) == (12, small.count("val"))
        assert np.bincount(dataset.labels("train")).tolist() == [4, 4, 4]
        for i, sample in enumerate(chosen):
            assert dataset.read("train", i) == small.read("train", int(sample))
    assert small.count("train") == 24
    batches = Loader(half, "train", 5, crop_size=24, shuffle=True, augment=None, drop_last=False).epoch(0)
    assert sorted(sample for batch in batches for sample in batch.samples) == list(range(12))


def test_a_subset_of_a_subset_travels_to_other_processes(small):
    chosen = small.subset("train", 0.5, seed=3).subset("val", 0.5, seed=4).subset("train", 0.5, seed=5)
    again = pickle.loads(pickle.dumps(chosen))
    assert (chosen.count("train"), chosen.count("val")) == (6, 6)
    for split in chosen.splits:
        assert np.array_equal(again.index(split), chosen.index(split))


def test_the_whole_is_a_subset_too(small):
    assert np.array_equal(small.subset("train", 1.0, seed=3).index("train"), small.index("train"))


def test_what_is_read_cannot_be_changed(small):
    assert not small.index("train").flags.writeable
    assert small.read("train", 0).readonly


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.0, "fraction must be more than 0 and at most 1, got 0.0"),
        (1.5, "at most 1, got 1.5"),
        (float("nan"), "at most 1, got nan"),
        (0.05, r"0.05 of .* leaves no image of class .*, which has 8 in train; use a fraction of 0.12 or more"),
    ],
)
def test_a_subset_that_cannot_be_taken(small, fraction, message):
    with pytest.raises(DatasetError, match=message):
        small.subset("train", fraction, seed=0)


def test_the_fingerprint_is_that_of_the_content(small, tmp_path):
    assert Dataset(copied(small.root, tmp_path / "other name")).fingerprint == small.fingerprint


def test_what_is_no_prepared_data_set_is_named(tmp_path, folders):
    with pytest.raises(DatasetError, match=r"no such folder: .*nowhere; prepare it with: .* -m dataloading.prepare"):
        Dataset(tmp_path / "nowhere")
    remedy = r"if it holds images, prepare them: .* -m dataloading.prepare (\S*/photographs) prepared/photographs$"
    with pytest.raises(DatasetError, match=rf"is not a prepared data set: it has no dataset.json; {remedy}") as caught:
        Dataset(folders)
    assert f"dataloading.prepare {folders} " in str(caught.value)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DatasetError, match=rf"dataloading.prepare {tmp_path} prepared/{tmp_path.name}$"):
        Dataset(tmp_path)


def test_a_split_that_is_not_there_is_named(small):
    with pytest.raises(DatasetError, match=r"has no split 'test'; it has train, val"):
        small.count("test")


@pytest.mark.parametrize("name", ["train-000000.tar", "val-000001.tar", "train-index.npy", "mean-image.npy"])
def test_a_missing_or_shortened_file_is_named_on_opening(small, tmp_path, name):
    path = copied(small.root, tmp_path / "copy") / name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DatasetError, match=name):
        Dataset(path.parent)
    path.unlink()
    with pytest.raises(DatasetError, match=name):
        Dataset(path.parent)


@pytest.mark.parametrize("name", ["dataset.json", "val-000001.tar", "train-index.npy", "mean-image.npy"])
def test_a_folder_in_place_of_a_file_is_named_on_opening(small, tmp_path, name):
    path = copied(small.root, tmp_path / "copy") / name
    path.unlink()
    path.mkdir()
    assert is_prepared(path.parent) == (name != "dataset.json")
    with pytest.raises(
        DatasetError, match=rf"has no {name}|{name} is missing; it should be .* bytes long|{name} is not a regular file"
    ):
        Dataset(path.parent)


@given(
    place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(["train-index", "mean-image"])
)
def test_no_bit_of_index_or_mean_image_flips_unnoticed(small, tmp_path_factory, place, bit, name):
    root = copied(small.root, tmp_path_factory.mktemp("flip") / "copy")
    flip_bit(root / f"{name}.npy", place, bit)
    with pytest.raises(DatasetError, match=rf"{name}.npy"):
        Dataset(root)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_the_description_flips_unnoticed(small, tmp_path_factory, place, bit):
    root = copied(small.root, tmp_path_factory.mktemp("flip") / "copy")
    flip_bit(root / "dataset.json", place, bit)
    with contextlib.suppress(DatasetError):
        assert Dataset(root)._description == small._description  # 1E-5 for 1e-5


def test_the_index_of_another_data_set_is_refused(small, full_size, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    (root / "train-index.npy").write_bytes((full_size.root / "train-index.npy").read_bytes())
    with pytest.raises(DatasetError, match=r"train-index.npy does not belong to these shards: its SHA-256 is"):
        Dataset(root)


def test_a_sample_knows_the_file_it_was_made_from(small, folders, tmp_path):
    assert small.source("val", 0) == min(str(p.relative_to(folders)) for p in folders.glob("val/*/*"))
    chosen = small.subset("train", 0.5, seed=1)
    for sample in range(chosen.count("train")):
        made = prepare_image((folders / chosen.source("train", sample)).read_bytes(), ImageOptions(size=chosen.size))
        assert chosen.read("train", sample) == made.jpeg
    root = copied(small.root, tmp_path / "copy")
    flip_bit(root / "train-sources.csv", 0.5, 3)
    dataset = Dataset(root)
    assert dataset.source("val", 0) == small.source("val", 0)
    with pytest.raises(DatasetError, match=r"train-sources.csv is damaged: its SHA-256 is not the one in dataset.json"):
        dataset.source("train", 0)
    (root / "val-sources.csv").unlink()
    assert dataset.source("val", 1) == small.source("val", 1)  # they are read once
    (root / "train-sources.csv").unlink()
    with pytest.raises(DatasetError, match=r"cannot read .*train-sources.csv: No such file"):
        dataset.source("train", 0)


@given(sample=st.integers(0, 11), byte=st.integers(-512, -1), bit=st.integers(0, 7))
def test_no_bit_of_a_samples_name_flips_unnoticed(small, tmp_path_factory, sample, byte, bit):
    root = copied(small.root, tmp_path_factory.mktemp("flip") / "copy")
    row = small.index("val")[sample]
    path = root / f"val-{row['shard']:06d}.tar"
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + byte] ^= 1 << bit
    path.write_bytes(data)
    dataset = Dataset(root)
    for name in (dataset.key, dataset.source):
        try:
            found = name("val", sample)
        except DamagedSample as error:
            found = str(error)
        named = re.match(rf"the name of sample {sample} of val \(.*\) is damaged; run .*dataloading.check", found)
        assert named or found == getattr(small, name.__name__)("val", sample)


def test_the_name_of_a_sample_from_another_shard_is_named(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    row = small.index("val")[0]
    path = root / f"val-{row['shard']:06d}.tar"
    data, start = bytearray(path.read_bytes()), int(row["offset"]) - 512
    other = tarfile.TarInfo.frombuf(bytes(data[start : start + 512]), "ascii", "strict")
    other.name = "000000999-000.jpg"
    data[start : start + 512] = other.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    assert Dataset(root).key("val", 0) == "000000999-000"
    with pytest.raises(
        DamagedSample, match=r"^sample 0 of val \(000000999-000.jpg in .* is not in val-sources.csv; run"
    ):
        Dataset(root).source("val", 0)


def test_shards_in_another_order_are_refused_although_their_sizes_agree(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    first, second = root / "train-000000.tar", root / "train-000001.tar"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b.ljust(len(a), b"\0")[: len(a)])
    second.write_bytes(a.ljust(len(b), b"\0")[: len(b)])
    with pytest.raises(DatasetError, match=r"sample 0 of train .* is damaged: its CRC-32 is"):
        Dataset(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(version=99), r"has format version 99, this program reads version 4; remove or"),
        (
            lambda about: about.update(version=3),
            r"has format version 3, this program reads version 4 \(since version 4 images are shrunk by exact area "
            r"averages\); remove or rename the folder and prepare it with: .* -m dataloading.prepare SOURCE .*copy",
        ),
        (lambda about: about.update(version=2), "has format version 2, this program reads version 4"),
        (lambda about: about.pop("version"), "has format version None, this program reads version 4"),
        (lambda about: about.update(format="parquet"), "does not describe a data set of this program"),
        (lambda about: about.pop("classes"), "dataset.json is damaged: missing or invalid entry 'classes'"),
        (lambda about: about.update(classes=["one", "two"]), "labels from 0 to 2; with 2 classes they must be 0 to 1"),
        (lambda about: about["splits"]["train"]["shards"].pop(), "the shards of train hold 20 samples, its index 24"),
        (
            lambda about: about["splits"]["train"].update(count=23),
            r"must have \(23,\) records of .*, got \(24,\) records",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_refused(small, tmp_path, change, message):
    root = copied(small.root, tmp_path / "copy")
    rewritten(root, change)
    with pytest.raises(DatasetError, match=message):
        Dataset(root)


def test_a_description_that_is_no_json_is_refused(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    (root / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset.json is damaged"):
        Dataset(root)


def test_an_index_with_labels_out_of_range_is_refused(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    changed_index(root, "train", lambda index: index["label"].put(5, -1))
    with pytest.raises(DatasetError, match=r"labels from -1 to 2; with 3 classes they must be 0 to 2"):
        Dataset(root)


def test_a_flipped_bit_in_a_sample_is_named_when_it_is_read(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    overwritten(root, "train", 13, b"?")
    dataset = Dataset(root)
    assert dataset.read("train", 12) == small.read("train", 12)
    with pytest.raises(
        DatasetError, match=r"sample 13 of train \(000000013-0005.jpg in .*train-000001.tar, offset \d+\) is"
    ):
        dataset.read("train", 13)


def test_an_index_that_belongs_to_other_shards_is_refused(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    changed_index(root, "train", lambda index: index["shard"].put(range(10, 20), 2))
    with pytest.raises(DatasetError, match=r"train-index.npy does not belong to these shards: sample 10 should be"):
        Dataset(root)


@pytest.mark.parametrize(("most", "wanted"), [(1, [0]), (2, [0, 20]), (3, [0, 10, 20]), (64, [0, 10, 20])])
def test_opening_reads_the_first_sample_of_some_shards(small, monkeypatch, most, wanted):
    probed, read = [], Dataset.read
    monkeypatch.setattr(dataset_module, "_SHARDS_PROBED", most)
    monkeypatch.setattr(Dataset, "read", lambda *a: probed.append(a[1:]) or read(*a))
    Dataset(small.root)
    assert [sample for split, sample in probed if split == "train"] == wanted


def test_names_of_sources_that_can_no_longer_be_read_are_an_error(small, monkeypatch):
    def lost(path: Path) -> dict[str, str]:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    monkeypatch.setattr(dataset_module, "read_sources", lost)
    with pytest.raises(DatasetError, match=r"^cannot read .*val-sources.csv: Stale file handle"):
        Dataset(small.root).source("val", 0)


READ_ALL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
from dataloading import Dataset, DatasetError
dataset = Dataset(sys.argv[1])
kept = [dataset.read(split, i) for split in dataset.splits for i in range(dataset.count(split))]
again = [dataset.read(split, i) for split in dataset.splits for i in range(dataset.count(split))]
print(len(kept), kept == again)
files = []
try:
    while True:
        files.append(open(sys.executable))
except OSError:
    pass
try:
    Dataset(sys.argv[1])
except DatasetError as error:
    print(error)
"""


@pytest.mark.parametrize(("soft", "hard"), [(28, 28), (28, 200)])
def test_more_shards_than_files_may_be_open(folders, tmp_path, soft, hard):
    dataset = prepare_dataset(folders, tmp_path / "many", size=16, shard_images=1, workers=0, progress=False)
    assert sum(len(dataset.shards(split)) for split in dataset.splits) == 36
    script = [sys.executable, "-c", READ_ALL, dataset.root, str(soft), str(hard)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    read, refused = done.stdout.splitlines()
    assert read == "36 True"
    assert refused.endswith(
        f"Too many open files; this process may have {hard} files open; raise the limit (ulimit -n)"
    )
