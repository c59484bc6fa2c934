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
from dataloading.sources.ilsvrc import _synsets
from dataloading.standin.archives import write_standin
from fastalex.parallel import launch
from tests.fastalex.commands import ROOT, SMALL, command, command_here, environment, line_of, refused
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


@pytest.mark.parametrize(
    ("package", "name", "extra", "arguments"),
    [
        ("matplotlib", "matplotlib", "report", ("fastalex.report", "run")),
        ("matplotlib", "matplotlib", "report", ("fastalex.reproduce", "figure3", "{data}")),
        ("matplotlib", "matplotlib", "report", ("fastalex.predict", "run", "image.jpg", "--picture", "new.png")),
        ("matplotlib", "matplotlib", "report", ("fastalex.evaluate", "run", "--confusion", "new.png")),
        ("scipy.io", "SciPy", "hdf5", ("fastalex.features", "run", "image.jpg", "fc7", "-o", "new", "--format", "mat")),
        ("sklearn", "scikit-learn", "baseline", ("fastalex.baseline", "{data}", "--output", "new")),
        ("threadpoolctl", "threadpoolctl", "baseline", ("fastalex.baseline", "{data}")),
        ("onnxscript", "onnxscript", "export", ("fastalex.export", "run", "--to", "onnx")),
    ],
)
def test_a_command_names_the_extra_that_it_lacks(monkeypatch, prepared, tmp_path, package, name, extra, arguments):
    run = save_run(tmp_path / "run", prepared, with_record=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "image.jpg")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setitem(sys.modules, package, None)
    module, *words = arguments
    message = refused(tmp_path, module, *(word.format(data=prepared) for word in words))
    assert message.startswith(f"error: {name} is not installed; install it with: ")
    assert message.endswith(f" -m pip install 'fastalex[{extra}]'")
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "runs"] == before
    assert run.is_dir()


def test_images_of_ilsvrc_need_scipy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DatasetError, match=r"^SciPy, which writes meta.mat, is not .*\[imagenet\]'$"):
        write_standin(tmp_path / "new", classes=2, images=4, validation=4, workers=0, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match=r"^SciPy, which reads meta.mat in .*devkit.*, is not .*\[imagenet\]'$"):
        _synsets(b"", Path("devkit.tar.gz"), 2012)


def test_a_run_without_tensorboard_and_matplotlib_says_what_is_left_out(monkeypatch, prepared, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = (prepared, *SMALL, "--epochs", "1", "--devices", "cpu", "--output", "run")
    code, out, err = command_here(tmp_path, "fastalex.train", *arguments)
    assert code == 0
    install = f"is not installed; install it with: {sys.executable} -m pip install 'fastalex"
    assert err == f"no TensorBoard events: tensorboard {install}[tensorboard]'; metrics.jsonl has the same figures\n"
    assert f"curve         none: matplotlib {install}[report]'\n" in out
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"conv1.png", "metrics.jsonl", "best.safetensors"} <= written
    assert not [name for name in written if name.startswith(("curve", "events"))]


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
