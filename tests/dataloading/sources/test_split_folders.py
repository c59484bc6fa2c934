"""Which folders are splits and which are classes, and what is said about the rest."""

import shutil
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.sources.names import name_of_set
from tests.dataloading.small_sources import class_folders, jpeg
from tests.dataloading.sources.listing import listed, opened


def images(folder: Path, count: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, 16, 16))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "photos", classes=2, train=2, val=1)


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("TRAIN", "Valid"), ("training", "validation"), ("Training", "VALIDATION")]
)
def test_usual_names_of_splits_are_recognised(root, train, val):
    (root / "train").rename(root / train)
    (root / "val").rename(root / val)
    images(root / "Testing/class0")
    images(root / "Testing/class1")
    source = opened(root)
    assert (source.splits, source.notes) == (("train", "val", "test"), [])
    assert [entry.name for entry in source.entries("val")] == [f"{val}/class{label}/0000.jpg" for label in (0, 1)]
    assert len(list(source.entries("test"))) == 2


@pytest.mark.parametrize(("first", "second"), [("Train", "train"), ("val", "valid"), ("TEST", "testing")])
def test_two_folders_for_one_split_are_refused(root, first, second):
    for name in (first, second):
        for label in (0, 1):
            images(root / name / f"class{label}")
    with pytest.raises(DatasetError, match=rf"has {first}/ and {second}/, which all mean \w+; keep one"):
        opened(root)


@pytest.mark.parametrize(
    ("train", "val", "remedy"),
    [
        ("training_set", "test_set", "rename test_set/ to test/ and training_set/ to train/"),
        ("seg_train", "seg_val", "rename seg_train/ to train/ and seg_val/ to val/"),
        ("my-train", "val", "has val/ but no train/; .*; rename my-train/ to train/"),
    ],
)
def test_splits_by_other_names_are_refused_with_the_new_name(root, train, val, remedy):
    (root / "train").rename(root / train)
    (root / "val").rename(root / val)
    with pytest.raises(DatasetError, match=remedy):
        opened(root)


def test_classes_may_have_names_like_splits(tmp_path):
    for name in ("train station", "test tube"):
        images(tmp_path / name, 4)
    assert opened(tmp_path, validation_every=2).classes == ["test tube", "train station"]


@pytest.mark.parametrize("flat", ["test", "Testing"])
def test_a_flat_test_folder_is_left_out_with_a_note(root, flat):
    images(root / flat, 3)
    source = opened(root)
    assert source.splits == ("train", "val")
    assert source.notes == [
        f"{root / flat} has files but no class folders, so its images have no labels; it is left out"
    ]


@pytest.mark.parametrize("inner", ["test", "unknown"])
def test_a_test_folder_without_the_classes_is_left_out_with_a_note(root, inner):
    images(root / "test" / inner, 3)
    source = opened(root)
    assert source.splits == ("train", "val")
    assert source.notes == [f"{root}/test has {inner} but none of the classes of train/; it is left out"]


def test_an_empty_test_folder_is_left_out_with_a_note(root):
    (root / "test").mkdir()
    assert opened(root).notes == [f"{root}/test has no class folders, so its images have no labels; it is left out"]


def test_a_test_folder_with_some_of_the_classes_is_refused(root):
    images(root / "test/class0")
    with pytest.raises(DatasetError, match=r"photos/test differ: only train/ has class1; give both the same ones"):
        opened(root)
    assert opened(root, allow_empty_classes=True).splits == ("train", "val", "test")


def test_a_flat_validation_folder_is_no_validation_set(root):
    shutil.rmtree(root / "val")
    images(root / "val", 3)
    with pytest.raises(
        DatasetError, match=r"no validation set \(\S+/val has files but no class folders, .* left out\)"
    ):
        opened(root)
    source = opened(root, validation_every=2)
    assert len(list(source.entries("val"))) == 2
    assert "val has files but no class folders" in source.notes[0]


def test_another_name_for_the_validation_set_is_proposed(root):
    (root / "val").rename(root / "dev")
    with pytest.raises(DatasetError, match=r"with the same classes, or rename dev/ to val/ if that is what it is, or"):
        opened(root)


def test_one_class_folder_around_the_others_is_refused(tmp_path):
    for name in ("cat", "dog"):
        images(tmp_path / "train/images" / name, 4)
    with pytest.raises(
        DatasetError,
        match=r"train has only one class folder, images, with the subfolders cat, dog; if these are the classes, move",
    ):
        opened(tmp_path, validation_every=2)
    with pytest.raises(DatasetError, match=rf"these are the classes, name {tmp_path}/train/images instead"):
        opened(tmp_path / "train", validation_every=0)
    assert opened(tmp_path / "train/images", validation_every=2).classes == ["cat", "dog"]


@pytest.mark.parametrize(("name", "meant"), [("trian", "train"), ("Tran", "train"), ("eval", "val"), ("photos", None)])
def test_a_misspelt_split_is_no_class_folder(tmp_path, name, meant):
    for label in ("cat", "dog"):
        images(tmp_path / name / label, 4)
    renamed = f"; if it is the split {meant}, rename {name}/ to {meant}/: splits are called train/ and val/"
    with pytest.raises(DatasetError, match=rf"the classes, name {tmp_path}/{name} instead{renamed if meant else ''}$"):
        opened(tmp_path)


def test_a_misspelt_training_folder_beside_another_split_is_named(root):
    (root / "train").rename(root / "trian")
    with pytest.raises(DatasetError, match=r"no train/; add .*; rename trian/ to train/ if that is what they are$"):
        opened(root)


