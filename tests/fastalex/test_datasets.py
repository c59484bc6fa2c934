"""Which prepared data set a folder of images means."""

import os
from pathlib import Path

import pytest

from fastalex.datasets import mean_image_hash, open_data, reopen_data
from fastalex.errors import ConfigurationError
from tests.fastalex.conftest import write_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path / "photos", train=3, val=1)


def test_prepared_once_and_again_after_a_change(photos, capsys):
    first = open_data(photos)
    assert "preparing" in capsys.readouterr().out
    assert open_data(photos).root == first.root
    assert "preparing" not in capsys.readouterr().out
    image = next(photos.glob("train/red/*.jpg"))
    (photos / "train" / "red" / "another.jpg").write_bytes(image.read_bytes())
    second = open_data(photos)
    assert second.count("train") == first.count("train") + 1
    os.utime(image, (0, 0))
    assert open_data(photos).root != second.root


def test_files_that_are_no_images_are_counted_and_their_list_is_named(photos, capsys):
    (photos / "train" / "red" / "text.jpg").write_text("no image")
    dataset = open_data(photos)
    assert dataset.count("train") == 9
    out = capsys.readouterr().out
    assert "1 file was left out" in out
    assert str(Path(dataset.root) / "rejected.csv") in out


def test_one_of_several_workers_prepares_nothing(photos):
    with pytest.raises(ConfigurationError, match="is not prepared; run this before torchrun: python -m ") as caught:
        open_data(photos, 227, for_training=False, may_prepare=False)
    assert str(caught.value).endswith("-227px-images --size 227 --validation-every 0")
    assert not (Path("prepared")).exists()


def again(given: Path | None, recorded: str, size: int | None = None, mean_image: str | None = None):
    return reopen_data(given, recorded, size, mean_image, remedy="train DATA --resume run", may_prepare=True)


def test_a_run_goes_on_with_images_of_its_own_size(photos):
    small, large = open_data(photos, 32), open_data(photos)
    hashed = mean_image_hash(small.mean_image)
    assert again(None, str(small.root), 32, hashed).root == small.root
    assert again(photos, str(small.root), 32, hashed).root == small.root  # prepared in that size
    assert again(photos, str(small.root)).root == small.root  # the size of a run of an earlier version
    assert again(photos, "gone", 32).size == again(Path(large.root), "gone", 32).size == 32
    with pytest.raises(ConfigurationError, match=r"images of 32 pixels, the run was trained on images of 256; na"):
        again(Path(small.root), str(large.root), 256)


def test_data_that_are_gone_or_have_changed_are_refused(photos):
    dataset = open_data(photos)
    assert again(None, str(dataset.root), 256, mean_image_hash(dataset.mean_image)).root == dataset.root
    with pytest.raises(ConfigurationError, match=r"^the run's data nowhere are gone; say where .*: train DATA --r"):
        again(None, "nowhere", 256)
    with pytest.raises(ConfigurationError, match=r"has changed since the run was trained on it: its mean image i"):
        again(None, str(dataset.root), 256, "0" * 16)
    assert again(Path(dataset.root), str(dataset.root), 256, "0" * 16).root == dataset.root  # named, so wanted
    assert again(None, "synthetic", 32).name == "synthetic"
