"""Bias, ReLU, normalisation and pooling in one operator, against their composition."""

from __future__ import annotations

import importlib

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    DEVICE,
    NATIVE,
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


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@examples(16)
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 4, 8]), st.integers(4, 8), st.integers(4, 6)),
    st.sampled_from([1, 2]),
    st.integers(1, 6),
    st.sampled_from([(3, 2), (2, 2), (2, 3), (1, 1), (3, 1), (4, 2)]),
    st.sampled_from([None, "before", "after"]),
    st.sampled_from([None, "nchw", "sliced"]),
    dtypes,
    dtypes,
    layouts,
    gradient_layouts,
    seeds,
)
def test_fused_is_the_composition(
    implementation, shape, groups, size, pool, relu, bias, dtype, bias_dtype, layout, gradient_layout, seed
):
    batch, channels, height, width = shape
    dtype, bias_dtype = dtype_for(implementation, dtype), dtype_for(implementation, bias_dtype)
    if implementation == "native in C":
        # What reaches its fused functions: channels_last, which takes two channels.
        layout, channels = "channels_last", max(channels, 2)
    x = laid_out(random_tensor((batch, channels * groups, height, width), seed, dtype), layout)
    tensors = [x, laid_out(random_tensor((channels * groups,), seed + 2, bias_dtype), bias)] if bias else [x]

    def operator(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return kernels.lrn_max_pool2d(
            x, size, 0.3, groups=groups, kernel_size=pool[0], stride=pool[1], bias=bias, relu=relu
        )

    check_against_reference(operator, implementation, tensors, gradient_layout, seed)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("height", "stride"), [(9, 2), (11, 2), (6, 1), (7, 1)])
def test_the_last_strip_of_windows_may_hang_over(layout: str, height: int, stride: int) -> None:
    """Of 4 or 5 windows, two strips of 3. What they write behind the result would be seen after the test."""
    x = laid_out(random_tensor((1, 8, height, 5), 0, torch.float32), layout)

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.lrn_max_pool2d(x, alpha=0.3, stride=stride, relu="after")

    y = check_against_reference(operator, "triton", [x], layout)
    assert y.shape[2] in (4, 5)


@pytest.mark.parametrize("implementation", ["native", "native in PyTorch", "triton"])
def test_an_empty_batch_gives_an_empty_result(implementation: str) -> None:
    x = torch.ones(0, 4, 5, 5, device=DEVICE, requires_grad=True)
    with using(implementation):
        y = kernels.lrn_max_pool2d(x, relu="before")
        y.sum().backward()
    assert y.shape == (0, 4, 2, 2)
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("relu", [None, "before", "after"])
def test_nan_and_infinity(implementation: str, layout: str, relu: str | None) -> None:
    x = random_tensor((1, 8, 5, 5), 0, torch.float32)
    x[0, 1, 2, 2] = float("nan")
    x[0, 6, 0, 0] = float("inf")
    x[0, 4, 4, 4] = float("-inf")
    x = laid_out(x, layout)
    bias = random_tensor((8,), 1, torch.float32)
    ours, theirs = guarded(x).requires_grad_(), x.double().requires_grad_()
    with using(implementation):
        y = kernels.lrn_max_pool2d(ours, bias=bias, relu=relu)
    with kernels.using("reference"):
        wanted = kernels.lrn_max_pool2d(theirs, bias=bias, relu=relu)
    check_close(y, wanted, torch.float32, "result")
    # The gradient of one window, where x and its channels are finite.
    with using(implementation):
        y[0, 0, 0, 1].backward()
    wanted[0, 0, 0, 1].backward()
    finite = theirs.grad.isfinite()
    check_close(ours.grad[finite], theirs.grad[finite], torch.float32, "gradient")


@pytest.mark.parametrize("implementation", ["native in PyTorch", "triton"])
@pytest.mark.parametrize("relu", [None, "before", "after"])
def test_gradients(implementation: str, relu: str | None) -> None:
    x, bias = random_tensor((1, 3, 3, 3), 0).requires_grad_(), random_tensor((3,), 1).requires_grad_()
    with using(implementation):
        assert torch.autograd.gradcheck(
            lambda x, bias: kernels.lrn_max_pool2d(x, 3, 0.3, kernel_size=2, stride=1, bias=bias, relu=relu),
            (x, bias),
            fast_mode=True,
        )


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
def test_little_is_saved_beside_the_raw_input(implementation: str) -> None:
    x = laid_out(random_tensor((2, 16, 9, 9), 0, torch.float32), "channels_last").requires_grad_()
    bias = random_tensor((16,), 1, torch.float32).requires_grad_()
    with using(implementation):
        saved = saved_bytes(lambda: kernels.lrn_max_pool2d(x, bias=bias, relu="before"))
    assert saved == x.nbytes + bias.nbytes + 2 * 16 * 4 * 4  # and the argmax, a byte for each pooled element
    assert saved <= 1.3 * x.nbytes

    def pytorchs() -> torch.Tensor:
        y = torch.nn.functional.local_response_norm((x + bias.view(-1, 1, 1)).relu(), 5)
        return torch.nn.functional.max_pool2d(y, 3, 2)

    assert saved_bytes(pytorchs) > 4 * x.nbytes


@pytest.mark.parametrize("name", ["lrn_pool", "native_lrn_pool"])
def test_registered_operators_keep_pytorchs_rules(name: str) -> None:
    x = laid_out(random_tensor((1, 4, 3, 4), 0, torch.float32), "channels_last")
    bias = random_tensor((4,), 1, torch.float32)
    options = (bias, 3, 0.3, 0.75, 2.0, 2, 2, 2, "before")
    forward, backward = (getattr(torch.ops.fastalex, f"{name}_{which}") for which in ("forward", "backward"))
    # Whether the argmax is needed, and the bias gradient. The native operators compute both always.
    needs = ((True,), (False,)) if name == "lrn_pool" else ((),)
    grad, argmax = forward(x, *options, *needs[0])
    for need in needs:
        torch.library.opcheck(forward, (x, *options, *need))
        torch.library.opcheck(backward, (grad, argmax, x, *options, *need))


