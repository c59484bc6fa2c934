"""Local response normalisation against the definition."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import (
    DEVICE,
    NORM_COMPUTED,
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

shapes = st.tuples(st.integers(0, 2), st.integers(1, 10) | st.just(16), st.integers(1, 4), st.integers(1, 4))
constants = st.tuples(
    st.sampled_from([0.0, 1e-4, 0.5]), st.sampled_from([0.75, 0.5, 1.0, 0.6]), st.sampled_from([1, 2.0])
)


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@examples(14)
@given(shapes, st.sampled_from([1, 2, 3]), st.integers(1, 12), constants, dtypes, layouts, gradient_layouts, seeds)
def test_lrn_is_the_definition(implementation, shape, groups, size, constants, dtype, layout, gradient_layout, seed):
    batch, channels, height, width = shape
    batch = batch or int(implementation == "native in C")  # which is not called for an empty batch
    alpha, beta, k = constants
    dtype = dtype_for(implementation, dtype)
    x = laid_out(random_tensor((batch, channels * groups, height, width), seed, dtype), layout)
    check_against_reference(
        lambda x: kernels.local_response_norm(x, size, alpha, beta, k, groups=groups),
        implementation,
        [x],
        gradient_layout,
        seed,
    )


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@pytest.mark.parametrize("relu", [False, True])
@examples(6)
@given(
    st.tuples(st.integers(1, 2), st.sampled_from([2, 3, 4, 8]), st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([1, 2]),
    st.integers(1, 8) | st.just(17),
    st.sampled_from([None, "nchw", "sliced"]),
    dtypes,
    dtypes,
    layouts,
    gradient_layouts,
    seeds,
)
def test_a_bias_and_a_relu_may_come_before(
    implementation, relu, shape, groups, size, bias, dtype, bias_dtype, layout, gradient_layout, seed
):
    batch, channels, height, width = shape
    channels = 10 if size > 16 else channels  # so that the window is not clamped
    dtype, bias_dtype = dtype_for(implementation, dtype), dtype_for(implementation, bias_dtype)
    x = laid_out(random_tensor((batch, channels * groups, height, width), seed, dtype), layout)
    tensors = [x, laid_out(random_tensor((channels * groups,), seed + 2, bias_dtype), bias)] if bias else [x]

    def operator(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return kernels.local_response_norm(x, size, 0.3, groups=groups, bias=bias, relu=relu)

    check_against_reference(operator, implementation, tensors, gradient_layout, seed)


def test_a_bias_reaches_tensors_of_other_dimensions() -> None:
    x, bias = random_tensor((2, 8, 5), 0), random_tensor((8,), 1)
    with kernels.using("triton"):
        y = kernels.local_response_norm(x, 5, bias=bias, relu=True)
    torch.testing.assert_close(y, F.local_response_norm((x + bias[:, None]).relu(), 5))


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [15, 16, 17, 24, 10**9])
def test_windows_may_be_large(implementation: str, size: int) -> None:
    """Up to a size that compiles quickly, Triton's kernels sum the window; from 2 C - 1 on it covers all channels."""
    x = laid_out(random_tensor((2, 24, 2, 3), 0, torch.float32), "channels_last")
    check_against_reference(
        lambda x: kernels.local_response_norm(x, size, 0.3 * size, groups=2), implementation, [x], "nchw", 1
    )


@pytest.mark.parametrize(("size", "function"), [(16, "_LocalResponseNorm"), (17, "_WindowNorm")])
def test_triton_unrolls_small_windows_only(size: int, function: str) -> None:
    with kernels.using("triton"):
        y = kernels.local_response_norm(random_tensor((1, 40, 1, 2), 0).requires_grad_(), size)
    assert y.grad_fn.name() == f"{function}Backward"


@pytest.mark.parametrize("size", [1, 2, 5, 6, 20, 64])
def test_the_definition_is_pytorchs(size: int) -> None:
    x = random_tensor((2, 9, 3, 4), 0)
    with kernels.using("reference"):
        y = kernels.local_response_norm(x, size, 0.3 * size, 0.6, 1.5)
    torch.testing.assert_close(y, F.local_response_norm(x, size, 0.3 * size, 0.6, 1.5))


@pytest.mark.parametrize(("implementation", "dtype"), NORM_COMPUTED)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_nan_and_infinity_stay_in_their_windows(implementation: str, dtype: torch.dtype, layout: str) -> None:
    x = random_tensor((1, 16, 2, 2), 0, dtype)
    x[0, 4, 0, 0] = float("nan")
    x[0, 9, 0, 1] = float("inf")
    x[0, 3, 1, 1] = float("-inf")
    x = laid_out(x, layout)
    with using(implementation):
        y = kernels.local_response_norm(x, 5)
    with kernels.using("reference"):
        wanted = kernels.local_response_norm(x.double(), 5)
    assert wanted.isnan().sum() == 5 + 1 + 1
    check_close(y, wanted, dtype, "result")


