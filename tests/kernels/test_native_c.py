"""native.c at sizes that cross its tiles, bands and threads, and what happens where it cannot be built."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from comparing import check_against_reference, laid_out, random_tensor, using

import kernels
from kernels import native_c

NORMS = {
    "channels": lambda x: kernels.local_response_norm(x, 5, 0.3, groups=2),
    "more channels than there are": lambda x: kernels.local_response_norm(x, 30, 0.3, 0.6),
    "map": lambda x: kernels.same_map_norm(x, 5, 0.3),
    "even window of a map": lambda x: kernels.same_map_norm(x, 4, 0.3, 0.6),
    "window larger than the map": lambda x: kernels.same_map_norm(x, 45, 0.3),
    "pooled": lambda x: kernels.lrn_max_pool2d(x, 5, 0.3, groups=2, relu="before"),
    "pooled by windows apart": lambda x: kernels.lrn_max_pool2d(x, 5, 0.3, kernel_size=2, stride=5, relu="after"),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("images", "count"), [(1, 1), (1, 3), (7, 2)])
def test_large_maps(name: str, layout: str, images: int, count: int, threads: None) -> None:
    """41 x 37 pixels are many bands of rows and tiles of pixels, the last ones narrower."""
    torch.set_num_threads(count)
    x = laid_out(random_tensor((images, 6, 41, 37), 0, torch.float32), layout)
    check_against_reference(NORMS[name], "native", [x], layout)


@pytest.mark.parametrize("name", NORMS)
def test_results_do_not_depend_on_the_number_of_threads(name: str, threads: None) -> None:
    x = laid_out(random_tensor((3, 6, 41, 37), 0, torch.float32), "channels_last").requires_grad_()
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        with using("native"):
            y = NORMS[name](x)
            found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_a_bias_gradient_does_not_depend_on_the_number_of_threads(threads: None) -> None:
    x = laid_out(random_tensor((5, 6, 41, 37), 0, torch.float32), "channels_last")
    bias = random_tensor((12,), 1, torch.float32)[::2].requires_grad_()
    found = []
    for count in (1, 4):
        torch.set_num_threads(count)
        with using("native"):
            y = kernels.lrn_max_pool2d(x, bias=bias, relu="before")
            found += torch.autograd.grad(y.square().sum(), bias)
    assert torch.equal(*found)
    check_against_reference(
        lambda x, bias: kernels.lrn_max_pool2d(x, bias=bias, relu="before"), "native", [x, bias], "channels_last"
    )


@pytest.mark.parametrize(("count", "images"), [(1, 4), (2, 1), (2, 5), (3, 7), (4, 3)])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_images_are_shared_out_over_threads(count: int, images: int, mode: type, threads: None) -> None:
    torch.set_num_threads(count)
    leaf = torch.ones(64, 64, requires_grad=True)
    with mode():
        out = torch.zeros(images, 64, 64)

        def run(share: slice) -> tuple[slice, int, bool, bool]:
            for image in range(share.start, share.stop):
                torch.mm(leaf, leaf, out=out[image])  # refused where gradients are recorded
            return share, threading.get_ident(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        found = native_c.share_out(run, images)
    shares, idents, records, infers = zip(*found, strict=True)
    assert [image for share in shares for image in range(share.start, share.stop)] == list(range(images))
    assert max(share.stop - share.start for share in shares) == -(-images // count)
    assert len(set(idents)) == len(shares) == min(count, images)
    assert not any(records)
    assert set(infers) == {mode is torch.inference_mode}
    assert torch.equal(out, torch.full_like(out, 64.0))
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("failing", [0, 1])
def test_what_a_threads_share_raises_is_raised(failing: int, threads: None) -> None:
    torch.set_num_threads(2)
    done = []

    def run(share: slice) -> None:
        if share.start == failing:
            raise KeyError(f"image {failing}")
        done.append(share.start)

    with pytest.raises(KeyError, match=f"image {failing}"):
        native_c.share_out(run, 2)
    assert done == [1 - failing]


def test_several_python_threads_compute_at_once() -> None:
    inputs = [laid_out(random_tensor((2, 6, 41, 37), seed, torch.float32), "channels_last") for seed in range(8)]
    with using("native"):
        wanted = [kernels.lrn_max_pool2d(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(kernels.lrn_max_pool2d, inputs))
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of an empty cache, into which `library` builds anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_c.library.cache_clear()
    yield tmp_path / "fastalex"
    native_c.library.cache_clear()


def test_it_is_built_once(rebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert native_c.library() is not None
    (built,) = rebuilt.iterdir()
    before = built.stat().st_mtime_ns
    native_c.library.cache_clear()
    assert native_c.library() is not None
    assert [path.stat().st_mtime_ns for path in rebuilt.iterdir()] == [before]


def test_the_compiler_has_nothing_to_say() -> None:
    command = ["cc", *native_c._FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(native_c._SOURCE)]
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
    with caplog.at_level(logging.INFO, "kernels.native_c"):
        assert native_c.library() is None
        check_against_reference(kernels.local_response_norm, "native in PyTorch", [x], "channels_last")
    assert caplog.text.count("normalisation on the CPU is computed by PyTorch, which is slower") == 1
    assert reason in caplog.text
    assert not rebuilt.exists() or not list(rebuilt.iterdir())


def test_a_compiler_that_refuses_the_file_is_quoted(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "cc -Dfloat=unknown")
    with caplog.at_level(logging.INFO, "kernels.native_c"):
        assert native_c.library() is None
    assert "error: unknown type name 'unknown'" in caplog.text
    assert not list(rebuilt.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(
    rebuilt: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rebuilt.write_text("a file where the folder would be")
    with caplog.at_level(logging.INFO, "kernels.native_c"):
        assert native_c.library() is None
    assert "File exists" in caplog.text


def test_processes_that_start_at_once_find_a_whole_library(tmp_path: Path) -> None:
    program = "from kernels import native_c; assert native_c.library() is not None"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=120)[1] for process in started] == [""] * 3
    assert len(list((tmp_path / "fastalex").iterdir())) == 1
