"""Convolution with bias and ReLU, forward and backward, against PyTorch's convolution in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    check_close,
    dtype_for,
    dtypes,
    ends_of_grids,
    examples,
    gradient_layouts,
    laid_out,
    layouts,
    random_tensor,
    saved_bytes,
    seeds,
    uninitialised,
)
from hypothesis import assume, given
from torch import Tensor

import kernels
from kernels import arguments, conv_relu, conv_settings, launch
from kernels.conv_settings import Direction, Problem, Settings

# The layers of the 2012 network: channels, side, filters, kernel, stride, padding, groups.
ALEXNET = [
    (3, 224, 96, 11, 4, (0, 3, 0, 3), 1),
    (96, 27, 256, 5, 1, 2, 2),
    (256, 13, 384, 3, 1, 1, 1),
    (384, 13, 384, 3, 1, 1, 2),
    (384, 13, 256, 3, 1, 1, 2),
]


@pytest.fixture
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's convolutions in fp32 keep all bits of their factors, so that fp32's tolerance holds."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def launched_with(settings: Settings | None) -> Iterator[None]:
    """All three products take these settings; with None, those that the heuristic chooses."""
    heuristic = conv_settings.heuristic

    def chosen(direction: Direction, problem: Problem) -> Settings:
        return heuristic(direction, problem) if settings is None else settings

    conv_settings.heuristic = chosen
    conv_settings.choose.cache_clear()
    try:
        yield
    finally:
        conv_settings.heuristic = heuristic
        conv_settings.choose.cache_clear()


def check_sums(found: Tensor, wanted: Tensor, magnitude: Tensor, terms: int, work: torch.dtype, what: str) -> None:
    """`found` is the fp64 `wanted` up to the rounding of sums of `terms` products, of absolute sum `magnitude`.

    A sum of n products, each operation rounded by u, is off by n * u * (sum of their absolute values) at the most;
    rounding the result adds its own half unit in the last place. TF32 rounds both factors to 11 bits before.
    """
    assert found.shape == wanted.shape, what
    allowed = (terms + 2) * torch.finfo(work).eps * magnitude + torch.finfo(found.dtype).eps * wanted.abs()
    # Results below the normal numbers have a fixed precision.
    allowed += torch.finfo(found.dtype).smallest_normal
    if DEVICE == "cuda" and found.dtype == torch.float32:
        allowed += 2**-9 * magnitude
    excess = ((found.double() - wanted).abs() - allowed).max() if wanted.numel() else torch.tensor(0.0)
    assert excess <= 0, f"{what}: {float(excess):.1e} more than {terms} terms of {found.dtype} explain"


def check_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding, groups: int, relu: bool, gradient_layout: str,
    seed: int, work: torch.dtype,
) -> None:  # fmt: skip
    """Result and gradients of the implementation in use, which accumulates in `work`."""
    ours = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = kernels.conv2d_relu(*ours, stride, padding, groups, relu=relu)
    grad = laid_out(random_tensor(y.shape, seed + 3, x.dtype), gradient_layout)
    y.backward(grad)
    # The ReLU's sign is taken from the result itself: near 0 it is a matter of rounding.
    grad_z = grad.double() * (y > 0) if relu else grad.double()

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
        inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
        top, bottom, left, right = arguments.four_sided(padding)
        z = F.conv2d(F.pad(inputs[0], (left, right, top, bottom)), *inputs[1:], stride=stride, groups=groups)
        return [z.detach(), *torch.autograd.grad(z, inputs, grad)]

    wanted = linear(x, weight, bias, grad_z)
    magnitudes = linear(x.abs(), weight.abs(), None if bias is None else bias.abs(), grad_z.abs())
    wanted[0] = wanted[0].relu() if relu else wanted[0]
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    found = [y.detach(), *(t.grad for t in ours if t is not None)]
    terms = [weight[0].numel(), weight.numel() // weight.shape[1], pixels, pixels]
    names = ["the result", "grad_x", "grad_weight", "grad_bias"]
    for values in zip(found, wanted, magnitudes, terms, names, strict=False):
        check_sums(*values[:4], work, values[4])
    assert y.dtype == x.dtype


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
    bias = random_tensor((count * groups,), seed + 2, dtype) if with_bias else None
    # PyTorch may accumulate in half precision on a CPU.
    half = dtype in (torch.float16, torch.bfloat16)
    work = torch.float32 if half and implementation == "triton" else dtype
    with kernels.using(implementation), launched_with(settings):
        check_convolution(x, weight, bias, stride, padding, groups, relu, gradient_layout, seed, work)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("rearranged", [True, False])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "stride", "padding", "groups"),
    [
        ((2, 3, 19, 22), 4, (11, 11), 4, (0, 3, 0, 3), 1),
        ((1, 6, 9, 8), 4, (4, 3), 2, (1, 0, 2, 1), 2),
        ((2, 9, 7, 11), 3, (3, 6), 3, (2, 2, 0, 1), 3),
        # The last rows and columns are in no window.
        ((1, 1, 12, 11), 2, (4, 4), 4, (0, 0, 0, 0), 1),
    ],
)
def test_squares_of_pixels_may_become_channels(
    shape, filters, kernel, stride, padding, groups, rearranged, dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the heuristic has it, and the same convolutions from pixels as they are."""
    x = laid_out(random_tensor(shape, 0, dtype), "channels_last")
    weight = laid_out(random_tensor((filters, shape[1] // groups, *kernel), 1, dtype), "channels_last")
    made, make = [], conv_relu._space_to_depth
    monkeypatch.setattr(conv_relu, "_space_to_depth", lambda *a: made.append(make(*a)) or made[-1])
    settings = None if rearranged else Settings(16, 16, 16, 4, 1, splits=2)
    bias = random_tensor((filters,), 2, dtype)
    work = torch.float32 if dtype == torch.float16 else dtype
    with kernels.using("triton"), launched_with(settings):
        check_convolution(x, weight, bias, stride, padding, groups, True, "channels_last", 0, work)
    assert len(made) == 2 * rearranged  # forward, and the weight's gradient


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 0, 0), (0, 3, 0, 3)])
def test_the_librarys_products_get_the_same_bias_and_relu(relu: bool, padding: tuple[int, ...]) -> None:
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


