"""Dropout: the definition, the mask's statistics, and that it depends only on its counters."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    check_against_reference,
    dtype_for,
    dtypes,
    ends_of_grids,
    examples,
    laid_out,
    random_tensor,
    saved_bytes,
    seeds,
    uninitialised,
)
from hypothesis import given

import kernels
from kernels.philox import keep_mask

shapes = st.tuples(st.integers(0, 4), st.sampled_from([1, 3, 4, 8, 13, 32, 600]))
counters = st.tuples(st.integers(0, 2**63 - 1), st.sampled_from([0, 5, 2**32 - 2, 2**40]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@examples(20)
@given(
    shapes,
    st.sampled_from([0.0, 0.1, 0.5, 0.999, 1 - 1e-12]),
    counters,
    st.booleans(),
    st.booleans(),
    dtypes,
    st.sampled_from(["nchw", "sliced"]),
    st.sampled_from(["nchw", "sliced", "expanded"]),
)
def test_both_operators_are_the_definition(
    implementation, shape, p, counter, training, inverted, dtype, layout, gradient_layout
):
    seed, first_row = counter
    options = {"seed": seed, "first_row": first_row, "training": training, "inverted": inverted}
    x = laid_out(random_tensor(shape, seed, dtype_for(implementation, dtype)), layout)
    bias = laid_out(random_tensor(shape[1:], seed + 1, torch.float32), layout)
    check_against_reference(lambda x: kernels.dropout(x, p, **options), implementation, [x], gradient_layout, seed)
    check_against_reference(
        lambda x, b: kernels.bias_relu_dropout(x, b, p, **options), implementation, [x, bias], gradient_layout, seed
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_mask_has_philox_bits(implementation: str, dtype: torch.dtype) -> None:
    seed, first_row, p = 2**62 + 12345, 2**32 - 3, 0.37
    mask = keep_mask(torch.tensor(seed), torch.tensor(first_row), 6, 50, p)
    with kernels.using(implementation):
        y = kernels.dropout(torch.ones(6, 50, dtype=dtype, device=DEVICE), p, seed=seed, first_row=first_row)
    assert torch.equal(y.cpu() != 0, mask)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_a_probability_near_1_drops_all(implementation: str) -> None:
    """1 - 1e-12 is nearer to 1 than a word of 32 bits can tell."""
    x = torch.ones(3, 40, device=DEVICE, requires_grad=True)
    for operator, operands in ((kernels.dropout, (x,)), (kernels.bias_relu_dropout, (x, x[0].detach()))):
        with kernels.using(implementation):
            y = operator(*operands, 1 - 1e-12, seed=1)
            (grad,) = torch.autograd.grad(y.sum(), x)
        assert not y.any()
        assert not grad.any()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@examples(6)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=3), st.booleans(), dtypes, seeds)
def test_micro_batches_draw_the_masks_of_the_whole(implementation, sizes, with_bias, dtype, seed):
    x = random_tensor((sum(sizes), 40), seed, dtype_for(implementation, dtype))
    bias = [random_tensor((40,), seed + 1, torch.float32)] if with_bias else []
    operator = kernels.bias_relu_dropout if with_bias else kernels.dropout

    def result_and_gradient(x: torch.Tensor, first_row: int | torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        y = operator(x, *bias, seed=seed, first_row=first_row)
        return torch.stack((y.detach(), *torch.autograd.grad(y.sum(), x)))

    with kernels.using(implementation):
        whole = result_and_gradient(x, 100)
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        parts = [
            result_and_gradient(x[start : start + size], torch.tensor(100 + start))
            for start, size in zip(starts, sizes, strict=True)
        ]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_independence(p: float) -> None:
    rows, features = 200, 1000
    masks = [keep_mask(torch.tensor(seed), torch.tensor(0), rows, features, p).double() for seed in (1, 2)]
    spread = math.sqrt(p * (1 - p))
    for mask in masks:
        count = rows * features
        assert abs(mask.mean() - (1 - p)) < 4 * spread / math.sqrt(count)
        assert (mask.mean(0) - (1 - p)).abs().max() < 5 * spread / math.sqrt(rows)
        assert (mask.mean(1) - (1 - p)).abs().max() < 5 * spread / math.sqrt(features)
    centred = [(mask - (1 - p)) / spread for mask in masks]
    neighbours = [
        (centred[0] * centred[1]).mean(),
        (centred[0][1:] * centred[0][:-1]).mean(),
        (centred[0][:, 1:] * centred[0][:, :-1]).mean(),
        (centred[0][:, 4:] * centred[0][:, :-4]).mean(),
    ]
    assert max(abs(correlation) for correlation in neighbours) < 5 / math.sqrt(rows * features)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_seed_may_be_an_int_or_a_tensor(implementation: str) -> None:
    x = random_tensor((3, 20), 0, torch.float32)
    with kernels.using(implementation):
        expected = kernels.dropout(x, seed=77, first_row=3)
        for seed in (torch.tensor(77), torch.tensor([77]), torch.tensor([[77]], device=DEVICE)):
            assert torch.equal(kernels.dropout(x, seed=seed, first_row=torch.tensor([3])), expected)
        assert not torch.equal(kernels.dropout(x, seed=78, first_row=3), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_and_infinity(implementation: str) -> None:
    x = random_tensor((4, 40), 0, torch.float32)
    x[0, ::3], x[1, ::3], x[2, ::3] = float("nan"), float("inf"), float("-inf")
    bias = random_tensor((40,), 1, torch.float32)
    check_against_reference(lambda x: kernels.dropout(x, seed=1), implementation, [x], "nchw")
    check_against_reference(lambda x, b: kernels.bias_relu_dropout(x, b, seed=1), implementation, [x, bias], "nchw")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients(implementation: str) -> None:
    x, bias = random_tensor((3, 7), 0).requires_grad_(), random_tensor((7,), 1).requires_grad_()
    with kernels.using(implementation):
        assert torch.autograd.gradcheck(lambda x: kernels.dropout(x, 0.4, seed=5), x, fast_mode=True)
        assert torch.autograd.gradcheck(
            lambda x, b: kernels.bias_relu_dropout(x, b, 0.4, seed=5), (x, bias), fast_mode=True
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_gpu_saves_no_mask_and_a_cpu_a_byte_per_feature(implementation: str) -> None:
    x = random_tensor((8, 64), 0, torch.float32).requires_grad_()
    with kernels.using(implementation):
        # In Triton, two int64 counters.
        assert saved_bytes(lambda: kernels.dropout(x, seed=1)) == (16 if implementation == "triton" else x.numel())
        # And the result, which the next layer saves as well.
        assert saved_bytes(lambda: kernels.bias_relu_dropout(x, x[0].detach(), seed=1)) == 16 + x.nbytes


def test_registered_operators_keep_pytorchs_rules() -> None:
    x, bias = random_tensor((3, 20), 0, torch.float32), random_tensor((20,), 1, torch.float32)
    seed, row = torch.tensor(5, device=DEVICE), torch.tensor(0, device=DEVICE)
    torch.library.opcheck(torch.ops.fastalex.dropout_forward, (x, None, seed, row, 0.5, 2.0))
    torch.library.opcheck(torch.ops.fastalex.dropout_forward, (x, bias, seed, row, 0.5, 2.0))
    torch.library.opcheck(torch.ops.fastalex.relu_dropout_backward, (x, x, seed, row, 0.5, 2.0))
    torch.library.opcheck(torch.ops.fastalex.native_mask, (x, seed, row, 0.5, 2.0, torch.float16))
    torch.library.opcheck(torch.ops.fastalex.native_relu_dropout_backward, (x, x, seed, row, 0.5, 2.0))


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_replays_of_a_cuda_graph_differ() -> None:
    x = torch.ones(64, 64, device="cuda")
    seed = torch.tensor([1], device="cuda")
    kernels.dropout(x, seed=seed)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.dropout(x, seed=seed)
    graph.replay()
    first = y.clone()
    seed.fill_(2)
    graph.replay()
    assert not torch.equal(first, y)
    assert torch.equal(y, kernels.dropout(x, seed=2))


@pytest.mark.parametrize("with_bias", [False, True])
def test_offsets_pass_32_bits(with_bias: bool) -> None:
    """The first and the last row of many give the same results as alone."""
    rows, features = 2**23 + 2, 2**8
    bias = torch.ones(features, device=DEVICE)

    def results(x: torch.Tensor, grad: torch.Tensor, first_row: int) -> list[torch.Tensor]:
        x.requires_grad_()
        options = {"seed": 1, "first_row": first_row}
        with kernels.using("triton"), ends_of_grids(1):  # a row is one program
            y = kernels.bias_relu_dropout(x, bias, **options) if with_bias else kernels.dropout(x, **options)
            return [y, *torch.autograd.grad(y, x, grad)]

    row, grad_row = random_tensor((2, 1, features), 0, torch.float16)
    x, grad = (uninitialised((rows, features), "nchw", torch.float16) for _ in range(2))
    x[0] = x[-1] = row
    grad[0] = grad[-1] = grad_row
    whole = results(x, grad, 0)
    assert x.numel() > 2**31
    for index in (0, rows - 1):
        for found, wanted in zip(whole, results(row.clone(), grad_row, index), strict=True):
            assert torch.equal(found[index], wanted[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": 1.0}, ValueError, r"p must be in \[0, 1\), got 1.0"),
        ({"p": -0.1}, ValueError, r"p must be in \[0, 1\), got -0.1"),
        ({"p": float("nan")}, ValueError, "p must be finite, got nan"),
        ({"p": "half"}, TypeError, "p must be a number, got str: 'half'"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": 1 << 63}, ValueError, r"seed must be below 2\^63, got 9223372036854775808"),
        ({"seed": 1.0}, TypeError, "seed must be an int or an int64 tensor, got float: 1.0"),
        ({"seed": None}, TypeError, "seed must be an int or an int64 tensor, got NoneType: None"),
        ({"training": None}, TypeError, "training must be True or False, got NoneType: None"),
        ({"inverted": 1}, TypeError, "inverted must be True or False, got int: 1"),
        ({"seed": torch.ones(1)}, TypeError, r"seed must be an int or an int64 tensor, got a tensor of torch\.float32"),
        ({"seed": torch.ones(2, dtype=torch.int64)}, ValueError, r"seed must have one element, got shape \(2,\)"),
        (
            {"seed": torch.ones(1, dtype=torch.int64, device="meta")},
            ValueError,
            "seed must be on the CPU or on",
        ),
        ({"first_row": -2}, ValueError, "first_row must be at least 0, got -2"),
        (
            {"first_row": torch.ones(1, dtype=torch.int32)},
            TypeError,
            r"first_row must be an int or an int64 tensor, got a tensor of torch\.int32",
        ),
    ],
)
def test_bad_options_are_named(options: dict, error: type, message: str) -> None:
    x = torch.ones(2, 4, device=DEVICE)
    options = {"seed": 1} | options
    with pytest.raises(error, match=message):
        kernels.dropout(x, **options)
    with pytest.raises(error, match=message):
        kernels.bias_relu_dropout(x, x[0], **options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x must be a tensor, got list"),
        (torch.ones(2, 4, dtype=torch.int64), TypeError, r"x must be float32, .* got torch\.int64"),
    ],
)
def test_bad_inputs_are_named(x, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.dropout(x, seed=1)
    with pytest.raises(error, match=message):
        kernels.bias_relu_dropout(x, torch.ones(4), seed=1)


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        (None, TypeError, "bias must be a tensor, got NoneType"),
        (torch.ones(3), ValueError, r"bias must have 4 values \(one per feature of x\), got 3"),
        (torch.ones(1, 4), ValueError, r"bias must have 1 dimension \(.*\), got shape \(1, 4\)"),
        (torch.ones(4, dtype=torch.int32), TypeError, r"bias must be float32, .* got torch\.int32"),
        (torch.ones(4, device="meta"), ValueError, "bias must be on the device of x, cpu, got meta"),
    ],
)
def test_bad_biases_are_named(bias, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.bias_relu_dropout(torch.ones(2, 4), bias, seed=1)


@pytest.mark.usefixtures("no_copies")
def test_a_row_too_long_for_32_bits_is_refused() -> None:
    bias = torch.ones(1, device=DEVICE).expand(2**31)
    message = "x must have at most 2147418112 elements per row, got 2147483648"
    with kernels.using("triton"):
        with pytest.raises(ValueError, match=message):
            kernels.dropout(bias[None], seed=1)
        with pytest.raises(ValueError, match=message):
            kernels.bias_relu_dropout(bias[None], bias, seed=1)


def test_a_fused_layer_has_rows_and_features() -> None:
    with pytest.raises(ValueError, match=r"x must have 2 dimensions \(N x F\), got shape \(2, 4, 1\)"):
        kernels.bias_relu_dropout(torch.ones(2, 4, 1), torch.ones(4), seed=1)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("shape", [(), (12,), (3, 2, 2), (3, 2, 1, 2), (3, 0, 2)])
def test_any_shape_has_rows_of_features(implementation: str, shape: tuple[int, ...]) -> None:
    x = laid_out(random_tensor(shape, 0, torch.float32), "channels_last")
    rows = x.reshape(3, -1) if len(shape) > 2 and x.numel() else x.reshape(1, -1)
    with kernels.using(implementation):
        y = kernels.dropout(x, 0.5, True, seed=3)
        assert torch.equal(y, kernels.dropout(rows, seed=3).reshape(shape))
        assert torch.equal(kernels.dropout(x, 0.5, False, seed=3), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    """Neither relu(x + bias), nor the factor 1 / 0.7, nor the mask's product in between."""
    x, bias = random_tensor((4, 50), 0, dtype), random_tensor((50,), 1, torch.float32)
    x[0], bias[0] = -60000, 70000  # which fp16 cannot hold
    results = []
    for implementation in ("native", "reference"):
        with kernels.using(implementation):
            results.append((kernels.bias_relu_dropout(x, bias, 0.3, seed=1), kernels.dropout(x, 0.3, seed=1)))
    # A quotient and a product with the reciprocal differ in fp32's last bit, which rarely decides a rounding.
    for found, wanted in zip(*results, strict=True):
        assert (found != wanted).float().mean() < 0.02
