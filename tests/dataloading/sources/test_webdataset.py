"""WebDataset shards as a source."""

import gzip
import json
from pathlib import Path

import pytest

from dataloading import DatasetError
from tests.dataloading.small_sources import jpeg, tar_of
from tests.dataloading.sources.listing import data, listed, opened


def shard(samples: list[tuple[str, int]]) -> bytes:
    parts = []
    for key, label in samples:
        parts += [(f"{key}.jpg", jpeg(label)), (f"{key}.cls", str(label).encode())]
    return tar_of(parts)


def test_webdataset_shards_are_read_in_place(tmp_path):
    (tmp_path / "set-train-000000.tar").write_bytes(shard([("a", 0), ("b", 2)]))
    (tmp_path / "set-train-000001.tar").write_bytes(shard([("c", 1)]))
    (tmp_path / "set-validation-000000.tar").write_bytes(shard([("d", 1)]))
    source = opened(tmp_path)
    assert source.splits == ("train", "val")
    train = list(source.entries("train"))
    assert [entry.name for entry in train] == [
        f"set-train-00000{n}.tar/{key}" for n, key in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert [data(entry) for entry in train] == [jpeg(0), jpeg(2), jpeg(1)]
    assert source.classes == ["0", "1", "2"]


def test_labels_can_come_from_json_and_names_from_a_file(tmp_path):
    (tmp_path / "train").mkdir()
    parts = [("x/1.json", json.dumps({"label": 1}).encode()), ("x/1.png", jpeg(1)), ("x/1.txt", b"a caption")]
    (tmp_path / "train/0.tar").write_bytes(tar_of(parts))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = opened(tmp_path, validation_every=2)
    assert [(entry.label, entry.problem) for entry in source.entries("train")] == [(1, "")]
    assert source.classes == ["cat", "dog"]


def test_one_tar_file_is_a_source(tmp_path):
    (tmp_path / "all.tar").write_bytes(shard([(f"{i:02d}", i % 2) for i in range(20)]))
    source = opened(tmp_path / "all.tar", validation_every=5)
    assert source.name == "all"
    assert [len(list(source.entries(split))) for split in ("train", "val")] == [16, 4]


def test_incomplete_samples_are_listed_with_their_problem(tmp_path):
    parts = [
        ("a.jpg", jpeg(0)),
        ("b.cls", b"0"),
        ("c.jpg", jpeg(0)),
        ("c.cls", b"dog"),
        ("d.jpg", jpeg(0)),
        ("d.png", jpeg(0)),
    ]
    (tmp_path / "train.tar").write_bytes(tar_of([*parts, ("e.jpg", jpeg(0)), ("e.json", b'{"label": "x"}')]))
    (tmp_path / "val.tar").write_bytes(shard([("a", 0)]))
    problems = [entry.problem for entry in listed(tmp_path, "train")]
    assert problems == [
        "no usable label: neither .cls nor .json",
        "0 images in one sample; wanted: 1",
        "no usable label: invalid literal for int() with base 10: b'dog'",
        "2 images in one sample; wanted: 1",
        "no usable label: 'x' is not a whole number",
    ]


@pytest.mark.parametrize(("label", "names"), [(-1, ""), (2, "cat\ndog\n"), (10**9, "")])
def test_a_shard_label_out_of_range_is_named(tmp_path, label, names):
    (tmp_path / "train.tar").write_bytes(tar_of([("a.jpg", jpeg(0)), ("a.cls", str(label).encode())]))
    (tmp_path / "val.tar").write_bytes(shard([("a", 0)]))
    if names:
        (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DatasetError, match=f"label {label} of train.tar/a is out of range"):
        listed(tmp_path, "train")


def test_what_is_no_plain_tar_file_is_named(tmp_path):
    (tmp_path / "train.tar").write_bytes(gzip.compress(shard([("a", 0)])))
    (tmp_path / "val.tar").write_bytes(shard([("a", 0)]))
    with pytest.raises(DatasetError, match=r"train.tar is damaged or not a plain tar file"):
        listed(tmp_path, "train")
    (tmp_path / "all.tar.gz").write_bytes(gzip.compress(shard([("a", 0)])))
    with pytest.raises(DatasetError, match=r"decompress it first"):
        listed(tmp_path / "all.tar.gz", "train", validation_every=2)
    with pytest.raises(DatasetError, match=r"neither a folder nor a tar file"):
        opened(Path(__file__))
