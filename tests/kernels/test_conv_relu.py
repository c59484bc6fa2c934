"""Convolution with bias and ReLU."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import DEVICE, dtypes, examples, laid_out, layouts, random_tensor, seeds
from hypothesis import given

import kernels

# One rounding of a sum of products: the error grows with the terms, of which there are at most 54 here.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("implementation", ["native", "reference"])
@examples(20)
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([0, 1, (1, 2), (0, 3, 0, 3), (2, 0, 1, 0)]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
    dtypes,
    layouts,
    seeds,
)
def test_convolution_is_pytorchs(
    implementation, kernel_size, stride, channels, padding, groups, with_bias, relu, dtype, layout, seed
):
    x = laid_out(random_tensor((2, channels * groups, 6, 5), seed, dtype, 1.0), layout)
    weight = random_tensor((4, channels, kernel_size, kernel_size), seed + 1, dtype, 1.0)
    bias = random_tensor((4,), seed + 2, dtype, 1.0) if with_bias else None
    sides = kernels.conv_relu.arguments.four_sided(padding)
    with kernels.using(implementation):
        y = kernels.conv2d_relu(x, weight, bias, stride, padding, groups, relu=relu)
    top, bottom, left, right = sides
    wide = F.pad(x.double(), (left, right, top, bottom))
    wanted = F.conv2d(wide, weight.double(), None if bias is None else bias.double(), stride, 0, 1, groups)
    wanted = wanted.relu() if relu else wanted
    torch.testing.assert_close(y.double(), wanted, rtol=TOLERANCES[dtype], atol=10 * TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(4, 3, 3, 3)}, ValueError, "weight must have 2 input channels"),
        ({"weight": torch.ones(3, 2, 3, 3)}, ValueError, "groups must divide the 3 filters of weight, not 2"),
        ({"weight": torch.ones(4, 2, 3, 3).double()}, TypeError, r"weight must have the dtype of x, torch\.float32"),
        ({"weight": torch.ones(4, 2, 3, 3, device="meta")}, ValueError, "weight must be on the device of x"),
        ({"weight": torch.ones(4, 2, 9, 3)}, ValueError, "x's padded height must be at least the kernel's, 9, not 5"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must have 4 values \(one per filter\), not 3"),
        ({"bias": torch.ones(4).double()}, TypeError, r"bias must have the dtype of x, torch\.float32"),
        ({"stride": 0}, ValueError, "stride must be at least 1, not 0"),
        ({"padding": -1}, ValueError, "padding must be at least 0, not -1"),
        ({"padding": (1, 2, 3)}, ValueError, r"padding must be an int, \(h, w\) or \(top, bottom, left, right\)"),
        ({"groups": 3}, ValueError, "groups must divide the 4 channels of x, not 3"),
    ],
)
def test_bad_arguments_are_named(changes: dict, error: type, message: str) -> None:
    arguments = {"x": torch.ones(1, 4, 5, 5), "weight": torch.ones(4, 2, 3, 3), "groups": 2}
    if DEVICE == "cuda":
        arguments["x"] = torch.ones(1, 4, 5, 5)
    with pytest.raises(error, match=message):
        kernels.conv2d_relu(**(arguments | changes))
