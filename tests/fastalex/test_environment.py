"""Odd environments: hidden and broken packages, no home, terminals without Unicode, names with brackets."""

import importlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataloading
from dataloading import DatasetError, check
from dataloading.loading.dali_check import check_dali
from dataloading.process import print_anything
from dataloading.progress_bar import ProgressBar
from fastalex.parallel import launch
from tests.fastalex.commands import ROOT, SMALL, command, environment, line_of, refused
from tests.fastalex.conftest import save_run


def package(folder: Path, content: str = "") -> Path:
    """A package of somebody else."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(content)
    return folder


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment() | variables, capture_output=True, text=True
    )


# --- hidden and broken packages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dataloading", "kernels"])
def test_a_folder_that_hides_one_of_our_packages_is_named(tmp_path, name):
    hiding = package(tmp_path / name, "raise RuntimeError('not to be imported')")
    code, out, err = command(tmp_path, "fastalex.train", "--help")
    message = f"the package '{name}' found at {hiding} is another project's, not fastalex's; rename it, or start Python"
    assert line_of(code, err).startswith(f"error: {message}")
    assert (out, err.count("\n")) == ("", 1)
    shown = python(tmp_path, "-c", "import fastalex")
    assert shown.returncode == 1
    assert shown.stderr.splitlines()[-1].startswith(f"ImportError: {message}")


def test_a_folder_of_images_with_the_name_of_a_package_hides_nothing(tmp_path):
    (tmp_path / "dataloading" / "train").mkdir(parents=True)
    assert python(tmp_path, "-c", "import fastalex").returncode == 0


def test_a_folder_that_hides_dali_is_named_before_anything_is_prepared(tmp_path, class_folders):
    hiding = package(tmp_path / "nvidia")
    code, _, err = command(tmp_path, "fastalex.train", class_folders, *SMALL, "--devices", "cpu")
    expected = f"error: NVIDIA DALI, which decodes the images, is hidden by {hiding}, which has its name; rename that"
    assert line_of(code, err).startswith(expected)
    assert list(tmp_path.iterdir()) == [hiding]


@pytest.fixture
def without_dali(monkeypatch):
    """Python finds no DALI."""
    for name in [name for name in sys.modules if name.startswith(("nvidia.dali", "dataloading.loading.dali"))]:
        if name != "dataloading.loading.dali_check":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)


def test_without_dali_every_command_says_what_to_install(without_dali, class_folders, prepared, tmp_path):
    run = save_run(tmp_path / "run", prepared)
    before = sorted(tmp_path.iterdir())
    for arguments in (
        ("train", class_folders, *SMALL),
        ("train", "--resume", run, "--epochs", "2"),
        ("evaluate", run),
        ("evaluate", run, class_folders),
        ("features", run, prepared, "fc7", "-o", "features"),
        ("study", "dropout", class_folders),
    ):
        message = refused(tmp_path, f"fastalex.{arguments[0]}", *arguments[1:], "--devices", "cpu")
        assert "DALI, which decodes the images, is not installed: " in message, arguments
        assert " -m pip install 'fastalex[cuda13]'" in message, arguments
    assert sorted(tmp_path.iterdir()) == before
    check_dali("synthetic")


def test_a_broken_dali_is_said_to_be_broken(monkeypatch, tmp_path):
    place = package(tmp_path / "nvidia" / "dali", "raise OSError('libdali.so: undefined symbol: x')")
    package_of_dali = importlib.import_module("nvidia")
    monkeypatch.setattr(package_of_dali, "__path__", [str(tmp_path / "nvidia")])
    for name in [name for name in sys.modules if name.startswith(("nvidia.dali", "dataloading.loading.dali_"))]:
        if name != "dataloading.loading.dali_check":
            monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    with pytest.raises(
        DatasetError, match=rf"cannot be imported from {place} \(libdali.so: undefined symbol: x\); inst"
    ):
        check_dali()


def test_a_broken_tensorflow_does_not_matter(tmp_path):
    broken = package(tmp_path / "packages" / "tensorflow", "raise AttributeError('np.bool8')").parent
    code = (
        "from pathlib import Path; from fastalex.training.metrics_log import MetricsLog; MetricsLog(Path('.')).close()"
    )
    shown = python(tmp_path, "-c", code, PYTHONPATH=os.pathsep.join([str(ROOT), str(broken)]))
    assert shown.returncode == 0, shown.stderr
    assert list(tmp_path.glob("events.*"))


# --- variables and users ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "threads"),
    [("", 3), ("4,2", 4), ("4", 4), (" 2 ", 2), ("0", 3), ("-1", 3), ("many", 3), (",", 3), ("1" * 30, 3)],
)
def test_threads_of_a_worker(monkeypatch, text, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert launch.cpu_threads(4) == threads


UNKNOWN_USER = ["unshare", "--user", "--map-user=54321"]


def is_possible(command: list[str]) -> bool:
    """Whether this machine allows a command that changes the user or the host's name."""
    return (
        shutil.which(command[0]) is not None and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not is_possible(UNKNOWN_USER), reason="no user namespaces")
def test_a_user_without_name_and_home_trains(prepared, tmp_path):
    """As in a container that is started with --user 54321."""
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "1", "--devices", "cpu", "--output", "run"]
    variables = {name: value for name, value in environment().items() if name != "HOME" and not name.startswith("XDG_")}
    done = subprocess.run(
        [*UNKNOWN_USER, sys.executable, "-m", *map(str, arguments)],
        cwd=tmp_path,
        env=variables | {"OMP_NUM_THREADS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


# --- names and terminals ----------------------------------------------------------------------------------------------

NAMES = ("[bold]cat", "[red]", "日本 ü", os.fsdecode(b"caf\xe9"))


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """A run and its data, with names that terminals and markup have trouble with."""
    folder = tmp_path_factory.mktemp("strange") / "[red]data :smile:"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for split in ("train", "val"):
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / split / name / "0.jpg")
    dataloading.prepare_dataset(folder, folder / "prepared", progress=False, workers=0)
    save_run(folder / "run", folder / "prepared")
    return folder


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_every_name_can_be_printed_on_every_terminal(strange, encoding):
    shown = subprocess.run(
        [sys.executable, "-m", "fastalex.evaluate", "run", "--worst", "9", "--devices", "cpu"],
        cwd=strange,
        env=environment() | {"PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert shown.returncode == 0, shown.stderr
    out = shown.stdout.decode(encoding)
    for name in NAMES:
        assert name.encode(encoding, "replace").decode(encoding) in out


def test_what_cannot_be_printed_becomes_a_question_mark(monkeypatch):
    for errors in ("strict", "surrogateescape"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", None)  # closed by the shell
        print_anything()
        print("日本", end="", flush=True)
        assert stream.buffer.getvalue() == b"??"


def test_brackets_in_names_are_no_markup(strange, monkeypatch, capsys):
    check.main(str(strange / "prepared"), progress=False)
    assert strange.name in capsys.readouterr().out
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    with ProgressBar(f"preparing {strange.name}", 4) as bar:
        bar.update(4)
    assert f"preparing {strange.name}" in stream.getvalue()
