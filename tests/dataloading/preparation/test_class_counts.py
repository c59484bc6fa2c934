"""Classes without images are refused, before the work begins or after it, unless they are allowed."""

import pytest

from dataloading import DatasetError
from tests.dataloading.preparation.preparing import quietly
from tests.dataloading.small_sources import class_folders, command, jpeg, tar_of


def test_an_empty_class_folder_is_refused_before_the_work_begins(tmp_path):
    root = class_folders(tmp_path / "in")
    for path in (root / "val/class1").iterdir():
        path.unlink()
    wanted = (
        rf"^in: no images of class1 for val \({root}/val/class1\); add some, leave the class out of every split, or "
        rf"go on although it is empty: \S+ -m dataloading.prepare {root} DEST --allow-empty-classes$"
    )
    with pytest.raises(DatasetError, match=wanted):
        quietly(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # so that nothing stands in the way of the next try
    (root / "val/class1/new.jpg").write_bytes(jpeg(0))
    assert quietly(root, tmp_path / "out").count("val") == 9


def test_an_empty_class_folder_is_named_once_when_images_are_held_out(tmp_path):
    root = class_folders(tmp_path / "in", val=0) / "train"
    for path in (root / "class1").iterdir():
        path.unlink()
    wanted = rf"of class1 for train and of class1 for val \({root}/class1\); .* {root} DEST \S+ --validation-every 4$"
    with pytest.raises(DatasetError, match=wanted):
        quietly(root, tmp_path / "out", validation_every=4)


def test_a_class_folder_missing_in_a_split_can_be_allowed(tmp_path, caplog):
    root = class_folders(tmp_path / "in")
    (root / "val/class1").rename(tmp_path / "away")
    with pytest.raises(DatasetError, match=r"only train/ has class1; .* --allow-empty-classes"):
        quietly(root, tmp_path / "out")
    dataset = quietly(root, tmp_path / "out", allow_empty_classes=True)
    assert dataset.classes == ["class0", "class1", "class2"]
    assert set(dataset.labels("val").tolist()) == {0, 2}
    assert "note: in: no images of class1 for val" in caplog.text
    caplog.clear()
    quietly(class_folders(tmp_path / "whole"), tmp_path / "out2", allow_empty_classes=True)
    assert not caplog.records


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_whose_images_are_all_rejected_is_refused(tmp_path, workers):
    root = class_folders(tmp_path / "in", classes=2, train=3, val=2)
    for path in (root / "train/class1").iterdir():
        path.write_bytes(b"no image")
    for _ in range(2):  # also when it is tried again
        with pytest.raises(DatasetError, match=r"all images of class1 for train were rejected, for the reasons in "):
            quietly(root, tmp_path / "out", workers=workers)
    assert "train/class1/0000.jpg" in (tmp_path / "out.preparing/rejected.csv").read_text()
    dataset = quietly(root, tmp_path / "out", workers=workers, allow_empty_classes=True)  # continues
    assert (dataset.count("train"), dataset.made["rejected"]) == (3, 3)
    assert not (tmp_path / "out.preparing").exists()


def test_a_class_without_usable_held_out_images_is_refused(tmp_path):
    root = class_folders(tmp_path / "in", classes=2, train=4, val=0) / "train"
    (root / "class1/0003.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"all images of class1 for val were rejected"):
        quietly(root, tmp_path / "out", validation_every=4)


def test_classes_of_shards_are_counted_too(tmp_path):
    parts = [("a.jpg", jpeg(0)), ("a.cls", b"0"), ("b.jpg", jpeg(1)), ("b.cls", b"2")]
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").write_bytes(tar_of(parts))
    with pytest.raises(DatasetError, match=r"no images of 1 for train and of 1 for val; add some"):
        quietly(tmp_path, tmp_path.parent / "out")


def test_one_class_of_shards_is_refused(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").write_bytes(tar_of([("a.jpg", jpeg(0)), ("a.cls", b"0")]))
    with pytest.raises(DatasetError, match=r"has only one class, 0, but a classifier needs at least two"):
        quietly(tmp_path, tmp_path.parent / "out")


def test_one_class_of_shards_is_enough_where_nothing_is_trained(tmp_path):
    (tmp_path / "train.tar").write_bytes(tar_of([("a.jpg", jpeg(0)), ("a.cls", b"0")]))
    assert quietly(tmp_path, tmp_path / "out", validation_every=0).classes == ["0"]


def test_samples_without_labels_are_not_counted(tmp_path):
    parts = [("a.jpg", jpeg(0)), ("a.cls", b"1"), ("b.jpg", jpeg(1))]  # without a label, b is listed as 0
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").write_bytes(tar_of(parts))
    with pytest.raises(DatasetError, match=r"no images of 0 for train and of 0 for val; add some"):
        quietly(tmp_path, tmp_path.parent / "out")


def test_a_split_without_any_usable_sample_is_refused_with_the_reason(tmp_path):
    (tmp_path / "train.tar").write_bytes(tar_of([("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))]))
    (tmp_path / "val.tar").write_bytes(tar_of([("a.jpg", jpeg(0)), ("a.cls", b"0")]))
    with pytest.raises(
        DatasetError, match=r"has no usable images for train; the first, train.tar/a: no usable label: neither .cls nor"
    ):
        quietly(tmp_path, tmp_path.parent / "out")
    (tmp_path / "val.tar").write_bytes(tar_of([]))
    (tmp_path / "train.tar").write_bytes(tar_of([("a.jpg", jpeg(0)), ("a.cls", b"0")]))
    with pytest.raises(DatasetError, match=r"has no usable images for val; add some$"):
        quietly(tmp_path, tmp_path.parent / "out")


def test_the_command_refuses_and_allows(tmp_path):
    root = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    (root / "val/class1/0000.jpg").unlink()
    words = ["dataloading.prepare", root, tmp_path / "out", "--size", 32, "--workers", 0, "--no-progress"]
    done = command(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: in: no images of class1 for val (")
    assert done.stderr.count("\n") == 1
    done = command(*words, "--allow-empty-classes")
    assert (done.returncode, done.stderr) == (0, "note: in: no images of class1 for val\n")
    assert "2 classes, 4 train, 1 val images; 0 rejected" in done.stdout
