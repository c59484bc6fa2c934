"""Convolution with bias and ReLU, forward and backward, against PyTorch's convolution in fp64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    check_close,
    dtype_for,
    dtypes,
    ends_of_grids,
    examples,
    gradient_layouts,
    guarded,
    laid_out,
    layouts,
    random_tensor,
    saved_bytes,
    seeds,
    uninitialised,
)
from convolutions import check_convolution, launched_with
from hypothesis import assume, given

import kernels
from kernels import arguments, conv_gemm, conv_relu, launch_settings
from kernels.launch_settings import Settings


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@examples(24)
@given(
    st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 8, 17]), st.integers(1, 8), st.integers(1, 7)),
    st.tuples(st.sampled_from([1, 3, 16, 20]), st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 4),
    st.one_of(
        st.integers(0, 2),
        st.tuples(*[st.integers(0, 2)] * 2),
        st.tuples(*[st.integers(0, 3)] * 4),
        st.just((0, 3, 0, 3)),
    ),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    dtypes,
    layouts,
    gradient_layouts,
    st.sampled_from([None, Settings(16, 16, 16, 4, 1, splits=1), Settings(32, 16, 16, 4, 1, splits=3)]),
    seeds,
)
def test_result_and_gradients_are_pytorchs(
    implementation, shape, filters, stride, padding, groups, with_bias, relu, dtype, layout, gradient_layout, settings,
    seed,
):  # fmt: skip
    batch, channels, height, width = shape
    count, *kernel = filters
    top, bottom, left, right = arguments.four_sided(padding)
    assume(height + top + bottom >= kernel[0] and width + left + right >= kernel[1])
    dtype = dtype_for(implementation, dtype)
    x = laid_out(random_tensor((batch, channels * groups, height, width), seed, dtype), layout)
    weight = laid_out(random_tensor((count * groups, channels, *kernel), seed + 1, dtype), layout)
    bias = laid_out(random_tensor((count * groups,), seed + 2, dtype), layout) if with_bias else None
    # On a CPU, PyTorch may accumulate in half precision.
    half = dtype in (torch.float16, torch.bfloat16)
    work = torch.float32 if half and implementation == "triton" else dtype
    with kernels.using(implementation), launched_with(settings):
        check_convolution(x, weight, bias, stride, padding, groups, relu, gradient_layout, seed, work)


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 0, 0), (1, 1, 0, 2), (0, 3, 0, 3)])
def test_cudnn_and_triton_agree(relu: bool, padding: tuple[int, ...]) -> None:
    x = laid_out(random_tensor((2, 4, 7, 6), 0, torch.float32), "channels_last")
    weight, bias = random_tensor((6, 2, 3, 3), 1, torch.float32), random_tensor((6,), 2, torch.float32)
    forward, backward = torch.ops.fastalex.conv_relu_forward, torch.ops.fastalex.conv_relu_backward
    grad = None
    results = []
    for forced in (False, True):
        y = forward(x, weight, bias, 2, padding, 2, relu, forced)
        grad = random_tensor(y.shape, 3, torch.float32) if grad is None else grad
        results.append([y, *backward(grad, x, weight, y if relu else None, 2, padding, 2, [True] * 3, forced)])
    for library, triton, what in zip(*results, ("result", "grad_x", "grad_weight", "grad_bias"), strict=True):
        assert library.stride() == triton.stride()
        check_close(library, triton.double(), torch.float32, what)


@pytest.mark.parametrize("forced", [True, False])
def test_without_a_measurement_the_library_computes_unless_triton_is_forced(
    forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for module in (conv_gemm, conv_relu):
        for name in ("run_forward", "run_backward_data", "run_backward_weight", "library_forward", "library_backward"):
            if run := getattr(module, name, None):
                monkeypatch.setattr(module, name, lambda *a, name=name, run=run: called.append(name) or run(*a))
    x, weight = random_tensor((1, 2, 4, 4), 0, torch.float32), random_tensor((2, 2, 3, 3), 1, torch.float32)
    y = torch.ops.fastalex.conv_relu_forward(x, weight, None, 1, [0] * 4, 1, False, forced)
    torch.ops.fastalex.conv_relu_backward(y, x, weight, None, 1, [0] * 4, 1, [True, True, False], forced)
    by_triton = ["run_forward", "run_backward_data", "run_backward_weight"]
    assert called == (by_triton if forced else ["library_forward", "library_backward", "library_backward"])


@pytest.mark.parametrize(("with_bias", "relu"), [(False, False), (True, False), (False, True)])
def test_settings_are_those_of_the_product_with_its_epilogue(
    with_bias: bool, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, choose = [], launch_settings.choose
    monkeypatch.setattr(launch_settings, "choose", lambda *a: asked.append((a[0], a[1].epilogue)) or choose(*a))
    x, weight = (torch.ones(shape, device=DEVICE, requires_grad=True) for shape in ((1, 2, 4, 4), (3, 2, 3, 3)))
    with kernels.using("triton"):
        kernels.conv2d_relu(x, weight, torch.ones(3, device=DEVICE) if with_bias else None, relu=relu).sum().backward()
    assert asked == [("forward", with_bias or relu), ("data_gradient", False), ("weight_gradient", False)]


@pytest.mark.parametrize("filters", [3, 6, 8])
def test_bias_and_relu_of_several_programs(filters: int) -> None:
    y, bias = random_tensor((3, filters, 9, 17), 0, torch.float32), random_tensor((filters,), 1, torch.float32)
    wanted = (y + bias.view(-1, 1, 1)).relu()
    y = guarded(laid_out(y, "channels_last"))
    conv_relu.add_bias_relu_(y, bias, True)
    assert torch.equal(y, wanted)


def test_bias_and_relu_pass_32_bits() -> None:
    """The first and the last pixels of a large tensor, whose 32 filters are 4 vectors, give the same as alone."""
    ends, bias = random_tensor((launch_settings.ITEMS // 4, 32), 0, torch.float16), random_tensor((32,), 1)
    y = uninitialised((2**26 + len(ends), 32, 1, 1), "channels_last", torch.float16)
    for part in (y[: len(ends)], y[-len(ends) :]):
        part[..., 0, 0] = ends
    with ends_of_grids(1):
        conv_relu.add_bias_relu_(y, bias, True)
    assert y.numel() > 2**31
    for part in (y[: len(ends)], y[-len(ends) :]):
        assert torch.equal(part[..., 0, 0], (ends.float() + bias.float()).relu().half())


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("relu", [True, False])
def test_nan_and_infinity(implementation: str, layout: str, relu: bool) -> None:
    x = random_tensor((1, 2, 5, 5), 0, torch.float32)
    x[0, 1, 0, 0] = float("nan")
    x[0, 0, 4, 4] = float("inf")
    x[0, 0, 4, 0] = float("-inf")
    x = laid_out(x, layout)
    weight, bias = random_tensor((3, 2, 2, 2), 1, torch.float32), random_tensor((3,), 2, torch.float32)
    with kernels.using(implementation):
        y = kernels.conv2d_relu(x, weight, bias, 1, 1, relu=relu)
    with kernels.using("reference"):
        wanted = kernels.conv2d_relu(x.double(), weight.double(), bias.double(), 1, 1, relu=relu)
    assert wanted.isnan().any()
    assert wanted.isinf().any()
    check_close(y, wanted, torch.float32, "result")


@pytest.mark.parametrize("settings", [None, Settings(16, 16, 16, 4, 1, splits=2)])
def test_gradients(settings: Settings | None) -> None:
    x, weight = random_tensor((2, 4, 4, 3), 0).requires_grad_(), random_tensor((4, 2, 2, 3), 1).requires_grad_()
    bias = random_tensor((4,), 2).requires_grad_()
    with kernels.using("triton"), launched_with(settings):
        for relu in (True, False):
            assert torch.autograd.gradcheck(
                lambda x, weight, bias, relu=relu: kernels.conv2d_relu(
                    x, weight, bias, 2, (0, 2, 1, 0), groups=2, relu=relu
                ),
                (x, weight, bias),
                fast_mode=True,
            )


def test_only_input_weight_and_result_are_saved() -> None:
    x = laid_out(random_tensor((2, 3, 9, 9), 0, torch.float32), "channels_last").requires_grad_()
    weight = random_tensor((8, 3, 3, 3), 1, torch.float32).requires_grad_()
    bias = random_tensor((8,), 2, torch.float32).requires_grad_()
    with kernels.using("triton"):
        for relu, result in ((True, 2 * 8 * 7 * 7 * 4), (False, 0)):
            saved = saved_bytes(lambda relu=relu: kernels.conv2d_relu(x, weight, bias, relu=relu))
            assert saved == x.nbytes + weight.nbytes + result


def test_an_unneeded_gradient_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random_tensor((1, 3, 5, 5), 0, torch.float32), random_tensor((4, 3, 3, 3), 1, torch.float32)
    done = []
    for name in ("run_backward_data", "run_backward_weight"):
        run = getattr(conv_gemm, name)
        monkeypatch.setattr(conv_gemm, name, lambda *a, name=name, run=run: done.append(name) or run(*a))
    with kernels.using("triton"):
        # As in the first layer, whose images need no gradient.
        kernels.conv2d_relu(x, weight.requires_grad_()).sum().backward()
        assert done == ["run_backward_weight"]
        kernels.conv2d_relu(x.requires_grad_(), weight.detach()).sum().backward()
        assert done == ["run_backward_weight", "run_backward_data"]


def test_the_choice_made_in_forward_holds_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_relu, "library_backward", lambda *_: pytest.fail("the library was called"))
    x, weight = random_tensor((1, 2, 4, 4), 0).requires_grad_(), random_tensor((2, 2, 3, 3), 1).requires_grad_()
    with kernels.using("triton"):
        y = kernels.conv2d_relu(x, weight)
    y.sum().backward()


def test_autocast_decides_the_dtype() -> None:
    x, weight = random_tensor((1, 2, 4, 4), 0, torch.float32), random_tensor((2, 2, 3, 3), 1, torch.float32)
    bias = random_tensor((2,), 2, torch.float16)
    weight.requires_grad_()
    with kernels.using("triton"), torch.autocast(DEVICE, torch.float16):
        y = kernels.conv2d_relu(x, weight, bias)
        assert kernels.conv2d_relu(x.double(), weight.double()).dtype == torch.float64
    y.sum().backward()
    assert (y.dtype, weight.grad.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_empty_batch_gives_an_empty_result(implementation: str) -> None:
    x = torch.ones(0, 4, 5, 5, device=DEVICE, requires_grad=True)
    weight = torch.ones(2, 4, 3, 3, device=DEVICE, requires_grad=True)
    with kernels.using(implementation):
        y = kernels.conv2d_relu(x, weight)
    y.sum().backward()
    assert y.shape == (0, 2, 3, 3)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("forced", [True, False])
def test_registered_operators_keep_pytorchs_rules(layout: str, forced: bool) -> None:
    x = laid_out(random_tensor((2, 4, 4, 3), 0, torch.float32), layout)
    weight = laid_out(random_tensor((4, 2, 3, 3), 1, torch.float32), layout)
    bias = random_tensor((4,), 2, torch.float32)
    options = (1, [1, 0, 0, 1], 2)
    torch.library.opcheck(torch.ops.fastalex.conv_relu_forward, (x, weight, bias, *options, True, forced))
    y = torch.ops.fastalex.conv_relu_forward(x, weight, bias, *options, True, forced)
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.fastalex.conv_relu_backward, (y, x, weight, y, *options, needs, forced))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(4, 5)}, ValueError, r"x must have 4 dimensions \(N x C x H x W\), got shape \(4, 5\)"),
        ({"x": torch.ones(1, 4, 5, 5).int()}, TypeError, "x must be float32, float16, bfloat16 or float64"),
        ({"weight": torch.ones(4, 3, 3, 3)}, ValueError, "weight must have 2 input channels"),
        ({"weight": torch.ones(4, 3, 3, 3), "groups": 4}, ValueError, r"must have 1 input channel for .* 4 groups,"),
        ({"weight": torch.ones(4, 3, 3, 3), "groups": 1}, ValueError, r"must have 4 input channels .* in 1 group,"),
        ({"weight": torch.ones(1, 2, 3, 3)}, ValueError, "groups must divide the 1 filter of weight, got 2"),
        ({"x": torch.ones(1, 1, 5, 5)}, ValueError, "groups must divide the 1 channel of x, got 2"),
        ({"weight": torch.ones(1, 4, 3, 3), "groups": 1, "bias": torch.ones(3)}, ValueError, "bias must have 1 value "),
        ({"weight": torch.ones(3, 2, 3, 3)}, ValueError, "groups must divide the 3 filters of weight, got 2"),
        ({"weight": torch.ones(4, 2, 3, 3).double()}, TypeError, r"weight must have the dtype of x, torch\.float32"),
        ({"weight": torch.ones(4, 2, 3, 3, device="meta")}, ValueError, "weight must be on the device of x"),
        ({"weight": torch.ones(4, 2, 9, 3)}, ValueError, "x's padded height must be at least the kernel's, 9, got 5"),
        ({"weight": torch.ones(4, 2, 3, 9)}, ValueError, "x's padded width must be at least the kernel's, 9, got 5"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must have 4 values \(one per filter\), got 3"),
        ({"bias": torch.ones(4).double()}, TypeError, r"bias must have the dtype of x, torch\.float32"),
        ({"bias": torch.ones(4, device="meta")}, ValueError, "bias must be on the device of x"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride must be an int or a pair of ints, got float"),
        ({"stride": True}, TypeError, "stride must be an int or a pair of ints, got bool: True"),
        ({"weight": torch.ones(4, 2, 0, 3)}, ValueError, "x's padded height must be at least the kernel's, 0, got 5"),
        ({"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": (0, 0, 0, -1)}, ValueError, "padding must be at least 0, got -1"),
        ({"padding": "full"}, ValueError, r"padding must be an int, .* or \"same\", got 'full'"),
        ({"padding": 1.0}, TypeError, r"padding must be an int, .* or \"same\", got float: 1.0"),
        ({"padding": (1, 2, 3)}, ValueError, r"padding must be an int, \(h, w\), \(top, bottom, left, right\), "),
        ({"groups": 3}, ValueError, "groups must divide the 4 channels of x, got 3"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"relu": None}, TypeError, "relu must be True or False, got NoneType: None"),
        ({"gradient_sink": 3}, TypeError, "gradient_sink must be a GradientSink or None, got int"),
        ({"gradient_sink": []}, TypeError, "gradient_sink must be a GradientSink or None, got list"),
        ({"groups": 2.0}, TypeError, "groups must be an int, got float: 2.0"),
    ],
)
def test_bad_arguments_are_named(changes: dict, error: type, message: str) -> None:
    given_arguments = {"x": torch.ones(1, 4, 5, 5), "weight": torch.ones(4, 2, 3, 3), "groups": 2} | changes
    with kernels.using("reference"), pytest.raises(error, match=message):
        kernels.conv2d_relu(**given_arguments)


def test_an_image_too_large_for_32_bits_is_refused() -> None:
    x, weight = torch.ones(1, 1, 2, 2, device=DEVICE), torch.ones(1, 1, 1, 1, device=DEVICE)
    with kernels.using("triton"), pytest.raises(ValueError, match="x must have at most 2147418112 elements per padded"):
        kernels.conv2d_relu(x, weight, padding=2**15)


@pytest.mark.usefixtures("no_copies")
@pytest.mark.parametrize(
    ("filters", "side", "kernel", "what"),
    [(2**15, 2**8, 1, "the result must have at most 2147418112 elements per padded image"),
     (2**16, 2**4, 2**4, "weight must have at most 2147418112 elements")],
)  # fmt: skip
def test_a_result_or_a_weight_too_large_for_32_bits_is_refused(filters: int, side: int, kernel: int, what: str) -> None:
    one = torch.ones(1, 1, 1, 1, device=DEVICE)
    x, weight = one.expand(1, 2**7, side, side), one.expand(filters, 2**7, kernel, kernel)
    with kernels.using("triton"), pytest.raises(ValueError, match=what):
        kernels.conv2d_relu(x, weight)
