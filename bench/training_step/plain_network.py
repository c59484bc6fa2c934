"""The networks of `fastalex.network.architecture` in plain PyTorch: the baseline of bench/train_step.py.

Parameters have the same names as in `fastalex.AlexNet`, so that both load the same state dict.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastalex.network.architecture import (
    Activation,
    Architecture,
    ConvBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    Step,
    block_shapes,
    four_sided,
)


class PlainNetwork(nn.Module):
    """AlexNet from the layers of `torch.nn` alone, with the same inputs and outputs as `fastalex.AlexNet`.

    Args:
        banded: the window sums of local response normalisation are a product with a banded matrix, which is faster on
            a CPU than `F.local_response_norm`.
    """

    std: Tensor

    def __init__(self, architecture: Architecture, banded: bool = False) -> None:
        super().__init__()
        self.architecture = architecture
        self.banded = banded
        for block, shape in zip(architecture.blocks, block_shapes(architecture), strict=True):
            if isinstance(block, ConvBlock):
                sides = four_sided(block.padding)
                even = sides[0] == sides[1] and sides[2] == sides[3]
                options: dict[str, Any] = {"stride": block.stride, "groups": block.groups}
                options["padding"] = (sides[0], sides[2]) if even else 0
                layer: nn.Module = nn.Conv2d(shape.inputs, block.out_channels, block.kernel_size, **options)
            else:
                layer = nn.Linear(shape.inputs, block.out_features)
            self.add_module(block.name, layer)
        if architecture.input_std is not None:
            self.register_buffer("std", torch.tensor(architecture.input_std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.architecture.input_std is not None:
            x = x / self.std
        for block in self.architecture.blocks:
            layer = self.get_submodule(block.name)
            if isinstance(block, ConvBlock):
                top, bottom, left, right = four_sided(block.padding)
                if top != bottom or left != right:
                    x = F.pad(x, (left, right, top, bottom))
                x = layer(x)
                for step in block.steps:
                    x = self._step(step, x)
            else:
                x = self._drop(x.flatten(1)) if block.dropout == "before" else x.flatten(1)
                x = layer(x)
                if block.activation:
                    x = self._activate(x)
                if block.dropout == "after":
                    x = self._drop(x)
        return x

    def _step(self, step: Step, x: Tensor) -> Tensor:
        match step:
            case Activation():
                return self._activate(x)
            case LocalResponseNorm(size, alpha, beta, k, towers):
                if self.banded:
                    return _banded_norm(x, size, alpha, beta, k, towers)
                if towers == 1:
                    return F.local_response_norm(x, size, alpha, beta, k)
                parts = x.chunk(towers, 1)
                return torch.cat([F.local_response_norm(part, size, alpha, beta, k) for part in parts], 1)
            case SameMapNorm(size, alpha, beta, k):
                return x / (k + alpha * F.avg_pool2d(x * x, size, 1, size // 2)) ** beta
            case MaxPool(kernel_size, stride):
                return F.max_pool2d(x, kernel_size, stride, ceil_mode=True)

    def _activate(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.architecture.activation == "relu" else torch.tanh(x)

    def _drop(self, x: Tensor) -> Tensor:
        p = self.architecture.dropout
        if self.architecture.inverted_dropout:
            return F.dropout(x, p, self.training)
        return F.dropout(x, p, self.training) * (1 - p)


def _banded_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, towers: int) -> Tensor:
    """Local response normalisation with its window sums as a 1 x 1 convolution."""
    channels = x.shape[1] // towers
    ones = torch.ones(channels, channels, dtype=x.dtype, device=x.device)
    band = ones.tril(size // 2).triu(-((size - 1) // 2)).t().repeat(towers, 1)
    sums = F.conv2d(x * x, band[:, :, None, None].to(memory_format=torch.channels_last), groups=towers)
    return x * (k + alpha / size * sums) ** -beta
