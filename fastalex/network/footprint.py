"""What a network costs to train: parameters, multiply-accumulates, and bytes kept for the backward pass.

The bytes are counted, not estimated: the network runs once on fake tensors, which have shapes but no data, and all
tensors that autograd keeps for the backward pass are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from fastalex.network.architecture import Architecture, BlockShape, ConvBlock, LinearBlock, block_shapes
from fastalex.network.model import AlexNet, prepare_images
from fastalex.network.precision import Precision


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer.

    Args:
        name: of the block.
        is_convolution: whether it is a convolution.
        output: shape of the block's output for one image.
        units: outputs of the layer itself, before pooling, for one image; the paper calls them neurons.
        parameters: weights and biases.
        macs: multiply-accumulates of a training step, per image.
        kept_bytes: memory kept for the backward pass, per image.
    """

    name: str
    is_convolution: bool
    output: tuple[int, ...]
    units: int
    parameters: int
    macs: int
    kept_bytes: int


def layer_costs(architecture: Architecture, precision: Precision, implementation: str) -> list[LayerCost]:
    """The cost of every layer, in order.

    Args:
        implementation: of the operators: ``triton`` on GPUs, ``native`` on CPUs.
    """
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


def training_macs(architecture: Architecture) -> dict[str, int]:
    """Multiply-accumulates per image of one training step, by block.

    The forward pass, the weight gradient and the input gradient take the same number; the first block needs no input
    gradient.
    """
    shapes = block_shapes(architecture)
    return {shape.name: shape.macs * (2 if index == 0 else 3) for index, shape in enumerate(shapes)}


def _units(block: ConvBlock | LinearBlock, shape: BlockShape) -> int:
    if isinstance(block, LinearBlock):
        return block.out_features
    pixels = shape.macs // (shape.parameters - block.out_channels)  # every weight is used once per output pixel
    return block.out_channels * pixels


def kept_bytes(
    architecture: Architecture, precision: Precision = "fp32", implementation: str = "native"
) -> dict[str, int]:
    """Bytes kept for the backward pass per image, by block. Memory that two blocks keep counts for the first."""
    with FakeTensorMode(), kernels.using(implementation):
        model = AlexNet(architecture, seed=0)
        model.set_precision(precision)
        one, two = (_kept_by_forward(model, images) for images in (1, 2))
    return {name: two[name] - one[name] for name in two}  # the difference excludes fixed sizes, such as seeds


def _kept_by_forward(model: AlexNet, images: int) -> dict[str, int]:
    stage = model.stage(model.architecture.block_names).train()
    stage.configure_deferral(None, convolutions=False)  # as training does
    seen = {_storage_id(tensor) for tensor in (*model.parameters(), *stage.compute_copies().values())}
    alive: list[Tensor] = []  # while a tensor is alive, no other tensor gets its storage
    kept = dict.fromkeys(model.architecture.block_names, 0)
    size = model.architecture.image_size
    x = prepare_images(torch.empty(images, 3, size, size), model.architecture, model.compute_dtype)
    for block in stage.blocks():
        name = block.spec.name

        def keep(tensor: Tensor, name: str = name) -> Tensor:
            alive.append(tensor)
            if (storage := _storage_id(tensor)) not in seen:
                seen.add(storage)
                kept[name] += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = block(x, 0, 0)
        alive.append(x)
    return kept


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # fake tensors have no data pointer
