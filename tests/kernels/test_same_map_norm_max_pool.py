"""Normalisation within a map and pooling in one operator, against their composition."""

from __future__ import annotations

import importlib

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    DEVICE,
    NORM_IMPLEMENTATIONS,
    check_against_reference,
    check_close,
    dtype_for,
    dtypes,
    examples,
    gradient_layouts,
    guarded,
    laid_out,
    layouts,
    random_tensor,
    saved_bytes,
    seeds,
    using,
)
from hypothesis import given

import kernels

MODULE = "kernels.same_map_norm_max_pool"
constants = st.tuples(st.sampled_from([0.0, 0.5]), st.sampled_from([0.75, 0.5, 1.0, 0.6]), st.sampled_from([1, 2.0]))


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@examples(16)
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 4, 8, 16]), st.integers(4, 9), st.integers(4, 7)),
    st.integers(1, 7),
    constants,
    st.sampled_from([(3, 2), (2, 2), (2, 3), (1, 1), (3, 1), (4, 2), (1, 3)]),
    st.sampled_from([1, 2, 16]),
    dtypes,
    layouts,
    gradient_layouts,
    seeds,
)
def test_fused_is_the_composition(
    implementation, shape, size, constants, pool, max_rows, dtype, layout, gradient_layout, seed
):
    if implementation == "native in C":
        # What reaches it: channels_last, which takes two channels.
        shape, layout = (shape[0], max(shape[1], 2), *shape[2:]), "channels_last"
    x = laid_out(random_tensor(shape, seed, dtype_for(implementation, dtype)), layout)

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.same_map_norm_max_pool2d(x, size, *constants, kernel_size=pool[0], stride=pool[1])

    # The Triton kernels walk down a map in strips of so many windows.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(importlib.import_module(MODULE), "_MAX_ROWS", max_rows)
        check_against_reference(operator, implementation, [x], gradient_layout, seed)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("pool", "size"), [((3, 2), 5), ((4, 1), 6), ((2, 3), 4)])
