"""Winograd convolution, forward and backward, against the definition in fp64."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    TRANSFORMED_TOLERANCES,
    called_c_functions,
    check_close,
    dtype_for,
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
from kernels import GradientSink, arguments
from kernels.native import c_functions, winograd, winograd_tiles, winograd_transforms

# Maps transformed in C (fp32 only), and in PyTorch. All tensors are on the CPU, also where there is a GPU.
IMPLEMENTATIONS = ["native in C", "native in PyTorch"]
# Kernel size and stride whose filters have 3 x 3 or 5 x 5 cells.
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
    """Compare result and gradients with the definition."""
    tensors = [tensor for tensor in (x, weight, bias) if tensor is not None]
    ours = [tensor.detach().requires_grad_() for tensor in tensors]
    y = winograd.conv2d_relu(*ours[:2], ours[2] if bias is not None else None, stride, sides, groups, relu=relu)
    grad = laid_out(random(y.shape, 9, x.dtype), gradient_layout)
    found = [y.detach(), *torch.autograd.grad(y, ours, grad)]
    # The ReLU's mask is taken from our own result: near 0 the sign depends on rounding.
    grad_z = grad.double() * (y > 0) if relu else grad.double()
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    with kernels.using("reference"):
        z = kernels.conv2d_relu(*wide, stride=stride, padding=sides, groups=groups, relu=False)
    wanted = [z.detach().relu() if relu else z.detach(), *torch.autograd.grad(z, wide, grad_z)]
    # Rounding errors are relative to the values of a whole tile, and a window of it may hold nothing but padding.
    # So errors are relative to the largest result, or to one product of the largest factors if that is larger.
    largest_x, largest_weight, largest_grad = (tensor.detach().double().abs().max() for tensor in (x, weight, grad))
    checks = {
        "the result": largest_x * largest_weight,
        "grad_x": largest_grad * largest_weight,
        "grad_weight": largest_x * largest_grad,
        "grad_bias": largest_grad,
    }
    for mine, theirs, (what, least) in zip(found, wanted, checks.items(), strict=False):
        assert mine.dtype == x.dtype, what
        check_close(mine, theirs, x.dtype, what, theirs.abs().clamp(min=least), TRANSFORMED_TOLERANCES)
    assert y.is_contiguous(memory_format=torch.channels_last)
    # The optimizer's fast path needs gradients in the layout of their weights.
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
def test_result_and_gradients_match_the_definition(
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
    dtype = dtype_for(implementation, dtype)
    x = random((batch, depth * groups, height, width), seed, dtype)
    weight = random((filters * groups, depth, size, size), seed + 1, dtype)
    bias = random((filters * groups,), seed + 2, dtype) if with_bias else None
    with pytest.MonkeyPatch.context() as patch, using(implementation):
        patch.setattr(winograd_tiles, "TILES_PER_CHANNEL", tiles_per_channel)
        check(x, weight, bias, stride, sides, groups, relu, gradient_layout)


@pytest.mark.parametrize("threads_split_images", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_three_threads_compute_the_same_as_one(
    monkeypatch: pytest.MonkeyPatch, threads: None, batch: int, threads_split_images: bool
) -> None:
    """Each thread takes its own images through all steps, or a part of each step."""
    monkeypatch.setattr(winograd_tiles, "MAX_WEIGHTS_PER_THREAD", 2**20 if threads_split_images else 0)
    calls = []
    run_in_threads = c_functions.run_in_threads
    monkeypatch.setattr(c_functions, "run_in_threads", lambda *a: calls.append(1) or run_in_threads(*a))
    torch.set_num_threads(3)
    x, weight = random((batch, 6, 13, 11), 0, torch.float32), random((8, 3, 3, 3), 1, torch.float32)
    with using("native in C"):
        check(x, weight, random((8,), 2, torch.float32), 1, (1, 1, 1, 1), 2, relu=True)
        assert len(calls) == 2 * threads_split_images
        with torch.inference_mode():
            y = winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 2, relu=True)
    assert y.is_inference()
    with using("native in PyTorch"):
        calls.clear()
        check(x, weight, random((8,), 2, torch.float32), 1, (1, 1, 1, 1), 2, relu=True)
    assert not calls


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layer", ALEXNET)
def test_alexnets_layers(implementation: str, layer: tuple) -> None:
    channels, side, filters, kernel, stride, sides, groups = layer
    x = random((8, channels, side, side), 0, torch.float32).relu_()
    weight = random((filters, channels // groups, kernel, kernel), 1, torch.float32, 0.1)
    assert winograd.is_faster(x, weight, stride, sides)
    with using(implementation):  # two images, because the definition in fp64 takes long
        check(x[:2], weight, random((filters,), 2, torch.float32), stride, sides, groups, relu=True)


# Errors of result, input's gradient and weight's gradient relative to their norms, by the side of the filters. With the
# points 0, 1, -1, 2, -2, those of 3 x 3 would be 2.5, 3.0 and 2.1 %. The direct way has 0.2 %.
BF16_ERRORS = {3: (0.020, 0.024, 0.020), 5: (0.052, 0.060, 0.052)}


@pytest.mark.parametrize(("images", "layer"), [(5, layer) for layer in ALEXNET[1:]])
def test_the_errors_of_bf16(images: int, layer: tuple) -> None:
    """Of one layer, against exact sums of the same rounded factors. Five images are an incomplete mosaic."""
    channels, side, filters, kernel, stride, sides, groups = layer
    x = random((images, channels, side, side), 0, torch.bfloat16).relu_()
    weight = random((filters, channels // groups, kernel, kernel), 1, torch.bfloat16, 0.1)
    grad = random((images, filters, side, side), 2, torch.bfloat16)
    bias = random((filters,), 3, torch.bfloat16)
    with using("native in C"):
        y = winograd._forward(x, weight, None, stride, list(sides), groups, False)
        found = winograd._backward(grad, x, weight, None, stride, list(sides), groups, [True, True, True])
        biased = winograd._forward(x, weight, bias, stride, list(sides), groups, True)
    wide = [x.float().requires_grad_(), weight.float().requires_grad_()]
    with kernels.using("reference"):
        z = kernels.conv2d_relu(*wide, stride=stride, padding=sides, groups=groups, relu=False)
    wanted = [z.detach(), *torch.autograd.grad(z, wide, grad.float())]
    for mine, theirs, most in zip((y, *found), wanted, BF16_ERRORS[kernel], strict=False):
        assert (mine.float() - theirs).norm() <= most * theirs.norm()
    torch.testing.assert_close(found[2].float(), grad.float().sum((0, 2, 3)), rtol=0.01, atol=0.01)
    rounded = (z.detach() + bias.float().view(-1, 1, 1)).relu()
    assert (biased.float() - rounded).norm() <= BF16_ERRORS[kernel][0] * rounded.norm()


@pytest.mark.parametrize(("setting", "filtered"), [("minimal", True), ("direct", False)])
def test_bf16_is_filtered_under_torch_compile_too(
    setting: str, filtered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTALEX_BF16_CONV", setting)
    torch.compiler.reset()
    x, weight = random((8, 32, 13, 13), 0, torch.bfloat16), random((32, 32, 3, 3), 1, torch.bfloat16)
    compiled = torch.compile(lambda x, w: kernels.conv2d_relu(x, w, padding=1), fullgraph=True, backend="eager")
    with kernels.using("native"), called_c_functions() as called:
        found = compiled(x, weight)
        assert torch.equal(found, kernels.conv2d_relu(x, weight, padding=1))
    assert ("maps_to_tiles" in called) == filtered


def test_tiles_of_bf16_have_few_points() -> None:
    """Where larger ones would need fewer products; four maps share tiles where that needs fewer."""
    assert winograd_tiles.tile_grid(3, (55, 55), torch.float32) == (5, 1, (11, 11))
    assert winograd_tiles.tile_grid(3, (55, 55), torch.bfloat16) == (4, 1, (14, 14))
    assert winograd_tiles.tile_grid(3, (13, 13), torch.bfloat16, (14, 14)) == (4, 2, (7, 7))
    assert winograd_tiles.tile_grid(5, (27, 27), torch.bfloat16, (29, 29)) == (4, 1, (7, 7))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_slice_of_a_larger_tensor(implementation: str) -> None:
    x = random((3, 4, 9, 12), 0, torch.float32)[:, :, 1:, ::2]
    weight, bias = random((6, 4, 3, 3), 1, torch.float32), random((12,), 2, torch.float32)[::2]
    with using(implementation):
        check(x, weight, bias, 1, (1, 1, 1, 1), 1, relu=True, gradient_layout="sliced")


@pytest.mark.parametrize(
    ("implementation", "side"),
    [*(("native in PyTorch", side) for side in range(4, 9)), *(("native in C", side) for side in range(6, 9))],
)
@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (1, 0, 0, 1)])
def test_filters_of_two_cells(implementation: str, side: int, sides: tuple[int, int, int, int]) -> None:
    """4 x 4 pixels in cells of 2 x 2. No layer has them, but maps that are not whole tiles; native.c has no 1 x 1."""
    x, weight = random((2, 3, side, side + 1), 0, torch.float32), random((4, 3, 4, 4), 1, torch.float32)
    with using(implementation):
        check(x, weight, random((4,), 2, torch.float32), 2, sides, 1, relu=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible_and_in_its_image(implementation: str, special: float) -> None:
    x, weight = random((2, 3, 9, 9), 0, torch.float32), random((4, 3, 3, 3), 1, torch.float32)
    options = (random((4,), 2, torch.float32), 1, (1, 1, 1, 1), 1)
    with using(implementation):
        clean = winograd.conv2d_relu(x, weight, *options, relu=True)
        x[0, 1, 4, 5] = special
        y = winograd.conv2d_relu(x, weight, *options, relu=True)
    with kernels.using("reference"):
        wanted = kernels.conv2d_relu(x, weight, *options, relu=False)
    assert not y[~wanted.isfinite()].isfinite().any()
    assert torch.equal(y[1], clean[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_relus_gradient_passes_nan_and_stops_at_zero(implementation: str) -> None:
    x, weight = random((2, 3, 9, 9), 0, torch.float32), random((4, 3, 3, 3), 1, torch.float32)
    y, grad = random((2, 4, 7, 7), 2, torch.float32), random((2, 4, 7, 7), 3, torch.float32)
    y[0, :, 2] = float("nan")
    y[1, :, 3], y[1, :, 4] = 0.0, -0.0
    needs = [True, True, True]
    with using(implementation):
        found = winograd._backward(grad, x, weight, y, 1, [0] * 4, 1, needs)
        wanted = winograd._backward(grad * ~(y <= 0), x, weight, None, 1, [0] * 4, 1, needs)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_matrices_made_in_inference_serve_training() -> None:
    x, weight = random((2, 3, 9, 9), 0, torch.float32), random((4, 3, 3, 3), 1, torch.float32).requires_grad_()
    winograd_transforms.transform_matrices.cache_clear()
    with torch.inference_mode():
        winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True)
    with using("native in PyTorch"):
        winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True).sum().backward()
    assert weight.grad.isfinite().all()


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


def test_the_native_path_uses_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = winograd.conv2d_relu
    monkeypatch.setattr(winograd, "conv2d_relu", lambda *a, **k: calls.append(1) or run(*a, **k))
    x, weight = random((8, 32, 13, 13), 0, torch.float32), random((32, 32, 3, 3), 1, torch.float32)

    def is_used(x: Tensor, weight: Tensor, **options) -> bool:
        calls.clear()
        with kernels.using("native"):
            kernels.conv2d_relu(x, weight, padding=1, **options)
        return bool(calls)

    assert is_used(x, weight)
    assert is_used(x.double(), weight.double())
    assert not is_used(x.contiguous(), weight)
    assert not is_used(x.half(), weight.half())
    assert not is_used(x[:1], weight)
    assert not is_used(x[:, :16].contiguous(memory_format=torch.channels_last), weight[:, :16])
    assert not is_used(x, weight[:16])
    assert not is_used(x, weight[:, :16], groups=2)
    assert not is_used(x, weight, stride=2)
    assert not is_used(x, weight[:, :, :2, :2])
    assert not is_used(x, weight[:, :, :, :2])
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_used(x, weight)


def test_only_input_weight_and_result_are_saved() -> None:
    x = random((4, 32, 13, 13), 0, torch.float32).requires_grad_()
    weight, bias = random((32, 32, 3, 3), 1, torch.float32).requires_grad_(), torch.ones(32, requires_grad=True)
    sides = arguments.four_sided(1)
    for relu, result in ((True, 4 * 32 * 13 * 13 * 4), (False, 0)):
        saved = saved_bytes(lambda relu=relu: winograd.conv2d_relu(x, weight, bias, 1, sides, 1, relu=relu))
        assert saved == x.nbytes + weight.nbytes + result


def test_unneeded_gradients_are_not_computed_and_results_repeat() -> None:
    x, weight = random((4, 3, 9, 9), 0, torch.float32), random((6, 3, 3, 3), 1, torch.float32)
    y = winograd._forward(x, weight, None, 1, [1] * 4, 1, False)
    whole = winograd._backward(y, x, weight, None, 1, [1] * 4, 1, [True] * 3)
    for index in range(3):
        needs = [other == index for other in range(3)]
        alone = winograd._backward(y, x, weight, None, 1, [1] * 4, 1, needs)
        assert [gradient.numel() > 0 for gradient in alone] == needs
        assert torch.equal(alone[index], whole[index])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kernel", [(3, 1), (11, 4)])
@pytest.mark.parametrize("within_backward", [False, True])
@pytest.mark.parametrize("defer", [False, True])
def test_the_micro_batches_of_a_step_share_transforms(
    monkeypatch: pytest.MonkeyPatch, implementation: str, kernel: tuple[int, int], within_backward: bool, defer: bool
) -> None:
    """Weights and their gradient are transformed once per step, and the next step uses its own weights."""
    transforms = []
    for name in ("transform_weights", "weight_gradient"):
        run = getattr(winograd_tiles.Tiling, name)
        monkeypatch.setattr(
            winograd_tiles.Tiling, name, lambda *a, name=name, run=run: transforms.append(name) or run(*a)
        )
    size, stride = kernel
    options = (stride, (0, 3, 1, 2), 2)
    x = random((5, 4, 17, 15), 0, torch.float32).requires_grad_()
    weight, bias = random((6, 2, size, size), 1, torch.float32, 0.2), random((6,), 2, torch.float32)
    sink = GradientSink(defer=defer, micro_batches=2 if within_backward else None)
    with using(implementation):
        for step in range(2):
            leaves = [(weight * (step + 1)).requires_grad_(), bias.clone().requires_grad_()]
            x.grad = None
            wide = [tensor.detach().double().requires_grad_() for tensor in (x, *leaves)]
            y = winograd.conv2d_relu(*wide, *options, relu=True)
            wanted = torch.autograd.grad(y.square().sum(), wide)
            transforms.clear()
            sink.begin_step()
            for part in x.split(3):  # the last one is smaller
                assert sink.in_step
                y = winograd.conv2d_relu(part, *leaves, *options, relu=True, gradient_sink=sink)
                y.square().sum().backward()
            assert sink.has_deferred == defer
            # Without deferring, the last backward pass ends the step and returns the gradient.
            assert sink.in_step != (within_backward and not defer)
            gradient = sink.finish()
            assert not sink.in_step
            assert not sink.has_deferred
            assert (gradient is None) == (within_backward and not defer)
            assert (leaves[0].grad is None) == (gradient is not None)
            gradient = leaves[0].grad if gradient is None else gradient
            assert transforms == ["transform_weights", "weight_gradient"]
            assert gradient.stride() == weight.stride()
            for mine, theirs, what in zip((x.grad, gradient, leaves[1].grad), wanted, "xwb", strict=True):
                check_close(mine, theirs, torch.float32, what, tolerances=TRANSFORMED_TOLERANCES)
    assert sink.finish() is None


@pytest.mark.parametrize("in_step", [False, True])
def test_deferred_gradients_are_those_of_backward(in_step: bool) -> None:
    """Outside a step, the gradients of the micro-batches are added up in the order of their backward passes."""
    x, weight = random((5, 4, 13, 11), 0, torch.float32), random((6, 4, 3, 3), 1, torch.float32)
    sinks = GradientSink(), GradientSink(defer=True)
    gradients = []
    for sink in sinks:
        leaf = weight.clone(memory_format=torch.preserve_format).requires_grad_()
        if in_step:
            sink.begin_step()
        for part in x.split(2):
            winograd.conv2d_relu(
                part, leaf, None, 1, (1, 1, 1, 1), 1, relu=True, gradient_sink=sink
            ).square().sum().backward()
        assert (leaf.grad is None) == (in_step or sink.defer)
        gradient = sink.finish()
        assert (gradient is None) == (not in_step and not sink.defer)
        gradients.append(leaf.grad if gradient is None else gradient)
    assert torch.equal(*gradients)


def test_an_unfinished_step_is_discarded() -> None:
    x, weight = random((4, 4, 9, 9), 0, torch.float32), random((4, 4, 3, 3), 1, torch.float32).requires_grad_()
    sink = GradientSink(defer=True)

    def backward() -> None:
        y = winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True, gradient_sink=sink)
        y.square().sum().backward()

    found = []
    for unfinished in (0, 2):
        for _ in range(unfinished):
            sink.begin_step()
            backward()
        sink.begin_step()
        backward()
        found.append(sink.finish())
    assert torch.equal(*found)
    sink.begin_step()
    backward()
    sink.discard()
    assert not sink.in_step
    assert not sink.has_deferred
    assert sink.finish() is None


def test_without_grad_mode_nothing_is_shared() -> None:
    x, weight = random((2, 3, 9, 9), 0, torch.float32), random((4, 3, 3, 3), 1, torch.float32).requires_grad_()
    sink = GradientSink()
    sink.begin_step()
    with torch.no_grad():
        winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True, gradient_sink=sink)
    assert sink.step_state is None


@pytest.mark.parametrize("defer", [False, True])
def test_a_weight_without_a_gradient_leaves_nothing_to_finish(defer: bool) -> None:
    x, weight = random((2, 3, 9, 9), 0, torch.float32).requires_grad_(), random((4, 3, 3, 3), 1, torch.float32)
    sink = GradientSink(defer=defer)
    sink.begin_step()
    winograd.conv2d_relu(x, weight, None, 1, (1, 1, 1, 1), 1, relu=True, gradient_sink=sink).sum().backward()
    assert not sink.has_deferred
    assert sink.finish() is None
    assert x.grad is not None


def test_registered_operators_keep_pytorchs_rules() -> None:
    x, weight, bias = random((2, 4, 7, 6), 0, torch.float32), random((4, 2, 3, 3), 1, torch.float32), torch.ones(4)
    options = (1, [1, 0, 0, 1], 2)
    torch.library.opcheck(torch.ops.fastalex.winograd_forward, (x, weight, bias, *options, True))
    y = torch.ops.fastalex.winograd_forward(x, weight, bias, *options, True)
    for needs in ([True, True, True], [False, True, False]):
        torch.library.opcheck(torch.ops.fastalex.winograd_backward, (y, x, weight, y, *options, needs))
