"""Workers that die: by an image that crashes its decoder, or killed from outside."""

import csv
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloading import Dataset, DatasetError
from dataloading.preparation import worker_pool
from dataloading.preparation.images import ImageOptions
from dataloading.preparation.shard_plan import Task
from dataloading.preparation.worker_pool import Tick, run_tasks
from dataloading.progress_bar import ProgressBar
from dataloading.sources.entries import Entry
from tests.dataloading.preparation.preparing import preparing, quietly, stored
from tests.dataloading.small_sources import class_folders, command, contents, processes_of

# A format with a bug in its decoder: it reads from an invalid address, as a C library may. Every Python process imports
# sitecustomize when it starts.
CRASHING_FORMAT = """
import ctypes
from PIL import Image

def crash(file, name):
    ctypes.string_at(0)

Image.init()
Image.register_open("PPM", crash, lambda start: start.startswith(b"CRASH"))
"""


def test_an_image_that_crashes_its_decoder_is_rejected_and_nothing_else_is(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(CRASHING_FORMAT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    source = class_folders(tmp_path / "in", classes=2, train=12, val=3)
    wanted = quietly(source, tmp_path / "without", shard_images=8)
    crashing = ["train/class0/0004.5.jpg", "train/class1/0011.5.jpg", "val/class0/0000.5.jpg"]
    for name in crashing:
        (source / name).write_bytes(b"CRASH")
    done = command("dataloading.prepare", source, tmp_path / "out", "--size", 32, "--shard-images", 8, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "2 classes, 24 train, 6 val images; 3 rejected" in done.stdout
    with (tmp_path / "out/rejected.csv").open(newline="") as file:
        table = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert table == dict.fromkeys(crashing, "crashes the process that decodes it: Segmentation fault")
    dataset = Dataset(tmp_path / "out")
    for split in ("train", "val"):
        images = zip(stored(dataset, split), stored(wanted, split), strict=True)
        assert all(np.array_equal(one, other) for one, other in images)


CRASH = "crashes the process that decodes it: "


@pytest.mark.parametrize(
    ("code", "has_begun", "wanted"),
    [
        (0, True, ""),
        (3, True, f"{CRASH}exit code 3"),
        (3, False, ""),
        (-signal.SIGSEGV, True, f"{CRASH}Segmentation fault"),
        (-signal.SIGKILL, True, ""),
    ],
)
def test_only_a_process_that_has_begun_and_ends_by_itself_tells_against_an_image(monkeypatch, code, has_begun, wanted):
    process = SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=code)
    context = SimpleNamespace(
        Process=lambda **_: process, RawValue=lambda kind, value: SimpleNamespace(value=int(has_begun))
    )
    monkeypatch.setattr(worker_pool, "_CONTEXT", context)
    assert worker_pool._crash(Entry("photo.jpg", 0, 1, 0, "photo.jpg"), ImageOptions()) == wanted


def test_a_worker_killed_from_outside_is_replaced(many, many_prepared, tmp_path):
    process = preparing(many, tmp_path / "out", after=4)
    victim = next(
        pid for pid in processes_of(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert contents(tmp_path / "out") == many_prepared


def large(task: Task, tick: Tick) -> bytes:
    (task.folder / f"{task.shard}-{os.getpid()}").touch()
    return bytes(1 << 24)  # far more than the buffer of a pipe


def test_a_worker_killed_while_it_sends_a_result_is_replaced(tmp_path):
    work = iter([Task(tmp_path, "train", shard, 0, [], ImageOptions()) for shard in range(2)])
    finished = run_tasks(large, work, 2, ProgressBar("", None, shown=False))
    first, _ = next(finished)
    while not (begun := list(tmp_path.glob(f"{1 - first.shard}-*"))):
        time.sleep(0.01)
    time.sleep(0.5)  # until it waits for the pipe to be read
    os.kill(int(begun[0].name.split("-")[1]), signal.SIGKILL)
    assert [(task.shard, len(result)) for task, result in finished] == [(1 - first.shard, 1 << 24)]


def killed(task: Task, tick: Tick) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_killed_again_and_again_end_the_work_with_one_line(tmp_path):
    task = Task(tmp_path, "train", 0, 0, [], ImageOptions())
    with pytest.raises(
        DatasetError, match=r"worker processes were killed 3 times \(out of memory\?\); the same command"
    ):
        list(run_tasks(killed, iter([task]), 1, ProgressBar("", None, shown=False)))


class Scripted:
    """A worker without a process, to test which task comes next: `script` says what becomes of each one."""

    script: list[object]
    all: list["Scripted"]

    def __init__(self, work: object) -> None:
        self.task: Task | None = None
        self.position = SimpleNamespace(value=-1)
        self.has_ended = False
        Scripted.all.append(self)

    def give(self, tasks: Iterator[Task]) -> bool:
        if self.task is None:
            self.task = next(tasks, None)
        return self.task is not None

    def answer(self) -> object:
        outcome = Scripted.script.pop(0)
        if isinstance(outcome, tuple):  # the image at which it dies
            self.position.value = outcome[0]
            raise worker_pool._Died
        self.task, self.position.value = None, -1
        return outcome

    def end(self) -> None:
        self.has_ended = True


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """A function that lets one worker do two tasks of three images by a script and returns what `run_tasks` gives."""
    monkeypatch.setattr(worker_pool, "_Worker", Scripted)
    monkeypatch.setattr(worker_pool, "_with_answer", lambda busy: busy[:1])
    images = [Entry("/nowhere", 0, 10, 0, f"{number}.jpg") for number in range(3)]
    tasks = [Task(tmp_path, "train", shard, 0, images, ImageOptions()) for shard in range(2)]

    def run(*script: object, bar: ProgressBar | None = None) -> list[tuple[int, list[str], object]]:
        Scripted.script, Scripted.all = list(script), []
        finished = run_tasks(killed, iter(tasks), 1, bar or ProgressBar("", None, shown=False))
        return [(task.shard, [entry.problem for entry in task.entries], result) for task, result in finished]

    yield run
    assert all(worker.has_ended for worker in Scripted.all)


def test_only_deaths_in_a_row_end_the_work_and_a_task_is_repeated_before_the_next(scripted, monkeypatch):
    monkeypatch.setattr(worker_pool, "_crash", lambda entry, options: "")
    death, bar = (-1,), ProgressBar("", None, done=10, shown=False)
    found = scripted(death, death, "one", death, death, "other", bar=bar)
    assert found == [(0, [""] * 3, "one"), (1, [""] * 3, "other")]
    assert len(Scripted.all) == 5
    assert bar.done == 16
    with pytest.raises(
        DatasetError, match=r"worker processes were killed 3 times \(out of memory\?\); the same command"
    ):
        scripted("one", death, death, death)
    with pytest.raises(DatasetError, match=r"were killed 3 times, the last one at 2.jpg \(out of memory"):
        scripted((0,), (1,), (2,))


def test_deaths_by_images_that_crash_their_decoder_are_not_counted(scripted, monkeypatch):
    monkeypatch.setattr(worker_pool, "_crash", lambda entry, options: f"{entry.name} crashes")
    crashes = [f"{number}.jpg crashes" for number in range(3)]
    assert scripted((0,), (1,), (2,), "one", (1,), "other") == [
        (0, crashes, "one"),
        (1, ["", "1.jpg crashes", ""], "other"),
    ]
    with pytest.raises(DatasetError, match=r"were killed 3 times, the last one at 1.jpg"):
        scripted((1,), (1,), (1,), (1,))  # now the image has a problem already, so it is not decoded
    with pytest.raises(DatasetError, match=r"were killed 3 times \("):
        scripted((3,), (3,), (3,))  # after the last image
