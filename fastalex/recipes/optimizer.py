"""The 2012 update rule, with the learning rate inside the velocity.

For every parameter w with gradient g, learning rate e, momentum m and weight decay d::

    v <- m v - d e w - e g
    w <- w + v

After a drop of the learning rate, the earlier, larger updates fade over about 1 / (1 - m) steps. PyTorch's SGD
multiplies the velocity by the learning rate instead, and drops at once. Recipes with ``rescale_velocity`` do the same
by multiplying the velocity by (new rate / old rate). Biases have no weight decay unless the recipe says so, and their
learning rate is a multiple of the weights'. A learning rate of 0 freezes a parameter: neither it nor its velocity
changes.

For batches of thousands of images, layer-wise adaptive rates (LARS) multiply the learning rate of a weight tensor by

    trust |w| / (|g| + d |w|)

so that an update changes every layer by a similar fraction (You, Gitman and Ginsburg 2017). Biases keep their rates.

Source: the paper's section 5, and the weight update of the released source with its per-layer rates.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import kernels
from fastalex.recipes.schedule import Recipe


class KrizhevskySGD(Optimizer):
    """SGD with the 2012 update rule, for a module whose parameters are named ``<block>.weight`` and ``<block>.bias``.

    Each parameter is its own parameter group, with its name, because recipes set learning rates per layer.

    Args:
        module: the module to train.
        recipe: momentum, weight decay and learning rates (:meth:`set_epoch`).
        copies: low-precision copies by parameter, which each update refreshes.

    Attributes:
        velocity_rates: by parameter name, the last learning rate but 0 that the velocity has followed. Only recipes
            with ``rescale_velocity`` need it, and resuming their runs does, too.
    """

    # torch wraps these two, so that its compiler leaves them alone. The wrapper imports the compiler, which would take
    # as long as importing torch itself, at the start of every run.
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)

    def __init__(self, module: nn.Module, recipe: Recipe, copies: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        self.recipe = recipe
        self.warmup = 1.0
        self.copies = dict(copies or {})
        self.velocity_rates: dict[str, float] = {}
        groups: list[dict[str, Any]] = []
        for name, parameter in module.named_parameters():
            decay = recipe.weight_decay if name.endswith(".weight") or recipe.decay_biases else 0.0
            groups.append({"params": [parameter], "name": name, "weight_decay": decay, "lr": 0.0})
        super().__init__(groups, defaults={"lr": 0.0, "momentum": recipe.momentum, "weight_decay": 0.0})
        self._parameters: list[nn.Parameter] = [group["params"][0] for group in self.param_groups]
        device = self._parameters[0].device
        # Always the same tensor, because CUDA graphs read it in every replay.
        self.rates = torch.zeros(len(groups), dtype=torch.float64, device=device)
        decays = [group["weight_decay"] for group in groups]
        self._decays = torch.tensor(decays, dtype=torch.float64, device=device)
        self._is_weight = torch.tensor([group["name"].endswith(".weight") for group in groups], device=device)
        # Kept, because a CUDA graph can read such a tensor but not copy it from the host.
        self._selections: dict[tuple[int, ...], Tensor] = {}
        self.set_epoch(1)

    def set_epoch(self, epoch: int, divisions: int = 0) -> None:
        """Set the recipe's learning rates for an epoch, counted from 1, after ``divisions`` plateau divisions."""
        recipe = self.recipe
        factor = recipe.plateau.factor**divisions if recipe.plateau else 1.0
        for group in self.param_groups:
            layer, kind = group["name"].rsplit(".", 1)
            if kind == "weight":
                scale = recipe.lr_scale_at(epoch, layer, "weights")
            else:
                scale = recipe.lr_scale_at(epoch, layer, "biases") * recipe.bias_lr_multiplier
            group["lr"] = recipe.lr * scale * factor
        self._copy_rates()

    def set_warmup(self, factor: float) -> None:
        """Multiply all learning rates by ``factor``, which replaces the previous factor; called before every step.

        Only here velocities follow changed rates: once for all changes since the last step, so that a resumed run
        rounds as an uninterrupted one does, and outside the step, which CUDA graphs may replay.
        """
        if factor != self.warmup:
            self.warmup = factor
            self._copy_rates()
        if self.recipe.rescale_velocity:
            self._rescale_velocities()

    @torch.no_grad()
    def _rescale_velocities(self) -> None:
        for group in self.param_groups:
            rate, before = group["lr"] * self.warmup, self.velocity_rates.get(group["name"])
            if rate and rate != before:
                if before is not None:
                    self.velocity(group["params"][0]).mul_(rate / before)
                self.velocity_rates[group["name"]] = rate

    def _copy_rates(self) -> None:
        # A fresh pinned tensor for every copy: the allocator reuses it only after the copy, so nothing has to wait.
        rates = [group["lr"] * self.warmup for group in self.param_groups]
        values = torch.tensor(rates, dtype=torch.float64, pin_memory=self.rates.is_cuda)
        self.rates.copy_(values, non_blocking=True)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        enabled: Tensor | None = None,
        only: Sequence[nn.Parameter] | None = None,
    ) -> None:
        """Update every parameter that has a gradient.

        Args:
            only: of these parameters; None for all.
            enabled: tensor of one element on the parameters' device. 0 skips the update: weights and velocities stay as
                they are. 1 or None applies it. Read on the device, without synchronisation.
        """
        if closure is not None:
            raise ValueError("KrizhevskySGD takes no closure; compute the gradients first, then call step()")
        rates, decays, is_weight, parameters = self.rates, self._decays, self._is_weight, self._parameters
        wanted = None if only is None else {id(parameter) for parameter in only}
        chosen = tuple(
            index
            for index, parameter in enumerate(parameters)
            if parameter.grad is not None and (wanted is None or id(parameter) in wanted)
        )
        if not chosen:
            return
        if len(chosen) < len(parameters):
            if chosen not in self._selections:
                self._selections[chosen] = torch.tensor(chosen, device=rates.device)
            selection = self._selections[chosen]
            rates, decays, is_weight = rates[selection], decays[selection], is_weight[selection]
            parameters = [parameters[index] for index in chosen]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.recipe.lars is not None:
            rates = rates * _lars_factors(self.recipe.lars, parameters, gradients, decays, is_weight)
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
        """The parameter's velocity; zero before its first update."""
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]


def _lars_factors(
    trust: float, parameters: Sequence[Tensor], gradients: Sequence[Tensor], decays: Tensor, is_weight: Tensor
) -> Tensor:
    """The factors of layer-wise adaptive rates, computed on the device; 1 for biases."""
    w = torch.stack(torch._foreach_norm(list(parameters))).double()
    g = torch.stack(torch._foreach_norm(list(gradients))).double()
    ratio = trust * w / (g + decays * w)
    # The ratio is undefined for tensors of zeros and meaningless for zero gradients.
    return torch.where(is_weight & (w > 0) & (g > 0), ratio, torch.ones_like(ratio))
