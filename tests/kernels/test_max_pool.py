"""Max-pooling against PyTorch, bit for bit: the only arithmetic is sums of a few gradients."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import (
    COMPUTED,
    DEVICE,
    IMPLEMENTATIONS,
    dtype_for,
    dtypes,
    examples,
    gradient_layouts,
    laid_out,
    layouts,
    random_tensor,
    saved_bytes,
    seeds,
)
from hypothesis import assume, given

import kernels
from kernels.arguments import pooled_length


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@examples(14)
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 4, 8, 16]), st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
    dtypes,
    layouts,
    gradient_layouts,
    seeds,
)
def test_pooling_is_pytorchs(
    implementation, shape, kernel_size, stride, padding, ceil_mode, dtype, layout, gradient_layout, seed
):
    assume(padding <= kernel_size // 2)
    assume(all(pooled_length(side, kernel_size, stride, padding, ceil_mode) > 0 for side in shape[2:]))
    dtype = dtype_for(implementation, dtype)
    # Integers, so that maxima are tied and sums of gradients are exact.
    x = laid_out(random_tensor(shape, seed).round().to(dtype), layout)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with kernels.using(implementation):
        y = kernels.max_pool2d(ours, kernel_size, stride, padding, ceil_mode=ceil_mode)
    wanted = F.max_pool2d(theirs, kernel_size, stride, padding, ceil_mode=ceil_mode)
    assert torch.equal(y, wanted)
    grad = laid_out(random_tensor(y.shape, seed + 1).round().to(dtype), gradient_layout)
    y.backward(grad)
    wanted.backward(grad)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"),
    [(6, 1, 3), (6, 2, 1), (7, 3, 2), (6, 4, 3), (3, 5, 1), (2, 7, 0), (5, 1, 2)],
)
@pytest.mark.parametrize(("layout", "gradient_layout"), [("nchw", "channels_last"), ("channels_last", "nchw")])
def test_large_windows_and_strides(
    kernel_size: int, stride: int, padding: int, layout: str, gradient_layout: str
) -> None:
    """Loops over the window are not unrolled, or a block is one pixel."""
    x = laid_out(random_tensor((2, 4, 10, 13), 0).round().float(), layout)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with kernels.using("triton"):
        y = kernels.max_pool2d(ours, kernel_size, stride, padding, ceil_mode=True)
    wanted = F.max_pool2d(theirs, kernel_size, stride, padding, ceil_mode=True)
    assert torch.equal(y, wanted)
    grad = laid_out(random_tensor(y.shape, 1).round().float(), gradient_layout)
    y.backward(grad)
    wanted.backward(grad)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_an_empty_batch_gives_an_empty_result(implementation: str, layout: str) -> None:
    x = laid_out(torch.ones(0, 4, 5, 5, device=DEVICE), layout).requires_grad_()
    with kernels.using(implementation):
        y = kernels.max_pool2d(x, 3, 2)
    y.sum().backward()
    assert y.shape == (0, 4, 2, 2)
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(("implementation", "dtype"), COMPUTED)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_nan_wins_and_infinities_are_numbers(implementation: str, dtype: torch.dtype, layout: str) -> None:
    x = random_tensor((1, 4, 7, 7), 0, dtype)
    x[0, 0, 1, 1] = x[0, 0, 2, 2] = x[0, 1, 6, 6] = float("nan")
    x[0, 2, 3, 3] = float("inf")
    x[0, 3] = float("-inf")
    x = laid_out(x, layout)
    ours = x.clone().requires_grad_()
    # On GPUs, PyTorch's channels_last kernel gives the gradient of a window of -inf to the first pixel of the map.
    theirs = laid_out(x.clone(), layout if implementation == "native" else "nchw").requires_grad_()
    with kernels.using(implementation):
        y = kernels.max_pool2d(ours, 3, 2, 1)
    wanted = F.max_pool2d(theirs, 3, 2, 1)
    torch.testing.assert_close(y, wanted, rtol=0, atol=0, equal_nan=True)
    grad = random_tensor(y.shape, 1).round().to(dtype)
    y.backward(grad)
    wanted.backward(grad)
    assert torch.equal(ours.grad, theirs.grad)


def test_gradients() -> None:
    with kernels.using("triton"):
        assert torch.autograd.gradcheck(
            lambda x: kernels.max_pool2d(x, 2, 1), random_tensor((1, 1, 3, 3), 0).requires_grad_()
        )


def test_one_byte_per_output_is_saved() -> None:
    x = random_tensor((2, 8, 9, 9), 0, torch.float32).requires_grad_()
    with kernels.using("triton"):
        assert saved_bytes(lambda: kernels.max_pool2d(x, 3, 2)) == 2 * 8 * 4 * 4


def test_windows_whose_argmax_takes_more_than_a_byte() -> None:
    """Of 17 x 17 positions: x is saved instead, and the maxima are found again in backward."""
    x = random_tensor((1, 1, 25, 25), 0)
    x[..., 16, 16] = 100.0  # the last position of the first window
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    results = []
    with kernels.using("triton"):
        saved = saved_bytes(lambda: results.append(kernels.max_pool2d(ours, 17, 8)) or results[0])
        results[0].backward(torch.ones_like(results[0]))
    assert saved == x.nbytes
    F.max_pool2d(theirs, 17, 8).sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_registered_operators_keep_pytorchs_rules(layout: str) -> None:
    x = laid_out(random_tensor((2, 8, 5, 5), 0, torch.float32), layout)
    torch.library.opcheck(torch.ops.fastalex.max_pool_forward, (x, 3, 2, 1, True))
    y, argmax = torch.ops.fastalex.max_pool_forward(x, 3, 2, 0, False)
    torch.library.opcheck(torch.ops.fastalex.max_pool_backward, (y, argmax, 3, 2, 0, 5, 5))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, r"kernel_size must be an int or a pair of ints, got \(3, 3, 3\)"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 2.0}, TypeError, "stride must be an int or a pair of ints, got float: 2.0"),
        ({"padding": (1, 1.0)}, TypeError, r"padding must be an int or a pair of ints, got float: 1\.0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": 2}, ValueError, "padding must be at most half of kernel_size 3, got 2"),
        ({"kernel_size": 6}, ValueError, "x's height must be at least 6 for kernel_size 6 and padding 0, got 5"),
    ],
)
def test_bad_options_are_named(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.max_pool2d(torch.ones(1, 2, 5, 5, device=DEVICE), **({"kernel_size": 3} | options))


@pytest.mark.parametrize("kernel_size", range(1, 6))
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_side_may_be_as_short_as_pytorchs(kernel_size: int, ceil_mode: bool) -> None:
    for stride, padding in itertools.product(range(1, 5), range(kernel_size // 2 + 1)):
        lengths: list[int | None] = []
        for height in range(7):
            try:
                y = F.max_pool2d(torch.ones(1, 1, height, 6), kernel_size, stride, padding, ceil_mode=ceil_mode)
                lengths.append(y.shape[2])
            except RuntimeError:
                lengths.append(None)
        least = lengths.count(None)
        for height, length in enumerate(lengths):
            images = torch.ones(1, 1, height, 6, device=DEVICE)
            for x, name in ((images, "height"), (images.mT, "width")):
                if length is None:
                    with pytest.raises(ValueError, match=f"x's {name} must be at least {least} for .* got {height}"):
                        kernels.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)
                else:
                    y = kernels.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)
                    assert y.shape[2 if name == "height" else 3] == length


@pytest.mark.usefixtures("no_copies")
def test_a_result_too_large_for_32_bits_is_refused() -> None:
    x = torch.ones(1, 1, 1, 1, device=DEVICE).expand(1, 1, 2**16 - 1, 2**15 - 1)
    message = "the result must have at most 2147418112 elements per image, got 2147483648"
    with kernels.using("triton"), pytest.raises(ValueError, match=message):
        kernels.max_pool2d(x, 2, 1, 1)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x must have at least one channel, got shape \(1, 0, 5, 5\)"):
        kernels.max_pool2d(torch.ones(1, 0, 5, 5, device=DEVICE), 3, 2)
