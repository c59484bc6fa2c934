"""Properties of every operator: reproducible bits, no hidden copies, large tensors, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    check_against_reference,
    check_close,
    dtypes_of,
    ends_of_grids,
    laid_out,
    no_copies,
    random_tensor,
    uninitialised,
    using,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import launch_settings

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "local_response_norm": lambda x: kernels.local_response_norm(x, 5, alpha=0.3, groups=2),
    "same_map_norm": lambda x: kernels.same_map_norm(x, 3, alpha=0.3),
    "max_pool2d": lambda x: kernels.max_pool2d(x, 3, 2),
    "lrn_max_pool2d": lambda x: kernels.lrn_max_pool2d(x, alpha=0.3, groups=2, relu="before"),
    "same_map_norm_max_pool2d": lambda x: kernels.same_map_norm_max_pool2d(x, 3, alpha=0.3),
}
ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: kernels.dropout(x, seed=1),
    "bias_relu_dropout": lambda x: kernels.bias_relu_dropout(x, x[0], seed=1),
}
OPERATORS = MAPS | ROWS


def sample(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """200 numbers."""
    return random_tensor((1, 8, 5, 5) if name in MAPS else (8, 25), seed, dtype)


def result_and_gradient(operator: Callable[[Tensor], Tensor], x: Tensor, grad_layout: str) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = operator(x)
    y.backward(laid_out(random_tensor(y.shape, 1, x.dtype), grad_layout))
    return y.detach(), x.grad


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("grad_layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [dtype for dtype in dtypes_of("triton") if dtype.itemsize == 2])
def test_eight_channels_at_a_time_are_the_definition(
    name: str, grad_layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training: half precision, 16 bytes of channels per thread; here two such vectors in each of two groups."""
    widths, vector_width = [], launch_settings.vector_width
    monkeypatch.setattr(
        launch_settings, "vector_width", lambda *sizes: widths.append(vector_width(*sizes)) or widths[-1]
    )
    x = laid_out(random_tensor((2, 32, 5, 5), 0, dtype), "channels_last")
    check_against_reference(MAPS[name], "triton", [x], grad_layout)
    assert widths
    assert set(widths) == {8}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_input_gives_the_same_bits(name: str) -> None:
    x = sample(name, 0)
    if DEVICE == "cuda":
        # Enough programs to run many at once, in an order that changes.
        x = random_tensor((64, 96, 27, 27) if name in MAPS else (512, 4096), 0, torch.float32)
    x = laid_out(x, "channels_last")
    with kernels.using("triton"):
        first, second = (result_and_gradient(OPERATORS[name], x, "channels_last") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# Also those with more arguments than x: a convolution with a part of x as its weight, and labels.
DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = OPERATORS | {
    "conv2d_relu": lambda x: kernels.conv2d_relu(x, x[:, :, :3, :3]),
    "cross_entropy": lambda x: kernels.cross_entropy(x, torch.arange(x.shape[0], device=x.device))[0],
}


def differentiable_sample(name: str) -> Tensor:
    return random_tensor((1, 8, 5, 5) if name == "conv2d_relu" else sample(name, 0).shape, 0).requires_grad_()


@pytest.mark.parametrize("of_result", [lambda y: y, torch.square])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_double_backward_is_refused_or_right(name: str, implementation: str, of_result) -> None:
    """With and without another operator after it: without one, the incoming gradient depends on nothing."""
    operator, x = DIFFERENTIABLE[name], differentiable_sample(name)

    def second() -> Tensor:
        z = 2 * x
        y = operator(z)
        (gradient,) = torch.autograd.grad(of_result(y).sum(), z, create_graph=True)
        return torch.autograd.grad(gradient.square().sum() + y.sum(), x)[0]

    with kernels.using("reference"):
        wanted = second()
    message = ""
    with using(implementation):
        try:
            found = second()
        except RuntimeError as error:
            message = str(error)
        else:
            check_close(found, wanted, torch.float64, "second derivative")
    if "norm" in name or "lrn" in name:
        assert message.endswith('under kernels.using("reference") it has one')
    assert not message or "has no double backward" in message


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_checkpoints_allow_a_graph_of_gradients(name: str, implementation: str) -> None:
    """Non-reentrant checkpointing unpacks each saved tensor once."""
    operator, x = DIFFERENTIABLE[name], differentiable_sample(name)
    with using(implementation):
        y = checkpoint(operator, x, use_reentrant=False)
        (found,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (wanted,) = torch.autograd.grad(operator(x).square().sum(), x)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_function_transforms_need_the_reference(name: str, implementation: str) -> None:
    operator, x = DIFFERENTIABLE[name], differentiable_sample(name)
    uses = (
        torch.func.grad(lambda x: operator(x).sum()),
        lambda x: torch.func.jvp(operator, (x,), (x,)),
        lambda x: torch.func.vmap(operator)(x[None]),
        torch.func.vmap(torch.func.grad(lambda x: operator(x[None]).sum())),
    )
    for use in uses:
        with kernels.using("reference"):
            use(x)
        with (
            kernels.using(implementation),
            pytest.raises(RuntimeError, match=r'use kernels.using\("reference"\) around'),
        ):
            use(x)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_tensors_give_shapes(name: str) -> None:
    x = differentiable_sample(name).detach()
    with kernels.using("native"):
        wanted = DIFFERENTIABLE[name](x)
        found = DIFFERENTIABLE[name](x.to("meta"))
    assert found.is_meta
    assert (found.shape, found.dtype, found.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_help_says_so(name: str) -> None:
    for described in (kernels, getattr(kernels, name)):
        assert "no double backward" in described.__doc__
        assert "`torch.func`" in described.__doc__
    assert ("minimal filtering" in getattr(kernels, name).__doc__) == (name == "conv2d_relu")


# Stride 1, so that there are about as many outputs as inputs.
LARGE = MAPS | {
    "max_pool2d": lambda x: kernels.max_pool2d(x, 3, stride=1),
    "lrn_max_pool2d": lambda x: kernels.lrn_max_pool2d(x, groups=2, stride=1, relu="before"),
    "same_map_norm_max_pool2d": lambda x: kernels.same_map_norm_max_pool2d(x, 3, stride=1),
}
# Height and width of an image and of its result.
PLANES = {name: ((5, 5) if "pool" in name else (3, 3), (3, 3)) for name in LARGE}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_offsets_pass_32_bits(name: str, layout: str) -> None:
    """The first and the last image of a large batch give the same results as alone."""
    images = 2**31 // (16 * 3 * 3) + 2
    image, grad_image = (laid_out(random_tensor((1, 16, *size), 0, torch.float16), layout) for size in PLANES[name])

    def result_and_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        with kernels.using("triton"), ends_of_grids(4):  # an image is at most four programs
            y = LARGE[name](x)
            return y.detach(), torch.autograd.grad(y, x, grad)[0]

    alone = result_and_gradient(image.clone(), grad_image)
    x, grad = (uninitialised((images, *one.shape[1:]), layout, one.dtype) for one in (image, grad_image))
    x[0] = x[-1] = image[0]
    grad[0] = grad[-1] = grad_image[0]
    whole = result_and_gradient(x, grad)
    for many, single in zip(whole, alone, strict=True):
        assert many.numel() > 2**31
        assert torch.equal(many[0], single[0])
        assert torch.equal(many[-1], single[0])


@pytest.mark.parametrize(
    ("name", "layout", "grad_layout"),
    [(name, one, other) for name in MAPS for one in ("nchw", "channels_last") for other in ("nchw", "channels_last")]
    + [(name, "nchw", "nchw") for name in ROWS],
)
def test_no_dense_layout_is_copied(name: str, layout: str, grad_layout: str) -> None:
    x = laid_out(sample(name, 0), layout)
    y = OPERATORS[name](x)
    grad = laid_out(random_tensor(y.shape, 1, torch.float32), grad_layout)
    x.requires_grad_()
    with kernels.using("triton"), no_copies():
        y = OPERATORS[name](x)
        torch.autograd.grad(y, x, grad)
        # A tensor with gaps is copied, which this test would notice.
        with pytest.raises(AssertionError, match="a tensor was copied"):
            OPERATORS[name](laid_out(x.detach(), "sliced"))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (Tensor.to_sparse, r"x must be a dense tensor, got layout torch\.sparse_coo: call to_dense\(\) first"),
        (Tensor.to_mkldnn, r"x must be a dense tensor, got layout torch\._mkldnn: call to_dense\(\) first"),
        (
            lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
            r"x must be a dense tensor, got a nested one: pad it with torch\.nested\.to_padded_tensor",
        ),
    ],
    ids=["sparse", "mkldnn", "nested"],
)
def test_a_tensor_that_is_not_dense_is_refused(implementation: str, name: str, convert, message: str) -> None:
    x = sample(name, 0)
    if DEVICE == "cuda" and convert is Tensor.to_mkldnn:
        pytest.skip("mkldnn tensors exist only on CPUs")
    operator = {"bias_relu_dropout": lambda x: kernels.bias_relu_dropout(x, torch.ones(25, device=DEVICE), seed=1)}
    with kernels.using(implementation), pytest.raises(TypeError, match=message):
        operator.get(name, OPERATORS[name])(convert(x))


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("x", lambda sparse: kernels.conv2d_relu(sparse, torch.ones(1, 1, 1, 1, device=DEVICE))),
        ("weight", lambda sparse: kernels.conv2d_relu(torch.ones(1, 1, 1, 1, device=DEVICE), sparse)),
        ("bias", lambda sparse: kernels.bias_relu_dropout(torch.ones(1, 1, device=DEVICE), sparse[0, 0, 0], seed=1)),
        ("seed", lambda sparse: kernels.dropout(torch.ones(1, 1, device=DEVICE), seed=sparse.long())),
        ("first_row", lambda sparse: kernels.dropout(torch.ones(1, 1, device=DEVICE), seed=1, first_row=sparse.long())),
    ],
)
def test_other_tensors_that_are_not_dense_are_named(name: str, operator) -> None:
    with pytest.raises(TypeError, match=rf"{name} must be a dense tensor, got layout torch\.sparse_coo: call"):
        operator(torch.ones(1, 1, 1, 1, device=DEVICE).to_sparse())
