"""Normalisation within a map, against the definition. Bad arguments are tested in test_lrn.py."""

from __future__ import annotations

import importlib

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import (
    NORM_IMPLEMENTATIONS,
    check_against_reference,
    check_close,
    dtype_for,
    dtypes,
    examples,
    gradient_layouts,
    laid_out,
    layouts,
    random_tensor,
    saved_bytes,
    seeds,
    using,
)
from hypothesis import given

import kernels

shapes = st.tuples(st.integers(0, 2), st.sampled_from([1, 3, 4, 8, 10, 16]), st.integers(1, 6), st.integers(1, 6))
constants = st.tuples(
    st.sampled_from([0.0, 1e-4, 0.5]), st.sampled_from([0.75, 0.5, 1.0, 0.6]), st.sampled_from([1, 2.0])
)

# native.c normalises maps in channels_last only.
COMPUTED_LAYOUTS = [
    (implementation, layout)
    for implementation in NORM_IMPLEMENTATIONS
    for layout in ("nchw", "channels_last")
    if (implementation, layout) != ("native in C", "nchw")
]


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@examples(12)
@given(shapes, st.integers(1, 7), constants, st.sampled_from([2, 32]), dtypes, layouts, gradient_layouts, seeds)
def test_same_map_norm_is_the_definition(
    implementation, shape, size, constants, max_rows, dtype, layout, gradient_layout, seed
):
    if implementation == "native in C":
        # What reaches it: channels_last, which takes two channels and two pixels.
        batch, channels, height, width = shape
        shape, layout = (max(batch, 1), max(channels, 2), height, max(width, 2)), "channels_last"
    x = laid_out(random_tensor(shape, seed, dtype_for(implementation, dtype)), layout)
    # The Triton kernels walk down a map in strips of so many rows.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(importlib.import_module("kernels.same_map_norm"), "_MAX_ROWS", max_rows)
        check_against_reference(
            lambda x: kernels.same_map_norm(x, size, *constants), implementation, [x], gradient_layout, seed
        )


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [16, 17, 10**9])
def test_windows_may_be_large(implementation: str, size: int) -> None:
    """Up to a size that compiles quickly, Triton's kernels sum the window; at some size it covers the whole map."""
    x = laid_out(random_tensor((1, 2, 11, 4), 0, torch.float32), "channels_last")
    check_against_reference(
        lambda x: kernels.same_map_norm(x, size, 0.3 * size**2), implementation, [x], "channels_last", 1
    )


@pytest.mark.parametrize(("size", "function"), [(16, "_SameMapNorm"), (17, "_WindowNorm")])
def test_triton_unrolls_small_windows_only(size: int, function: str) -> None:
    with kernels.using("triton"):
        y = kernels.same_map_norm(random_tensor((1, 1, 2, 20), 0).requires_grad_(), size)
    assert y.grad_fn.name() == f"{function}Backward"


@pytest.mark.parametrize("size", [5, 10**6 + 1])
def test_the_same_map_definition_divides_the_sum_over_the_window(size: int) -> None:
    x = random_tensor((2, 3, 7, 6), 0)
    with kernels.using("reference"):
        y = kernels.same_map_norm(x, size, 0.3 * size**2, 0.75, 1.5)
    squares = (x * x).sum((2, 3), keepdim=True) if size > 5 else 25 * F.avg_pool2d(x * x, 5, 1, 2)
    torch.testing.assert_close(y, x / (1.5 + 0.3 * squares) ** 0.75)


@pytest.mark.parametrize(("implementation", "layout"), COMPUTED_LAYOUTS)
def test_nan_and_infinity_stay_in_their_windows(implementation: str, layout: str) -> None:
    x = random_tensor((1, 4, 7, 7), 0, torch.float32)
    x[0, 1, 3, 3], x[0, 2, 6, 0] = float("nan"), float("inf")
    x = laid_out(x, layout)
    with using(implementation):
        y = kernels.same_map_norm(x, 3)
    with kernels.using("reference"):
        wanted = kernels.same_map_norm(x.double(), 3)
    assert wanted.isnan().sum() == 9 + 1
    check_close(y, wanted, torch.float32, "result")


@pytest.mark.parametrize("implementation", ["native in PyTorch", "triton"])
def test_gradients(implementation: str) -> None:
    x = random_tensor((1, 2, 3, 4), 0).requires_grad_()
    with using(implementation):
        assert torch.autograd.gradcheck(lambda x: kernels.same_map_norm(x, 4, 0.3, 0.6, 1.5), x, fast_mode=True)


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
def test_only_the_input_is_saved(implementation: str) -> None:
    x = laid_out(random_tensor((2, 8, 5, 5), 0, torch.float32), "channels_last").requires_grad_()
    with using(implementation):
        assert saved_bytes(lambda: kernels.same_map_norm(x)) == x.nbytes


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_registered_operators_keep_pytorchs_rules(layout: str) -> None:
    x = laid_out(random_tensor((2, 8, 3, 2), 0, torch.float32), layout)
    options = (5, 0.3, 0.75, 2.0)
    torch.library.opcheck(torch.ops.fastalex.same_map_forward, (x, *options))
    torch.library.opcheck(torch.ops.fastalex.same_map_backward, (x, x, *options))
    native = ("map", *options, 1)
    torch.library.opcheck(torch.ops.fastalex.native_norm_forward, (x, *native))
    torch.library.opcheck(torch.ops.fastalex.native_norm_backward, (x, x, *native))
