import csv
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloading import Dataset, DatasetError, is_prepared, preparation, prepare_dataset
from dataloading.check import problems
from dataloading.images import Treatment, treat
from dataloading.plan import Task
from dataloading.progress import ProgressReport
from dataloading.workers import Counter, results
from tests.dataloading.small_sources import (
    class_folders,
    command,
    contents,
    encoded,
    ilsvrc2010,
    ilsvrc2012,
    jpeg,
    kill,
    photograph,
    png_header,
    processes_of,
    started,
    tar_of,
)


def quietly(source: Path | str, dest: Path, **options: object) -> Dataset:
    return prepare_dataset(source, dest, progress=False, **({"workers": 0, "size": 32} | options))


def stored(dataset: Dataset, split: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(dataset.read(split, i)))) for i in range(dataset.count(split))]


def test_images_labels_and_classes_arrive(folders, small):
    assert (small.count("train"), small.count("val")) == (24, 12)
    assert small.classes == ["class0", "class1", "class2"]
    assert small.labels("train").tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert small.labels("train").dtype == np.int32
    assert [shard.samples for shard in small.shards("train")] == [10, 10, 4]
    files = sorted((folders / "train").rglob("*.jpg"))
    for i in (0, 9, 10, 23):
        assert small.read("train", i) == treat(files[i].read_bytes(), Treatment(size=32)).jpeg
    assert small.made["rejected"] == 0
    assert small.made["source"] == "class folders"


def test_statistics_are_those_of_the_training_images(folders, small):
    squares = [
        treat(path.read_bytes(), Treatment(size=32)).square for path in sorted((folders / "train").rglob("*.jpg"))
    ]
    assert small.mean_image.dtype == np.float32
    assert np.abs(small.mean_image - np.mean(squares, axis=0)).max() < 1e-4
    covariance = np.cov(np.reshape(squares, (-1, 3)).T, bias=True)
    rebuilt = small.color_vectors @ np.diag(small.color_deviations**2) @ small.color_vectors.T
    assert np.abs(rebuilt - covariance).max() < 0.1
    assert np.abs(small.color_vectors.T @ small.color_vectors - np.eye(3)).max() < 1e-4
    assert (np.diff(small.color_deviations) > 0).all()


def test_the_bytes_do_not_depend_on_the_number_of_workers(folders, small, tmp_path):
    quietly(folders, tmp_path / "two", shard_images=10, workers=2)
    assert contents(tmp_path / "two") == contents(small.root)


def test_workers_do_not_import_the_program_that_was_started(folders, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys\n"
        "print('started')\n"
        "import dataloading\n"
        "dataloading.prepare_dataset(sys.argv[1], sys.argv[2], size=32, shard_images=10, workers=2, progress=False)\n"
        "print(__file__, __spec__)\n"
    )
    done = _python(script, folders, tmp_path / "out")
    assert done.stdout == f"started\n{script} None\n", done.stderr
    assert is_prepared(tmp_path / "out")


def test_other_options_give_another_fingerprint(folders, small, tmp_path):
    assert quietly(folders, tmp_path / "a", shard_images=10).fingerprint == small.fingerprint
    assert quietly(folders, tmp_path / "b", shard_images=10, quality=50).fingerprint != small.fingerprint


