"""NaN, infinities, zeros of both signs and values beyond the range of fp16, in tensors and in gradients."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    NORM_IMPLEMENTATIONS,
    check_close,
    dtype_for,
    dtypes,
    examples,
    guarded,
    laid_out,
    random_tensor,
    seeds,
    using,
)
from hypothesis import given
from torch import Tensor

import kernels

NAN, INF = float("nan"), float("inf")
# x, size of the window, and whether a ReLU comes before or after.
NORMALISING: dict[str, Callable[[Tensor, int, str], Tensor]] = {
    "local_response_norm": lambda x, size, relu: kernels.local_response_norm(x, size, 0.3, groups=2),
    "same_map_norm": lambda x, size, relu: kernels.same_map_norm(x, size, 0.3),
    "lrn_max_pool2d": lambda x, size, relu: kernels.lrn_max_pool2d(
        x, size, 0.3, groups=2, kernel_size=size - 1, stride=2, relu=relu
    ),
    "same_map_norm_max_pool2d": lambda x, size, relu: kernels.same_map_norm_max_pool2d(
        x, size, 0.3, kernel_size=size - 1, stride=2
    ),
}
OTHERS: dict[str, Callable[[Tensor, int, str], Tensor]] = {
    "max_pool2d": lambda x, size, relu: kernels.max_pool2d(x, size - 1, 2),
    "dropout": lambda x, size, relu: kernels.dropout(x.flatten(1), seed=size),
    "bias_relu_dropout": lambda x, size, relu: kernels.bias_relu_dropout(x.flatten(1), x[0].flatten(), seed=size),
}
OPERATORS = NORMALISING | OTHERS
CASES = [(name, implementation) for name in NORMALISING for implementation in NORM_IMPLEMENTATIONS]
CASES += [(name, implementation) for name in OTHERS for implementation in IMPLEMENTATIONS]


def places(*values: float, least: int) -> st.SearchStrategy:
    """Special values and where they are among the elements of a tensor."""
    return st.lists(st.tuples(st.sampled_from(values), st.integers(0, 199)), min_size=least, max_size=4)


def with_specials(shape: tuple[int, ...], seed: int, dtype: torch.dtype, specials: list) -> Tensor:
    made = random_tensor(shape, seed, dtype)
    for value, index in specials:
        made.view(-1)[index % made.numel()] = value
    return made


@pytest.mark.parametrize(("name", "implementation"), CASES)
@examples(7)
@given(
    places(NAN, INF, -INF, -0.0, 0.0, 300.0, least=1),
    places(NAN, INF, -INF, -0.0, 0.0, 300.0, least=0),
    st.integers(2, 5),
    st.sampled_from(["before", "after"]),
    dtypes,
    st.sampled_from(["nchw", "channels_last"]),
    st.sampled_from(["nchw", "channels_last"]),
    seeds,
)
def test_special_values_give_what_the_definition_gives(
    name, implementation, specials, of_gradient, size, relu, dtype, layout, gradient_layout, seed
):
    dtype = dtype_for(implementation, dtype)
    if name.startswith("same_map_norm") and implementation == "native in C":
        layout = "channels_last"
    if name == "bias_relu_dropout":
        of_gradient = []  # where a feature is dropped, its gradient is 0, and not 0 times an infinite one
    x = laid_out(with_specials((1, 8, 5, 5), seed, dtype, specials), layout)
    ours, theirs = guarded(x).requires_grad_(), x.double().requires_grad_()
    with using(implementation):
        y = OPERATORS[name](ours, size, relu)
    with kernels.using("reference"):
        wanted = OPERATORS[name](theirs, size, relu)
    check_close(y.detach(), wanted.detach(), dtype, "result")
    grad = laid_out(with_specials(y.shape, seed + 1, dtype, of_gradient), gradient_layout)
    with using(implementation):
        (found,) = torch.autograd.grad(y, ours, guarded(grad))
    (expected,) = torch.autograd.grad(wanted, theirs, grad.double())
    if (name, implementation) == ("same_map_norm_max_pool2d", "triton"):
        # As documented, a NaN reaches fewer gradients than in the definition, and none that is finite there.
        found, expected = found[expected.isfinite()], expected[expected.isfinite()]
    check_close(found, expected, dtype, "gradient")


@pytest.mark.parametrize("implementation", NORM_IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["local_response_norm", "same_map_norm"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_nan_and_infinity_of_gradients_stay_in_their_windows(implementation: str, name: str, layout: str) -> None:
    if (name, implementation) == ("same_map_norm", "native in C"):
        layout = "channels_last"
    x, grad = random_tensor((1, 16, 9, 9), 0, torch.float32), random_tensor((1, 16, 9, 9), 1, torch.float32)
    x[0, 2, 0, 0] = NAN
    grad[0, 5, 4, 4], grad[0, 12, 8, 8], grad[0, 1, 8, 0] = NAN, INF, -INF
    gradients = []
    for chosen, dtype in ((implementation, torch.float32), ("reference", torch.float64)):
        given_x = laid_out(x.to(dtype), layout).requires_grad_()
        with using(chosen):
            y = OPERATORS[name](given_x, 4, "")
            gradients += torch.autograd.grad(y, given_x, laid_out(grad.to(dtype), layout))
    found, wanted = gradients
    assert 0 < (~wanted.isfinite()).sum() < wanted.numel() / 4
    check_close(found, wanted, torch.float32, "gradient")


# ------------------------------------------------------------------------------- beyond fp16's largest number, 65504

LARGE = 6e4
# Whether they are added up from the first to the last or back, the first two of one sign exceed it; all of them do not.
TERMS = torch.tensor([1, 1, -1, -1, 1, -1, -1, 1, 1], dtype=torch.float16) * LARGE
PLAIN = {"alpha": 0.0, "beta": 1.0, "k": 1.0}  # so that normalisation changes nothing


@pytest.mark.parametrize(
    ("operator", "implementation"),
    [
        (lambda x: kernels.max_pool2d(x, 3, 1), "triton"),
        (lambda x: kernels.lrn_max_pool2d(x, kernel_size=3, stride=1, **PLAIN), "triton"),
        (lambda x: kernels.lrn_max_pool2d(x, kernel_size=3, stride=1, **PLAIN), "native"),
        (lambda x: kernels.same_map_norm_max_pool2d(x, kernel_size=3, stride=1, **PLAIN), "triton"),
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradients_of_windows_are_summed_in_fp32(operator: Callable, implementation: str, layout: str) -> None:
    """The maximum of nine windows is the same pixel, whose gradient is the sum of theirs."""
    x = torch.zeros(1, 2, 5, 5, dtype=torch.float16, device=DEVICE)
    x[..., 2, 2] = 1
    x = laid_out(x, layout).requires_grad_()
    with using(implementation):
        (found,) = torch.autograd.grad(operator(x), x, TERMS.to(DEVICE).view(3, 3).expand(1, 2, 3, 3))
    assert found[..., 2, 2].tolist() == [[LARGE, LARGE]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["lrn_max_pool2d", "bias_relu_dropout"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_the_gradient_of_an_fp32_bias_is_summed_in_fp32(implementation: str, name: str, layout: str) -> None:
    x = laid_out(torch.ones(9, 8, 1, 2, dtype=torch.float16, device=DEVICE), layout).requires_grad_()
    bias = torch.ones(8, device=DEVICE, requires_grad=True)

    def operator(x: Tensor, bias: Tensor) -> Tensor:
        if name == "lrn_max_pool2d":
            return kernels.lrn_max_pool2d(x, bias=bias, kernel_size=1, stride=1, **PLAIN)
        return kernels.bias_relu_dropout(x[..., 0].flatten(1), bias, 0.0, seed=1)

    with using(implementation):
        y = operator(x, bias)
        (found,) = torch.autograd.grad(y, bias, torch.full_like(y, LARGE))
    assert found.tolist() == [LARGE * y.numel() / 8] * 8


@pytest.mark.parametrize("name", NORMALISING)
@pytest.mark.parametrize("implementation", ["native in PyTorch", "triton"])
def test_squares_and_products_with_gradients_may_exceed_fp16(name: str, implementation: str) -> None:
    x = laid_out(random_tensor((1, 8, 5, 5), 0, torch.float16, 300.0), "channels_last")
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    results = []
    for chosen, given_x in ((implementation, ours), ("reference", theirs)):
        with using(chosen):
            y = NORMALISING[name](given_x, 5, "before")
            grad = random_tensor(y.shape, 1, torch.float16, 3000.0).to(given_x.dtype)
            results.append((y.detach(), *torch.autograd.grad(y, given_x, grad)))
    for found, wanted, what in zip(*results, ("result", "gradient"), strict=True):
        check_close(found, wanted, torch.float16, what)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_fully_connected_layer_is_computed_in_fp32(implementation: str) -> None:
    """The sum with the bias exceeds fp16, and half of it does not."""
    x = torch.full((2, 8), LARGE, dtype=torch.float16, device=DEVICE)
    bias = torch.full((8,), 1e4, device=DEVICE)
    with kernels.using(implementation):
        y = kernels.bias_relu_dropout(x, bias, 0.5, seed=1, training=False, inverted=False)
    assert y.tolist() == [[35008.0] * 8] * 2  # 35000 in fp16
