"""A validation set held out from the training images."""

from pathlib import Path

import pytest

from dataloading import DatasetError
from tests.dataloading.small_sources import encoded, jpeg, photograph, tar_of
from tests.dataloading.sources.listing import listed, opened


def filled(root: Path, **counts: int) -> Path:
    """Class folders with as many images each."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:02d}.jpg").write_bytes(jpeg(number, 16, 16))
    return root


@pytest.mark.parametrize("suffix", [".txt", ".json", ".CAPTION", ""])
def test_files_beside_the_images_are_not_counted(tmp_path, suffix):
    filled(tmp_path, cat=20, dog=20)
    for image in tmp_path.glob("*/*.jpg"):
        image.with_suffix(suffix).write_text("BMW, a caption" if suffix else "a caption")
    val = listed(tmp_path, "val", validation_every=10)
    assert [entry.name for entry in val] == ["cat/09.jpg", "cat/19.jpg", "dog/09.jpg", "dog/19.jpg"]
    assert len(listed(tmp_path, "train", validation_every=10)) == 76


def test_damaged_links_and_empty_files_are_not_counted(tmp_path):
    filled(tmp_path, cat=4, dog=4)
    for name in ("cat", "dog"):
        for number in range(4):
            (tmp_path / name / f"{number:02d}-.jpg").write_bytes(b"")
            (tmp_path / name / f"{number:02d}..jpg").symlink_to("nowhere.jpg")
    val = listed(tmp_path, "val", validation_every=2)
    assert [entry.name for entry in val] == ["cat/01.jpg", "cat/03.jpg", "dog/01.jpg", "dog/03.jpg"]


@pytest.mark.parametrize("start", [b"RIFF\0\0\0\0WAVEfmt ", b"fLaC", b"\xff\xfb\x90\0", b"%PDF-1.4", b"", b"I"])
def test_other_files_without_a_suffix_are_not_counted(tmp_path, start):
    filled(tmp_path, cat=4, dog=4)
    for name in ("cat", "dog"):
        (tmp_path / name / "00").write_bytes(start)
    assert [entry.name for entry in listed(tmp_path, "val", validation_every=4)] == ["cat/03.jpg", "dog/03.jpg"]


def test_a_test_set_stays_as_it_is(tmp_path):
    parts = [part for i in range(6) for part in ((f"{i}.jpg", jpeg(i)), (f"{i}.cls", b"%d" % (i % 2)))]
    for split in ("train", "test"):
        (tmp_path / f"{split}.tar").write_bytes(tar_of(parts))
    source = opened(tmp_path, validation_every=3)
    assert source.splits == ("train", "val", "test")
    names = {split: [entry.name for entry in source.entries(split)] for split in source.splits}
    assert names["test"] == [f"test.tar/{i}" for i in range(6)]
    assert (names["train"], names["val"]) == ([f"train.tar/{i}" for i in range(4)], ["train.tar/4", "train.tar/5"])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_images_without_a_suffix_are_counted(tmp_path, kind):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}").write_bytes(encoded(photograph(number, 16, 16), kind))
    assert [entry.name for entry in listed(tmp_path, "val", validation_every=4)] == ["cat/3", "dog/3"]


@pytest.mark.parametrize(
    ("counts", "every", "message"),
    [
        ({"cat": 20, "dog": 5}, 10, "--validation-every 10 holds no image out of dog, which has 5 images; use .* 5,"),
        (
            {"cat": 3, "dog": 5},
            10,
            "holds no image out of cat, dog, which have 3 to 5 images; use --validation-every 3",
        ),
        (
            {"cat": 3, "dog": 1},
            2,
            "holds no image out of dog, which has 1 image; add images to the classes that have 1",
        ),
    ],
)
def test_a_class_too_small_to_hold_out_is_refused_with_a_number(tmp_path, counts, every, message):
    filled(tmp_path, **counts)
    with pytest.raises(DatasetError, match=message):
        listed(tmp_path, "train", validation_every=every)
    assert listed(tmp_path, "train", validation_every=every, allow_empty_classes=True)


def test_the_proposed_number_works(tmp_path):
    filled(tmp_path, cat=3, dog=5)
    with pytest.raises(DatasetError, match="use --validation-every 3,"):
        listed(tmp_path, "train", validation_every=10)
    assert {entry.label for entry in listed(tmp_path, "val", validation_every=3)} == {0, 1}


def test_too_few_samples_in_shards_are_refused_too(tmp_path):
    parts = [part for i in range(9) for part in ((f"{i}.jpg", jpeg(0)), (f"{i}.cls", b"0" if i < 6 else b"1"))]
    (tmp_path / "all.tar").write_bytes(tar_of(parts))
    with pytest.raises(DatasetError, match="holds no image out of 1, which has 3 images; use --validation-every 3"):
        listed(tmp_path, "train", validation_every=5)
