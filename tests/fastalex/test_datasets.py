"""Which prepared data set a folder of images means."""

import os
from pathlib import Path

import pytest

from fastalex.datasets import open_data
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