def test_bias_and_relu_reach_beyond_2_to_the_31_items() -> None:
    """The first program of a launch for more items than 32 bits count; what it writes is all that is there."""
    y, bias = random_tensor((launch.ITEMS // 16, 16), 0, torch.float32), random_tensor((16,), 1, torch.float32)
    wanted = (y + bias).relu()
    conv_relu.bias_relu_fwd_kernel[(1,)](
        y, bias, 2**29, FILTERS=16, HAS_BIAS=True, RELU=True, ITEMS=launch.ITEMS, VECTOR=1, **launch.OPTIONS
    )
    assert torch.equal(y, wanted)


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
                lambda x, weight, bias, relu=relu: kernels.conv2d_relu(x, weight, bias, 2, (0, 2, 1, 0), 2, relu=relu),
                (x, weight, bias),
                fast_mode=True,
            )


def test_only_input_weight_and_result_are_kept() -> None:
    x = laid_out(random_tensor((2, 3, 9, 9), 0, torch.float32), "channels_last").requires_grad_()
    weight = random_tensor((8, 3, 3, 3), 1, torch.float32).requires_grad_()
    bias = random_tensor((8,), 2, torch.float32).requires_grad_()
    with kernels.using("triton"):
        for relu, result in ((True, 2 * 8 * 7 * 7 * 4), (False, 0)):
            kept = saved_bytes(lambda relu=relu: kernels.conv2d_relu(x, weight, bias, relu=relu))
            assert kept == x.nbytes + weight.nbytes + result


def test_an_unneeded_gradient_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = random_tensor((1, 3, 5, 5), 0, torch.float32), random_tensor((4, 3, 3, 3), 1, torch.float32)
    done = []
    for name in ("_run_backward_data", "_run_backward_weight"):
        run = getattr(conv_relu, name)
        monkeypatch.setattr(conv_relu, name, lambda *a, name=name, run=run: done.append(name) or run(*a))
    with kernels.using("triton"):
        # The first layer's: images need no gradient.
        kernels.conv2d_relu(x, weight.requires_grad_()).sum().backward()
        assert done == ["_run_backward_weight"]
        kernels.conv2d_relu(x.requires_grad_(), weight.detach()).sum().backward()
        assert done == ["_run_backward_weight", "_run_backward_data"]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("implementation", "channels", "puts_off"),
    [("triton", 4, True), ("native", 32, DEVICE == "cpu"), ("native", 4, False)],
)
def test_a_weight_gradient_can_be_put_off(implementation: str, channels: int, puts_off: bool, relu: bool) -> None:
    """The native path computes 32 channels on a CPU by minimal filtering; else PyTorch's operator puts nothing off."""
    size = 32 if channels == 32 else 5
    x = laid_out(random_tensor((2, channels, size, size), 0, torch.float32), "channels_last").requires_grad_()
    weight = random_tensor((channels, channels, 3, 3), 1, torch.float32).requires_grad_()
    bias = random_tensor((channels,), 2, torch.float32).requires_grad_()
    with kernels.using(implementation):
        wanted = torch.autograd.grad(
            kernels.conv2d_relu(x, weight, bias, 1, 1, relu=relu).square().sum(), (x, weight, bias)
        )
        sink = kernels.GradientSink(defer=True)
        for _ in range(2):
            kernels.conv2d_relu(x, weight, bias, 1, 1, relu=relu, gradient_sink=sink).square().sum().backward()
    assert sink.has_deferred == puts_off
    torch.testing.assert_close((x.grad, bias.grad), (2 * wanted[0], 2 * wanted[2]))
    if puts_off:
        assert weight.grad is None
        torch.testing.assert_close(sink.finish(), 2 * wanted[1])
    else:
        torch.testing.assert_close(weight.grad, 2 * wanted[1])
    with kernels.using(implementation):
        kernels.conv2d_relu(x, weight.detach(), bias, 1, 1, relu=relu, gradient_sink=sink).sum().backward()
    assert not sink.has_deferred  # the weight needs no gradient


