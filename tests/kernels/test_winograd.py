"""Convolution by minimal filtering on a CPU, forward and backward, against the definition in fp64."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    TRANSFORMED_TOLERANCES,
    check_close,
    examples,
    gradient_layouts,
    laid_out,
    saved_bytes,
    seeds,
    using,
)
from hypothesis import assume, given
from torch import Tensor

import kernels
from kernels import arguments, native_c, winograd

# Transforms in C, which are those of fp32, and in PyTorch.
IMPLEMENTATIONS = ["native", "native in PyTorch"]
# Kernel and stride: those that make three or five taps of stride 1.
SHAPES = [(3, 1), (5, 1), (11, 4), (12, 4), (9, 4), (5, 2), (6, 2), (9, 2), (15, 3)]
# The layers of the 2012 network: channels, side, filters, kernel, stride, padding, groups.
ALEXNET = [
    (3, 224, 96, 11, 4, (0, 3, 0, 3), 1),
    (96, 27, 256, 5, 1, (2, 2, 2, 2), 2),
    (256, 13, 384, 3, 1, (1, 1, 1, 1), 1),
    (384, 13, 384, 3, 1, (1, 1, 1, 1), 2),
    (384, 13, 256, 3, 1, (1, 1, 1, 1), 2),
]


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return laid_out(values.to(dtype), "channels_last" if len(shape) == 4 else "nchw")


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: tuple[int, int, int, int], groups: int,
    relu: bool, gradient_layout: str = "channels_last",
) -> None:  # fmt: skip
    """Result and gradients against the definition."""
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    ours = [tensor.detach().requires_grad_() for tensor in tensors]
    y = winograd.conv2d_relu(*ours[:2], ours[2] if bias is not None else None, stride, sides, groups, relu=relu)
    grad = laid_out(random(y.shape, 9, x.dtype), gradient_layout)
    found = [y.detach(), *torch.autograd.grad(y, ours, grad)]
    # The ReLU's sign is taken from the result itself: near 0 it is a matter of rounding.
    grad_z = grad.double() * (y > 0) if relu else grad.double()
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with kernels.using("reference"):
        z = kernels.conv2d_relu(*wide, stride=stride, padding=sides, groups=groups, relu=False)
    wanted = [z.detach().relu() if relu else z.detach(), *torch.autograd.grad(z, wide, grad_z)]
    for mine, theirs, what in zip(found, wanted, ("the result", "grad_x", "grad_weight", "grad_bias"), strict=False):
        assert mine.dtype == x.dtype, what
        check_close(mine, theirs, x.dtype, what, tolerances=TRANSFORMED_TOLERANCES)
    assert y.is_contiguous(memory_format=torch.channels_last)
    # The optimizer's fast path wants gradients in their weights' layout.
    assert found[2].stride() == weight.stride()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@examples(60)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 30), st.integers(1, 30)),
    st.integers(1, 5),
    st.sampled_from(SHAPES),
    st.tuples(*[st.integers(0, 6)] * 4),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    gradient_layouts,
    st.sampled_from([0.01, 1.5, 100]),
    seeds,
)
def test_result_and_gradients_are_the_definitions(
    implementation,
    shape,
    filters,
    kernel,
    sides,
    groups,
    with_bias,
    relu,
    dtype,
    gradient_layout,
    tiles_per_channel,
    seed,
):
    batch, depth, height, width = shape
    size, stride = kernel
    top, bottom, left, right = sides
    assume(height + top + bottom >= size and width + left + right >= size)
    x = random((batch, depth * groups, height, width), seed, dtype)
    weight = random((filters * groups, depth, size, size), seed + 1, dtype)
    bias = random((filters * groups,), seed + 2, dtype) if with_bias else None
    with pytest.MonkeyPatch.context() as patch, using(implementation):
        patch.setattr(winograd, "_TILES_PER_CHANNEL", tiles_per_channel)
        check(x, weight, bias, stride, sides, groups, relu, gradient_layout)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("images_are_shared_out", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_three_threads_make_what_one_makes(
    monkeypatch: pytest.MonkeyPatch, threads: None, batch: int, images_are_shared_out: bool
) -> None:
    """Each all steps of its own images, or a part of each step."""
    monkeypatch.setattr(winograd, "_MOST_WEIGHTS_OF_EACH_THREAD", 2**20 if images_are_shared_out else 0)
    shared = []
    share_out = native_c.share_out
    monkeypatch.setattr(native_c, "share_out", lambda *a: shared.append(1) or share_out(*a))
    torch.set_num_threads(3)
    x, weight = random((batch, 6, 13, 11), 0, torch.float32), random((8, 3, 3, 3), 1, torch.float32)
    with using("native"):
        check(x, weight, random((8,), 2, torch.float32), 1, (1, 1, 1, 1), 2, relu=True)
        assert len(shared) == 2 * images_are_shared_out
        with torch.inference_mode():
            y = winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 2, relu=True)
    assert y.is_inference()
    with using("native in PyTorch"):
        shared.clear()
        check(x, weight, random((8,), 2, torch.float32), 1, (1, 1, 1, 1), 2, relu=True)
    assert not shared


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layer", ALEXNET)
def test_the_networks_own_layers(implementation: str, layer: tuple) -> None:
    channels, side, filters, kernel, stride, sides, groups = layer
    x = random((8, channels, side, side), 0, torch.float32).relu_()
    weight = random((filters, channels // groups, kernel, kernel), 1, torch.float32, 0.1)
    assert winograd.pays(x, weight, stride, sides)
    with using(implementation):
        check(x, weight, random((filters,), 2, torch.float32), stride, sides, groups, relu=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_part_of_a_larger_tensor(implementation: str) -> None:
    x = random((3, 4, 9, 12), 0, torch.float32)[:, :, 1:, ::2]
    weight = random((6, 4, 3, 3), 1, torch.float32)
    with using(implementation):
        check(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True, gradient_layout="sliced")


@pytest.mark.parametrize("kernel", SHAPES)
def test_gradients(kernel: tuple[int, int]) -> None:
    size, stride = kernel
    x, weight = random((2, 2, 17, 15), 0, torch.float64), random((4, 1, size, size), 1, torch.float64, 0.2)
    inputs = [x.requires_grad_(), weight.requires_grad_(), random((4,), 2, torch.float64).requires_grad_()]
    for relu in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, weight, bias, relu=relu: winograd.conv2d_relu(
                x, weight, bias, stride, (0, 3, 1, 2), 2, relu=relu
            ),
            inputs,
            fast_mode=True,
        )


def test_the_native_path_takes_it_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    run = winograd.conv2d_relu
    monkeypatch.setattr(winograd, "conv2d_relu", lambda *a, **k: taken.append(1) or run(*a, **k))
    x, weight = random((8, 32, 13, 13), 0, torch.float32), random((32, 32, 3, 3), 1, torch.float32)

    def takes(x: Tensor, weight: Tensor, **options) -> bool:
        taken.clear()
        with kernels.using("native"):
            kernels.conv2d_relu(x, weight, padding=1, **options)
        return bool(taken)

    assert takes(x, weight)
    assert takes(x.double(), weight.double())
    assert not takes(x.contiguous(), weight)
    assert not takes(x.half(), weight.half())
    assert not takes(x[:1], weight)
    assert not takes(x[:, :16].contiguous(memory_format=torch.channels_last), weight[:, :16])
    assert not takes(x, weight[:16])
    assert not takes(x, weight, stride=2)
    assert not takes(x, weight[:, :, :2, :2])
    assert not takes(x, weight[:, :, :, :2])
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(x, weight)


def test_only_input_weight_and_result_are_kept() -> None:
    x = random((4, 32, 13, 13), 0, torch.float32).requires_grad_()
    weight, bias = random((32, 32, 3, 3), 1, torch.float32).requires_grad_(), torch.ones(32, requires_grad=True)
    sides = arguments.four_sided(1)
    for relu, result in ((True, 4 * 32 * 13 * 13 * 4), (False, 0)):
        kept = saved_bytes(lambda relu=relu: winograd.conv2d_relu(x, weight, bias, 1, sides, 1, relu=relu))
        assert kept == x.nbytes + weight.nbytes + result


def test_unneeded_gradients_are_left_out_and_repeats_are_equal() -> None:
    x, weight = random((4, 3, 9, 9), 0, torch.float32), random((6, 3, 3, 3), 1, torch.float32)
    y = winograd._forward(x, weight, None, 1, [1] * 4, 1, False)
    whole = winograd._backward(y, x, weight, None, 1, [1] * 4, 1, [True] * 3)
    for index in range(3):
        needs = [place == index for place in range(3)]
        alone = winograd._backward(y, x, weight, None, 1, [1] * 4, 1, needs)
        assert [gradient.numel() > 0 for gradient in alone] == needs
        assert torch.equal(alone[index], whole[index])


def test_compiles_into_one_graph() -> None:
    x = random((4, 32, 13, 13), 0, torch.float32).requires_grad_()
    weight, bias = random((32, 16, 3, 3), 1, torch.float32).requires_grad_(), torch.ones(32, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return winograd.conv2d_relu(x * 2, weight, bias, 1, (1, 1, 1, 1), 2, relu=True) + 1

    y, wanted = torch.compile(function, fullgraph=True)(x, weight, bias), function(x, weight, bias)
    torch.testing.assert_close(y, wanted)
    found, expected = (torch.autograd.grad(z.square().sum(), (x, weight, bias)) for z in (y, wanted))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kernel", SHAPES)
@pytest.mark.parametrize("within_backward", [False, True])
@pytest.mark.parametrize("puts_off", [False, True])
def test_the_micro_batches_of_a_step_share_what_is_made_of_weights(
    monkeypatch: pytest.MonkeyPatch, implementation: str, kernel: tuple[int, int], within_backward: bool, puts_off: bool
) -> None:
    """Each is transformed once a step, forward as well as back, and the next step has its own weights."""
    made = []
    for name in ("of_weights", "weight_gradient"):
        run = getattr(winograd._Filters, name)
        monkeypatch.setattr(winograd._Filters, name, lambda *a, name=name, run=run: made.append(name) or run(*a))
    size, stride = kernel
    options = (stride, (0, 3, 1, 2), 2)
    x = random((5, 4, 17, 15), 0, torch.float32).requires_grad_()
    weight, bias = random((6, 2, size, size), 1, torch.float32, 0.2), random((6,), 2, torch.float32)
    kept = kernels.KeptTransforms(2 if within_backward else None)
    put_off: list = []
    with using(implementation):
        for step in range(2):
            leaves = [(weight * (step + 1)).requires_grad_(), bias.clone().requires_grad_()]
            x.grad = None
            wide = [tensor.detach().double().requires_grad_() for tensor in (x, *leaves)]
            y = winograd.conv2d_relu(*wide, *options, relu=True)
            wanted = torch.autograd.grad(y.square().sum(), wide)
            made.clear()
            kept.begin()
            for part in x.split(3):  # the last one is smaller
                y = winograd.conv2d_relu(
                    part, *leaves, *options, relu=True, put_off=put_off if puts_off else None, kept=kept
                )
                y.square().sum().backward()
            later = [make() for make in put_off]
            put_off.clear()
            assert len(later) == 2 * puts_off
            assert kept.in_use != within_backward
            found = kept.take()
            assert (found is None) == within_backward
            if within_backward:
                assert later[:-1] == [None] * puts_off
                found = later[-1] if puts_off else leaves[0].grad
            assert made == ["of_weights", "weight_gradient"]
            assert found.stride() == weight.stride()
            for mine, theirs, what in zip((x.grad, found, leaves[1].grad), wanted, "xwb", strict=True):
                check_close(mine, theirs, torch.float32, what, tolerances=TRANSFORMED_TOLERANCES)
    assert kept.take() is None


def test_a_weight_without_a_gradient_leaves_nothing_to_take() -> None:
    x, weight = random((2, 3, 9, 9), 0, torch.float32).requires_grad_(), random((4, 3, 3, 3), 1, torch.float32)
    kept = kernels.KeptTransforms()
    kept.begin()
    winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True, kept=kept).sum().backward()
    assert kept.take() is None
    assert x.grad is not None


def test_registered_operators_keep_pytorchs_rules() -> None:
    x, weight, bias = random((2, 4, 7, 6), 0, torch.float32), random((4, 2, 3, 3), 1, torch.float32), torch.ones(4)
    options = (1, [1, 0, 0, 1], 2)
    torch.library.opcheck(torch.ops.fastalex.winograd_forward, (x, weight, bias, *options, True))
    y = torch.ops.fastalex.winograd_forward(x, weight, bias, *options, True)
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.fastalex.winograd_backward, (y, x, weight, y, *options, needs))
