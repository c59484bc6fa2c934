"""AlexNet written a second time: networks, loss, update and rates in float64, from the published facts alone.

Nothing here comes from ``kernels`` or ``fastalex``, and no layer of PyTorch is used: convolutions multiply columns of
pixels, LRN multiplies a band matrix, and autograd differentiates them. What the engine computes by other means must
agree to rounding, or one of the two has a fact wrong.

Parameters are named as in a state dict (``conv1.weight``); widths follow from their shapes, and all else is written
here. ``masks`` holds what dropout keeps of fc6 and fc7 in training, one row per image; None evaluates.

Facts: configuration 145 of the 2012 source, its variations 145-half, 147, 148 and 150, and its weight update; the
paper's text; BVLC Caffe's ``bvlc_alexnet``; torchvision's ``alexnet``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Masks = Mapping[str, Tensor] | None

# --- layers -----------------------------------------------------------------------------------------------------------


def pad(x: Tensor, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, value: float = 0.0) -> Tensor:
    """Images in a larger frame of one value."""
    rows, columns = x.shape[2:]
    framed = x.new_full((*x.shape[:2], top + rows + bottom, left + columns + right), value)
    framed[:, :, top : top + rows, left : left + columns] = x
    return framed


def windows(x: Tensor, size: int, stride: int) -> Tensor:
    """The pixels of all windows: N x C x OH x OW x size x size."""
    return x.unfold(2, size, stride).unfold(3, size, stride)


def convolve(
    x: Tensor, p: Tensors, layer: str, size: int, *, stride: int = 1, padding: int = 0, towers: int = 1
) -> Tensor:
    """A convolution whose kernels see their own tower's part of the channels below."""
    weight, bias = p[f"{layer}.weight"], p[f"{layer}.bias"]
    x = pad(x, top=padding, bottom=padding, left=padding, right=padding)
    maps = []
    for below, kernels in zip(x.chunk(towers, 1), weight.chunk(towers, 0), strict=True):
        pixels = windows(below, size, stride).permute(0, 2, 3, 1, 4, 5).flatten(3)  # one row per window
        maps.append((pixels @ kernels.reshape(len(kernels), -1).T).permute(0, 3, 1, 2))
    return torch.cat(maps, 1) + bias[:, None, None]


def pool(x: Tensor, size: int = 3, stride: int = 2) -> Tensor:
    """The largest value in each window. The last window may hang over the edge; what is outside does not count."""
    overhang = {}
    for side, length in (("bottom", x.shape[2]), ("right", x.shape[3])):
        outputs = 1 + math.ceil((length - size) / stride)
        overhang[side] = (outputs - 1) * stride + size - length
    return windows(pad(x, **overhang, value=-math.inf), size, stride).flatten(4).max(4).values


def norm_across_maps(x: Tensor, *, alpha: float, k: float, towers: int = 1) -> Tensor:
    """a / (k + alpha * sum of a² over five neighbouring maps of the tower)^0.75."""
    channels = torch.arange(x.shape[1])
    same_tower = channels * towers // len(channels)
    near = ((channels[:, None] - channels).abs() <= 2) & (same_tower[:, None] == same_tower)
    return x / (k + alpha * torch.einsum("ij,njhw->nihw", near.to(x.dtype), x**2)) ** 0.75


def norm_within_map(x: Tensor) -> Tensor:
    """a / (1 + 0.001/25 * sum of a² over the 5 x 5 pixels around)^0.75, as in layer 2 of configuration 145."""
    squares = windows(pad(x**2, top=2, bottom=2, left=2, right=2), 5, 1)
    return x / (1 + 0.001 / 25 * squares.sum((4, 5))) ** 0.75


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.0)


def connect(x: Tensor, p: Tensors, layer: str, *, towers: int = 1) -> Tensor:
    """A fully connected layer; with towers, each sees its own part of the features below."""
    parts = zip(x.flatten(1).chunk(towers, 1), p[f"{layer}.weight"].chunk(towers, 0), strict=True)
    return torch.cat([below @ weight.T for below, weight in parts], 1) + p[f"{layer}.bias"]


def drop_as_in_2012(x: Tensor, masks: Masks, layer: str) -> Tensor:
    """Half of the features are zero in training; all are halved in evaluation."""
    return 0.5 * x if masks is None else x * masks[layer]


def drop_inverted(x: Tensor, masks: Masks, layer: str) -> Tensor:
    """Half of the features are zero in training and the others twice as large; nothing happens in evaluation."""
    return x if masks is None else 2 * x * masks[layer]


# --- networks: images (0-255 minus the mean) to logits ----------------------------------------------------------------


