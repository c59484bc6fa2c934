"""What is in a prepared data set."""

import csv
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from dataloading import DatasetError, is_prepared, prepare_dataset
from dataloading.check import problems
from dataloading.preparation import preparation
from dataloading.preparation.images import ImageOptions, prepare_image
from tests.dataloading.preparation.preparing import python_script, quietly, stored
from tests.dataloading.recording import Call, disk_calls
from tests.dataloading.small_sources import (
    class_folders,
    contents,
    encoded,
    ilsvrc2010,
    ilsvrc2012,
    jpeg,
    photograph,
    png_header,
    tar_of,
)


def test_images_labels_and_classes_arrive(folders, small):
    assert (small.count("train"), small.count("val")) == (24, 12)
    assert small.classes == ["class0", "class1", "class2"]
    assert small.labels("train").tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert small.labels("train").dtype == np.int32
    assert [shard.samples for shard in small.shards("train")] == [10, 10, 4]
    files = sorted((folders / "train").rglob("*.jpg"))
    for i in (0, 9, 10, 23):
        assert small.read("train", i) == prepare_image(files[i].read_bytes(), ImageOptions(size=32)).jpeg
    assert small.made["rejected"] == 0
    assert small.made["source"] == "class folders"


def test_statistics_are_those_of_the_training_images(folders, small):
    squares = [
        prepare_image(path.read_bytes(), ImageOptions(size=32)).square
        for path in sorted((folders / "train").rglob("*.jpg"))
    ]
    assert small.mean_image.dtype == np.float32
    assert np.abs(small.mean_image - np.mean(squares, axis=0)).max() < 1e-4
    covariance = np.cov(np.reshape(squares, (-1, 3)).T, bias=True)
    rebuilt = small.color_vectors @ np.diag(small.color_deviations**2) @ small.color_vectors.T
    assert np.abs(rebuilt - covariance).max() < 0.1
    assert np.abs(small.color_vectors.T @ small.color_vectors - np.eye(3)).max() < 1e-4
    assert (np.diff(small.color_deviations) > 0).all()


def test_the_bytes_do_not_depend_on_the_number_of_workers(folders, small, tmp_path):
    quietly(folders, tmp_path / "two", shard_images=10, workers=2)
    assert contents(tmp_path / "two") == contents(small.root)


def test_files_reach_the_disk_before_others_rely_on_them(folders, tmp_path, monkeypatch):
    calls, work = disk_calls(monkeypatch), tmp_path / "out.preparing"
    dataset = quietly(folders, tmp_path / "out", shard_images=10)
    for split in dataset.splits:
        for shard in dataset.shards(split):
            named, recorded = (
                calls.index(Call("rename", (work / shard.file).with_suffix(x))) for x in (".tar", ".json")
            )
            assert named < calls.index(Call("sync", work), named) < recorded
    described = calls.index(Call("rename", work / "dataset.json"))
    for name in (
        "rejected.csv",
        *(f"{split}-{what}" for split in dataset.splits for what in ("index.npy", "sources.csv")),
    ):
        assert Call("sync", work / name, (dataset.root / name).stat().st_size) in calls[:described]
    assert Call("rename", work / "mean-image.npy") in calls[:described]
    removed = [number for number, call in enumerate(calls) if call.what == "remove" and call.path.parent == work]
    assert min(removed) > calls.index(Call("sync", work), described)
    finished = calls.index(Call("rename", dataset.root))
    assert calls[finished:][:3] == [
        Call("rename", dataset.root),
        Call("sync", tmp_path),
        Call("remove", dataset.root / "plan.json"),
    ]


def test_workers_do_not_import_the_main_module(folders, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        "print('started')\n"
        "import dataloading\n"
        "dataloading.prepare_dataset(sys.argv[1], sys.argv[2], size=32, shard_images=10, workers=2, progress=False)\n"
        "print(__file__, __spec__)\n"
    )
    done = python_script(script, folders, tmp_path / "out")
    assert done.stdout == f"started\n{script} None\n", done.stderr
    assert is_prepared(tmp_path / "out")


def test_other_options_give_another_fingerprint(folders, small, tmp_path):
    assert quietly(folders, tmp_path / "a", shard_images=10).fingerprint == small.fingerprint
    assert quietly(folders, tmp_path / "b", shard_images=10, quality=50).fingerprint != small.fingerprint


