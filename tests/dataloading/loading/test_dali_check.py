"""What is said where DALI does not work. Whole commands without it are tested in tests/fastalex/test_environment.py."""

import csv
import importlib
import json
import sys
from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.loading import dali_check
from dataloading.loading.dali_check import check_dali


@pytest.fixture
def failing(monkeypatch):
    """A function that lets the import of DALI fail with an error."""

    def fail_with(error: Exception) -> None:
        def fail(name: str) -> None:
            assert name == "dataloading.loading.dali_graph"
            raise error

        monkeypatch.setattr(importlib, "import_module", fail)

    return fail_with


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError("undefined symbol: x\nand more"), "undefined symbol: x"), (KeyError(), "KeyError")],
)
@pytest.mark.parametrize("packages", ["site-packages", ".venv/site-packages"])
def test_a_broken_dali_is_named_with_the_reason_and_its_place(tmp_path, monkeypatch, failing, error, reason, packages):
    failing(error)
    monkeypatch.chdir(tmp_path)  # an environment in the working directory hides nothing
    place = (Path("/usr") if packages == "site-packages" else tmp_path) / packages / "nvidia"
    monkeypatch.setattr(dali_check, "_place", lambda name: place / name.removeprefix("nvidia").strip("."))
    with pytest.raises(
        DatasetError,
        match=rf"images, cannot be imported from {place}/dali \({reason}\); install it again: .* -m pip install",
    ):
        check_dali("folder")


def test_a_missing_dali_and_one_that_is_hidden_are_told_apart(tmp_path, monkeypatch, failing):
    failing(ImportError("no"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dali_check, "_place", lambda name: None)
    with pytest.raises(
        DatasetError, match=r"which decodes the images, is not installed: .* -m pip install 'fastalex\[cuda13\]'"
    ):
        check_dali()
    check_dali("synthetic")  # needs none
    monkeypatch.setattr(dali_check, "_place", lambda name: tmp_path / "nvidia" if name == "nvidia" else None)
    with pytest.raises(DatasetError, match=rf"is hidden by {tmp_path}/nvidia, which has its name; rename that, or"):
        check_dali()
    monkeypatch.setattr(dali_check, "_place", lambda name: Path("/else/where") if name == "nvidia" else None)
    with pytest.raises(DatasetError, match=r"is not installed"):
        check_dali()


def test_the_place_of_a_module_is_where_python_finds_it(tmp_path, monkeypatch):
    (tmp_path / "no_init_file").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert dali_check._place("json") == Path(json.__file__).parent
    assert dali_check._place("csv") == Path(csv.__file__)
    assert dali_check._place("no_init_file") == tmp_path / "no_init_file"
    for name in ("sys", "no_such_module", "no_such_module.inner", "csv.inner"):
        assert dali_check._place(name) is None
    monkeypatch.setitem(sys.modules, "without_spec", sys.modules[__name__].__class__("without_spec"))
    assert dali_check._place("without_spec") is None