def configuration_145(
    x: Tensor, p: Tensors, masks: Masks, *, towers: int = 2, separate: bool = False, norms: bool = True,
    overlap: bool = True, conv6: bool = False,
) -> Tensor:  # fmt: skip
    """The network of 2012.

    Args:
        towers: 1 in configuration 145-half.
        separate: the towers meet in the last layer only (150).
        norms: without them it is configuration 148.
        overlap: False pools 2 x 2 pixels; conv2 then has padding 1 and conv5 none (147).
        conv6: the sixth convolution of the pre-trained networks, over the last pooling.
    """
    window, less = (3, 0) if overlap else (2, 1)
    joined = towers if separate else 1

    def norm(x: Tensor) -> Tensor:
        return norm_across_maps(x, alpha=1e-4 / 5, k=2, towers=towers) if norms else x

    # 55 = 1 + ceil((224 - 11) / 4): the last window hangs over by three pixels.
    x = convolve(pad(x, bottom=3, right=3), p, "conv1", 11, stride=4)
    x = relu(pool(norm(x), window))
    x = norm(relu(convolve(x, p, "conv2", 5, padding=2 - less, towers=towers)))
    x = pool(norm_within_map(x) if norms else x, window)
    x = relu(convolve(x, p, "conv3", 3, padding=1, towers=joined))
    x = relu(convolve(x, p, "conv4", 3, padding=1, towers=towers))
    x = relu(pool(convolve(x, p, "conv5", 3, padding=1 - less, towers=towers), window))
    if conv6:
        x = relu(convolve(x, p, "conv6", 3, padding=1))
    for layer in ("fc6", "fc7"):
        x = drop_as_in_2012(relu(connect(x, p, layer, towers=joined)), masks, layer)
    return connect(x, p, "fc8")


def papers_text(x: Tensor, p: Tensors, masks: Masks) -> Tensor:
    """The network of the paper's text: LRN after the ReLU, over all maps of a layer, with the plain sum of squares."""
    x = relu(convolve(pad(x, bottom=3, right=3), p, "conv1", 11, stride=4))
    x = pool(norm_across_maps(x, alpha=1e-4, k=2))
    x = relu(convolve(x, p, "conv2", 5, padding=2, towers=2))
    x = pool(norm_across_maps(x, alpha=1e-4, k=2))
    x = relu(convolve(x, p, "conv3", 3, padding=1))
    x = relu(convolve(x, p, "conv4", 3, padding=1, towers=2))
    x = pool(relu(convolve(x, p, "conv5", 3, padding=1, towers=2)))
    for layer in ("fc6", "fc7"):
        x = drop_as_in_2012(relu(connect(x, p, layer)), masks, layer)
    return connect(x, p, "fc8")


def bvlc_alexnet(x: Tensor, p: Tensors, masks: Masks) -> Tensor:
    """Caffe's network: images of 227 pixels, k = 1, inverted dropout."""
    x = relu(convolve(x, p, "conv1", 11, stride=4))
    x = pool(norm_across_maps(x, alpha=1e-4 / 5, k=1))
    x = relu(convolve(x, p, "conv2", 5, padding=2, towers=2))
    x = pool(norm_across_maps(x, alpha=1e-4 / 5, k=1))
    x = relu(convolve(x, p, "conv3", 3, padding=1))
    x = relu(convolve(x, p, "conv4", 3, padding=1, towers=2))
    x = pool(relu(convolve(x, p, "conv5", 3, padding=1, towers=2)))
    for layer in ("fc6", "fc7"):
        x = drop_inverted(relu(connect(x, p, layer)), masks, layer)
    return connect(x, p, "fc8")


def torchvision_alexnet(x: Tensor, p: Tensors, masks: Masks) -> Tensor:
    """torchvision's network: no towers, no LRN, images of unit variance, dropout before fc6 and fc7."""
    x = x / (255 * x.new_tensor([0.229, 0.224, 0.225]))[:, None, None]
    x = pool(relu(convolve(x, p, "conv1", 11, stride=4, padding=2)))
    x = pool(relu(convolve(x, p, "conv2", 5, padding=2)))
    x = relu(convolve(x, p, "conv3", 3, padding=1))
    x = relu(convolve(x, p, "conv4", 3, padding=1))
    x = pool(relu(convolve(x, p, "conv5", 3, padding=1))).flatten(1)
    for layer in ("fc6", "fc7"):
        x = relu(connect(drop_inverted(x, masks, layer), p, layer))
    return connect(x, p, "fc8")


# --- training ---------------------------------------------------------------------------------------------------------


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The minibatch's mean of -log softmax of the label."""
    shifted = logits - logits.detach().amax(1, keepdim=True)
    log_probabilities = shifted - shifted.exp().sum(1, keepdim=True).log()
    return -log_probabilities[torch.arange(len(labels)), labels].mean()


def rate_of_145(parameter: str, epoch: int) -> float:
    """The learning rate in an epoch, counted from 1, of the run behind the paper's 40.7 %."""
    layer, kind = parameter.split(".")
    if kind == "bias":
        rates = {1: 0.02, 72: 0.0} if layer == "conv1" else {1: 0.02}
    elif layer == "conv1":
        rates = {1: 1e-2, 25: 1e-3, 51: 1e-4, 67: 1e-5, 72: 0.0}
    else:
        rates = {1: 1e-2, 25: 1e-3, 51: 1e-4, 79: 1e-5}
    return rates[max(start for start in rates if start <= epoch)]


def update(weight: Tensor, velocity: Tensor, gradient: Tensor, rate: float, decay: float) -> tuple[Tensor, Tensor]:
    """New weight and velocity. The rate is inside the velocity, and with rate 0 neither changes."""
    if rate == 0:
        return weight, velocity
    velocity = 0.9 * velocity - rate * gradient
    velocity = velocity - decay * rate * weight
    return weight + velocity, velocity
