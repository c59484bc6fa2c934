"""Class folders."""

import os
import shutil

import pytest

from dataloading import DatasetError
from dataloading.sources.folder_listing import has_image_suffix, is_own_output, regular_size
from tests.dataloading.small_sources import class_folders, jpeg
from tests.dataloading.sources.listing import data, listed, opened


def test_class_folders_are_numbered_by_sorted_name(folders):
    source = opened(folders)
    assert source.classes == ["class0", "class1", "class2"]
    assert source.splits == ("train", "val")
    train = listed(folders, "train")
    assert [entry.label for entry in train] == [0] * 8 + [1] * 8 + [2] * 8
    assert [entry.name for entry in train[:2]] == ["train/class0/0000.jpg", "train/class0/0001.jpg"]
    assert data(train[9]) == (folders / "train/class1/0001.jpg").read_bytes()


def test_files_below_a_class_folder_count_and_hidden_ones_do_not(tmp_path):
    class_folders(tmp_path, classes=2, train=1, val=1)
    (tmp_path / "train/class0/more").mkdir()
    (tmp_path / "train/class0/more/a.jpg").write_bytes(jpeg(1))
    (tmp_path / "train/class0/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/.cache").mkdir()
    names = [entry.name for entry in listed(tmp_path, "train")]
    assert names == ["train/class0/0000.jpg", "train/class0/more/a.jpg", "train/class1/0000.jpg"]