def test_what_does_not_decode_is_named_counted_and_left_out(tmp_path):
    class_folders(tmp_path / "in", classes=2, train=3, val=2)
    odd = {
        "train/class0/0001.jpg": jpeg(0)[:-2],
        "train/class0/empty.jpg": b"",
        "train/class1/page, with comma.jpg": b"<html>",
        "train/class1/bomb.png": png_header(50_000, 50_000),
        "train/class1/notes.txt": b"not an image",
        "val/class1/half.jpg": jpeg(0)[:400],
    }
    for name, data in odd.items():
        (tmp_path / "in" / name).write_bytes(data)
    dataset = quietly(tmp_path / "in", tmp_path / "out")
    with (tmp_path / "out/rejected.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted(row["file"] for row in table) == sorted(odd)
    assert {row["split"] for row in table if row["file"].startswith("val")} == {"val"}
    reasons = {row["file"]: row["reason"] for row in table}
    assert reasons["train/class0/empty.jpg"] == "empty file"
    assert "truncated" in reasons["train/class0/0001.jpg"]
    assert reasons["train/class1/bomb.png"].startswith("too large")
    assert dataset.made["rejected"] == 6
    assert (dataset.count("train"), dataset.count("val")) == (5, 4)
    assert dataset.labels("train").tolist() == [0, 0, 1, 1, 1]


def test_a_source_of_which_nothing_can_be_used_is_refused(tmp_path):
    class_folders(tmp_path / "in", classes=1, train=2, val=1)
    for path in (tmp_path / "in/train/class0").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"none of the training images of in could be used"):
        quietly(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_odd_files_of_the_archives_go_the_same_way(tmp_path):
    odd = {
        "n02105855_2933.JPEG": encoded(photograph(1), "PNG"),
        "n01440764_90.JPEG": encoded(photograph(2)[:, :, 0]),
        "n01440764_91.JPEG": jpeg(3)[:-2],
        "n01440764_92.JPEG": b"",
    }
    dataset = quietly(ilsvrc2012(tmp_path / "in", odd=odd), tmp_path / "out")
    assert dataset.count("train") == 17
    assert dataset.made["rejected"] == 2
    assert dataset.words[0] == "tench, Tinca tinca"
    rejected = (tmp_path / "out/rejected.csv").read_text()
    assert "n01440764/n01440764_91.JPEG" in rejected
    assert "n01440764/n01440764_92.JPEG,empty file" in rejected


def test_ilsvrc2010_is_prepared_with_its_test_set(tmp_path):
    dataset = quietly(ilsvrc2010(tmp_path / "in"), tmp_path / "out", label_order="devkit")
    assert [dataset.count(split) for split in dataset.splits] == [12, 5, 3]
    assert dataset.made["rejected"] == 0
    assert dataset.made["label_order"] == "devkit"
    assert bytes(dataset.read("train", 0)) == treat(jpeg(7001), Treatment(size=32)).jpeg
    assert bytes(dataset.read("train", 1)) == treat(jpeg(101), Treatment(size=32)).jpeg


def test_a_prepared_data_set_can_be_the_source_of_another(small, tmp_path):
    again = quietly(small.root, tmp_path / "out", size=16)
    assert again.classes == small.classes
    assert np.array_equal(again.labels("train"), small.labels("train"))
    for sample in (0, 13):
        assert again.source("train", sample) == small.source("train", sample)
        assert again.key("train", sample) == small.key("train", sample)
    (small.root / "val-sources.csv").replace(tmp_path / "val-sources.csv")
    shutil.copytree(small.root, tmp_path / "nameless")
    (tmp_path / "val-sources.csv").replace(small.root / "val-sources.csv")
    nameless = quietly(tmp_path / "nameless", tmp_path / "out2", size=16)
    assert nameless.source("val", 0) == f"val-000000.tar/{small.key('val', 0)}"


def test_any_name_that_a_file_can_have_is_fine(tmp_path):
    odd = ["ünï 猫.jpg", "new\nline, comma.jpg", "a.b.c.jpg", b"\xff\xfe latin.jpg".decode(errors="surrogateescape")]
    for split in ("train", "val"):
        folder = tmp_path / "in" / split / odd[3]
        folder.mkdir(parents=True)
        for number, name in enumerate(odd):
            (folder / name).write_bytes(jpeg(number))
        (folder / f"bad {odd[3]}").write_bytes(b"")
    dataset = quietly(tmp_path / "in", tmp_path / "out", workers=2)
    assert (dataset.count("train"), dataset.made["rejected"]) == (4, 2)
    assert dataset.classes == [odd[3]]
    assert b"bad \xff\xfe latin.jpg" in (tmp_path / "out/rejected.csv").read_bytes()
    assert [dataset.source("train", sample) for sample in range(4)] == [
        f"train/{odd[3]}/{name}" for name in sorted(odd)
    ]
    assert problems(dataset, progress=False) == []


def test_22000_classes(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/classes.txt").write_text("".join(f"class {label}\n" for label in range(22_000)))
    for split in ("train", "val"):
        parts = [("0.jpg", jpeg(0)), ("0.cls", b"0"), ("1.jpg", jpeg(1)), ("1.cls", b"21999")]
        (tmp_path / f"in/{split}.tar").write_bytes(tar_of(parts))
    dataset = quietly(tmp_path / "in", tmp_path / "out")
    assert len(dataset.classes) == 22_000
    assert dataset.labels("val").tolist() == [0, 21_999]


def test_whole_images_can_be_kept(folders, tmp_path):
    dataset = quietly(folders, tmp_path / "out", keep_aspect=True)
    assert {image.shape for image in stored(dataset, "val")} == {(32, 40, 3)}
    assert dataset.index("val")["width"].tolist() == [40] * 12
    assert dataset.mean_image.shape == (32, 32, 3)


def test_digits_are_real_jpeg_files_of_256_pixels(tmp_path):
    dataset = prepare_dataset("digits", tmp_path / "digits", workers=0, progress=False)
    assert dataset.name == "digits"
    assert dataset.classes == list("0123456789")
    assert (dataset.count("train"), dataset.count("val")) == (1438, 359)
    assert np.bincount(dataset.labels("val")).min() >= 35
    image = Image.open(io.BytesIO(dataset.read("val", 0)))
    assert (image.format, image.size, image.mode) == ("JPEG", (256, 256), "RGB")
    assert dataset.color_deviations[:2].tolist() == [0, 0]
    assert sorted(path.suffix for path in (tmp_path / "digits").iterdir()) == sorted(
        [*[".csv"] * 3, ".json", *[".npy"] * 3, *[".tar"] * 3]
    )


# --- destinations -----------------------------------------------------------------------------------------------------


def test_an_existing_destination_is_left_alone(folders, tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(DatasetError, match=r"exists already; remove it or choose another"):
        quietly(folders, tmp_path)
    with pytest.raises(DatasetError, match=r"exists already"):
        quietly(folders, tmp_path / "precious")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_empty_destination_is_fine(folders, tmp_path):
    (tmp_path / "out").mkdir()
    assert quietly(folders, tmp_path / "out").count("train") == 24


def test_a_destination_that_cannot_be_written_is_named(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write to .*out.preparing: Not a directory"):
        quietly(folders, tmp_path / "file" / "out")


def test_two_preparations_of_one_destination_do_not_mix(folders, tmp_path):
    (tmp_path / "out.preparing").mkdir()
    lock = os.open(tmp_path / "out.preparing", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(DatasetError, match=r"another process is preparing"):
            quietly(folders, tmp_path / "out")
    finally:
        os.close(lock)
    assert quietly(folders, tmp_path / "out").count("train") == 24


def test_nothing_is_left_behind_by_a_source_that_is_refused(tmp_path):
    with pytest.raises(DatasetError):
        quietly(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"size": 8}, {"quality": 0}, {"quality": 96}, {"workers": -1}, {"shard_images": 0}, {"max_pixels": 0}]
)
def test_options_out_of_range_are_refused(folders, tmp_path, options):
    with pytest.raises(DatasetError, match=rf"{next(iter(options))} is -?\d+; it must be \d+ to \d+"):
        quietly(folders, tmp_path / "out", **options)


class Mounted:
    """A file system of its own in memory: `options` as mount takes them."""

    def __init__(self, place: Path, options: str) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        mount = shutil.which("mount")
        if mount is None:
            pytest.skip("there is no mount command")
        done = subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"may not mount a tmpfs here: {done.stderr.strip()}")

    def __enter__(self) -> Path:
        return self.place

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", str(self.place)], check=True)


def test_a_read_only_destination_is_named(folders, tmp_path):
    with Mounted(tmp_path / "disk", "ro,size=1m") as disk, pytest.raises(DatasetError, match=r"Read-only file system"):
        quietly(folders, disk / "out")


def test_too_little_room_is_noticed_before_the_work_begins(folders, tmp_path):
    with Mounted(tmp_path / "disk", "size=60k") as disk:
        with pytest.raises(DatasetError, match=r"not enough room for .*: 36 images of about .* kB need .* are free"):
            quietly(folders, disk / "out")
        assert not list(disk.glob("out*/*.tar"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_is_named_and_the_work_goes_on_later(tmp_path, workers):
    class_folders(tmp_path / "in", classes=2, train=40, val=4)
    wanted = contents(quietly(tmp_path / "in", tmp_path / "elsewhere", shard_images=10).root)
    with Mounted(tmp_path / "disk", "size=600k") as disk:
        ballast, go_on = disk / "ballast", {"shard_images": 10, "workers": workers}
        process = _filling(tmp_path / "in", disk, ballast, workers)
        assert process.returncode == 2, process.stderr
        assert process.stderr.startswith("error: ")
        assert "No space left on device; when that is remedied, the same command goes on" in process.stderr
        assert "Traceback" not in process.stderr
        assert not is_prepared(disk / "out")
        ballast.unlink()
        quietly(tmp_path / "in", disk / "out", **go_on)
        assert contents(disk / "out") == wanted


def _filling(source: Path, disk: Path, ballast: Path, workers: int) -> subprocess.CompletedProcess[str]:
    """Prepare with a disk that somebody else fills after the room was checked."""
    script = (
        "import sys, pathlib, dataloading.preparation as p\n"
        "check = p.check_space\n"
        "def then_fill(*arguments):\n"
        "    check(*arguments)\n"
        "    with open(sys.argv[3], 'wb', buffering=0) as file:\n"
        "        room = __import__('shutil').disk_usage(file.name).free - 60_000\n"
        "        file.write(bytes(room))\n"
        "if __name__ == '__main__':\n"
        "    p.check_space = then_fill\n"
        "    try:\n"
        "        p.prepare_dataset(sys.argv[1], sys.argv[2], size=32, shard_images=10, workers=int(sys.argv[4]), "
        "progress=False)\n"
        "    except p.DatasetError as error:\n"
        "        sys.exit(print(f'error: {error}', file=sys.stderr) or 2)\n"
    )
    path = disk.parent / "filling.py"
    path.write_text(script)
    return _python(path, source, disk / "out", ballast, workers)


def _python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough photographs to be interrupted at: 400, prepared to 30 shards."""
    return class_folders(tmp_path_factory.mktemp("many") / "in", classes=4, train=90, val=10, width=640, height=480)


@pytest.fixture(scope="module")
def many_prepared(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that their preparation without interruption makes."""
    return contents(quietly(many, tmp_path_factory.mktemp("many") / "whole", size=128, shard_images=14).root)


def shard_count(folder: Path) -> int:
    return len(list(folder.glob("*.tar"))) if folder.exists() else 0


def preparing(source: Path, dest: Path, after: int) -> subprocess.Popen[str]:
    """Start preparing and return when `after` shards are there."""
    process = started("dataloading.prepare", source, dest, "--size", 128, "--shard-images", 14, "--workers", 2)
    deadline = time.monotonic() + 60
    while shard_count(dest.with_name("out.preparing")) < after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def interrupted(source: Path, dest: Path, after: int, signal_number: int) -> subprocess.Popen[str]:
    """Start preparing and send `signal_number` to the process when `after` shards are there."""
    process = preparing(source, dest, after)
    if signal_number == signal.SIGKILL:
        kill(process)
    else:
        process.send_signal(signal_number)
    return process


def gone(process: subprocess.Popen[str], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(process.pid)


def test_a_killed_preparation_goes_on_to_the_same_bytes(many, many_prepared, tmp_path):
    for after in (2, 9, 17):
        assert gone(interrupted(many, tmp_path / "out", after, signal.SIGKILL)), "workers outlived their parent"
        assert not is_prepared(tmp_path / "out")
    kept = {path: path.stat().st_ino for path in (tmp_path / "out.preparing").glob("train-00000[0-5].tar")}
    assert kept
    quietly(many, tmp_path / "out", size=128, shard_images=14)
    assert contents(tmp_path / "out") == many_prepared
    assert all((tmp_path / "out" / path.name).stat().st_ino == inode for path, inode in kept.items()), "made anew"


def test_an_interruption_while_tidying_up_changes_nothing(folders, small, tmp_path, monkeypatch):
    for removed in range(9):
        dest, left = tmp_path / f"out{removed}", iter(range(removed))

        def unlink(path: Path, missing_ok: bool = False, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            os.unlink(path)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", unlink)
            with pytest.raises(KeyboardInterrupt):
                quietly(folders, dest, shard_images=10)
        if not is_prepared(dest):
            with pytest.raises(
                DatasetError, match=r"interrupted preparation from another source, by another version or with other"
            ):
                quietly(folders, dest, shard_images=9)
            quietly(folders, dest, shard_images=10)
            assert contents(dest) == contents(small.root)


def test_a_lost_record_of_a_shard_does_not_count_its_images_twice(folders, small, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(folders, tmp_path / "out", shard_images=10)
    (tmp_path / "out.preparing" / "train-000001.json").unlink()
    quietly(folders, tmp_path / "out", shard_images=10)
    assert contents(tmp_path / "out") == contents(small.root)


def test_ctrl_c_ends_with_one_line_and_leaves_no_worker(many, tmp_path):
    process = interrupted(many, tmp_path / "out", 3, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; the same command goes on from the finished shards" in errors
    assert "Traceback" not in errors
    assert gone(process)


def test_an_interrupted_preparation_is_not_mixed_with_another_one(many, tmp_path):
    interrupted(many, tmp_path / "out", 2, signal.SIGKILL)
    with pytest.raises(
        DatasetError, match=r"interrupted preparation from another source, by another version or with other options"
    ):
        quietly(many, tmp_path / "out", size=64, shard_images=14)
    with pytest.raises(
        DatasetError, match=r"interrupted preparation from another source, by another version or with other options"
    ):
        quietly(class_folders(tmp_path / "other"), tmp_path / "out", size=128, shard_images=14)
    with pytest.raises(DatasetError, match=r"not a prepared data set|no such folder"):
        Dataset(tmp_path / "out")


# --- images that end the process that decodes them --------------------------------------------------------------------

# A format whose decoder has a bug: reading it accesses memory that is not there, as a C library may. Every process
# imports this module by itself when it starts.
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


def test_a_worker_killed_from_outside_is_replaced(many, many_prepared, tmp_path):
    process = preparing(many, tmp_path / "out", after=4)
    victim = next(
        pid for pid in processes_of(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert contents(tmp_path / "out") == many_prepared


def large(task: Task, count: Counter) -> bytes:
    (task.folder / f"{task.shard}-{os.getpid()}").touch()
    return bytes(1 << 24)  # far more than a pipe takes before it is read


def test_a_worker_killed_while_it_hands_over_a_result_is_replaced(tmp_path):
    work = iter([Task(tmp_path, "train", shard, 0, [], Treatment()) for shard in range(2)])
    finished = results(large, work, 2, ProgressReport("", None, shown=False))
    first, _ = next(finished)
    while not (begun := list(tmp_path.glob(f"{1 - first.shard}-*"))):
        time.sleep(0.01)
    time.sleep(0.5)  # until it waits for its result to be read
    os.kill(int(begun[0].name.split("-")[1]), signal.SIGKILL)
    assert [(task.shard, len(result)) for task, result in finished] == [(1 - first.shard, 1 << 24)]


def killed(task: Task, count: Counter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_killed_again_and_again_end_the_work_with_one_line(tmp_path):
    task = Task(tmp_path, "train", 0, 0, [], Treatment())
    with pytest.raises(
        DatasetError, match=r"worker processes were killed 3 times \(out of memory\?\); the same command"
    ):
        list(results(killed, iter([task]), 1, ProgressReport("", None, shown=False)))


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_prepares_and_says_so(folders, tmp_path):
    done = command("dataloading.prepare", folders, tmp_path / "out", "--size", 32, "--workers", 1)
    assert done.returncode == 0
    assert "3 classes, 24 train, 12 val images; 0 rejected" in done.stdout
    assert "36 of 36 images" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["/no/where"], "no such folder: /no/where"), (["digits", "--verify"], "no MD5 sums are published for digits")],
)
def test_the_command_ends_with_one_line_and_2(tmp_path, arguments, message):
    source, *options = arguments
    done = command("dataloading.prepare", source, tmp_path / "out", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_help_is_complete():
    done = command("dataloading.prepare", "--help")
    assert done.returncode == 0
    options = "size quality keep-aspect label-order validation-every verify workers shard-images max-pixels progress"
    for option in options.split():
        assert f"--{option}" in done.stdout
