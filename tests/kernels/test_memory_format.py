"""The memory format of dense copies and of results, for tensors with gaps."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from comparing import IMPLEMENTATIONS, examples, laid_out, random_tensor
from hypothesis import given
from test_operators import MAPS, result_and_gradient

import kernels
from kernels.memory_format import dense, empty_as, is_channels_last, is_dense, memory_format

CUTS = {
    "channels": (slice(None), slice(3, 11)),
    "rows": (slice(None), slice(8), slice(1, 6)),
    "columns": (slice(None), slice(8), slice(5), slice(2, 7)),
}


@examples(60)
@given(
    st.tuples(*[st.integers(0, 3)] * 4),
    st.sampled_from(["nchw", "channels_last", "sliced", "expanded"]),
    st.sampled_from([None, 0, 1, 2, 3]),
)
def test_a_dense_copy_keeps_the_values_and_the_layout(shape, layout, cut):
    x = laid_out(random_tensor(shape, 0), layout)
    if cut is not None:
        x = x.narrow(cut, 0, max(shape[cut] - 1, 0))
    copy = dense(x)
    assert torch.equal(copy, x)
    assert copy.is_contiguous(memory_format=memory_format(is_channels_last(x)))
    assert is_dense(copy)
    assert is_channels_last(copy) == is_channels_last(x)
    assert empty_as(copy, (2, 2, 2, 2)).stride() == empty_as(x, (2, 2, 2, 2)).stride()


@pytest.mark.parametrize(
    ("shape", "layout", "wanted"),
    [
        ((2, 3, 4, 5), "channels_last", True),
        ((2, 3, 1, 5), "channels_last", True),
        ((2, 3, 4, 5), "nchw", False),
        # Both formats fit.
        ((2, 3, 1, 1), "channels_last", False),
        ((2, 1, 4, 5), "channels_last", False),
    ],
)
def test_a_tensor_of_both_formats_counts_as_nchw(shape: tuple[int, ...], layout: str, wanted: bool) -> None:
    x = laid_out(random_tensor(shape, 0), layout)
    assert is_channels_last(x) == wanted
    assert is_dense(x)
    assert not is_dense(laid_out(random_tensor((2, 3, 4, 5), 0), "sliced"))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("cut", CUTS)
def test_a_part_of_channels_last_gives_channels_last(implementation: str, name: str, cut: str) -> None:
    whole = laid_out(random_tensor((2, 16, 7, 7), 0, torch.float32), "channels_last")
    x = whole[CUTS[cut]]
    with kernels.using(implementation):
        y, grad = result_and_gradient(MAPS[name], x, "channels_last")
        wanted, wanted_grad = result_and_gradient(MAPS[name], laid_out(x, "channels_last"), "channels_last")
    assert is_channels_last(y)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(grad, wanted_grad)


@pytest.mark.parametrize("cut", CUTS)
def test_fake_operators_predict_the_format_of_a_parts_result(cut: str) -> None:
    x = laid_out(random_tensor((2, 16, 7, 7), 0, torch.float32), "channels_last")[CUTS[cut]]
    for operator, options in (
        (torch.ops.fastalex.lrn_forward, (None, 5, 0.3, 0.75, 2.0, 2, False)),
        (torch.ops.fastalex.max_pool_forward, (3, 2, 1, True)),
        (torch.ops.fastalex.native_norm_forward, ("map", 5, 0.3, 0.75, 2.0, 1)),
    ):
        torch.library.opcheck(operator, (x, *options))