@pytest.mark.parametrize("needed", ["x", "bias", "nothing", "nothing, under no_grad"])
def test_the_argmax_is_written_only_if_a_gradient_is_needed(needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, bias = random_tensor((1, 4, 5, 5), 0, torch.float32), random_tensor((4,), 1, torch.float32)
    x.requires_grad_(needed == "x" or "no_grad" in needed)
    bias.requires_grad_(needed == "bias" or "no_grad" in needed)
    module, written = importlib.import_module("kernels.lrn_max_pool"), []
    forward = module._forward

    def recorded(*args):
        written.append(forward(*args)[1].numel())
        return forward(*args)

    monkeypatch.setattr(module, "_forward", recorded)
    with kernels.using("triton"), torch.set_grad_enabled("no_grad" not in needed):
        kernels.lrn_max_pool2d(x, bias=bias, relu="before")
    assert written == [0 if needed.startswith("nothing") else 4 * 2 * 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_of_higher_precision_is_rounded_to_that_of_x(dtype: torch.dtype) -> None:
    x = random_tensor((1, 4, 5, 5), 0, torch.float32)
    bias = random_tensor((4,), 1, torch.float64)
    with kernels.using("triton"):
        y = kernels.lrn_max_pool2d(x.to(dtype), bias=bias, relu="before")
        rounded = kernels.lrn_max_pool2d(x.to(dtype), bias=bias.to(dtype), relu="before")
    assert torch.equal(y, rounded)


@pytest.mark.parametrize("implementation", NATIVE)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("window", "bytes_each"), [(15, 1), (16, 4)])
def test_the_argmax_of_a_large_window_takes_more_than_a_byte(
    implementation: str, layout: str, window: int, bytes_each: int
) -> None:
    """The argmax counts positions in the window; the last corner has the largest."""
    x = laid_out(random_tensor((2, 4, 19, 23), 0, torch.float32), layout)
    x[0, :, window - 1 :, window - 1 :] += 100.0  # the first windows have their maximum in the last corner
    x[1, :, :, 4:] -= 100.0  # and results that are not positive get no gradient

    def operator(x: torch.Tensor) -> torch.Tensor:
        return kernels.lrn_max_pool2d(x, kernel_size=window, stride=3, relu="after")

    y = check_against_reference(operator, implementation, [x], layout)
    assert 0 < y.count_nonzero() < y.numel()
    with using(implementation):
        saved = saved_bytes(lambda: operator(x.requires_grad_()))
    assert saved == x.nbytes + bytes_each * y.numel()


@pytest.mark.parametrize(
    ("window", "stride", "size", "dtype"),
    [
        (4, 1, 5, torch.float32),
        (5, 1, 5, torch.float16),
        (16, 3, 5, torch.float32),
        (3, 2, 7, torch.float16),
        (3, 2, 8, torch.float16),
        (3, 2, 20, torch.float32),
    ],
)
@pytest.mark.parametrize("relu", [None, "before", "after"])
def test_large_windows_in_triton(
    window: int, stride: int, size: int, dtype: torch.dtype, relu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the fused kernels' limits, one operator computes after the other."""
    side = window + 3
    x, bias = random_tensor((1, 8, side, side), 0, dtype), random_tensor((8,), 1, torch.float32)
    module, fused = importlib.import_module("kernels.lrn_max_pool"), []
    forward = module._forward
    monkeypatch.setattr(module, "_forward", lambda *args: fused.append(args) or forward(*args))

    def operator(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return kernels.lrn_max_pool2d(x, size, 0.3, kernel_size=window, stride=stride, bias=bias, relu=relu)

    check_against_reference(operator, "triton", [laid_out(x, "channels_last"), bias], "nchw")
    assert len(fused) == (window <= 4 and size <= 7)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"relu": "inside"}, ValueError, 'relu must be None, "before" or "after", got \'inside\''),
        ({"bias": torch.ones(3)}, ValueError, r"bias must have 4 values \(one per channel of x\), got 3"),
        ({"bias": torch.ones(4, 1)}, ValueError, r"bias must have 1 dimension \("),
        ({"bias": torch.ones(4, dtype=torch.int64)}, TypeError, "bias must be float32, float16, bfloat16 or float64"),
        ({"bias": torch.ones(4, device="meta")}, ValueError, "bias must be on the device of x, cpu, got meta"),
        ({"x": torch.ones(1, 4, 5, 5).int()}, TypeError, "x must be float32, float16, bfloat16 or float64"),
        ({"x": torch.ones(4, 5, 5)}, ValueError, r"x must have 4 dimensions \(N x C x H x W\), got shape \(4, 5, 5\)"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"alpha": -0.5}, ValueError, "alpha must be at least 0, got -0.5"),
        ({"beta": 0}, ValueError, "beta must be above 0, got 0"),
        ({"k": 0}, ValueError, "k must be above 0, got 0"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"groups": 3}, ValueError, "groups must divide the 4 channels of x, got 3"),
        ({"groups": "2"}, TypeError, "groups must be an int, got str: '2'"),
        ({"kernel_size": 6}, ValueError, "x's height must be at least 6"),
    ],
)
def test_bad_options_are_named(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.lrn_max_pool2d(**({"x": torch.ones(1, 4, 5, 5)} | options))
