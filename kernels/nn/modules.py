"""PyTorch's modules with a forward pass by the operators of :mod:`kernels`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.conv_relu import conv2d_relu
from kernels.dropout import dropout
from kernels.lrn import local_response_norm
from kernels.max_pool import max_pool2d

# A seed is an int64 tensor of 63 bits.
_SEEDS = 2**63 - 1


class LocalResponseNorm(nn.LocalResponseNorm):
    """`torch.nn.LocalResponseNorm` by :func:`kernels.local_response_norm`, in groups of channels.

    Args:
        size, alpha, beta, k: as in PyTorch, whose k is 1.
        groups: number of groups of channels that are normalised separately.
    """

    groups = 1

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, groups: int = 1) -> None:
        super().__init__(size, alpha, beta, k)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """The normalised input, of its shape and dtype."""
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k, groups=self.groups)

    def extra_repr(self) -> str:
        """The arguments."""
        return super().extra_repr() + (f", groups={self.groups}" if self.groups != 1 else "")


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` by :func:`kernels.max_pool2d`; with `return_indices` PyTorch computes."""

    def forward(self, input: Tensor) -> Tensor:
        """The pooled input; with `return_indices` also the indices."""
        if self.return_indices:
            return super().forward(input)
        return max_pool2d(input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class ConvReLU2d(nn.Conv2d):
    """`torch.nn.Conv2d` and `torch.nn.ReLU` in one, by :func:`kernels.conv2d_relu`. Arguments are those of `Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """relu(conv(input)), N x K x OH x OW or K x OH x OW."""
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return conv2d_relu(input, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        return conv2d_relu(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by :func:`kernels.dropout`. Each forward pass draws a seed from PyTorch's generator.

    So `torch.manual_seed` decides the masks, which are not those of PyTorch's module. `inplace` saves no memory. With
    p = 1, PyTorch computes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with features dropped in training; in evaluation the input itself."""
        if not self.training or self.p in (0, 1):
            return super().forward(input)
        seed = torch.randint(_SEEDS, (), dtype=torch.int64, device=input.device)
        return dropout(input, self.p, seed=seed)
