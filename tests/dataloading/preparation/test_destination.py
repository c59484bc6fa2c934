"""Destinations that exist, cannot be written, or have too little space."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dataloading import DatasetError, is_prepared
from dataloading.preparation import preparation
from tests.dataloading.owning import another_owner
from tests.dataloading.preparation.preparing import python_script, quietly
from tests.dataloading.small_sources import class_folders, contents


def test_an_existing_destination_is_left_alone(folders, tmp_path):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(DatasetError, match=rf"^{tmp_path} exists already; choose another destination$"):
        quietly(folders, tmp_path)
    with pytest.raises(DatasetError, match=r"exists already"):
        quietly(folders, tmp_path / "precious")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_only_a_prepared_data_set_is_called_removable(folders, small, tmp_path):
    with pytest.raises(DatasetError, match=r"exists already, a prepared data set; remove it or choose another"):
        quietly(folders, small.root)
    for content in ("[]", "{}", "no JSON"):  # somebody else's files of these names
        (tmp_path / "dataset.json").write_text(content)
        (tmp_path / "plan.json").write_text("mine")
        with pytest.raises(DatasetError, match=rf"^{tmp_path} exists already; choose another destination$"):
            quietly(folders, tmp_path)
        assert (tmp_path / "plan.json").read_text() == "mine"


@pytest.mark.parametrize("dest", ["photos", "photos/../photos", "link"])
def test_the_source_is_no_destination(tmp_path, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    class_folders(Path("photos"), classes=2, train=2, val=1)
    Path("link").symlink_to("photos")
    wanted = f"source and destination are the same folder, {dest}; name a new folder as the destination, such as "
    with pytest.raises(DatasetError, match=rf"^{wanted}prepared/photos$"):
        quietly("photos", Path(dest))
    Path("prepared/photos").mkdir(parents=True)
    with pytest.raises(DatasetError, match=rf"^{wanted}DEST$"):
        quietly("photos", Path(dest))


def test_an_empty_destination_is_fine(folders, tmp_path):
    (tmp_path / "out").mkdir()
    assert quietly(folders, tmp_path / "out").count("train") == 24


def test_a_destination_that_cannot_be_written_is_named(folders, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot write to .*out.preparing: Not a directory"):
        quietly(folders, tmp_path / "file" / "out")


def test_two_preparations_of_one_destination_do_not_mix(folders, tmp_path):
    (tmp_path / "out.preparing").mkdir()
    with (
        another_owner(tmp_path / "out.preparing") as process,
        pytest.raises(DatasetError, match=rf"out.preparing is in use by process {process.pid} on host .*; wait"),
    ):
        quietly(folders, tmp_path / "out")
    assert (tmp_path / "out.preparing").is_dir()
    assert quietly(folders, tmp_path / "out").count("train") == 24
    assert not (tmp_path / "out" / ".lock").exists()


@pytest.mark.parametrize("moment", ["open_source", "check_disk_space", "write_descriptions", "_finish"])
def test_a_preparation_that_begins_in_the_middle_of_another_one_is_refused(
    folders, small, tmp_path, monkeypatch, moment
):
    real, refused = getattr(preparation, moment), []

    def begin_another(*arguments: object, **options: object) -> object:
        monkeypatch.undo()
        with pytest.raises(
            DatasetError, match=rf"preparing is in use by process {os.getpid()} on host .*; wait for it"
        ):
            quietly(folders, tmp_path / "out", shard_images=10)
        refused.append(moment)
        return real(*arguments, **options)

    monkeypatch.setattr(preparation, moment, begin_another)
    assert contents(quietly(folders, tmp_path / "out", shard_images=10).root) == contents(small.root)
    assert refused == [moment]


def test_a_destination_that_another_process_has_just_finished_is_left_alone(folders, tmp_path, monkeypatch):
    lock = preparation.owned

    def finish_before(folder: Path, **more: str) -> object:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
        return lock(folder, **more)

    monkeypatch.setattr(preparation, "owned", finish_before)
    with pytest.raises(DatasetError, match=r"exists already"):
        quietly(folders, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_destination_that_is_a_link(folders, small, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "empty").mkdir()
    for name in ("empty", "new"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        quietly(folders, tmp_path / name, shard_images=10)
        assert contents(tmp_path / "disk" / name) == contents(small.root)


def test_nothing_is_left_behind_by_a_source_that_is_refused(tmp_path):
    with pytest.raises(DatasetError):
        quietly(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dest", [".", "..", "../empty", "./"])
def test_the_working_directory_is_not_replaced(folders, tmp_path, monkeypatch, dest):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DatasetError, match=r"is the working directory; choose a folder in it|exists already"):
        quietly(folders, Path(dest))
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_link_to_the_destination_is_followed(folders, tmp_path):
    (tmp_path / "disk").mkdir()
    for name, target in (("to-nothing", "disk/new"), ("to-empty", "disk")):
        (tmp_path / name).symlink_to(tmp_path / target)
        assert quietly(folders, tmp_path / name).count("train") == 24
        assert (tmp_path / target / "dataset.json").is_file()
        shutil.rmtree(tmp_path / target)
        (tmp_path / "disk").mkdir(exist_ok=True)


def test_a_link_to_itself_is_no_destination(folders, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DatasetError, match=r"loop is a link that leads to itself"):
        quietly(folders, tmp_path / "loop")
    with pytest.raises(DatasetError, match=r"cannot write to .*: (Too many levels of symbolic links|File exists)"):
        quietly(folders, tmp_path / "loop/out")


def test_a_name_that_is_too_long_is_no_destination(folders, tmp_path):
    with pytest.raises(DatasetError, match=r"cannot write to .*: File name too long"):
        quietly(folders, tmp_path / ("x" * 300))


@pytest.mark.parametrize("place", ["out", "train/out", "train/class0/out", "runs/deep/out"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_destination_in_the_source_is_not_read(tmp_path, place, exists):
    root = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    if exists:
        (root / place).mkdir(parents=True)
    for _ in range(2):  # the second time it is there
        dataset = quietly(root, root / place)
        assert dataset.classes == ["class0", "class1"]
        assert [dataset.count(split) for split in dataset.splits] == [4, 2]
        assert dataset.made["rejected"] == 0
        place += "2"


def test_a_destination_among_class_folders_is_not_read(tmp_path):
    root = class_folders(tmp_path / "in", classes=2, train=4, val=0) / "train"
    for name in ("out", "prepared", "prepared/again"):
        dataset = quietly(root, root / name, validation_every=2)
        assert dataset.classes == ["class0", "class1"]
        if name == "prepared":
            shutil.rmtree(root / name)


class Mounted:
    """A file system in memory, mounted with `options`."""

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


def test_a_mount_point_is_refused_before_the_work_begins(folders, tmp_path):
    with Mounted(tmp_path / "disk", "size=5m") as disk:
        with pytest.raises(
            DatasetError, match=r"disk is a mount point, which cannot be replaced; choose a folder in it"
        ):
            quietly(folders, disk)
        assert quietly(folders, disk / "out").count("train") == 24


def test_too_little_space_is_reported_before_the_work_begins(folders, tmp_path):
    with Mounted(tmp_path / "disk", "size=60k") as disk:
        with pytest.raises(DatasetError, match=r"not enough space for .*: 36 images of about .* kB need .* are free"):
            quietly(folders, disk / "out")
        assert not list(disk.glob("out*/*.tar"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_reported_and_the_work_continues_later(tmp_path, workers):
    class_folders(tmp_path / "in", classes=2, train=40, val=4)
    wanted = contents(quietly(tmp_path / "in", tmp_path / "elsewhere", shard_images=10).root)
    with Mounted(tmp_path / "disk", "size=600k") as disk:
        ballast, options = disk / "ballast", {"shard_images": 10, "workers": workers}
        process = _filling(tmp_path / "in", disk, ballast, workers)
        assert process.returncode == 2, process.stderr
        assert process.stderr.startswith("error: ")
        assert "No space left on device; once this is fixed, the same command continues" in process.stderr
        assert "Traceback" not in process.stderr
        assert not is_prepared(disk / "out")
        ballast.unlink()
        quietly(tmp_path / "in", disk / "out", **options)
        assert contents(disk / "out") == wanted


def _filling(source: Path, disk: Path, ballast: Path, workers: int) -> subprocess.CompletedProcess[str]:
    """Prepare on a disk that another program fills after the space was checked."""
    script = (
        "import sys, pathlib, dataloading.preparation.preparation as p\n"
        "check = p.check_disk_space\n"
        "def check_then_fill(*arguments):\n"
        "    check(*arguments)\n"
        "    with open(sys.argv[3], 'wb', buffering=0) as file:\n"
        "        room = __import__('shutil').disk_usage(file.name).free - 60_000\n"
        "        file.write(bytes(room))\n"
        "if __name__ == '__main__':\n"
        "    p.check_disk_space = check_then_fill\n"
        "    try:\n"
        "        p.prepare_dataset(sys.argv[1], sys.argv[2], size=32, shard_images=10, workers=int(sys.argv[4]), "
        "progress=False)\n"
        "    except p.DatasetError as error:\n"
        "        sys.exit(print(f'error: {error}', file=sys.stderr) or 2)\n"
    )
    path = disk.parent / "filling.py"
    path.write_text(script)
    return python_script(path, source, disk / "out", ballast, workers)


def test_a_folder_with_the_name_of_an_unfinished_preparation_is_left_alone(folders, tmp_path):
    mine = tmp_path / "out.preparing" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(DatasetError, match=r"out.preparing exists already and is no interrupted preparation; move it"):
        preparation.prepare_dataset(folders, tmp_path / "out", size=32)
    with pytest.raises(DatasetError, match=r"out.preparing exists already and is no interrupted preparation; move it"):
        preparation.prepare_dataset(tmp_path / "nowhere", tmp_path / "out", size=32)
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == ["notes.txt"]
