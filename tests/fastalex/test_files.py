"""New folders: owned, never mixed with what is there, and gone if nothing came of them."""

import os
import re
from pathlib import Path

import pytest

from fastalex.errors import ConfigurationError
from fastalex.files import check_new_folder, check_place, new_folder, owned
from tests.dataloading.owning import another_owner, small_disk


def test_a_new_folder_is_owned_and_stays(tmp_path):
    with new_folder(tmp_path / "a" / "b", "choose another") as folder:
        assert folder == tmp_path / "a" / "b"
        (folder / "result").touch()
        with pytest.raises(ConfigurationError, match=rf"b is in use by process {os.getpid()} on host"), owned(folder):
            pass
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_nothing_is_left_of_a_new_folder_without_content(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("a/b", "mine/c", "mine"):
        with pytest.raises(KeyError), new_folder(tmp_path / name, "choose another"):
            raise KeyError
        check_new_folder(tmp_path / name, "choose another")
    with pytest.raises(KeyError), new_folder(tmp_path / "mine", "", numbered=True):
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    before = os.stat(tmp_path).st_mtime_ns
    for name in (".", "file"):
        with (
            pytest.raises(ConfigurationError, match=r"exists already; choose another$"),
            new_folder(tmp_path / name, "choose another"),
        ):
            pass
    assert os.stat(tmp_path).st_mtime_ns == before
    with pytest.raises(NotADirectoryError) as error, new_folder(tmp_path / "file" / "x" / "y", "choose another"):
        pass
    assert error.value.filename == str(tmp_path / "file" / "x" / "y")


def test_a_folder_in_use_is_called_so_although_it_has_content(tmp_path):
    (tmp_path / "config.json").touch()
    with another_owner(tmp_path) as process:
        message = re.escape(f"{tmp_path} is in use by process {process.pid} on host ")
        with pytest.raises(ConfigurationError, match=message), new_folder(tmp_path, "choose another"):
            pass


def test_numbered_folders_do_not_meet(tmp_path):
    with (
        new_folder(tmp_path / "run", "", numbered=True) as first,
        new_folder(tmp_path / "run", "", numbered=True) as second,
    ):
        for folder in (first, second):
            (folder / "result").touch()
    with new_folder(tmp_path / "run", "", numbered=True) as third:
        assert [path.name for path in (first, second, third)] == ["run", "run-2", "run-3"]


def test_a_link_to_itself_is_no_folder(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for name, reason in (("one", "Too many levels of symbolic links"), ("one/below", "Not a directory")):
        with pytest.raises(OSError, match=reason) as error:
            check_new_folder(tmp_path / name, "choose another")
        assert error.value.filename == str(tmp_path / name)
    with pytest.raises(ConfigurationError, match=r"one is in the way of .*one/below: it is not a folder; choose ano"):
        check_place(tmp_path / "one" / "below", "choose another")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_place_for_a_folder_is_checked_without_making_it(tmp_path):
    (tmp_path / "file").touch()
    check_place(tmp_path / "a" / "b", "choose another")
    check_place(tmp_path, "choose another")
    with pytest.raises(ConfigurationError, match=r"file is in the way of .*file: it is not a folder; choose another"):
        check_place(tmp_path / "file", "choose another")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_links_and_mount_points_are_folders(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with new_folder(tmp_path / "link", "choose another") as folder:
        (folder / "result").touch()
    assert (tmp_path / "target" / "result").exists()
    with small_disk(tmp_path / "disk", "100k") as disk:
        (disk / "lost+found").mkdir()
        with new_folder(disk, "choose another") as folder:
            assert folder == Path(disk)
