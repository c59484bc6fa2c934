"""Files that cannot be read, or change, while a data set is prepared: they are not bad images."""

import builtins
import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dataloading import Dataset, DatasetError, is_prepared
from dataloading.errors import SourceChanged
from dataloading.preparation import preparation
from dataloading.preparation.images import Rejected, read_entry
from dataloading.sources.entries import Entry
from tests.dataloading.preparation.preparing import python_script, quietly
from tests.dataloading.small_sources import class_folders, command, contents, ilsvrc2012, png_header

OPTIONS = ["--size", 32, "--shard-images", 10]

# Every Python process imports sitecustomize when it starts.
FAILING_DISK = """
import builtins, errno, os
open_file, broken = builtins.open, os.environ.get("BROKEN_FILE")

def open_or_fail(path, *arguments, **options):
    if broken and str(path).endswith(broken):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    return open_file(path, *arguments, **options)

builtins.open = open_or_fail
"""

# A format whose decoder is killed from outside, as by a kernel that is out of memory.
KILLED_DECODER = """
import os, signal
from PIL import Image

def wait_for_the_killer(file, name):
    os.kill(os.getpid(), signal.SIGKILL)

Image.init()
Image.register_open("PPM", wait_for_the_killer, lambda start: start.startswith(b"LARGE"))
"""


def customized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every new Python process run `code` when it starts."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)


def after_listing(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Call `change` when the images are listed and before they are prepared."""
    check = preparation.check_disk_space

    def change_then_check(*arguments: object) -> None:
        change()
        check(*arguments)

    monkeypatch.setattr(preparation, "check_disk_space", change_then_check)


def test_a_failing_disk_stops_the_preparation_and_the_next_run_reads_again(folders, small, tmp_path, monkeypatch):
    customized(tmp_path, monkeypatch, FAILING_DISK)
    monkeypatch.setenv("BROKEN_FILE", "class1/0003.jpg")
    for _ in range(2):
        done = command("dataloading.prepare", folders, tmp_path / "out", *OPTIONS, "--workers", 2)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(
            f"error: cannot read {folders}/train/class1/0003.jpg: Input/output error; preparation stops"
        )
        assert "Traceback" not in done.stderr
        assert not is_prepared(tmp_path / "out")
    monkeypatch.delenv("BROKEN_FILE")
    done = command("dataloading.prepare", folders, tmp_path / "out", *OPTIONS, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(small.root)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOENT, errno.EMFILE])
def test_no_error_of_the_file_system_is_recorded(folders, small, tmp_path, monkeypatch, number):
    real = builtins.open

    def failing(path: object, *arguments: object, **options: object) -> object:
        if str(path).endswith("val/class2/0003.jpg"):
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", failing)
        with pytest.raises(DatasetError, match=rf"cannot read .*val/class2/0003.jpg: {os.strerror(number)}"):
            quietly(folders, tmp_path / "out", shard_images=10)
    assert contents(quietly(folders, tmp_path / "out", shard_images=10).root) == contents(small.root)


def test_a_class_that_vanishes_stops_the_preparation(folders, small, tmp_path, monkeypatch):
    source = Path(shutil.copytree(folders, tmp_path / "photographs"))
    with monkeypatch.context() as patched:
        after_listing(patched, lambda: (source / "train/class1").rename(tmp_path / "away"))
        with pytest.raises(DatasetError, match=r"cannot read .*/train/class1/000\d.jpg: No such file or directory"):
            quietly(source, tmp_path / "out", shard_images=10)
    (tmp_path / "away").rename(source / "train/class1")
    assert contents(quietly(source, tmp_path / "out", shard_images=10).root) == contents(small.root)


@pytest.mark.parametrize("change", [lambda data: data[:-5], lambda data: data + b"more", lambda data: b""])
def test_a_file_that_is_being_written_stops_the_preparation(tmp_path, monkeypatch, change):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    path = source / "val/class0/0000.jpg"
    whole = path.read_bytes()
    after_listing(monkeypatch, lambda: path.write_bytes(change(whole)))
    with pytest.raises(SourceChanged, match=rf"{path} has changed since it was listed: it had .* bytes and has "):
        quietly(source, tmp_path / "out", workers=1)
    assert not list(tmp_path.glob("out*"))
    monkeypatch.undo()
    path.write_bytes(whole)
    assert quietly(source, tmp_path / "out").count("val") == 2


def test_a_file_that_changes_while_the_preparation_is_interrupted_is_noticed(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "in", classes=2, train=4, val=1)
    path = source / "train/class0/0000.jpg"
    with monkeypatch.context() as patched:
        after_listing(patched, lambda: (source / "val/class0/0000.jpg").rename(tmp_path / "away.jpg"))
        with pytest.raises(DatasetError, match="cannot read"):
            quietly(source, tmp_path / "out", shard_images=2)
    (tmp_path / "away.jpg").rename(source / "val/class0/0000.jpg")
    path.write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match=r"interrupted preparation from another source"):
        quietly(source, tmp_path / "out", shard_images=2)


def test_an_archive_that_is_cut_off_after_listing_stops_the_preparation(tmp_path, monkeypatch):
    source = ilsvrc2012(tmp_path / "in")
    path = source / "ILSVRC2012_img_val.tar"
    after_listing(monkeypatch, lambda: os.truncate(path, 1000))
    with pytest.raises(DatasetError, match=rf"ILSVRC2012_val_0000000\d.JPEG in {path} has changed since it was listed"):
        quietly(source, tmp_path / "out")


def test_a_link_that_leads_nowhere_stops_the_preparation(tmp_path):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    link = source / "train/class0/b.jpg"
    link.symlink_to(tmp_path / "disk/b.jpg")
    with pytest.raises(DatasetError, match=r"cannot read .*/train/class0/b.jpg: No such file or directory"):
        quietly(source, tmp_path / "out")
    (tmp_path / "disk").mkdir()
    shutil.copy(source / "train/class0/0000.jpg", tmp_path / "disk/b.jpg")
    assert not list(tmp_path.glob("out*"))
    assert quietly(source, tmp_path / "out").count("train") == 5


def test_only_regular_files_are_opened(tmp_path):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    os.mkfifo(source / "train/class0/pipe.jpg")
    (source / "train/class0/zero.jpg").symlink_to("/dev/zero")
    done = command("dataloading.prepare", source, tmp_path / "out", *OPTIONS, "--workers", 1)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out/rejected.csv").open(newline="") as file:
        table = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert table == dict.fromkeys(["train/class0/pipe.jpg", "train/class0/zero.jpg"], "not a regular file")
    for path in (source / "train/class0/pipe.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises(Rejected, match="not a regular file"):
            read_entry(Entry(str(path), 0, 10, 0, "x"), 100)


SMALL_MEMORY = """
import resource, sys
import dataloading.preparation.preparation as p
def limit(*arguments):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 30_000_000,) * 2)
if __name__ == "__main__":
    p.check_disk_space = limit
    try:
        p.prepare_dataset(*sys.argv[1:], size=32, workers=0, progress=False)
    except p.DatasetError as error:
        sys.exit(f"error: {error}")