def test_one_class_alone_is_refused_for_training(tmp_path):
    images(tmp_path / "cat", 4)
    with pytest.raises(DatasetError, match=r"only one class folder, cat, but a classifier needs at least two classes"):
        opened(tmp_path, validation_every=2)
    assert opened(tmp_path, validation_every=0).classes == ["cat"]  # for activations, say


@pytest.mark.parametrize("place", ["archive", "Data/CLS-LOC"])
def test_a_folder_around_a_data_set_is_refused_with_the_name(tmp_path, place):
    class_folders(tmp_path / place)
    images(tmp_path / "previews")
    with pytest.raises(
        DatasetError, match=rf"{tmp_path} has no class folders, but (\S+) has; name \1 instead"
    ) as caught:
        opened(tmp_path, validation_every=2)
    assert f"name {tmp_path / place} instead" in str(caught.value)


@pytest.mark.parametrize(("count", "refused"), [(20, True), (21, False)])
def test_many_folders_are_taken_for_classes_without_looking_into_each(tmp_path, count, refused):
    for number in range(count - 1):
        images(tmp_path / f"class{number:02d}", 2)
    images(tmp_path / "set/train/cat")
    if refused:
        with pytest.raises(
            DatasetError, match=rf"has no class folders, but {tmp_path}/set has; name {tmp_path}/set inst"
        ):
            opened(tmp_path, validation_every=2)
    else:
        assert len(opened(tmp_path, validation_every=2).classes) == count


def test_one_folder_with_a_word_for_a_split_is_a_class(tmp_path):
    images(tmp_path / "train station/inside", 4)
    images(tmp_path / "cat", 4)
    assert opened(tmp_path, validation_every=2).classes == ["cat", "train station"]


def test_validation_classes_must_be_those_of_training(root):
    for label in (0, 1):
        (root / f"val/class{label}").rename(root / f"val/klass{label}")
    with pytest.raises(DatasetError, match=r"only train/ has class0, class1; only val/ has klass0, klass1; give both"):
        opened(root)


def test_what_lies_beside_class_folders_is_named(root):
    (root / "train/README.md").write_text("")
    (root / "train/stray.jpg").write_bytes(jpeg(0))
    (root / "train/lost.jpg").symlink_to("nowhere.jpg")
    images(root / "more")
    (root / "photo.jpg").write_bytes(jpeg(0))
    (root / "LICENSE").write_text("")
    source = opened(root)
    assert source.notes == [
        f"{root}: left out beside train/: more/; only val/ and test/ are read",
        f"{root}: left out beside train/: photo.jpg; they belong to no class",
        f"{root}/train: left out beside the class folders: README.md, lost.jpg, stray.jpg; they belong to no class",
    ]
    assert {entry.name.count("/") for entry in source.entries("train")} == {2}


def test_notes_are_printed_when_the_source_is_opened(root, caplog):
    (root / "train/README.md").write_text("")
    opened(root)
    assert [record.getMessage() for record in caplog.records] == [
        f"note: {root}/train: left out beside the class folders: README.md; they belong to no class"
    ]


@pytest.mark.parametrize("place", ["train/class9", "val/class1", "val", "test"])
@pytest.mark.parametrize("target", ["/no/where", "itself"])
def test_a_link_that_leads_nowhere_is_refused_where_a_class_or_split_should_be(root, place, target):
    link = root / place
    if link.exists():
        shutil.rmtree(link)
    link.symlink_to(link if target == "itself" else target)
    with pytest.raises(DatasetError, match=rf"{link} is a link to \S+, which does not exist; restore or remove it"):
        opened(root)


def test_one_folder_is_not_two_classes(root):
    for split in ("train", "val"):
        (root / split / "same").symlink_to("class1")
    with pytest.raises(
        DatasetError, match=r"class folders \S+/class1 and \S+/same are the same folder; remove the link"
    ):
        opened(root)


@pytest.mark.parametrize("link", ["val", "val/class1"])
def test_training_images_as_validation_images_are_noted(root, link):
    shutil.rmtree(root / link)
    (root / link).symlink_to(root / link.replace("val", "train"))
    (note,) = opened(root).notes
    names = "class0, class1" if link == "val" else "class1"
    assert note.startswith(f"{root}/val has the training images of {names}, so the error says nothing")


def test_class_names_that_look_the_same_are_refused(tmp_path):
    for name in ("café", "cafe\u0301", "tea"):
        images(tmp_path / name)
    with pytest.raises(DatasetError, match=r"classes 1 and 2 cannot be told apart"):
        opened(tmp_path, validation_every=2)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "café").rename(tmp_path / "train/café")
    (tmp_path / "cafe\u0301").rename(tmp_path / "val/cafe\u0301")
    (tmp_path / "tea").rename(tmp_path / "train/tea")
    images(tmp_path / "val/tea")
    with pytest.raises(DatasetError, match=r"some of these look the same but are encoded differently"):
        opened(tmp_path)


def test_test_folders_without_training_folders_are_no_classes(tmp_path):
    for name in ("cat", "dog", "test"):
        images(tmp_path / name, 4)
    with pytest.raises(DatasetError, match=r"has test/ but no train/"):
        listed(tmp_path, "train", validation_every=2)


def test_a_set_is_called_after_its_folder_and_not_after_a_split(root, monkeypatch):
    monkeypatch.chdir(root / "train")
    places = {
        ".": "photos",
        "..": "photos",
        "class0": "class0",
        "../../photos": "photos",
        str(root / "train"): "photos",
    }
    assert {place: name_of_set(Path(place)) for place in places} == places
    assert opened(Path(), validation_every=2).name == opened(root).name == "photos"
    assert [name_of_set(Path(place)) for place in ("/train", "/Validation/test", "/")] == ["train", "test", "images"]