def test_strips_meet_and_the_last_one_hangs_over(
    layout: str, pool: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips of two windows, of which there are an odd number. What is written behind a tensor shows after the test."""
    monkeypatch.setattr(importlib.import_module(MODULE), "_MAX_ROWS", 2)
    kernel, stride = pool
    x = laid_out(random_tensor((1, 4, kernel + 4 * stride + stride - 1, 6), 0, torch.float32), layout)

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.same_map_norm_max_pool2d(x, size, 5.0, kernel_size=kernel, stride=stride)

    assert check_against_reference(operator, "triton", [x], layout).shape[2] == 5


@pytest.mark.parametrize("pool", [(3, 2), (2, 2), (4, 1)])
def test_of_equal_maxima_the_first_gets_the_gradient(pool: tuple[int, int]) -> None:
    x = laid_out(torch.ones(1, 4, 7, 7, device=DEVICE), "channels_last")

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.same_map_norm_max_pool2d(x, 1, 0.3, kernel_size=pool[0], stride=pool[1])

    check_against_reference(operator, "triton", [x], "channels_last")


@pytest.mark.parametrize("implementation", ["native", "native in PyTorch", "triton"])
def test_an_empty_batch_gives_an_empty_result(implementation: str) -> None:
    x = torch.ones(0, 4, 5, 5, device=DEVICE, requires_grad=True)
    with using(implementation):
        y = kernels.same_map_norm_max_pool2d(x)
        y.sum().backward()
    assert y.shape == (0, 4, 2, 2)
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_nan_and_infinity_stay_near(layout: str) -> None:
    """The gradient is the definition's wherever that is finite; it is NaN where a maximum within reach is."""
    x = random_tensor((1, 4, 13, 13), 0, torch.float32)
    x[0, 1, 3, 3], x[0, 2, 6, 0], x[0, 3, 12, 12] = float("nan"), float("inf"), float("-inf")
    x = laid_out(x, layout)
    ours, theirs = guarded(x).requires_grad_(), x.double().requires_grad_()
    with kernels.using("triton"):
        y = kernels.same_map_norm_max_pool2d(ours, 3)
    with kernels.using("reference"):
        wanted = kernels.same_map_norm_max_pool2d(theirs, 3)
    check_close(y.detach(), wanted.detach(), torch.float32, "result")
    grad = random_tensor(y.shape, 1, torch.float32)
    y.backward(grad)
    wanted.backward(grad.double())
    finite = theirs.grad.isfinite()
    assert 3 <= (~finite).sum() <= 75
    check_close(ours.grad[finite], theirs.grad[finite], torch.float32, "gradient")
    assert ours.grad[0, 1, 2:5, 2:5].isnan().all()
    assert not ours.grad[0, 0].isnan().any()


@pytest.mark.parametrize("implementation", ["native in PyTorch", "triton"])
def test_gradients(implementation: str) -> None:
    x = random_tensor((1, 2, 4, 5), 0).requires_grad_()
    with using(implementation):
        assert torch.autograd.gradcheck(
            lambda x: kernels.same_map_norm_max_pool2d(x, 4, 0.3, 0.6, 1.5, kernel_size=2, stride=1), x, fast_mode=True
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_neither_the_normalised_map_nor_its_gradient_exists(dtype: torch.dtype) -> None:
    """Beside x, saved are a byte and a number for each pooled element; the number is fp32 in fp16, for its range."""
    x = laid_out(random_tensor((2, 8, 9, 9), 0, dtype), "channels_last").requires_grad_()
    with kernels.using("triton"):
        saved = saved_bytes(lambda: kernels.same_map_norm_max_pool2d(x))
    assert saved == x.nbytes + 2 * 8 * 4 * 4 * (1 + 4)


def test_small_gradients_of_large_factors_pass_in_fp16() -> None:
    """Of x = 1e-3 and k = 1e-6, the factor is above the largest number of fp16, and t is not."""
    x = torch.full((1, 4, 5, 5), 1e-3, dtype=torch.float16, device=DEVICE)

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.same_map_norm_max_pool2d(x, 3, 1e-3, 0.75, 1e-6) * 1e-4

    check_against_reference(operator, "triton", [x], "nchw")


def test_registered_operators_keep_pytorchs_rules() -> None:
    x = laid_out(random_tensor((1, 4, 5, 4), 0, torch.float32), "channels_last")
    options = (3, 0.3, 0.75, 2.0, 2, 2)
    forward, backward = (getattr(torch.ops.fastalex, f"same_map_pool_{way}") for way in ("forward", "backward"))
    for for_backward in (True, False):
        torch.library.opcheck(forward, (x, *options, for_backward))
    grad, argmax, factor = forward(x, *options, True)
    torch.library.opcheck(backward, (grad, argmax, factor, x, *options))


@pytest.mark.parametrize("needed", ["x", "nothing", "nothing, under no_grad"])
def test_only_backward_has_argmax_and_factor_written(needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = random_tensor((1, 4, 5, 5), 0, torch.float32).requires_grad_(needed != "nothing")
    module, written = importlib.import_module(MODULE), []
    forward = module._forward

    def recorded(*args):
        results = forward(*args)
        written.extend(result.numel() for result in results[1:])
        return results

    monkeypatch.setattr(module, "_forward", recorded)
    with kernels.using("triton"), torch.set_grad_enabled("no_grad" not in needed):
        kernels.same_map_norm_max_pool2d(x)
    assert written == ([0, 0] if needed.startswith("nothing") else [4 * 2 * 2] * 2)


@pytest.mark.parametrize(
    ("window", "stride", "size", "dtype"),
    [
        (4, 3, 7, torch.float32),
        (5, 1, 5, torch.float16),
        (2, 4, 5, torch.float16),
        (3, 2, 8, torch.float16),
        (3, 2, 20, torch.float32),
    ],
)
def test_large_windows_in_triton(
    window: int, stride: int, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the fused kernels' limits, one operator computes after the other."""
    side = window + 5
    x = laid_out(random_tensor((1, 8, side, side), 0, dtype), "channels_last")
    module, fused = importlib.import_module(MODULE), []
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda *args: fused.append(args) or forward(*args))

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.same_map_norm_max_pool2d(x, size, 0.3, kernel_size=window, stride=stride)

    check_against_reference(operator, "triton", [x], "nchw")
    assert len(fused) == (window <= 4 and stride <= 3 and size <= 7)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": torch.ones(1, 4, 5, 5).int()}, TypeError, "x must be float32, float16, bfloat16 or float64"),
        ({"x": torch.ones(4, 5, 5)}, ValueError, r"x must have 4 dimensions \(N x C x H x W\), got shape \(4, 5, 5\)"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"alpha": -0.5}, ValueError, "alpha must be at least 0, got -0.5"),
        ({"beta": 0}, ValueError, "beta must be above 0, got 0"),
        ({"k": 0}, ValueError, "k must be above 0, got 0"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"kernel_size": 6}, ValueError, "x's height must be at least 6"),
        ({"kernel_size": (3, 3)}, TypeError, "kernel_size must be an int, got tuple"),
    ],
)
def test_bad_options_are_named(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.same_map_norm_max_pool2d(**({"x": torch.ones(1, 4, 5, 5)} | options))
