"""Operators with the name of one of PyTorch's take its arguments, in its order and with its defaults."""

from __future__ import annotations

import inspect
import io

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import DEVICE, IMPLEMENTATIONS, examples, laid_out, layouts, random_tensor, seeds
from hypothesis import assume, given
from torch import Tensor

import kernels
from kernels import conv_gemm

ALL = [*IMPLEMENTATIONS, "reference"]


def one_or_two(least: int, most: int) -> st.SearchStrategy:
    number = st.integers(least, most)
    return number | st.tuples(number, number) | st.lists(number, min_size=2, max_size=2)


def check_like(ours, theirs, tensors: list[Tensor], implementation: str) -> None:
    """Compare results and gradients in fp64."""
    results = []
    for function, chosen in ((ours, implementation), (theirs, "reference")):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        with kernels.using(chosen):
            y = function(*leaves)
            gradients = torch.autograd.grad(y.square().sum(), leaves)
        results.append((y.detach(), *gradients))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("implementation", ALL)
@examples(20)
@given(
    one_or_two(1, 3), one_or_two(0, 2) | st.sampled_from(["same", "valid"]), one_or_two(1, 2), one_or_two(1, 3),
    st.booleans(), st.booleans(), layouts, seeds,
)  # fmt: skip
def test_convolution(implementation, stride, padding, dilation, kernel, grouped, batched, layout, seed):
    assume(padding != "same" or stride in (1, (1, 1), [1, 1]))
    sides = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    x, groups = laid_out(random_tensor((2, 4, 7, 6), seed), layout), 2 if grouped else 1
    weight, bias = random_tensor((2, 4 // groups, *sides), seed + 1), random_tensor((2,), seed + 2)
    options = (stride, padding, dilation, groups)
    check_like(
        lambda x, weight, bias: kernels.conv2d_relu(x, weight, bias, *options),
        lambda x, weight, bias: F.conv2d(x, weight, bias, *options).relu(),
        [x if batched else x[0], weight, bias],
        implementation,
    )


@pytest.mark.parametrize("implementation", ALL)
@examples(20)
@given(
    one_or_two(1, 3), st.none() | one_or_two(1, 3), one_or_two(0, 1), one_or_two(1, 2), st.booleans(), st.booleans(),
    layouts, seeds,
)  # fmt: skip
def test_pooling(implementation, kernel, stride, padding, dilation, ceil_mode, batched, layout, seed):
    x = laid_out(random_tensor((2, 3, 7, 6), seed), layout)
    x, options = x if batched else x[0], (kernel, stride, padding, dilation, ceil_mode)
    try:
        F.max_pool2d(x, *options)
    except RuntimeError:
        with kernels.using(implementation), pytest.raises(ValueError, match="padding must be at most half of kernel"):
            kernels.max_pool2d(x, *options)
        return
    check_like(lambda x: kernels.max_pool2d(x, *options), lambda x: F.max_pool2d(x, *options), [x], implementation)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 5, 3, 2), (2, 5, 2, 1, 3), (0, 5, 3)])
