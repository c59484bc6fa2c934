"""AlexNet's operators at the shapes of its layers, on tensors without values.

The tensors are on the CPU and are never written, so the operating system gives them no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from kernels import conv_gemm, launch_settings
from kernels.launch_settings import Direction, Entry, Problem

BATCH = 128
CLASSES = 1000

# Blocks that normalise or pool: channels and side of the convolution's output.
BLOCKS = {"conv1": (96, 55), "conv2": (256, 27), "conv5": (256, 13)}
# The layers of the 2012 network: channels, side, filters, kernel, stride, padding, groups.
CONVOLUTIONS = {
    "conv1": (3, 224, 96, 11, 4, (0, 3, 0, 3), 1),
    "conv2": (96, 27, 256, 5, 1, (2, 2, 2, 2), 2),
    "conv3": (256, 13, 384, 3, 1, (1, 1, 1, 1), 1),
    "conv4": (384, 13, 384, 3, 1, (1, 1, 1, 1), 2),
    "conv5": (384, 13, 256, 3, 1, (1, 1, 1, 1), 2),
}
# Rows and columns of the fully connected layers' weights.
LINEAR = {"fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (CLASSES, 4096)}


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        name: the operator and the layer.
        shape: shape of the first input, or what there is of it.
        forward: runs the operator; backward of what it returns is recorded, too.
        direction: what `forward` computes.
        gradient_format: memory format of the incoming gradient.
        elements: number of results, and
        moved: bytes that must move, of an operator that hides its tensors behind a table of addresses.
    """

    name: str
    shape: tuple[int, ...]
    forward: Callable[[], Tensor | None]
    direction: str = "forward"
    gradient_format: torch.memory_format = torch.preserve_format
    elements: int | None = None
    moved: int | None = None


def network(dtype: torch.dtype) -> Iterator[Case]:
    """The operators of one training step: of the 2012 network, of the paper's, and each of a fused block's parts."""
    yield from blocks(dtype)
    for name in CONVOLUTIONS:
        yield convolution(name, dtype)
    yield from fully_connected(dtype)
    yield update()


def blocks(
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last,
    gradient_format: torch.memory_format = torch.channels_last,
) -> Iterator[Case]:
    """Normalisation and pooling, separate and fused."""

    def case(name: str, operator: Callable[..., Tensor], **options: Any) -> Case:
        return Case(name, tuple(x.shape), partial(operator, x, **options), gradient_format=gradient_format)

    for layer, (channels, side) in BLOCKS.items():
        shape = (BATCH, channels, side, side)
        x = torch.empty(shape, dtype=dtype, memory_format=memory_format).requires_grad_()
        yield case(f"max_pool {layer}", kernels.max_pool2d, kernel_size=3, stride=2)
        if layer == "conv5":
            continue
        yield case(f"lrn {layer}", kernels.local_response_norm, size=5, k=2.0, groups=2)
        bias = torch.zeros(channels, requires_grad=True)
        if layer == "conv1":
            # As in the 2012 source, and as in the paper and in Caffe.
            yield case("lrn_max_pool source", kernels.lrn_max_pool2d, groups=2, bias=bias, relu="after")
            yield case("lrn_max_pool paper", kernels.lrn_max_pool2d, bias=bias, relu="before")
        else:
            # As in the 2012 source, where both normalisations follow each other.
            yield case("bias_relu_lrn", kernels.local_response_norm, size=5, k=2.0, groups=2, bias=bias, relu=True)
            yield case("same_map_norm", kernels.same_map_norm)
            yield case("same_map_norm_max_pool", kernels.same_map_norm_max_pool2d)
            yield case(f"lrn_max_pool {layer}", kernels.lrn_max_pool2d, groups=2, bias=bias, relu="before")