"""


def test_an_image_that_does_not_fit_into_memory_is_not_a_bad_image(tmp_path):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    (source / "train/class0/large.png").write_bytes(png_header(9_000, 9_000))
    (tmp_path / "script.py").write_text(SMALL_MEMORY)
    done = python_script(tmp_path / "script.py", source, tmp_path / "out")
    assert done.stderr.startswith(f"error: not enough memory to decode {source}/train/class0/large.png; use fewer")


def test_a_decoder_that_is_killed_from_outside_is_not_blamed_on_its_image(tmp_path, monkeypatch):
    source = class_folders(tmp_path / "in", classes=2, train=2, val=1)
    large = source / "train/class0/0001.jpg"
    large.write_bytes(b"LARGE" + bytes(1000))
    customized(tmp_path, monkeypatch, KILLED_DECODER)
    monkeypatch.setattr(preparation, "check_disk_space", lambda *_: None)
    with pytest.raises(DatasetError, match=r"killed 3 times, the last one at train/class0/0001.jpg \(out of memory"):
        quietly(source, tmp_path / "out", workers=1)
    assert not list((tmp_path / "out.preparing").glob("train-0*.json"))


def test_images_that_an_earlier_version_could_not_read_are_read_again(folders, small, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(preparation, "write_descriptions", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(folders, tmp_path / "out", shard_images=10)
    path = tmp_path / "out.preparing/train-000001.json"
    record = json.loads(path.read_bytes())
    record["rejected"] = [["train", "train/class1/0003.jpg", "cannot be read: Input/output error"]]
    path.write_text(json.dumps(record))
    assert contents(quietly(folders, tmp_path / "out", shard_images=10).root) == contents(small.root)


def test_a_prepared_set_that_cannot_be_looked_at_is_not_taken_for_none(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for call in (is_prepared, Dataset):
        with pytest.raises(DatasetError, match=r"cannot read .*loop.*: Too many levels of symbolic links; check the"):
            call(tmp_path / "loop")
