"""Compiling and caching native.c, and the fallback to PyTorch if it cannot be compiled."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comparing import check_against_reference, laid_out, random_tensor

import kernels
from kernels.native import build


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The cache folder, empty, so that `library` compiles native.c again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield tmp_path / "fastalex"
    build.library.cache_clear()


def test_it_is_built_once(rebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert build.library() is not None
    (library_file,) = rebuilt.iterdir()
    before = library_file.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() is not None
    assert [path.stat().st_mtime_ns for path in rebuilt.iterdir()] == [before]


def test_it_compiles_without_warnings() -> None:
    command = ["cc", *build.FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(build.SOURCE)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stderr == ""


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("none", "No such file or directory: 'none'"), ("false", "returned non-zero exit status 1")],
)
def test_without_a_compiler_pytorch_computes(
    rebuilt: Path, compiler: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    x = laid_out(random_tensor((1, 8, 5, 5), 0, torch.float32), "channels_last")
    with caplog.at_level(logging.INFO, "kernels.native.build"):
        assert build.library() is None
        check_against_reference(kernels.local_response_norm, "native in PyTorch", [x], "channels_last")
    assert caplog.text.count("CPU operators fall back to PyTorch, which is slower: native.c could not be compiled") == 1
    assert reason in caplog.text
    assert not rebuilt.exists() or not list(rebuilt.iterdir())


def test_a_compiler_error_is_logged(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "cc -Dfloat=unknown")
    with caplog.at_level(logging.INFO, "kernels.native.build"):
        assert build.library() is None
    assert "error: unknown type name 'unknown'" in caplog.text
    assert not list(rebuilt.iterdir())


def test_an_unwritable_cache_is_not_an_error(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rebuilt.write_text("a file in place of the folder")
    with caplog.at_level(logging.INFO, "kernels.native.build"):
        assert build.library() is None
    assert "File exists" in caplog.text


def test_processes_starting_together_load_a_complete_library(tmp_path: Path) -> None:
    program = "from kernels.native import build; assert build.library() is not None"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == [""] * 3
    assert len(list((tmp_path / "fastalex").iterdir())) == 1