def test_the_choice_made_in_forward_holds_in_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_relu, "_library_backward", lambda *_: pytest.fail("the library was called"))
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


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_compiles_into_one_graph(implementation: str) -> None:
    x = laid_out(random_tensor((1, 4, 5, 5), 0, torch.float32), "channels_last").requires_grad_()
    weight = random_tensor((4, 2, 3, 3), 1, torch.float32).requires_grad_()
    bias = random_tensor((4,), 2, torch.float32).requires_grad_()

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.conv2d_relu(x * 2, weight, bias, 2, (0, 1, 1, 0), 2) + 1

    with kernels.using(implementation):
        y = torch.compile(function, fullgraph=True)(x, weight, bias)
        wanted = function(x, weight, bias)
        expected = torch.autograd.grad(wanted.sum(), (x, weight, bias))
        found = torch.autograd.grad(y.sum(), (x, weight, bias))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(found, expected)


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
        ({"x": torch.ones(4, 5, 5)}, ValueError, r"x must have 4 dimensions \(N x C x H x W\), not shape \(4, 5, 5\)"),
        ({"x": torch.ones(1, 4, 5, 5).int()}, TypeError, "x must be float32, float16, bfloat16 or float64"),
        ({"weight": torch.ones(4, 3, 3, 3)}, ValueError, "weight must have 2 input channels"),
        ({"weight": torch.ones(4, 3, 3, 3), "groups": 4}, ValueError, r"must have 1 input channel for .* 4 groups,"),
        ({"weight": torch.ones(4, 3, 3, 3), "groups": 1}, ValueError, r"must have 4 input channels .* in 1 group,"),
        ({"weight": torch.ones(1, 2, 3, 3)}, ValueError, "groups must divide the 1 filter of weight, not 2"),
        ({"x": torch.ones(1, 1, 5, 5)}, ValueError, "groups must divide the 1 channel of x, not 2"),
        ({"weight": torch.ones(1, 4, 3, 3), "groups": 1, "bias": torch.ones(3)}, ValueError, "bias must have 1 value "),
        ({"weight": torch.ones(3, 2, 3, 3)}, ValueError, "groups must divide the 3 filters of weight, not 2"),
        ({"weight": torch.ones(4, 2, 3, 3).double()}, TypeError, r"weight must have the dtype of x, torch\.float32"),
        ({"weight": torch.ones(4, 2, 3, 3, device="meta")}, ValueError, "weight must be on the device of x"),
        ({"weight": torch.ones(4, 2, 9, 3)}, ValueError, "x's padded height must be at least the kernel's, 9, not 5"),
        ({"weight": torch.ones(4, 2, 3, 9)}, ValueError, "x's padded width must be at least the kernel's, 9, not 5"),
        ({"bias": torch.ones(3)}, ValueError, r"bias must have 4 values \(one per filter\), not 3"),
        ({"bias": torch.ones(4).double()}, TypeError, r"bias must have the dtype of x, torch\.float32"),
        ({"bias": torch.ones(4, device="meta")}, ValueError, "bias must be on the device of x"),
        ({"stride": 0}, ValueError, "stride must be at least 1, not 0"),
        ({"stride": 1.5}, TypeError, "stride must be an int, not float"),
        ({"padding": -1}, ValueError, "padding must be at least 0, not -1"),
        ({"padding": (0, 0, 0, -1)}, ValueError, "padding must be at least 0, not -1"),
        ({"padding": "same"}, TypeError, r"padding must be an int, \(h, w\) or \(top, .*\), not str: 'same'"),
        ({"padding": 1.0}, TypeError, r"padding must be an int, \(h, w\) or \(top, .*\), not float: 1.0"),
        ({"padding": (1, 2, 3)}, ValueError, r"padding must be an int, \(h, w\) or \(top, bottom, left, right\)"),
        ({"groups": 3}, ValueError, "groups must divide the 4 channels of x, not 3"),
        ({"groups": 0}, ValueError, "groups must be at least 1, not 0"),
        ({"relu": None}, TypeError, "relu must be True or False, not NoneType: None"),
        ({"gradient_sink": 3}, TypeError, "gradient_sink must be a GradientSink or None, not int"),
        ({"groups": 2.0}, TypeError, "groups must be an int, not float: 2.0"),
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