def test_a_link_that_leads_nowhere_is_listed_with_its_problem(tmp_path):
    class_folders(tmp_path, classes=2, train=1, val=1)
    (tmp_path / "train/class0/b.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "train/class0/c.jpg").symlink_to("0000.jpg")
    _, broken, good, _ = listed(tmp_path, "train")
    assert "No such file" in broken.problem
    assert not good.problem
    assert data(good) == jpeg(0)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(
        DatasetError, match=f"{tmp_path} contains no images; put the images of each class in a folder of its own"
    ):
        opened(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match=r"contains no images"):
        opened(tmp_path)
    (tmp_path / "train/a.jpg").write_bytes(jpeg(0))
    with pytest.raises(DatasetError, match=r"has images but no class folders"):
        opened(tmp_path)


def test_class_folders_that_differ_are_named(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "val/class1").rename(tmp_path / "val/klass1")
    with pytest.raises(DatasetError, match=r"only train/ has class1; only val/ has klass1; give both the same"):
        opened(tmp_path)
    source = opened(tmp_path, allow_empty_classes=True)
    assert source.classes == ["class0", "class1", "class2", "klass1"]
    assert {entry.label for entry in source.entries("val")} == {0, 2, 3}


def test_a_class_that_only_validation_has_is_named(tmp_path):
    class_folders(tmp_path, classes=2, train=2, val=1)
    shutil.copytree(tmp_path / "val/class1", tmp_path / "val/class2")
    with pytest.raises(DatasetError, match=r"differ: only val/ has class2; give both the same"):
        opened(tmp_path)


def test_system_files_and_what_is_no_regular_file_are_no_images(tmp_path):
    class_folders(tmp_path, classes=2, train=1, val=1)
    for name in ("Thumbs.db", "THUMBS.DB", "desktop.ini", ".DS_Store"):
        (tmp_path / "train/class0" / name).write_bytes(b"x")
    for folder in ("train/@eaDir/class0", "train/__MACOSX", "train/lost+found"):
        (tmp_path / folder).mkdir(parents=True)
    os.mkfifo(tmp_path / "train/class1/pipe.jpg")
    source = opened(tmp_path)
    assert source.classes == ["class0", "class1"]
    problems = {entry.name: entry.problem for entry in source.entries("train")}
    assert problems == {
        "train/class0/0000.jpg": "",
        "train/class1/0000.jpg": "",
        "train/class1/pipe.jpg": "not a regular file",
    }


@pytest.mark.parametrize("place", ["train/class0/up", "train/class0/more/up", "train/class3"])
@pytest.mark.parametrize("target", ["itself", "classes", "data set", "above"])
def test_a_link_to_a_folder_around_it_is_refused(tmp_path, place, target):
    root = class_folders(tmp_path / "in", train=1, val=1)
    link = root / place
    link.parent.mkdir(exist_ok=True)
    if place == "train/class3":
        (root / "val/class3").mkdir()
    link.symlink_to({"itself": link.parent, "classes": root / "train", "data set": root, "above": tmp_path}[target])
    with pytest.raises(DatasetError, match=rf"{link} is a link to a folder that contains it; remove the link"):
        listed(root, "train")


def test_links_between_classes_are_not_followed_for_ever(tmp_path):
    class_folders(tmp_path, classes=2, train=1, val=1)
    (tmp_path / "train/class0/x").symlink_to("../class1")
    (tmp_path / "train/class1/y").symlink_to("../class0")
    with pytest.raises(DatasetError, match=r"train/class0/x/y is a link to a folder that contains it"):
        listed(tmp_path, "train")


def test_a_folder_behind_a_link_is_read_once_per_link(tmp_path, caplog):
    class_folders(tmp_path / "in", classes=2, train=1, val=1)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/z.jpg").write_bytes(jpeg(0))
    (tmp_path / "in/train/class0/more").symlink_to(tmp_path / "more")
    names = [entry.name for entry in listed(tmp_path / "in", "train")]
    assert names == ["train/class0/0000.jpg", "train/class0/more/z.jpg", "train/class1/0000.jpg"]
    assert "train/class0: images in its subfolders, such as more, count as images of the class class0" in caplog.text
    assert len(caplog.records) == 1


def test_images_in_subfolders_are_noted_once_in_each_split(tmp_path, caplog):
    class_folders(tmp_path / "in", classes=2, train=1, val=1)
    for place in ("train/class0/a", "train/class0/b", "train/class1/c", "val/class1/d/e"):
        (tmp_path / "in" / place).mkdir(parents=True)
        (tmp_path / "in" / place / "0.jpg").write_bytes(jpeg(0))
    source = opened(tmp_path / "in")
    for split in ("train", "val", "train"):
        list(source.entries(split))
    assert [record.getMessage().partition(": images")[0] for record in caplog.records] == [
        f"note: {tmp_path}/in/train/class0",
        f"note: {tmp_path}/in/val/class1",
    ]
    assert "such as d/e, count as images of the class class1" in caplog.text


DESCRIPTIONS = {
    "dataset.json": '{"mean_image_sha256": "0"}',
    "config.json": '{"recipe": {}}',
    "study.json": '{"claim": "dropout"}',
    "features.json": '{"activations": "fc7"}',
    "baseline.json": '{"fingerprint": "0"}',
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_every_output_is_known_by_the_file_that_describes_it(tmp_path, name):
    folder = class_folders(tmp_path, classes=2, train=1, val=1) / "train/output"
    images = folder / "deep"
    images.mkdir(parents=True)
    (images / "0.jpg").write_bytes(jpeg(0))
    (folder / name).write_text(DESCRIPTIONS[name])
    assert is_own_output(folder)
    assert [entry.name for entry in listed(tmp_path, "train")] == ["train/class0/0000.jpg", "train/class1/0000.jpg"]
    for text in ("{}", "[]", "1", "{", '"recipe"'):
        (folder / name).write_text(text)
        assert not is_own_output(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert not is_own_output(folder)


def test_folders_for_outputs_are_outputs_if_nothing_else_is_in_them(tmp_path):
    for name in ("prepared", "runs", "studies", "other"):
        (tmp_path / name / "a/b").mkdir(parents=True)
        assert is_own_output(tmp_path / name) == (name != "other")
    study = tmp_path / "studies/a/b/config.json"  # a study has runs
    study.write_text(DESCRIPTIONS["config.json"])
    (tmp_path / "studies/class0").mkdir()
    (tmp_path / "studies/class0/0.jpg").write_bytes(jpeg(0))
    assert is_own_output(tmp_path / "studies")
    study.unlink()
    assert not is_own_output(tmp_path / "studies")
    (tmp_path / "studies/class0/0.jpg").unlink()
    (tmp_path / "studies/notes.txt").touch()
    assert not is_own_output(tmp_path / "studies")


def test_an_unfinished_preparation_is_an_output(tmp_path):
    folder = tmp_path / "out.preparing"
    folder.mkdir()
    assert is_own_output(folder)  # killed before it had a plan
    (folder / "0.jpg").write_bytes(jpeg(0))
    assert not is_own_output(folder)
    (folder / "plan.json").write_text("{}")
    assert is_own_output(folder)


@pytest.mark.parametrize("name", ["a.JPG", "a.Jpeg", "a.b.png", "a.TIFF", "a.webp"])
def test_images_are_known_by_their_suffix_in_any_case(name):
    assert has_image_suffix(name)
    assert not has_image_suffix(f"{name}.txt")
    assert not has_image_suffix(name.replace(".", ""))


@pytest.mark.parametrize("name", ["prepared", "runs", "first", "out.preparing"])
def test_our_own_outputs_are_no_classes(tmp_path, small, name):
    root = class_folders(tmp_path / "in").joinpath("train")
    if name == "prepared":
        shutil.copytree(small.root, root / "prepared/photographs")
    elif name == "out.preparing":
        (root / name).mkdir()
        (root / name / "plan.json").write_text("{}")
    else:
        run = root / name if name == "first" else root / "runs/first"
        run.mkdir(parents=True)
        (run / "config.json").write_text('{"recipe": {}}')
        (run / "curve.png").write_bytes(b"x")
    source = opened(root, validation_every=2)
    assert source.classes == ["class0", "class1", "class2"]
    assert source.notes == [f"{root}: left out as made by fastalex: {name}"]


@pytest.mark.parametrize("name", ["prepared", "runs"])
@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_a_class_may_have_the_name_of_an_output(tmp_path, small, name, suffix):
    class_folders(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "class1").rename(tmp_path / split / name)
    for path in (tmp_path / "train" / name).iterdir():
        path.rename(path.with_suffix(suffix))
    (tmp_path / "train" / name / "config.json").write_text('{"camera": 1}')
    shutil.copytree(small.root, tmp_path / "train" / name / "set")
    assert opened(tmp_path).classes == ["class0", "class2", name]


def test_a_disk_error_while_listing_is_no_damaged_image(tmp_path):
    class_folders(tmp_path, classes=2, train=1, val=1)
    item = next(iter(os.scandir(tmp_path / "train/class0")))
    (tmp_path / "train/class0/0000.jpg").unlink()  # it vanishes between listing and reading
    with pytest.raises(FileNotFoundError):
        regular_size(item)
