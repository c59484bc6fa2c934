"""The archives of ILSVRC2012 and ILSVRC2010."""

import dataclasses
import gzip
import hashlib
import os

import pytest

from dataloading import DatasetError
from tests.dataloading.small_sources import (
    SYNSETS,
    TEST_TRUTH,
    VAL_TRUTH,
    ilsvrc2010,
    ilsvrc2012,
    jpeg,
    link,
    meta_mat,
    tar_of,
    truth_of,
)
from tests.dataloading.sources.listing import data, listed, opened


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


def test_ilsvrc2010_may_lack_its_test_set_and_patches(tmp_path):
    ilsvrc2010(tmp_path)
    for name in ("ILSVRC2010_images_test.tar", "ILSVRC2010_test_ground_truth.txt", "patch_images.tar"):
        (tmp_path / name).unlink()
    source = opened(tmp_path)
    assert source.splits == ("train", "val")
    assert source.made() == {"source": "ILSVRC2010", "label_order": "sorted", "patched": False}
    assert data(listed(tmp_path, "train")[0]) == jpeg(100)


def test_a_patch_replaces_images_of_its_own_split_only_and_must_be_a_file(tmp_path):
    ilsvrc2010(tmp_path)
    patches = link("patch_images/val/ILSVRC2010_val_00000001.JPEG", "/etc/passwd")
    patches += tar_of([(f"patch_images/{split}/n02119789_0.JPEG", jpeg(7001)) for split in ("val", "test")])
    (tmp_path / "patch_images.tar").write_bytes(patches)
    assert data(listed(tmp_path, "train")[0]) == jpeg(100)
    assert [entry.problem for entry in listed(tmp_path, "val")] == ["a link to /etc/passwd, not a file", *[""] * 4]


def test_a_class_that_is_a_link_is_no_class(tmp_path):
    path = ilsvrc2012(tmp_path) / "ILSVRC2012_img_train.tar"
    path.write_bytes(link("n02119789.tar", "/etc/passwd") + tar_of([]))
    with pytest.raises(DatasetError, match=r"contains n02119789.tar, which is not the tar file of a class"):
        listed(tmp_path, "train")


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
    with pytest.raises(DatasetError, match=r"has 5 images, but the ground truth has 2 labels"):
        listed(tmp_path, "val")


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_a_cut_off_archive_is_named(tmp_path, name, keep):
    whole = (ilsvrc2012(tmp_path) / name).read_bytes()
    used = len(whole.rstrip(b"\0"))
    (tmp_path / name).write_bytes(whole[: int(used * keep) // 512 * 512])
    with pytest.raises(DatasetError, match=f"{name} is truncated: it ends at offset"):
        [listed(tmp_path, split) for split in ("train", "val")]


def test_a_damaged_archive_is_named(tmp_path):
    path = ilsvrc2012(tmp_path) / "ILSVRC2012_img_val.tar"
    whole = bytearray(path.read_bytes())
    second = whole.index(b"ILSVRC2012_val_00000004")
    whole[second + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DatasetError, match=r"img_val.tar is damaged .*or not a plain tar file"):
        listed(tmp_path, "val")


def test_a_damaged_devkit_is_named(tmp_path):
    path = ilsvrc2012(tmp_path) / "ILSVRC2012_devkit_t12.tar.gz"
    kit = path.read_bytes()
    path.write_bytes(kit[: len(kit) // 2])
    with pytest.raises(DatasetError, match=r"devkit_t12.tar.gz (is damaged|has no file)"):
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
    with pytest.raises(DatasetError, match=r"no images of 2 classes, such as n01440764"):
        listed(tmp_path, "train")
    path.write_bytes(tar_of([("n99999999.tar", tar_of([]))]))
    with pytest.raises(DatasetError, match=r"contains n99999999.tar, which is not the tar file of a class"):
        listed(tmp_path, "train")


def test_md5_sums_are_compared(tmp_path):
    source = opened(ilsvrc2012(tmp_path))
    with pytest.raises(
        DatasetError,
        match=r"img_train.tar must have MD5 1d675b47d978889d74fa0da5fadfb00e, got [0-9a-f]{32}; download it again",
    ):
        source.verify(progress=False)
    with pytest.raises(DatasetError, match=r"no MD5 sums were published for ILSVRC2010"):
        opened(ilsvrc2010(tmp_path / "2010")).verify(progress=False)


def test_md5_sums_that_agree_are_accepted_and_every_byte_counts(tmp_path, monkeypatch, capsys):
    source = opened(ilsvrc2012(tmp_path))
    for name in source.edition.md5:
        os.truncate(tmp_path / name, 5 << 20)  # more than is read at a time
    published = {name: hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in source.edition.md5}
    monkeypatch.setattr(source, "edition", dataclasses.replace(source.edition, md5=published))
    source.verify()
    assert "verifying ILSVRC2012: 15,728,640 of 15,728,640 bytes" in capsys.readouterr().err
    for name in published:
        with (tmp_path / name).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
            with pytest.raises(
                DatasetError, match=rf"{name} must have MD5 {published[name]}, got [0-9a-f]{{32}}; down"
            ):
                file.flush() or source.verify(progress=False)
            file.seek(-1, os.SEEK_END)
            file.write(b"\0")
    source.verify(progress=False)


def test_links_and_paths_in_archives_are_names_only(tmp_path):
    wanted = [("../../../../etc/evil.JPEG", jpeg(1)), ("/etc/passwd", jpeg(2))]
    inner = link("n01440764_8.JPEG", "/etc/passwd") + tar_of(wanted)
    ilsvrc2012(tmp_path)
    whole = {wnid: tar_of([(f"{wnid}_0.JPEG", jpeg(0))]) for _, wnid, _ in SYNSETS} | {"n01440764": inner}
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of((f"{wnid}.tar", part) for wnid, part in whole.items()))
    tench = [entry for entry in listed(tmp_path, "train") if entry.name.startswith("n01440764/")]
    assert tench[0].problem == "a link to /etc/passwd, not a file"
    assert [data(entry) for entry in tench[1:]] == [jpeg(1), jpeg(2)]