@pytest.mark.parametrize("options", [(3,), (4, 0.3), (2, 0.3, 0.6), (5, 0.3, 0.75, 1.5)])
def test_normalisation(implementation: str, shape: tuple[int, ...], options: tuple) -> None:
    check_like(
        lambda x: kernels.local_response_norm(x, *options),
        lambda x: F.local_response_norm(x, *options),
        [random_tensor(shape, 0)],
        implementation,
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "differences"),
    [
        (kernels.local_response_norm, F.local_response_norm, set()),
        (kernels.max_pool2d, torch.max_pool2d, set()),
        (kernels.dropout, F.dropout, {"inplace"}),
    ],
)
def test_arguments_have_pytorchs_order_and_defaults(ours, theirs, differences: set[str]) -> None:
    positional = [p for p in inspect.signature(ours).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    mine = {p.name: p.default for p in positional[1:]}
    if theirs is torch.max_pool2d:  # which has no signature
        wanted = {
            "kernel_size": inspect.Parameter.empty,
            "stride": None,
            "padding": 0,
            "dilation": 1,
            "ceil_mode": False,
        }
    else:
        wanted = {p.name: p.default for p in list(inspect.signature(theirs).parameters.values())[1:]}
    assert list(mine.items()) == [item for item in wanted.items() if item[0] not in differences]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, w: kernels.conv2d_relu(x, w, stride=(1, 2, 3)),
            r"stride must be an int or a pair of ints, got \(1, 2",
        ),
        (lambda x, w: kernels.conv2d_relu(x, w, dilation=0), "dilation must be at least 1, got 0"),
        (lambda x, w: kernels.conv2d_relu(x, w, None, 2, "same"), 'stride must be 1 with padding "same"'),
        (
            lambda x, w: kernels.conv2d_relu(x, w, dilation=3),
            "x's padded height must be at least the kernel's, 7, got 5",
        ),
        (
            lambda x, w: kernels.max_pool2d(x, 3, dilation=3),
            "x's height must be at least 7 for kernel_size 3 and dilation 3",
        ),
        (
            lambda x, w: kernels.max_pool2d(x, (3, 2), padding=(1, 2)),
            "padding must be at most half of kernel_size 2, got 2",
        ),
    ],
)
def test_bad_pairs_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(1, 2, 5, 5, device=DEVICE), torch.ones(2, 2, 3, 3, device=DEVICE))


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("x_dtype", "weight_dtype"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_autocast_does_not_mix_fp64(implementation: str, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, weight = (torch.ones(1, 1, 1, 1, dtype=dtype, device=DEVICE) for dtype in (x_dtype, weight_dtype))
    with (
        kernels.using(implementation),
        torch.autocast(DEVICE, torch.bfloat16),
        pytest.raises(TypeError, match=r"weight must have the dtype of x, .*: autocast does not convert float64"),
    ):
        kernels.conv2d_relu(x, weight)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_pytorchs_dtype_under_autocast(implementation: str, dtype: torch.dtype) -> None:
    x, weight = (random_tensor((2, 2, 3, 3), seed, dtype) for seed in range(2))
    labels = torch.tensor([0, 1], device=DEVICE)
    with kernels.using(implementation), torch.autocast(DEVICE, torch.bfloat16):
        assert kernels.conv2d_relu(x, weight.float()).dtype == F.conv2d(x, weight.float()).dtype
        assert kernels.max_pool2d(x, 2).dtype == F.max_pool2d(x, 2).dtype
        assert kernels.dropout(x, seed=1).dtype == F.dropout(x).dtype
        found, wanted = kernels.cross_entropy(x[:, :, 0, 0], labels)[0], F.cross_entropy(x[:, :, 0, 0], labels)
        assert found.dtype == wanted.dtype
        # The exception that the docstring names.
        assert kernels.local_response_norm(x, 3).dtype == dtype


def test_groups_may_outnumber_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA limits the second axis of a grid to 65,535."""
    monkeypatch.setattr(conv_gemm, "run_forward", lambda *_: pytest.fail("launched for too many groups"))
    x, weight = random_tensor((1, 65536, 1, 1), 0), random_tensor((65536, 1, 1, 1), 1)
    with kernels.using("triton"):
        torch.testing.assert_close(kernels.conv2d_relu(x, weight, groups=65536), (x * weight.view(1, -1, 1, 1)).relu())
        with pytest.raises(pytest.fail.Exception, match="launched"):
            kernels.conv2d_relu(x[:, :2], weight[:2], groups=2)


class Small(torch.nn.Module):
    """All operators that evaluation uses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(random_tensor((4, 4, 3, 3), 1, torch.float32, 0.3))
        self.bias = torch.nn.Parameter(random_tensor((4,), 2, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        y = kernels.lrn_max_pool2d(kernels.conv2d_relu(x, self.weight, None, 1, 1), bias=self.bias, relu="before")
        y = kernels.max_pool2d(kernels.local_response_norm(kernels.conv2d_relu(y, self.weight, self.bias), 5), 2, 1)
        y = kernels.dropout(y.flatten(1), training=False, seed=1)
        return kernels.bias_relu_dropout(y, self.bias, training=False, seed=1)


def test_an_export_to_onnx_sees_pytorchs_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a context manager. The exporter starts with `torch.export`."""
    model, x = Small().to(DEVICE).eval(), random_tensor((2, 4, 9, 9), 0, torch.float32)
    assert "fastalex" in str(torch.export.export(model, (x,)).graph)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(model, (x,))
    assert "fastalex" not in str(program.graph)
    monkeypatch.undo()
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_a_model_with_operators_is_exported_to_onnx(dynamo: bool) -> None:
    """Where the exporters' packages are installed, which are not among our dependencies."""
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    file = io.BytesIO()
    torch.onnx.export(Small().eval(), (torch.ones(2, 4, 9, 9),), file, dynamo=dynamo)
    assert b"fastalex" not in file.getvalue()
    assert b"MaxPool" in file.getvalue()