@pytest.mark.parametrize("implementation", ["native in PyTorch", "triton"])
@pytest.mark.parametrize(("size", "groups", "beta"), [(5, 1, 0.75), (4, 2, 0.6)])
def test_gradients(implementation: str, size: int, groups: int, beta: float) -> None:
    x = random_tensor((1, 6, 1, 2), 0).requires_grad_()
    with using(implementation):
        assert torch.autograd.gradcheck(
            lambda x: kernels.local_response_norm(x, size, 0.3, beta, 1.5, groups=groups), x, fast_mode=True
        )


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
def test_only_the_input_is_saved(implementation: str) -> None:
    x = random_tensor((2, 8, 5, 5), 0, torch.float32).requires_grad_()
    with using(implementation):
        assert saved_bytes(lambda: kernels.local_response_norm(x, 5)) == x.nbytes


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_registered_operators_keep_pytorchs_rules(layout: str) -> None:
    x = laid_out(random_tensor((2, 8, 3, 2), 0, torch.float32), layout)
    for bias in (None, random_tensor((8,), 1, torch.float32)):
        options = (bias, 5, 0.3, 0.75, 2.0, 2, bias is not None)
        torch.library.opcheck(torch.ops.fastalex.lrn_forward, (x, *options))
        torch.library.opcheck(torch.ops.fastalex.lrn_backward, (x, x, *options, bias is not None))
    native = ("channels", 5, 0.3, 0.75, 2.0, 2)
    torch.library.opcheck(torch.ops.fastalex.native_norm_forward, (x, *native))
    torch.library.opcheck(torch.ops.fastalex.native_norm_backward, (x, x, *native))


@pytest.mark.parametrize("function", [kernels.local_response_norm, kernels.same_map_norm])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"size": 5.0}, TypeError, "size must be an int, got float: 5.0"),
        ({"alpha": -0.1}, ValueError, "alpha must be at least 0, got -0.1"),
        ({"alpha": float("nan")}, ValueError, "alpha must be finite, got nan"),
        ({"beta": 0.0}, ValueError, "beta must be above 0, got 0.0"),
        ({"beta": "1"}, TypeError, "beta must be a number, got str: '1'"),
        ({"k": 0.0}, ValueError, "k must be above 0, got 0.0"),
        ({"k": -2.0}, ValueError, "k must be above 0, got -2.0"),
    ],
)
def test_bad_options_are_named(function, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        function(torch.ones(1, 4, 2, 2, device=DEVICE), **({"size": 5} | options))


@pytest.mark.parametrize("function", [kernels.local_response_norm, kernels.same_map_norm, kernels.max_pool2d])
def test_bad_inputs_are_named(function) -> None:
    with pytest.raises(TypeError, match=r"x must be float32, float16, bfloat16 or float64, got torch\.int32"):
        function(torch.ones(1, 4, 4, 4, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match=r"x must have .* dimensions \(N x C x .*\), got shape \(4, 4\)"):
        function(torch.ones(4, 4), 3)
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        function([1.0], 3)


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize(
    "function", [kernels.local_response_norm, kernels.same_map_norm, kernels.max_pool2d, kernels.lrn_max_pool2d]
)
def test_an_image_too_large_for_32_bits_is_refused_before_it_is_copied(function) -> None:
    x = torch.ones(1, 1, 1, 1, device=DEVICE).expand(1, 1, 2**16, 2**15)
    message = "x must have at most 2147418112 elements per image, got 2147483648"
    with kernels.using("triton"), pytest.raises(ValueError, match=message):
        function(x) if function is kernels.lrn_max_pool2d else function(x, 3)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (3, ValueError, "groups must divide the 4 channels of x, got 3"),
        (0, ValueError, "groups must be at least 1, got 0"),
        (2.0, TypeError, "groups must be an int, got float: 2.0"),
    ],
)
def test_bad_groups_are_named(groups: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.local_response_norm(torch.ones(1, 4, 2, 2), 5, groups=groups)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bias": torch.ones(3)}, ValueError, r"bias must have 4 values \(one per channel of x\), got 3"),
        ({"relu": "before"}, TypeError, "relu must be True or False, got str: 'before'"),
    ],
)
def test_a_bad_bias_or_relu_is_named(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.local_response_norm(torch.ones(1, 4, 2, 2), 5, **options)
