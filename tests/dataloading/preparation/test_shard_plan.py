"""The plan of a preparation: what belongs to it, and when an interrupted one is another one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.preparation.images import ImageOptions
from dataloading.preparation.shard_plan import Task, is_recorded, read_record, read_tasks, write_plan, write_record
from dataloading.sources.entries import Entry


class Listed:
    """A source with these entries."""

    name = "listed"
    splits = ("train", "val")
    words = None

    def __init__(self, train: list[Entry], val: list[Entry], classes: list[str]) -> None:
        self.notes, self.classes = list[str](), classes
        self._entries = {"train": train, "val": val}

    def entries(self, split: str) -> Iterator[Entry]:
        return iter(self._entries[split])

    def made(self) -> dict[str, str]:
        return {}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two files, last changed at the same time."""
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, ns=(0, 10**18))
    return [str(tmp_path / name) for name in ("one", "other")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out.preparing").mkdir()
    return tmp_path / "out.preparing"


def images(path: str, count: int) -> list[Entry]:
    return [Entry(path, 100 * number, 10, number % 2, f"{number}.jpg") for number in range(count)]


def planned(folder: Path, source: Listed, *, shard_images: int = 10, **options: object) -> dict[str, int]:
    return write_plan(source, folder, ImageOptions(**options), shard_images, progress=False)


def test_the_plan_divides_every_split_into_shards(files, folder):
    source = Listed(images(files[0], 25), images(files[1], 3), ["a", "b"])
    assert planned(folder, source) == {"train": 25, "val": 3}
    tasks = list(read_tasks(source, folder, ImageOptions(size=64)))
    assert [(task.split, task.shard, task.first, len(task.entries)) for task in tasks] == [
        ("train", 0, 0, 10),
        ("train", 1, 10, 10),
        ("train", 2, 20, 5),
        ("val", 0, 0, 3),
    ]
    assert [entry for task in tasks[:3] for entry in task.entries] == images(files[0], 25)
    assert {(task.folder, task.options.size) for task in tasks} == {(folder, 64)}
    assert tasks[1].record == folder / "train-000001.json"


def first_changed(**change: object) -> object:
    return lambda source: source._entries["train"].insert(0, source._entries["train"].pop(0)._replace(**change))


CHANGES = {
    "offset": (first_changed(offset=1), {}),
    "length": (first_changed(length=11), {}),
    "label": (first_changed(label=1), {}),
    "name": (first_changed(name="x.jpg"), {}),
    "problem": (first_changed(problem="empty"), {}),
    "fewer images": (lambda source: source._entries["val"].pop(), {}),
    "the name of a class": (lambda source: source.classes.__setitem__(0, "c"), {}),
    "images per shard": (lambda source: None, {"shard_images": 9}),
    "size": (lambda source: None, {"size": 64}),
    "quality": (lambda source: None, {"quality": 90}),
    "background": (lambda source: None, {"background": (0, 0, 0)}),
    "exif": (lambda source: None, {"exif": True}),
    "max_pixels": (lambda source: None, {"max_pixels": 1000}),
    "the time of a change": (lambda source: os.utime(source._entries["val"][0].path, ns=(0, 10**18 + 1)), {}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_plan_is_another_one_if_anything_has_changed(files, folder, what):
    source = Listed(images(files[0], 25), images(files[1], 3), ["a", "b"])
    planned(folder, source)
    before = (folder / "plan.json").read_bytes()
    planned(folder, source)  # the same one
    change, options = CHANGES[what]
    change(source)
    with pytest.raises(
        DatasetError, match=r"interrupted preparation from another source, by another version or with ot"
    ):
        planned(folder, source, **options)
    assert (folder / "plan.json").read_bytes() == before


def test_a_source_may_move_and_its_plan_may_be_of_an_earlier_version(files, folder):
    planned(folder, Listed(images(files[0], 25), [], ["a", "b"]))
    planned(folder, Listed(images(files[1], 25), [], ["a", "b"]))
    plan = json.loads((folder / "plan.json").read_text())
    del plan["changed"]  # earlier versions did not write it down
    (folder / "plan.json").write_text(json.dumps(plan))
    planned(folder, Listed(images(files[1], 25), [], ["a", "b"]))
    assert "changed" in json.loads((folder / "plan.json").read_text())


def test_files_that_are_written_anew_each_time_have_no_time_of_change(folder):
    for time in (10**18, 2 * 10**18):
        (folder / "digit.jpg").write_bytes(b"x")
        os.utime(folder / "digit.jpg", ns=(0, time))
        planned(folder, Listed(images(str(folder / "digit.jpg"), 2), [], ["a", "b"]))


def test_a_file_that_cannot_be_read_is_named_while_images_are_listed(files, folder):
    broken = images(files[0], 1)[0]._replace(problem="cannot be read: No such file or directory")
    with pytest.raises(DatasetError, match=rf"cannot read {files[0]}: No such file or directory; preparation stops"):
        planned(folder, Listed([broken], [], ["a", "b"]))


@pytest.mark.parametrize(
    ("reason", "finished"),
    [("empty file", True), ("cannot be read: Input/output error", False), ("cut off: 10 bytes", False), ("cut", True)],
)
def test_a_shard_is_finished_unless_an_image_could_not_be_read(folder, reason, finished):
    task = Task(folder, "train", 3, 0, [], ImageOptions())
    assert not is_recorded(task)
    write_record(task.record, {"rejected": [["train", "0.jpg", "empty file"], ["train", "1.jpg", reason]]})
    assert is_recorded(task) == finished


@pytest.mark.parametrize("text", ["", "[]", "1", '{"rejected": []', '{"rejected": [], "sha256": "0"}'])
def test_a_damaged_record_is_none(folder, text):
    (folder / "train-000000.json").write_text(text)
    assert read_record(folder / "train-000000.json") is None