def test_images_that_do_not_decode_are_listed_and_left_out(tmp_path):
    class_folders(tmp_path / "in", classes=2, train=3, val=2)
    odd = {
        "train/class0/0001.jpg": jpeg(0)[:-2],
        "train/class0/empty.jpg": b"",
        "train/class1/page, with comma.jpg": b"<html>",
        "train/class1/bomb.png": png_header(50_000, 50_000),
        "train/class1/notes.txt": b"not an image",
        "val/class1/half.jpg": jpeg(0)[:400],
    }
    for name, data in odd.items():
        (tmp_path / "in" / name).write_bytes(data)
    dataset = quietly(tmp_path / "in", tmp_path / "out")
    with (tmp_path / "out/rejected.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(row["file"] for row in table) == sorted(odd)
    assert {row["split"] for row in table if row["file"].startswith("val")} == {"val"}
    reasons = {row["file"]: row["reason"] for row in table}
    assert reasons["train/class0/empty.jpg"] == "empty file"
    assert "truncated" in reasons["train/class0/0001.jpg"]
    assert reasons["train/class1/bomb.png"].startswith("too large")
    assert dataset.made["rejected"] == 6
    assert (dataset.count("train"), dataset.count("val")) == (5, 4)
    assert dataset.labels("train").tolist() == [0, 0, 1, 1, 1]


def test_a_shard_may_lose_all_its_images(tmp_path):
    source = class_folders(tmp_path / "in", classes=2, train=4, val=1)
    for name in ("class0/0000", "class0/0001", "class1/0002", "class1/0003"):  # the first and the last shard
        (source / f"train/{name}.jpg").write_bytes(b"no image")
    dataset = quietly(source, tmp_path / "out", shard_images=2)
    assert [shard.samples for shard in dataset.shards("train")] == [0, 2, 2, 0]
    assert dataset.labels("train").tolist() == [0, 0, 1, 1]
    assert problems(dataset, progress=False) == []


def test_a_source_without_usable_images_is_refused(tmp_path):
    class_folders(tmp_path / "in", classes=2, train=2, val=1)
    for path in (tmp_path / "in/train").rglob("*.jpg"):
        path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"none of the training images of in can be used"):
        quietly(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_files_in_archives_are_rejected_too(tmp_path):
    odd = {
        "n02105855_2933.JPEG": encoded(photograph(1), "PNG"),
        "n01440764_90.JPEG": encoded(photograph(2)[:, :, 0]),
        "n01440764_91.JPEG": jpeg(3)[:-2],
        "n01440764_92.JPEG": b"",
    }
    dataset = quietly(ilsvrc2012(tmp_path / "in", odd=odd), tmp_path / "out")
    assert dataset.count("train") == 17
    assert dataset.made["rejected"] == 2
    assert dataset.words[0] == "tench, Tinca tinca"
    rejected = (tmp_path / "out/rejected.csv").read_text()
    assert "n01440764/n01440764_91.JPEG" in rejected
    assert "n01440764/n01440764_92.JPEG,empty file" in rejected


def test_ilsvrc2010_is_prepared_with_its_test_set(tmp_path):
    dataset = quietly(ilsvrc2010(tmp_path / "in"), tmp_path / "out", label_order="devkit")
    assert [dataset.count(split) for split in dataset.splits] == [12, 5, 3]
    assert dataset.made["rejected"] == 0
    assert dataset.made["label_order"] == "devkit"
    assert bytes(dataset.read("train", 0)) == prepare_image(jpeg(7001), ImageOptions(size=32)).jpeg
    assert bytes(dataset.read("train", 1)) == prepare_image(jpeg(101), ImageOptions(size=32)).jpeg


def test_a_prepared_data_set_can_be_the_source_of_another(small, tmp_path):
    again = quietly(small.root, tmp_path / "out", size=16)
    assert again.classes == small.classes
    assert np.array_equal(again.labels("train"), small.labels("train"))
    for sample in (0, 13):
        assert again.source("train", sample) == small.source("train", sample)
        assert again.key("train", sample) == small.key("train", sample)
    (small.root / "val-sources.csv").replace(tmp_path / "val-sources.csv")
    shutil.copytree(small.root, tmp_path / "nameless")
    (tmp_path / "val-sources.csv").replace(small.root / "val-sources.csv")
    nameless = quietly(tmp_path / "nameless", tmp_path / "out2", size=16)
    assert nameless.source("val", 0) == f"val-000000.tar/{small.key('val', 0)}"


def test_files_may_have_any_name(tmp_path):
    odd = ["ünï 猫.jpg", "new\nline, comma.jpg", "a.b.c.jpg", b"\xff\xfe latin.jpg".decode(errors="surrogateescape")]
    for split in ("train", "val"):
        folder = tmp_path / "in" / split / odd[3]
        folder.mkdir(parents=True)
        for number, name in enumerate(odd):
            (folder / name).write_bytes(jpeg(number))
        (folder / f"bad {odd[3]}").write_bytes(b"")
        folder.with_name("plain").mkdir()
        (folder.with_name("plain") / "0.jpg").write_bytes(jpeg(0))
    dataset = quietly(tmp_path / "in", tmp_path / "out", workers=2)
    assert (dataset.count("train"), dataset.made["rejected"]) == (5, 2)
    assert dataset.classes == sorted(["plain", odd[3]])
    assert b"bad \xff\xfe latin.jpg" in (tmp_path / "out/rejected.csv").read_bytes()
    assert sorted(dataset.source("train", sample) for sample in range(5)) == sorted(
        ["train/plain/0.jpg", *(f"train/{odd[3]}/{name}" for name in odd)]
    )
    assert problems(dataset, progress=False) == []


def test_22000_classes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/classes.txt").write_text("".join(f"class {label}\n" for label in range(22_000)))
    for split in ("train", "val"):
        parts = [("0.jpg", jpeg(0)), ("0.cls", b"0"), ("1.jpg", jpeg(1)), ("1.cls", b"21999")]
        (tmp_path / f"in/{split}.tar").write_bytes(tar_of(parts))
    with pytest.raises(DatasetError, match=r"no images of class 1, class 2, .* and 21,990 more for train and of class"):
        quietly(tmp_path / "in", tmp_path / "out")
    dataset = quietly(tmp_path / "in", tmp_path / "out", allow_empty_classes=True)
    assert len(dataset.classes) == 22_000
    assert dataset.labels("val").tolist() == [0, 21_999]


def test_whole_images_can_be_kept(folders, tmp_path):
    dataset = quietly(folders, tmp_path / "out", keep_aspect=True)
    assert {image.shape for image in stored(dataset, "val")} == {(32, 40, 3)}
    assert dataset.index("val")["width"].tolist() == [40] * 12
    assert dataset.mean_image.shape == (32, 32, 3)


def test_digits_are_real_jpeg_files_of_256_pixels(tmp_path):
    dataset = prepare_dataset("digits", tmp_path / "digits", workers=0, progress=False)
    assert dataset.name == "digits"
    assert dataset.classes == list("0123456789")
    assert (dataset.count("train"), dataset.count("val")) == (1438, 359)
    assert np.bincount(dataset.labels("val")).min() >= 35
    image = Image.open(io.BytesIO(dataset.read("val", 0)))
    assert (image.format, image.size, image.mode) == ("JPEG", (256, 256), "RGB")
    assert dataset.color_deviations[:2].tolist() == [0, 0]
    assert sorted(path.suffix for path in (tmp_path / "digits").iterdir()) == sorted(
        [*[".csv"] * 3, ".json", *[".npy"] * 3, *[".tar"] * 3]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"size": 15},
        {"size": 4097},
        {"quality": 0},
        {"quality": 96},
        {"workers": -1},
        {"workers": 1025},
        {"shard_images": 0},
        {"shard_images": 100_001},
        {"max_pixels": 0},
        {"max_pixels": 178_956_971},  # where Pillow stops
    ],
)
def test_options_out_of_range_are_refused(folders, tmp_path, options):
    with pytest.raises(DatasetError, match=rf"{next(iter(options))} must be \d+ to \d+, got -?\d+"):
        quietly(folders, tmp_path / "out", **options)


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 0, 0), (0, 0, 256), (-1, 0, 0), (0, 0, 0.5)])
def test_backgrounds_that_are_no_colours_are_refused(folders, tmp_path, background):
    with pytest.raises(DatasetError, match=r"background must be three numbers from 0 to 255, such as 255,255,255, got"):
        quietly(folders, tmp_path / "out", background=background)


def test_the_ends_of_ranges_are_accepted():
    preparation._check_options(ImageOptions(16, 1, max_pixels=1, background=(0, 0, 0)), 1, None)
    preparation._check_options(ImageOptions(4096, 95, max_pixels=178_956_970, background=(255,) * 3), 100_000, 1024)


@pytest.mark.parametrize(
    ("number", "name", "key"),
    [
        (0, "n01440764/n01440764_10026.JPEG", "000000000-n01440764_10026"),
        (1_281_166, "a.b/c.d/ünï x.y.jpg", "001281166-_n__x_y"),
        (7, "a/" + "x" * 59 + "-Z.jpg", "000000007-" + "x" * 58 + "-Z"),
        (7, "noext", "000000007-noext"),
    ],
)
def test_keys_are_numbers_and_ends_of_names_in_safe_letters(number, name, key):
    assert preparation.sample_key(number, name) == key