@pytest.mark.skipif(DEVICE != "cuda", reason="real sizes take hours in the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", ALEXNET)
def test_real_sizes(layer: tuple, dtype: torch.dtype) -> None:
    """Every setting that may be chosen on this GPU: the heuristic's for these shapes, and its table's."""
    channels, side, filters, kernel, stride, padding, groups = layer
    for batch in (128, 96, 1):
        x = laid_out(random_tensor((batch, channels, side, side), 0, dtype), "channels_last")
        weight = laid_out(random_tensor((filters, channels // groups, kernel, kernel), 1, dtype, 0.1), "channels_last")
        bias = random_tensor((filters,), 2, dtype)
        with kernels.using("triton"):
            check_convolution(x, weight, bias, stride, padding, groups, True, "channels_last", 0, torch.float32)


@pytest.mark.skipif(DEVICE != "cuda", reason="a table belongs to a GPU")
def test_every_setting_of_this_gpus_table() -> None:
    table = conv_settings.load_table(conv_settings.table_path(torch.cuda.get_device_name()))
    for direction, problem in table:
        assert conv_settings.choose(direction, problem, torch.cuda.get_device_name(), True) is not None
        dtype = getattr(torch, problem.dtype)
        shape = (problem.batch, problem.channels, problem.height, problem.width)
        x = laid_out(random_tensor(shape, 0, dtype), "channels_last")
        weight = random_tensor((problem.filters, problem.channels // problem.groups, *problem.kernel), 1, dtype, 0.1)
        bias = random_tensor((problem.filters,), 2, dtype) if problem.epilogue else None
        tf32 = problem.precision == "tf32"
        with kernels.using("triton"), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            check_convolution(
                x,
                weight,
                bias,
                problem.stride,
                problem.padding,
                problem.groups,
                problem.epilogue,
                "channels_last",
                0,
                torch.float32,
            )


@pytest.mark.skipif(DEVICE != "cuda", reason="needs 8 GB of a GPU's memory")
def test_more_than_2_to_the_31_elements() -> None:
    x = random_tensor((8, 3, 224, 224), 0, torch.bfloat16).repeat(1024, 1, 1, 1)
    x = x.to(memory_format=torch.channels_last)
    weight = random_tensor((96, 3, 11, 11), 1, torch.bfloat16, 0.1)
    with kernels.using("triton"):
        y = kernels.conv2d_relu(x, weight, None, 4, (0, 3, 0, 3))
        few = kernels.conv2d_relu(x[:8], weight, None, 4, (0, 3, 0, 3))
    assert y.numel() > 2**31
    assert torch.equal(y[-8:], few)


@pytest.mark.parametrize("stride", [1, 2])
def test_offsets_pass_32_bits(stride: int) -> None:
    """The first and the last image of a large batch are computed as if alone; no sums over all images are asked for."""
    images = 2**31 // (16 * 3 * 3) + 2
    image, grad_image = (
        random_tensor((1, 16, size, size), 0, torch.float16).to(memory_format=torch.channels_last)
        for size in (2 * stride + 1, 3)
    )
    weight = random_tensor((16, 16, 3, 3), 1, torch.float16, 0.1)

    def result_and_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        with kernels.using("triton"), ends_of_grids(8):
            y = kernels.conv2d_relu(x, weight, None, stride, 1, relu=False)
            return y.detach(), torch.autograd.grad(y, x, grad)[0]

    alone = result_and_gradient(image.clone(), grad_image)
    x, grad = (uninitialised((images, *one.shape[1:]), "channels_last", one.dtype) for one in (image, grad_image))
    x[0] = x[-1] = image[0]
    grad[0] = grad[-1] = grad_image[0]
    for many, single in zip(result_and_gradient(x, grad), alone, strict=True):
        assert many.numel() > 2**31
        assert torch.equal(many[0], single[0])
        assert torch.equal(many[-1], single[0])
