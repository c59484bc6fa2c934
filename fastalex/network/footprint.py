"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from fastalex.network.architecture import Architecture, BlockShape, ConvBlock, LinearBlock, block_shapes
from fastalex.network.model import AlexNet, prepare_images
from fastalex.network.precision import Precision


def training_macs(architecture: Architecture) -> dict[str, int]:
    """Multiply-accumulates per image of one training step, by block."""
    shapes = block_shapes(architecture)
    return {shape.name: shape.macs * (2 if index == 0 else 3) for index, shape in enumerate(shapes)}


@dataclass(frozen=True)
class LayerCost:
    """One layer: for one image, multiply-accumulates of a training step and bytes kept for its backward pass.

    ``units`` is what the paper counts as neurons: the outputs of the layer itself, before pooling.
    """

    name: str
    is_convolution: bool
    output: tuple[int, ...]
    units: int
    parameters: int
    macs: int
    kept_bytes: int


def layer_costs(architecture: Architecture, precision: Precision, implementation: str) -> list[LayerCost]:
    """The costs of every layer; ``implementation`` is that of the operators (``triton`` on GPUs, else ``native``)."""
    kept, macs = kept_bytes(architecture, precision, implementation), training_macs(architecture)
    return [
        LayerCost(
            shape.name,
            isinstance(block, ConvBlock),
            shape.output,
            _units(block, shape),
            shape.parameters,
            macs[shape.name],
            kept[shape.name],
        )
        for block, shape in zip(architecture.blocks, block_shapes(architecture), strict=True)
    ]


def _units(block: ConvBlock | LinearBlock, shape: BlockShape) -> int:
    if isinstance(block, LinearBlock):
        return block.out_features
    places = shape.macs // (shape.parameters - block.out_channels)  # multiply-accumulates over weights: pixels
    return block.out_channels * places


def kept_bytes(
    architecture: Architecture, precision: Precision = "fp32", implementation: str = "native"
) -> dict[str, int]:
    """Bytes that each block keeps for the backward pass of one image; what two of them keep is the first one's."""
    with FakeTensorMode(), kernels.using(implementation):
        model = AlexNet(architecture, seed=0)
        model.set_precision(precision)
        one, two = (_kept_by_a_pass(model, images) for images in (1, 2))
    return {name: two[name] - one[name] for name in two}  # without what does not grow with the batch, such as seeds


def _kept_by_a_pass(model: AlexNet, images: int) -> dict[str, int]:
    stage = model.stage(model.architecture.block_names).train()
    stage.configure_deferral(None, convolutions=False)  # as the engines do
    size = model.architecture.image_size
    seen = {_memory_of(tensor) for p, c in _with_copies(model) for tensor in (p, c)}
    alive: list[Tensor] = []  # while a tensor lives, no other one has its memory
    kept = dict.fromkeys(model.architecture.block_names, 0)
    x = prepare_images(torch.empty(images, 3, size, size), model.architecture, model.compute_dtype)
    for block in stage.blocks():
        name = block.spec.name

        def keep(tensor: Tensor, name: str = name) -> Tensor:
            alive.append(tensor)
            if (memory := _memory_of(tensor)) not in seen:
                seen.add(memory)
                kept[name] += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = block(x, 0, 0)
        alive.append(x)
    return kept


def _with_copies(model: AlexNet) -> list[tuple[Tensor, Tensor]]:
    copies = {parameter: copy for block in model.blocks() for parameter, copy in block.copies().items()}
    return [(parameter, copies.get(parameter, parameter)) for parameter in model.parameters()]


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
