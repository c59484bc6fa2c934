"""The update rule of 2012: gradient descent with momentum, weight decay and the learning rate inside the velocity.

    v = momentum * v - weight_decay * learning_rate * w - learning_rate * g
    w = w + v

Source: section 5 of Krizhevsky, Sutskever and Hinton (2012); that a learning rate of 0 stops the velocity too is how
its source freezes a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import arguments, dispatch, native, reference


def sgd_update_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    learning_rates: Sequence[float] | Tensor,
    weight_decays: Sequence[float] | Tensor,
    momentum: float = 0.9,
    copies: Sequence[Tensor] | None = None,
) -> None:
    """Update weights and velocities in place, each tensor with its own learning rate and weight decay.

        v = momentum * v - weight_decay * learning_rate * w - learning_rate * g;  w = w + v

    A tensor with learning rate 0 keeps both its weight and its velocity.

    Args:
        weights: tensors of one floating dtype each, of any shape.
        gradients, velocities: one per weight, of its shape and on its device; velocities of its dtype.
        learning_rates, weight_decays: one number per weight, or a floating-point tensor with one value per weight,
            which is read on its device without waiting for it.
        momentum: in [0, 1).
        copies: bfloat16 copies of the weights, refreshed in the same pass, or None.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is changed.
    """
    _check(weights, gradients, velocities, learning_rates, weight_decays, momentum, copies)
    if not weights:
        return
    chosen = reference if dispatch.implementation_for(weights[0]) == "reference" else native
    chosen.sgd_update_(
        weights,
        gradients,
        velocities,
        learning_rates=learning_rates,
        weight_decays=weight_decays,
        momentum=momentum,
        copies=copies,
    )


def _check(weights, gradients, velocities, learning_rates, weight_decays, momentum, copies) -> None:
    for name, tensors in (("gradients", gradients), ("velocities", velocities), ("copies", copies)):
        if tensors is not None and len(tensors) != len(weights):
            raise ValueError(f"{name} must have {len(weights)} tensors, one per weight, not {len(tensors)}")
    for name, values in (("learning_rates", learning_rates), ("weight_decays", weight_decays)):
        _check_numbers(name, values, len(weights))
    arguments.check_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), not {momentum}")
    for index, weight in enumerate(weights):
        arguments.check_tensor(f"weights[{index}]", weight, weight.dim(), "any")
        for name, tensors in (("gradients", gradients), ("velocities", velocities), ("copies", copies)):
            if tensors is None:
                continue
            other, label = tensors[index], f"{name}[{index}]"
            arguments.check_tensor(label, other, other.dim(), "any")
            if other.shape != weight.shape:
                raise ValueError(
                    f"{label} must have the shape of weights[{index}], {tuple(weight.shape)}, not {tuple(other.shape)}"
                )
            if other.device != weight.device:
                raise ValueError(f"{label} must be on the device of its weight, {weight.device}, not {other.device}")
            wanted = {"gradients": other.dtype, "velocities": weight.dtype, "copies": torch.bfloat16}[name]
            if other.dtype != wanted:
                raise TypeError(f"{label} must be {wanted}, not {other.dtype}")


def _check_numbers(name: str, values: Sequence[float] | Tensor, count: int) -> None:
    if isinstance(values, Tensor):
        arguments.check_tensor(name, values, 1, "one value per weight")
    if len(values) != count:
        raise ValueError(f"{name} must have {count} values, one per weight, not {len(values)}")
    if isinstance(values, Tensor):
        return
    for index, value in enumerate(values):
        arguments.check_number(f"{name}[{index}]", value)
        if value < 0 or not math.isfinite(value):
            raise ValueError(f"{name}[{index}] must be at least 0, not {value}")
