"""The estimate of the space that a preparation needs."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataloading import DatasetError
from dataloading.preparation import disk_space, preparation
from dataloading.preparation.disk_space import check_disk_space
from dataloading.preparation.images import ImageOptions
from dataloading.preparation.shard_plan import Task
from dataloading.sources.entries import Entry
from tests.dataloading.preparation.preparing import quietly
from tests.dataloading.small_sources import class_folders


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 images of 32 pixels: every second one is measured."""
    return class_folders(tmp_path_factory.mktemp("source") / "in", classes=2, train=30, val=10)


@pytest.fixture(scope="module")
def used(source: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of their shards."""
    root = quietly(source, tmp_path_factory.mktemp("prepared") / "out").root
    return sum(path.stat().st_size for path in root.glob("*.tar"))


def with_space(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))


def test_the_estimate_is_close_to_what_is_used(source, used, tmp_path, monkeypatch):
    """It leaves the ends of archives out, which count here because the shards are so small."""
    with_space(monkeypatch, 0.95 * used)
    wanted = (
        r"not enough space for .*out.preparing: 80 images of about 3 kB need (\d+ kB) more, (\d+ kB) are free; free"
    )
    with pytest.raises(DatasetError, match=wanted) as caught:
        quietly(source, tmp_path / "out")
    found = re.search(wanted, str(caught.value))
    assert found is not None
    assert found[1] != found[2]
    with_space(monkeypatch, 0.98 * used)
    assert quietly(source, tmp_path / "out").count("train") == 60


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "1 kB"),
        (999_499, "999 kB"),
        (1_000_000, "1.00 MB"),
        (9_660_000, "9.66 MB"),
        (1_234_560_000_000, "1,234.56 GB"),
    ],
)
def test_sizes_have_a_unit_that_shows_their_difference(count, text):
    assert disk_space._size(count) == text


def test_finished_shards_need_no_more_space(source, used, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_descriptions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(source, tmp_path / "out", shard_images=10)
    with_space(monkeypatch, 0.1 * used)
    assert quietly(source, tmp_path / "out", shard_images=10).count("train") == 60


@pytest.mark.parametrize("step", [1, 3, 4, 100])
def test_images_are_taken_from_everywhere_at_equal_distances(tmp_path, monkeypatch, step):
    images = [Entry("", 0, 0, 0, str(number)) for number in range(17)]
    parts = images[:3], images[3:8], images[8:9], images[9:9], images[9:]
    tasks = [Task(tmp_path, "train", shard, 0, part, ImageOptions()) for shard, part in enumerate(parts)]
    monkeypatch.setattr(disk_space, "read_tasks", lambda *_: iter(tasks))
    assert disk_space._every(None, tmp_path, ImageOptions(), step) == images[::step]


@pytest.mark.parametrize(("count", "step"), [(1, 1), (63, 1), (64, 2), (3200, 100)])
def test_about_32_images_are_measured(tmp_path, monkeypatch, count, step):
    steps = []
    monkeypatch.setattr(disk_space, "_every", lambda *arguments: steps.append(arguments[-1]) or [])
    check_disk_space(None, tmp_path, ImageOptions(), {"train": count - 1, "val": 1}, 0)
    assert steps == [step]


@pytest.mark.parametrize(("processes", "wanted"), [(0, 0), (1, 1), (8, 1)])
def test_one_worker_measures_if_workers_are_wanted(tmp_path, monkeypatch, processes, wanted):
    asked = []
    monkeypatch.setattr(disk_space, "read_tasks", lambda *_: iter([]))
    monkeypatch.setattr(
        disk_space, "run_tasks", lambda work, tasks, number, bar: asked.append(number) or (x for x in ())
    )
    check_disk_space(None, tmp_path, ImageOptions(), {"train": 10}, processes)
    assert asked == [wanted]
