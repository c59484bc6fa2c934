import dataclasses
import gzip
import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.archives import members
from dataloading.images import Rejected
from dataloading.plan import read_entry
from dataloading.sources import Entry, Source, open_source
from tests.dataloading.small_sources import (
    SYNSETS,
    TEST_TRUTH,
    VAL_TRUTH,
    class_folders,
    ilsvrc2010,
    ilsvrc2012,
    jpeg,
    link,
    meta_mat,
    tar_of,
    truth_of,
)


def opened(source: Path | str, **options: object) -> Source:
    return open_source(source, scratch=Path("/nonexistent"), **options)


def listed(source: Path | str, split: str, **options: object) -> list[Entry]:
    return list(opened(source, **options).entries(split))


def data(entry: Entry) -> bytes:
    return read_entry(entry, 10**9)


# --- class folders ----------------------------------------------------------------------------------------------------


def test_class_folders_are_numbered_by_sorted_name(folders):
    source = opened(folders)
    assert source.classes == ["class0", "class1", "class2"]
    assert source.splits == ("train", "val")
    train = listed(folders, "train")
    assert [entry.label for entry in train] == [0] * 8 + [1] * 8 + [2] * 8
    assert [entry.name for entry in train[:2]] == ["train/class0/0000.jpg", "train/class0/0001.jpg"]
    assert data(train[9]) == (folders / "train/class1/0001.jpg").read_bytes()


def test_files_below_a_class_folder_count_and_hidden_ones_do_not(tmp_path):
    class_folders(tmp_path, classes=1, train=1, val=1)
    (tmp_path / "train/class0/more").mkdir()
    (tmp_path / "train/class0/more/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "train/class0/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/.cache").mkdir()
    names = [entry.name for entry in listed(tmp_path, "train")]
    assert names == ["train/class0/0000.jpg", "train/class0/more/a.jpg"]


def test_a_link_that_leads_nowhere_is_listed_with_its_problem(tmp_path):
    class_folders(tmp_path, classes=1, train=1, val=1)
    (tmp_path / "train/class0/b.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "train/class0/c.jpg").symlink_to("0000.jpg")
    _, broken, good = listed(tmp_path, "train")
    assert "No such file" in broken.problem
    assert not good.problem
    assert data(good) == jpeg(0)


def test_a_missing_folder_is_named():
    with pytest.raises(DatasetError, match=r"no such folder: /no/where; wanted: "):
        opened("/no/where")


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path} holds no images; wanted: one folder per class"):
        opened(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match=r"holds no images"):
        opened(tmp_path)
    (tmp_path / "train/a.jpg").write_bytes(jpeg(0))
    with pytest.raises(DatasetError, match=r"has images but no class folders"):
        opened(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "val/class1/0000.jpg").parent.rename(tmp_path / "away")
    (tmp_path / "val/class1").mkdir()
    with pytest.raises(DatasetError, match=r"class folder .*val/class1 has no images"):
        listed(tmp_path, "val")


def test_class_folders_that_differ_are_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "val/class1").rename(tmp_path / "val/klass1")
    with pytest.raises(DatasetError, match=r"only train/ has class1; only val/ has klass1; give both the same"):
        opened(tmp_path)


def test_a_source_without_validation_set_is_refused_with_the_remedy(tmp_path):
    class_folders(tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"no validation set; add val/ .* --validation-every 10"):
        opened(tmp_path)
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"has val/ but no train/"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["train", "."])
def test_a_validation_set_can_be_held_out(tmp_path, place):
    class_folders(tmp_path / "all", train=10)
    shutil.rmtree(tmp_path / "all/val")
    root = tmp_path / "all" if place == "train" else tmp_path / "all/train"
    train, val = (listed(root, split, validation_every=5) for split in ("train", "val"))
    assert (len(train), len(val)) == (24, 6)
    assert [entry.label for entry in val] == [0, 0, 1, 1, 2, 2]
    assert not {entry.path for entry in train} & {entry.path for entry in val}
    assert opened(root, validation_every=5).made()["validation_every"] == 5


def test_holding_out_is_refused_where_it_makes_no_sense(folders):
    with pytest.raises(DatasetError, match=r"has a validation set; leave --validation-every out"):
        opened(folders, validation_every=5)
    with pytest.raises(DatasetError, match=r"validation_every is 1; it must be 2 or more"):
        opened(folders / "train", validation_every=1)


def test_devkit_order_needs_a_devkit(folders):
    with pytest.raises(DatasetError, match=r"has no development kit"):
        opened(folders, label_order="devkit")
    with pytest.raises(DatasetError, match=r"label_order is 'random'"):
        opened(folders, label_order="random")


# --- ILSVRC -----------------------------------------------------------------------------------------------------------