def convolution(name: str, dtype: torch.dtype) -> Case:
    """A convolution with the settings of GPUs without a table."""
    channels, side, filters, kernel, stride, padding, groups = CONVOLUTIONS[name]
    # As in training: the first layer's input needs no gradient, and normalisation adds bias and ReLU itself.
    relu = name not in ("conv1", "conv2")
    x = _channels_last((BATCH, channels, side, side), dtype).requires_grad_(name != "conv1")
    weight = _channels_last((filters, channels // groups, kernel, kernel), dtype).requires_grad_()
    bias = torch.empty(filters, dtype=dtype, requires_grad=True) if relu else None
    call = partial(kernels.conv2d_relu, x, weight, bias, stride, padding, groups=groups, relu=relu)
    return Case(name, tuple(x.shape), call)


def tuned_convolutions(gpu: str) -> Iterator[tuple[Case, Entry]]:
    """The products that a GPU's table gives to Triton, in bf16, with their entries."""
    for (direction, problem), entry in launch_settings.load_table(launch_settings.table_path(gpu)).items():
        name = _layer_of(problem)
        if name is None or problem.dtype != "bfloat16" or problem.batch != BATCH or not entry.wins:
            continue
        # In training, a layer has either form only.
        if direction != "forward" or problem.epilogue == (name not in ("conv1", "conv2")):
            shape = (BATCH, problem.channels, problem.height, problem.width)
            call = partial(_product, direction, problem, entry)
            yield Case(f"{name} tuned", shape, call, direction.replace("_", " ")), entry


def _layer_of(problem: Problem) -> str | None:
    wanted = (problem.channels, problem.height, problem.filters, *problem.kernel[:1], problem.stride)
    found = [name for name, layer in CONVOLUTIONS.items() if (*layer[:5], layer[6]) == (*wanted, problem.groups)]
    return found[0] if found else None


def _product(direction: Direction, problem: Problem, entry: Entry) -> None:
    dtype = getattr(torch, problem.dtype)
    x = _channels_last((problem.batch, problem.channels, problem.height, problem.width), dtype)
    weight = _channels_last((problem.filters, problem.channels // problem.groups, *problem.kernel), dtype)
    grad = _channels_last((problem.batch, problem.filters, problem.out_height, problem.out_width), dtype)
    if direction == "forward":
        bias = torch.empty(problem.filters, dtype=dtype) if problem.epilogue else None
        conv_gemm.run_forward(x, weight, bias, problem, problem.epilogue, entry.settings)
    elif direction == "data_gradient":
        conv_gemm.run_backward_data(grad, weight, problem, entry.settings)
    else:
        conv_gemm.run_backward_weight(grad, x, problem, entry.settings)


def fully_connected(dtype: torch.dtype) -> Iterator[Case]:
    """What follows the fully connected layers."""
    x = torch.empty(BATCH, 4096, dtype=dtype, requires_grad=True)
    bias = torch.zeros(4096, dtype=torch.float32, requires_grad=True)
    yield Case("dropout", (BATCH, 4096), partial(kernels.dropout, x, seed=1))
    yield Case("bias_relu_dropout", (BATCH, 4096), partial(kernels.bias_relu_dropout, x, bias, seed=1))
    logits = torch.empty(BATCH, CLASSES, dtype=dtype, requires_grad=True)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    yield Case("cross_entropy", (BATCH, CLASSES), lambda: kernels.cross_entropy(logits, labels)[0])


def update() -> Case:
    """The update of all weights and biases from fp32 gradients, with bf16 copies."""
    shapes: list[tuple[int, ...]] = []
    for channels, _, filters, kernel, _, _, groups in CONVOLUTIONS.values():
        shapes += [(filters, channels // groups, kernel, kernel), (filters,)]
    for rows, columns in LINEAR.values():
        shapes += [(rows, columns), (rows,)]
    weights, gradients, velocities = ([torch.empty(shape) for shape in shapes] for _ in range(3))
    copies = [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes]
    count = sum(weight.numel() for weight in weights)
    call = partial(
        kernels.sgd_update_, weights, gradients, velocities, learning_rates=[0.01] * len(shapes),
        weight_decays=[0.0005] * len(shapes), copies=copies,
    )  # fmt: skip
    # Weight and velocity are read and written, the gradient is read, the copy is written.
    return Case("update", (count,), call, elements=count, moved=count * (4 * 4 + 4 + 2))


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
