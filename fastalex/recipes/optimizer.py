"""The 2012 update rule.

For every parameter w with gradient g, learning rate e, momentum m and weight decay d::

    v <- m v - d e w - e g
    w <- w + v

The learning rate stands inside the velocity, so after a drop the old, larger steps fade over about 1 / (1 - m) updates;
PyTorch's SGD multiplies the velocity afterwards and drops at once. Weights decay, biases do not, and biases learn at a
multiple of the weights' rate. A rate of 0 freezes: neither weight nor velocity moves.

For batches of thousands of images, layer-wise adaptive rates (LARS) multiply the rate of every weight tensor by

    trust |w| / (|g| + d |w|)

so that an update is a like share of every layer's weights (You, Gitman and Ginsburg 2017); biases keep theirs.

Source: the paper's section 5, and the released source's ``weight update`` with its per-layer rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import kernels
from fastalex.recipes.schedule import Recipe


class KrizhevskySGD(Optimizer):
    """SGD as of 2012 over a module whose parameters are named ``<block>.weight`` and ``<block>.bias``.

    Each parameter is a group of its own, called by its name, because recipes set rates per layer.

    Args:
        module: whose parameters are trained.
        recipe: gives momentum, weight decay and the learning rates (:meth:`set_epoch`).
        copies: low-precision copies by parameter, refreshed within the update.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, copies: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        self.recipe = recipe
        self.warmup = 1.0
        self.copies = dict(copies or {})
        groups: list[dict[str, Any]] = []
        for name, parameter in module.named_parameters():
            decay = recipe.weight_decay if name.endswith(".weight") else 0.0
            groups.append({"params": [parameter], "name": name, "weight_decay": decay, "lr": 0.0})
        super().__init__(groups, defaults={"lr": 0.0, "momentum": recipe.momentum, "weight_decay": 0.0})
        self._parameters: list[nn.Parameter] = [group["params"][0] for group in self.param_groups]
        device = self._parameters[0].device
        # Always the same tensor: what a recorded CUDA graph reads anew in every replay.
        self.rates = torch.zeros(len(groups), dtype=torch.float64, device=device)
        decays = [group["weight_decay"] for group in groups]
        self._decays = torch.tensor(decays, dtype=torch.float64, device=device)
        self._weights = torch.tensor([group["name"].endswith(".weight") for group in groups], device=device)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, divisions: int = 0) -> None:
        """Set every learning rate to what the recipe says for an epoch, after ``divisions`` drops on the plateau."""
        recipe = self.recipe
        factor = recipe.plateau.factor**divisions if recipe.plateau else 1.0
        for group in self.param_groups:
            layer, kind = group["name"].rsplit(".", 1)
            if kind == "weight":
                scale = recipe.lr_scale_at(epoch, layer, "weights")
            else:
                scale = recipe.lr_scale_at(epoch, layer, "biases") * recipe.bias_lr_multiplier
            group["lr"] = recipe.lr * scale * factor
        self._read_rates()

    def set_warmup(self, factor: float) -> None:
        """Multiply all learning rates by ``factor``, in place of the one before."""
        if factor != self.warmup:
            self.warmup = factor
            self._read_rates()

    def _read_rates(self) -> None:
        # From pinned memory of its own, which nothing else gets until it is copied: then the copy needs no waiting for.
        rates = [group["lr"] * self.warmup for group in self.param_groups]
        values = torch.tensor(rates, dtype=torch.float64, pin_memory=self.rates.is_cuda)
        self.rates.copy_(values, non_blocking=True)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, enabled: Tensor | None = None
    ) -> None:
        """One update of every parameter that has a gradient.

        Args:
            enabled: None, or a tensor of one element on the parameters' device: 0 leaves weights and velocities as they
                are, 1 does nothing. Like the learning rates it is read there, without waiting for the device.
        """
        if closure is not None:
            raise ValueError("KrizhevskySGD takes no closure; compute the gradients first, then call step()")
        rates, decays, weights, parameters = self.rates, self._decays, self._weights, self._parameters
        chosen = [index for index, parameter in enumerate(parameters) if parameter.grad is not None]
        if not chosen:
            return
        if len(chosen) < len(parameters):
            rates, decays, weights = rates[chosen], decays[chosen], weights[chosen]
            parameters = [parameters[index] for index in chosen]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.recipe.lars is not None:
            rates = rates * _trust(self.recipe.lars, parameters, gradients, decays, weights)
        kernels.sgd_update_(
            parameters,
            gradients,
            [self.velocity(parameter) for parameter in parameters],
            learning_rates=rates if enabled is None else rates * enabled,
            weight_decays=decays,
            momentum=self.recipe.momentum,
            copies=[self.copies.get(parameter) for parameter in parameters] if self.copies else None,
        )

    def velocity(self, parameter: nn.Parameter) -> Tensor:
        """The parameter's velocity, zero before its first update."""
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]


def _trust(
    coefficient: float, weights: Sequence[Tensor], gradients: Sequence[Tensor], decays: Tensor, adapted: Tensor
) -> Tensor:
    """The factors of layer-wise adaptive rates, computed on the device; 1 where ``adapted`` is False."""
    w = torch.stack(torch._foreach_norm(list(weights))).double()
    g = torch.stack(torch._foreach_norm(list(gradients))).double()
    ratio = coefficient * w / (g + decays * w)
    # A tensor of zeros, or one whose gradient is zero, has no direction to trust or distrust.
    return torch.where(adapted & (w > 0) & (g > 0), ratio, torch.ones_like(ratio))
