"""Compiling and caching native.c, and the fallback to PyTorch if it cannot be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from comparing import check_against_reference, laid_out, random_tensor

import kernels
from kernels.native import build


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The cache folder, empty, so that `library` compiles native.c again; without optimisation, which takes long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
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


@pytest.mark.parametrize("part", ["source", "compiler", "its version", "flags", "processor", "torch"])
def test_another_machine_builds_another_library(
    rebuilt: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name tells everything that it depends on, because a home may be shared between machines."""
    built = []

    def refuse(source: Path, command: list[str], libraries: list[str], path: Path) -> None:
        built.append(path.name)
        raise OSError("not built here")

    run, other = build._run, tmp_path / "other.c"
    other.write_text(build.SOURCE.read_text() + "\n")
    changes = {
        "source": (build, "SOURCE", other),
        "compiler": (build, "_compiler", lambda: ["cc", "-DOTHER"]),
        "its version": (build, "_run", lambda command: run(command) + "another version"),
        "flags": (build, "FLAGS", (*build.FLAGS, "-DOTHER")),
        "processor": (build, "_processor", lambda: "another processor"),
        "torch": (torch, "__version__", "another version"),
    }
    monkeypatch.setattr(build, "_build", refuse)
    for change in (None, changes[part]):
        if change:
            monkeypatch.setattr(*change)
        build.library.cache_clear()
        assert build.library() is None
    here, there = set(built[:2]), set(built[2:])
    assert len(here) == len(there) == 1
    assert here != there


def test_it_compiles_without_warnings() -> None:
    command = ["cc", *build.FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(build.SOURCE)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stderr == ""


FALLBACK = "note: CPU operators fall back to PyTorch, which is slower: native.c could not be compiled ("


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("none", "No such file or directory: 'none'"), ("false", "returned non-zero exit status 1")],
)
def test_without_a_compiler_pytorch_computes(
    rebuilt: Path, compiler: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    x = laid_out(random_tensor((1, 8, 5, 5), 0, torch.float32), "channels_last")
    assert build.library() is None
    check_against_reference(lambda x: kernels.local_response_norm(x, 5), "native in PyTorch", [x], "channels_last")
    err = capsys.readouterr().err
    assert err.count(FALLBACK) == err.count("\n") == 1
    assert reason in err
    assert not rebuilt.exists() or not list(rebuilt.iterdir())


def test_one_of_several_workers_says_so(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CC", "none")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert build.library() is None
    assert capsys.readouterr().err == ""


def test_a_compiler_error_is_said(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CC", "cc -Dfloat=unknown")
    assert build.library() is None
    assert "error: unknown type name 'unknown'" in capsys.readouterr().err
    assert not list(rebuilt.iterdir())


def test_a_compiler_that_hangs_is_not_waited_for(
    rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    run = build._run

    def impatiently(command: list[str]) -> str:
        monkeypatch.setattr(build, "_TIMEOUT_SECONDS", 60 if "--version" in command else 0.2)
        return run(command)

    monkeypatch.setattr(build, "_run", impatiently)
    assert build.library() is None
    assert capsys.readouterr().err == f"{FALLBACK}{compiler} took more than 0.2 seconds)\n"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damaged", [lambda content: content[: len(content) // 2], flipped], ids=["cut", "flipped"])
def test_a_damaged_library_is_built_again(rebuilt: Path, damaged: Callable[[bytes], bytes], capsys) -> None:
    assert build.library() is not None
    (path,) = rebuilt.iterdir()
    intact = path.read_bytes()
    path.unlink()  # not written in place, because this process has loaded it
    path.write_bytes(damaged(intact))
    build.library.cache_clear()
    assert build.library() is not None
    assert [other.read_bytes() for other in rebuilt.iterdir()] == [intact]
    assert capsys.readouterr().err == ""


def a_file(cache: Path) -> None:
    cache.write_text("a file in place of the folder")


def test_without_a_cache_a_temporary_folder_serves(
    rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    a_file(rebuilt)
    assert build.library() is not None
    x = laid_out(random_tensor((1, 8, 5, 5), 0, torch.float32), "channels_last")
    check_against_reference(lambda x: kernels.local_response_norm(x, 5), "native", [x], "channels_last")
    assert list(scratch.iterdir()) == []
    err = capsys.readouterr().err
    assert err.startswith("note: the compiled CPU operators cannot be kept (")
    assert err.endswith("), so every start compiles them again; set XDG_CACHE_HOME to a writable folder\n")
    assert err.count("\n") == 1


def test_a_user_without_a_home_gets_a_library(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what Python does for an unknown user id
    assert build.library() is not None
    assert "cannot be kept (there is no home folder)" in capsys.readouterr().err


def test_nowhere_to_write_is_said(rebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    a_file(rebuilt)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert build.library() is None
    assert FALLBACK in capsys.readouterr().err


def test_processes_starting_together_load_a_complete_library(tmp_path: Path) -> None:
    program = (
        "from kernels.native import build; build.FLAGS = ('-O0', *build.FLAGS[1:]); assert build.library() is not None"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[1] for process in processes] == [""] * 2
    assert len(list((tmp_path / "fastalex").iterdir())) == 1