def test_ilsvrc2012_is_read_in_place(tmp_path):
    before = {path: path.stat().st_mtime for path in ilsvrc2012(tmp_path).iterdir()}
    source = opened(tmp_path)
    assert source.name == "ILSVRC2012"
    assert source.splits == ("train", "val")
    train = listed(tmp_path, "train")
    assert [data(entry) for entry in train[:5]] == [jpeg(100 + image) for image in range(5)]
    assert [entry.name for entry in train[:2]] == ["n02119789/n02119789_0.JPEG", "n02119789/n02119789_1.JPEG"]
    assert {path: path.stat().st_mtime for path in tmp_path.iterdir()} == before


def test_labels_follow_sorted_wordnet_ids_or_the_devkit(tmp_path):
    ilsvrc2012(tmp_path)
    by_id, by_kit = opened(tmp_path), opened(tmp_path, label_order="devkit")
    assert by_id.classes == ["n01440764", "n02100735", "n02119789"]
    assert by_id.words == ["tench, Tinca tinca", "English setter", "kit fox"]
    assert by_kit.classes == [wnid for _, wnid, _ in SYNSETS]
    assert (by_id.made()["label_order"], by_kit.made()["label_order"]) == ("sorted", "devkit")
    for source in (by_id, by_kit):
        for entry in source.entries("train"):
            assert entry.name.startswith(source.classes[entry.label])
        wanted = [SYNSETS[number - 1][1] for number in VAL_TRUTH]
        assert [source.classes[entry.label] for entry in source.entries("val")] == wanted


def test_the_ith_label_belongs_to_the_ith_file_by_name(tmp_path):
    ilsvrc2012(tmp_path)
    val = listed(tmp_path, "val")
    assert [entry.name for entry in val] == [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(5)]
    assert [data(entry) for entry in val] == [jpeg(1000 + i) for i in range(5)]


def test_ilsvrc2010_has_a_test_set_and_patches(tmp_path):
    ilsvrc2010(tmp_path)
    source = opened(tmp_path, label_order="devkit")
    assert source.splits == ("train", "val", "test")
    assert [entry.label + 1 for entry in source.entries("test")] == TEST_TRUTH
    assert [entry.label + 1 for entry in source.entries("val")] == VAL_TRUTH
    train, val = list(source.entries("train")), list(source.entries("val"))
    assert data(train[0]) == jpeg(7001)
    assert data(val[1]) == jpeg(7002)
    assert data(val[0]) == jpeg(2000)
    assert gzip.decompress(data(train[1])) == jpeg(101)
    assert source.made()["patched"] is True


