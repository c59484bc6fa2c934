"""Which prepared data set a folder of images means."""

import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

import dataloading
from dataloading import DatasetError
from fastalex.datasets import default_recipe, mean_image_hash, open_data, reopen_data
from fastalex.errors import ConfigurationError
from tests.fastalex.commands import refused
from tests.fastalex.conftest import save_run, write_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes, prepared in this process: `test_commands.py` prepares with the workers that users get."""
    monkeypatch.setattr(dataloading, "prepare_dataset", partial(dataloading.prepare_dataset, workers=0))
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


def test_what_counts_is_the_image_behind_a_link(photos, tmp_path):
    away = tmp_path / "elsewhere"
    (photos / "train/red").rename(away)
    (photos / "train/red").symlink_to(away)
    image = next(away.glob("*.jpg"))
    image.rename(tmp_path / "image.jpg")
    image.symlink_to(tmp_path / "image.jpg")
    first = open_data(photos)
    assert open_data(photos).root == first.root
    os.utime(tmp_path / "image.jpg", (0, 0))  # a link to a file
    second = open_data(photos)
    os.utime(next(path for path in away.glob("*.jpg") if path != image), (0, 0))  # a link to a folder
    third = open_data(photos)
    assert len({first.root, second.root, third.root}) == 3


def test_a_link_that_leads_nowhere_and_a_loop_of_links_are_named(photos):
    (photos / "train/red/a.jpg").symlink_to("nowhere")
    with pytest.raises(DatasetError, match=r"cannot read .*/train/red/a.jpg: No such file or directory; bring it back"):
        open_data(photos)
    (photos / "train/red/a.jpg").unlink()
    (photos / "train/red/loop").symlink_to(photos / "train")
    with pytest.raises(DatasetError, match=r"train/red/loop is a link to a folder that contains it; remove the link"):
        open_data(photos)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "train/red/Thumbs.db",
        "train/red/desktop.ini",
        "train/red/._1.jpg",
        "train/__MACOSX/red/1.jpg",
        "train/.cache/1.jpg",
        "README.md",
        "train/list.csv",
    ],
)
def test_files_that_are_not_read_do_not_count(photos, name):
    first = open_data(photos)
    (photos / name).parent.mkdir(parents=True, exist_ok=True)
    (photos / name).write_bytes(b"x")
    assert open_data(photos).root == first.root
    os.utime(photos / name, (0, 0))
    assert open_data(photos).root == first.root


def test_own_outputs_in_the_source_do_not_count(photos, monkeypatch):
    for path in photos.glob("train/*"):  # class folders directly in the working directory
        path.rename(photos / path.name)
    for folder in (photos / "train", photos / "val"):
        shutil.rmtree(folder)
    monkeypatch.chdir(photos)
    classes = sorted(path.name for path in photos.iterdir())
    first = open_data(Path(), for_training=False)
    (photos / "runs/a").mkdir(parents=True)
    (photos / "runs/a/config.json").write_text('{"recipe": {}}')
    assert first.root.parent == Path("prepared")
    assert first.classes == classes
    again = open_data(Path(), for_training=False)
    assert again.root == first.root
    os.utime(next(photos.glob(f"{classes[0]}/*")), (0, 0))
    assert open_data(Path(), for_training=False).classes == classes


def test_files_that_are_no_images_are_counted_and_their_list_is_named(photos, capsys):
    (photos / "train" / "red" / "text.jpg").write_text("no image")
    dataset = open_data(photos)
    assert dataset.count("train") == 9
    out = capsys.readouterr().out
    assert "1 file was left out" in out
    assert str(Path(dataset.root) / "rejected.csv") in out


def test_one_of_several_workers_prepares_nothing(photos):
    before = r"is not prepared; run this before torchrun: \S*python\S* -m dataloading.prepare "
    with pytest.raises(ConfigurationError, match=before) as caught:
        open_data(photos, 227, for_training=False, may_prepare=False)
    assert str(caught.value).endswith("-227px-images --size 227 --validation-every 0")
    assert not (Path("prepared")).exists()


def test_one_class_is_nothing_to_train_on(photos):
    for name in ("blue", "green"):
        for split in ("train", "val"):
            shutil.rmtree(photos / split / name)
    with pytest.raises(
        dataloading.DatasetError, match="only one class folder, red, but a classifier needs at least two"
    ):
        open_data(photos)
    dataset = open_data(photos / "train", for_training=False)
    assert dataset.classes == ["red"]
    with pytest.raises(ConfigurationError, match="has only one class, red, but a classifier needs at least two"):
        open_data(Path(dataset.root))


@pytest.mark.parametrize(
    ("target", "message"),
    [("nowhere", "leads nowhere"), ("link", "leads nowhere"), ("x" * 300, "File name too long")],
)
def test_a_path_that_leads_nowhere_is_named(photos, target, message):
    path = Path("link")
    if len(target) < 100:
        path.symlink_to(target)
    else:
        path = Path(target)
    for for_training in (True, False):
        with pytest.raises(ConfigurationError, match=message):
            open_data(path, for_training=for_training)


def test_the_folder_of_images_may_be_the_working_directory(photos, monkeypatch):
    monkeypatch.chdir(photos / "train")
    first = open_data(Path(), for_training=False)
    (photos / "train/runs/first").mkdir(parents=True)
    (photos / "train/runs/first/config.json").write_text('{"recipe": {}}')
    again = open_data(Path(), for_training=False)
    assert first.classes == again.classes == ["blue", "green", "red"]


def test_empty_classes_stay_allowed_in_another_size(photos):
    for path in (photos / "val/red").iterdir():
        path.unlink()
    with pytest.raises(dataloading.DatasetError, match="no images of red for val"):
        open_data(photos)
    prepared = dataloading.prepare_dataset(photos, "p", size=48, workers=0, progress=False, allow_empty_classes=True)
    assert open_data(Path(prepared.root), 32).size == 32


@pytest.mark.parametrize("words", ["fastalex.train", "fastalex.study dropout", "fastalex.baseline"])
def test_commands_refuse_a_link_to_itself(tmp_path, words):
    (tmp_path / "loop").symlink_to("loop")
    assert "loop is a link that leads nowhere" in refused(tmp_path, *words.split(), "loop")


def test_evaluating_refuses_a_link_to_itself(prepared, tmp_path):
    run = save_run(tmp_path / "run", prepared)
    (tmp_path / "loop").symlink_to("loop")
    assert "loop is a link that leads nowhere" in refused(tmp_path, "fastalex.evaluate", run, "loop")
    assert "loop is a link that leads nowhere" in refused(tmp_path, "fastalex.features", run, "loop", "fc7", "-o", "f")
    assert not (tmp_path / "f").exists()


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


@pytest.mark.parametrize(
    ("name", "images", "recipe"),
    [
        ("digits", 10**6, "digits"),
        ("photos", 99_999, "small"),
        ("photos", 100_000, "krizhevsky"),
        ("ILSVRC2012", 1_281_167, "krizhevsky"),
    ],
)
def test_the_recipe_follows_from_the_data(name, images, recipe):
    counts = {"train": images, "val": 10**6}
    dataset = SimpleNamespace(name=name, count=counts.__getitem__)
    assert default_recipe(dataset, "krizhevsky") == recipe  # type: ignore[arg-type]


def test_nothing_is_announced_before_the_source_is_known_to_be_usable(photos, capsys):
    shutil.rmtree(photos / "val")
    with pytest.raises(dataloading.DatasetError, match="no validation set"):
        open_data(photos)
    assert capsys.readouterr().out == ""
    dataset = open_data(photos, for_training=False)
    assert capsys.readouterr().out == f"preparing {photos} into {dataset.root} (once)\n"


def test_a_prepared_set_of_smaller_images_is_not_enlarged(photos):
    small = open_data(photos, 32)
    for for_training in (True, False):
        with pytest.raises(ConfigurationError, match=r"has images of 32 pixels, but 48 are needed, and .* original im"):
            open_data(Path(small.root), 48, for_training=for_training)
    assert open_data(Path(small.root), 24).size == 24


def test_folders_that_are_called_like_splits_give_their_set_another_name(photos):
    dataset = open_data(photos / "train", for_training=False)
    assert Path(dataset.root).name.startswith(f"{photos.name}-")
    assert dataset.name == photos.name
