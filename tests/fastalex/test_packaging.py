"""Wheel and sdist: what is in them, and what an installed wheel does without anything that extras install."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastalex
from tests.fastalex.conftest import CLASSES, save_run

ROOT = Path(__file__).parents[2]
PACKAGES = ("kernels", "dataloading", "fastalex")
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"

# Python as it is without any extra.
BARE = """
import sys
sys.modules |= dict.fromkeys({absent!r})
"""
ABSENT = (
    "cv2", "h5py", "huggingface_hub", "matplotlib", "nvidia", "onnx", "onnxruntime", "onnxscript", "scipy", "sklearn",
    "tensorboard", "threadpoolctl",
)  # fmt: skip


NO_COMPILER = (
    "note: CPU operators fall back to PyTorch, which is slower: native.c could not be compiled "
    "([Errno 2] No such file or directory: 'cc')"
)


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist with the backend that pyproject.toml names, as pip and build do."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from an sdist, which was built from the checkout's files."""
    folder = tmp_path_factory.mktemp("packaging")
    checkout = folder / "checkout"
    files = ("pyproject.toml", "README.md", "LICENSE")
    checkout.mkdir()
    for name in files:
        shutil.copy(ROOT / name, checkout)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    sdist = build("sdist", checkout, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages: a wheel is such a folder in a zip file."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(installed: Path, folder: Path, code: str) -> str:
    """What Python prints that has the installed wheel, but no extras and no compiler."""
    environment = {"PYTHONPATH": str(installed), "HOME": str(folder), "PATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, "-c", BARE.format(absent=ABSENT) + code]
    done = subprocess.run(
        command, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stderr.splitlines()) <= {NO_COMPILER}
    return done.stdout


def test_the_wheel_has_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    ours = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in ours if "__pycache__" not in path.parts}
    assert names == expected
    assert f"Version: {fastalex.__version__}\n" in metadata
    assert {"kernels/py.typed", "dataloading/py.typed", "fastalex/py.typed"} <= names


OPERATORS = """
import torch, kernels
x = torch.randn(2, 8, 9, 9, requires_grad=True)
results = []
for choice in ("native", "reference"):
    x.grad = None
    with kernels.using(choice):
        y = kernels.max_pool2d(kernels.local_response_norm(x, 5, k=2.0), 3, 2)
        y.square().sum().backward()
    results.append((y.detach(), x.grad))
for ours, reference in zip(*results):
    torch.testing.assert_close(ours, reference)
print(*[name for name in sys.modules if name in ("fastalex", "dataloading")], "beside", kernels.__file__)
"""

COMMANDS = """
import contextlib, runpy
def run(*words):
    sys.argv = ["fastalex", *words]
    with contextlib.suppress(SystemExit):
        runpy.run_module("fastalex", run_name="__main__", alter_sys=True)
run()
run("predict", "run", "images", "--top", "2")
run("features", "run", "images", "fc7", "-o", "activations", "--devices", "cpu")
run("show", "run", "-o", "conv1.png")
run("plan", "--devices", "cpu")
import fastalex
print(fastalex.load("run").predict("images/a.jpg")[0].classes[0])
print(fastalex.__file__)
"""


def test_an_installed_wheel_works_without_extras_or_a_compiler(installed, prepared, class_folders, tmp_path):
    """Outside the checkout: operators, the list of commands, classes, activations, a picture, a plan."""
    save_run(tmp_path / "run", prepared, with_record=True)
    (tmp_path / "images").mkdir()
    for name, label in (("a.jpg", "red"), ("b.jpg", "blue")):
        shutil.copy(class_folders / "val" / label / "002.jpg", tmp_path / "images" / name)
    out = python(installed, tmp_path, OPERATORS + COMMANDS)
    assert out.startswith(f"beside {installed / 'kernels' / '__init__.py'}\n")
    for expected in ("fastalex COMMAND ...", "images/a.jpg", "fc7.npy", "conv1.png", "parameters"):
        assert expected in out
    *_, first, place = out.splitlines()
    assert first in CLASSES
    assert Path(place).is_relative_to(installed)
    assert (tmp_path / "activations" / "samples.csv").read_text().splitlines() == ["row,file", "0,a.jpg", "1,b.jpg"]
    assert (tmp_path / "conv1.png").is_file()
