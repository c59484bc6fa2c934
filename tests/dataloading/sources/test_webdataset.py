"""WebDataset shards as a source."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.sources import webdataset
from dataloading.sources.archives import members, read_member
from tests.dataloading.small_sources import class_folders, jpeg, link, tar_of
from tests.dataloading.sources.listing import data, listed, opened


def shard(samples: list[tuple[str, int]]) -> bytes:
    parts = []
    for key, label in samples:
        parts += [(f"{key}.jpg", jpeg(max(label, 0))), (f"{key}.cls", str(label).encode())]
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
    source = opened(tmp_path, validation_every=0)
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
    for key, text in {"e": '{"label": "x"}', "f": '{"label": true}', "g": '{"label": 1.0}', "h": "{}"}.items():
        parts += [(f"{key}.jpg", jpeg(0)), (f"{key}.json", text.encode())]
    parts += [("i.jpg", jpeg(0)), ("i.cls", b"0"), ("i.CLS", b"0")]
    (tmp_path / "train.tar").write_bytes(tar_of(parts))
    (tmp_path / "val.tar").write_bytes(shard([("a", 0)]))
    problems = [entry.problem for entry in listed(tmp_path, "train")]
    assert problems == [
        "no usable label: neither .cls nor .json",
        "0 images in one sample; wanted: 1",
        "no usable label: invalid literal for int() with base 10: b'dog'",
        "2 images in one sample; wanted: 1",
        "no usable label: 'x' is not a whole number",
        "no usable label: True is not a whole number",
        "no usable label: 1.0 is not a whole number",
        "no usable label: 'label'",
        "no usable label: 2 files .cls in one sample",
    ]


def test_suffixes_may_have_any_case_and_keys_are_told_apart_by_it(tmp_path):
    parts = [("A.JPG", jpeg(0)), ("A.CLS", b"1"), ("a.Jpeg", jpeg(1)), ("a.Cls", b"0")]
    parts += [("b.PNG", jpeg(2)), ("b.JSON", b'{"label": 1}'), ("c.jpg", jpeg(3)), ("c.cls", b"0"), ("c.json", b"[]")]
    (tmp_path / "TRAIN.TAR").write_bytes(tar_of(parts))
    entries = listed(tmp_path, "train", validation_every=0)
    assert [(entry.name, entry.label, entry.problem) for entry in entries] == [
        ("TRAIN.TAR/A", 1, ""),
        ("TRAIN.TAR/a", 0, ""),
        ("TRAIN.TAR/b", 1, ""),
        ("TRAIN.TAR/c", 0, ""),
    ]
    assert [data(entry) for entry in entries] == [jpeg(number) for number in range(4)]


def test_without_class_names_there_is_a_class_for_every_label_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_CLASS_LIMIT", 5)
    (tmp_path / "train.tar").write_bytes(shard([("a", 1), ("b", 0), ("c", 4), ("d", 4)]))
    source = opened(tmp_path, validation_every=0)
    assert source.classes == []
    assert [entry.label for entry in source.entries("train")] == [1, 0, 4, 4]
    assert source.classes == ["0", "1", "2", "3", "4"]
    (tmp_path / "train.tar").write_bytes(shard([("a", 5)]))
    with pytest.raises(DatasetError, match=r"label 5 of train.tar/a is out of range: it must be 0 to 4; correct"):
        listed(tmp_path, "train", validation_every=0)


def test_a_label_that_is_too_long_or_a_link_is_no_label_wherever_the_shard_lies(tmp_path):
    limit = 1 << 20
    parts = [(f"{length}.{suffix}", b"0".rjust(length)) for length in (limit, limit + 1) for suffix in ("cls", "jpg")]
    (tmp_path / "train.tar").write_bytes(link("a.cls", "/etc/passwd") + tar_of([("a.jpg", jpeg(0)), *parts]))
    assert [entry.problem for entry in listed(tmp_path, "train", validation_every=0)] == [
        "",
        "no usable label: train.tar: a.cls is a link to /etc/passwd, not a file; it cannot be used",
        "no usable label: train.tar: 1048577.cls is 1,048,577 bytes long; it cannot be used",
    ]


def test_an_image_that_is_a_link_has_a_problem(tmp_path):
    (tmp_path / "train.tar").write_bytes(link("a.jpg", "/etc/passwd") + tar_of([("a.cls", b"0"), ("b.jpg", jpeg(0))]))
    assert [entry.problem for entry in listed(tmp_path, "train", validation_every=0)] == [
        "a link to /etc/passwd, not a file",
        "no usable label: neither .cls nor .json",
    ]


def test_samples_of_the_same_name_in_two_shards_are_no_halves_of_one(tmp_path):
    for number in range(2):
        (tmp_path / f"train-{number}.tar").write_bytes(
            tar_of([("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("b.cls", b"1")])
        )
    problems = [entry.problem for entry in listed(tmp_path, "train", validation_every=0)]
    assert problems == ["", "no usable label: neither .cls nor .json"] * 2


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
    with pytest.raises(DatasetError, match=r"train.tar is not a plain tar file; decompress it first: gunzip"):
        listed(tmp_path, "train")
    (tmp_path / "train.tar").write_bytes(b"x" * 10_240)
    with pytest.raises(DatasetError, match=r"train.tar is damaged or not a plain tar file: .*; download it again"):
        listed(tmp_path, "train")
    with pytest.raises(DatasetError, match=r"neither a folder nor a tar file"):
        opened(Path(__file__))


@pytest.mark.parametrize(
    ("name", "data", "remedy"),
    [
        ("train-0.tar.gz", gzip.compress(shard([("a", 0)])), "decompress it first: gunzip"),
        ("train-0.tgz", gzip.compress(shard([("a", 0)])), "decompress it first: gunzip"),
        ("train-0.tar.bz2", bz2.compress(shard([("a", 0)])), "decompress it first: bunzip2"),
        ("train-0.tar.xz", lzma.compress(shard([("a", 0)])), "decompress it first: unxz"),
        ("train-0.zip", b"PK\x03\x04...", "unpack it first: unzip"),
    ],
)
@pytest.mark.parametrize("place", ["file", "folder", "beside others", "split"])
def test_compressed_shards_are_refused_with_the_remedy(tmp_path, name, data, remedy, place):
    folder = tmp_path / "train" if place == "split" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    if place == "beside others":
        (tmp_path / "train-1.tar").write_bytes(shard([("a", 0)]))
    source = folder / name if place == "file" else tmp_path
    with pytest.raises(DatasetError, match=rf"{name} is compressed; {remedy} .*{name}"):
        listed(source, "train", validation_every=2)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "train.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(DatasetError, match="it is a Git LFS pointer, so fetch the file first: git lfs pull"):
        listed(tmp_path, "train", validation_every=2)


ORDERS = {
    "images, then labels": ["a.jpg", "b.jpg", "c.jpg", "a.cls", "b.cls", "c.cls"],
    "backwards": ["a.jpg", "b.jpg", "c.jpg", "c.cls", "b.cls", "a.cls"],
    "some apart": ["a.jpg", "b.jpg", "b.cls", "a.cls", "c.cls", "c.jpg"],
    "captions last": ["a.jpg", "a.cls", "b.jpg", "b.txt", "b.cls", "c.jpg", "a.txt", "c.cls"],
}


@pytest.mark.parametrize("order", ORDERS)
def test_members_of_a_sample_may_be_apart(tmp_path, order):
    content = {"cls": {"a": b"0", "b": b"1", "c": b"2"}, "jpg": {"a": jpeg(0), "b": jpeg(1), "c": jpeg(2)}}
    parts = [(name, content.get(name[2:], {}).get(name[0], b"text")) for name in ORDERS[order]]
    (tmp_path / "train.tar").write_bytes(tar_of(parts))
    (tmp_path / "val.tar").write_bytes(shard([("a", 0)]))
    entries = [entry for entry in listed(tmp_path, "train") if not entry.problem]
    assert {entry.name: (entry.label, data(entry)) for entry in entries} == {
        f"train.tar/{key}": (label, jpeg(label)) for label, key in enumerate("abc")
    }


def test_a_key_that_comes_twice_is_two_samples(tmp_path):
    (tmp_path / "train.tar").write_bytes(shard([("a", 0), ("b", 1), ("a", 2)]))
    (tmp_path / "val.tar").write_bytes(shard([("a", 0)]))
    assert [(entry.label, entry.problem) for entry in listed(tmp_path, "train")] == [(0, ""), (1, ""), (2, "")]


@pytest.mark.parametrize("label", ["-1", None])
def test_a_test_shard_without_labels_is_left_out_with_a_note(tmp_path, label):
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    parts = [(f"{key}.jpg", jpeg(0)) for key in "ab"]
    parts += [] if label is None else [(f"{key}.cls", label.encode()) for key in "ab"]
    (tmp_path / "test.tar").write_bytes(tar_of(sorted(parts)))
    source = opened(tmp_path)
    assert source.splits == ("train", "val")
    assert source.notes == [f"{tmp_path}/test.tar has no labels; the test shards are left out"]


def test_samples_without_label_among_labelled_test_samples_are_listed(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    (tmp_path / "test.tar").write_bytes(shard([("a", -1), ("b", 1)]))
    source = opened(tmp_path)
    assert [entry.problem for entry in source.entries("test")] == ["no usable label: -1", ""]


@pytest.mark.parametrize(
    "names",
    [
        ["a.b.jpg", "a.b.cls"],
        ["img_0.5.jpg", "img_0.5.cls", "img_0.6.jpg", "img_0.6.cls"],
        ["x/1.2.jpg", "x/1.2.json"],
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_dots_in_keys_are_named(tmp_path, names, split):
    for other in ("train", "val"):
        (tmp_path / f"{other}.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    parts = [(name, jpeg(0) if name.endswith("jpg") else b"0") for name in names]
    (tmp_path / f"{split}.tar").write_bytes(tar_of(parts))
    with pytest.raises(DatasetError, match=rf"{split}.tar: {names[0]} has a dot in its key, .* in place of dots"):
        listed(tmp_path, split)


def test_further_parts_with_dots_are_fine(tmp_path):
    parts = [("a.jpg", jpeg(0)), ("a.meta.txt", b"x"), ("a.cls", b"1"), ("b.rgb.jpg", jpeg(1)), ("b.cls", b"0")]
    (tmp_path / "train.tar").write_bytes(tar_of(parts))
    entries = listed(tmp_path, "train", validation_every=0)
    assert [(entry.label, entry.problem) for entry in entries] == [(1, ""), (0, "")]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfcat\ndog\n",
        b"\ncat\n\ndog\n\n\n",
        b"cat \r\n\tdog\r\n",
        "cat\ndog".encode("utf-16"),
        b"cat\rdog",
    ],
)
def test_class_names_are_read_without_what_nobody_sees(tmp_path, text):
    (tmp_path / "train.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    (tmp_path / "classes.txt").write_bytes(text)
    assert opened(tmp_path, validation_every=0).classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ndog\ncat\n", "classes.txt: classes 1 and 3 cannot be told apart: 'cat' and 'cat'"),
        ("café\ncafe\u0301\n", "classes.txt: classes 1 and 2 cannot be told apart"),
        (" \n\n", "classes.txt has no class names; write one per line, or remove the file"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(tmp_path, text, message):
    (tmp_path / "train.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, validation_every=0)


def test_shards_of_no_split_beside_others_are_named(tmp_path):
    for name in ("train-0", "val-0", "extra-0", ".hidden"):
        (tmp_path / f"{name}.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    source = opened(tmp_path)
    assert source.notes == [f"{tmp_path}: extra-0.tar left out: no name of a split (train, val, test) in the names"]


@pytest.mark.parametrize(("train", "val", "test"), [("Train", "Valid", "Testing"), ("training", "validation", "TEST")])
def test_folders_of_shards_have_the_usual_names(tmp_path, train, val, test):
    for name in (train, val, test):
        (tmp_path / name).mkdir()
        (tmp_path / name / "000.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    assert opened(tmp_path).splits == ("train", "val", "test")


def test_a_shard_that_shrinks_while_it_is_read_is_no_bad_label(tmp_path):
    (tmp_path / "train.tar").write_bytes(shard([("a", 0)]))
    label = next(member for member in members(tmp_path / "train.tar") if member.name == "a.cls")
    (tmp_path / "train.tar").write_bytes(b"")
    with pytest.raises(OSError, match=r"ends before the end of a.cls"):
        read_member(tmp_path / "train.tar", label, 100)


def test_class_folders_in_place_of_shards_are_refused(tmp_path):
    (tmp_path / "train.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    class_folders(tmp_path / "other")
    (tmp_path / "other/val").rename(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"has shards for train but class folders in \S+/val; use shards or class"):
        opened(tmp_path, validation_every=2)


def test_other_folders_beside_shards_are_left_alone(tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    class_folders(tmp_path / "other")
    (tmp_path / "other/val").rename(tmp_path / "val")
    assert opened(tmp_path).splits == ("train", "val")


def test_a_folder_without_class_folders_beside_shards_is_not_taken_for_some(tmp_path):
    (tmp_path / "train.tar").write_bytes(shard([("a", 0), ("b", 1)]))
    (tmp_path / "val/empty").mkdir(parents=True)
    (tmp_path / "val/loose.jpg").write_bytes(jpeg(0))
    with pytest.raises(DatasetError, match=r"has training images but no validation set; add val/"):
        opened(tmp_path)
    assert opened(tmp_path, validation_every=2).splits == ("train", "val")


@pytest.mark.parametrize("first", ["images", "labels"])
def test_samples_cut_in_two_by_the_end_of_a_shard_stop_the_preparation(tmp_path, first):
    images = tar_of([("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("b.cls", b"1")])
    labels = tar_of([("a.cls", b"0"), ("c.jpg", jpeg(2)), ("c.cls", b"0")])
    for number, content in enumerate((images, labels) if first == "images" else (labels, images)):
        (tmp_path / f"train-{number}.tar").write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"sample a is cut in two, one part in \S+/train-0.tar, the other in \S+-1.tar"
    ):
        listed(tmp_path, "train", validation_every=0)