def test_what_is_missing_beside_the_archives_is_named(tmp_path):
    ilsvrc2012(tmp_path / "a")
    (tmp_path / "a/ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(DatasetError, match=r"lacks ILSVRC2012_devkit_t12.tar.gz of ILSVRC2012"):
        opened(tmp_path / "a")
    ilsvrc2010(tmp_path / "b")
    (tmp_path / "b/ILSVRC2010_test_ground_truth.txt").unlink()
    with pytest.raises(DatasetError, match=r"lacks ILSVRC2010_test_ground_truth.txt"):
        opened(tmp_path / "b")


def test_a_label_out_of_range_is_named(tmp_path):
    ilsvrc2012(tmp_path, val_truth=[3, 1, 4, 2, 1])
    with pytest.raises(DatasetError, match=r"label 4 of ILSVRC2012_val_00000003.JPEG is out of range: .* 1 to 3"):
        listed(tmp_path, "val")


def test_images_and_labels_must_be_as_many(tmp_path):
    ilsvrc2012(tmp_path, val_truth=[3, 1])
    with pytest.raises(DatasetError, match=r"holds 5 images, the ground truth 2 labels"):
        listed(tmp_path, "val")


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_a_cut_off_archive_is_named(tmp_path, name, keep):
    whole = (ilsvrc2012(tmp_path) / name).read_bytes()
    used = len(whole.rstrip(b"\0"))
    (tmp_path / name).write_bytes(whole[: int(used * keep) // 512 * 512])
    with pytest.raises(DatasetError, match=f"{name} is cut off"):
        [listed(tmp_path, split) for split in ("train", "val")]


def test_a_damaged_archive_is_named(tmp_path):
    path = ilsvrc2012(tmp_path) / "ILSVRC2012_img_val.tar"
    whole = bytearray(path.read_bytes())
    second = whole.index(b"ILSVRC2012_val_00000004")
    whole[second + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DatasetError, match=r"img_val.tar is not a plain tar file, or damaged"):
        listed(tmp_path, "val")


def test_a_damaged_devkit_is_named(tmp_path):
    path = ilsvrc2012(tmp_path) / "ILSVRC2012_devkit_t12.tar.gz"
    kit = path.read_bytes()
    path.write_bytes(kit[: len(kit) // 2])
    with pytest.raises(DatasetError, match=r"devkit_t12.tar.gz (is damaged|holds no file)"):
        opened(tmp_path)
    files = [("x/data/meta.mat", meta_mat(2012)[:300]), ("x/data/a_validation_ground_truth.txt", truth_of([1]))]
    path.write_bytes(gzip.compress(tar_of(files)))
    with pytest.raises(DatasetError, match=r"meta.mat in .* cannot be read"):
        opened(tmp_path)
    files = [("x/data/meta.mat", meta_mat(2012)), ("x/data/a_validation_ground_truth.txt", b"1\ntwo\n")]
    path.write_bytes(gzip.compress(tar_of(files)))
    with pytest.raises(DatasetError, match=r"the ground truth in .* is damaged"):
        opened(tmp_path)


def test_a_class_without_archive_is_named(tmp_path):
    path = ilsvrc2012(tmp_path) / "ILSVRC2012_img_train.tar"
    path.write_bytes(tar_of([("n02119789.tar", tar_of([("n02119789_0.JPEG", jpeg(0))]))]))
    with pytest.raises(DatasetError, match=r"no images of 2 classes, among them n01440764"):
        listed(tmp_path, "train")
    path.write_bytes(tar_of([("n99999999.tar", tar_of([]))]))
    with pytest.raises(DatasetError, match=r"holds n99999999.tar, which is not the tar file of a class"):
        listed(tmp_path, "train")


def test_md5_sums_are_compared(tmp_path):
    source = opened(ilsvrc2012(tmp_path))
    with pytest.raises(
        DatasetError, match=r"img_train.tar has MD5 [0-9a-f]{32}, published is 1d675b47d978889d74fa0da5fad"
    ):
        source.verify(progress=False)
    with pytest.raises(DatasetError, match=r"no MD5 sums were published for ILSVRC2010"):
        opened(ilsvrc2010(tmp_path / "2010")).verify(progress=False)


def test_md5_sums_that_agree_are_accepted(tmp_path, monkeypatch):
    source = opened(ilsvrc2012(tmp_path))
    published = {name: hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in source.edition.md5}
    monkeypatch.setattr(source, "edition", dataclasses.replace(source.edition, md5=published))
    source.verify(progress=False)


@pytest.mark.parametrize(
    ("length", "limit", "reason"),
    [(100, 99, "too large: 100 bytes, more than 99"), (101, 10**9, "cut off: 100 of 101 bytes are there")],
)
def test_a_file_is_read_within_its_limits(tmp_path, length, limit, reason):
    (tmp_path / "archive").write_bytes(bytes(20) + b"x" * 100)
    assert read_entry(Entry(str(tmp_path / "archive"), 20, 100, 0, "x"), 100) == b"x" * 100
    with pytest.raises(Rejected, match=reason):
        read_entry(Entry(str(tmp_path / "archive"), 20, length, 0, "x"), limit)


def test_links_and_paths_in_archives_are_names_only(tmp_path):
    wanted = [("../../../../etc/evil.JPEG", jpeg(1)), ("/etc/passwd", jpeg(2))]
    inner = link("n01440764_8.JPEG", "/etc/passwd") + tar_of(wanted)
    ilsvrc2012(tmp_path)
    whole = {wnid: tar_of([(f"{wnid}_0.JPEG", jpeg(0))]) for _, wnid, _ in SYNSETS} | {"n01440764": inner}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of((f"{wnid}.tar", part) for wnid, part in whole.items()))
    tench = [entry for entry in listed(tmp_path, "train") if entry.name.startswith("n01440764/")]
    assert tench[0].problem == "a link to /etc/passwd, not a file"
    assert [data(entry) for entry in tench[1:]] == [jpeg(1), jpeg(2)]


def test_listing_an_archive_takes_no_memory(tmp_path):
    blocks = tar_of([("n01440764_0.JPEG", b"x" * 100)])[:1024]
    (tmp_path / "large.tar").write_bytes(blocks * 20_000 + bytes(1024))
    tracemalloc.start()
    assert sum(1 for _ in members(tmp_path / "large.tar")) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000


# --- WebDataset -------------------------------------------------------------------------------------------------------


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
    with pytest.raises(DatasetError, match=r"train.tar is not a plain tar file"):
        listed(tmp_path, "train")
    (tmp_path / "all.tar.gz").write_bytes(gzip.compress(shard([("a", 0)])))
    with pytest.raises(DatasetError, match=r"unpack it first"):
        listed(tmp_path / "all.tar.gz", "train", validation_every=2)
    with pytest.raises(DatasetError, match=r"neither a folder nor a tar file"):
        opened(Path(__file__))
