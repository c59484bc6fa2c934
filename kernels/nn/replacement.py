"""Puts this package's modules into an existing model."""

from __future__ import annotations

import itertools
from collections import Counter

from torch import nn

from kernels.arguments import FLOATING
from kernels.nn.modules import ConvReLU2d, Dropout, LocalResponseNorm, MaxPool2d

_SAME: dict[type[nn.Module], type[nn.Module]] = {
    nn.LocalResponseNorm: LocalResponseNorm,
    nn.MaxPool2d: MaxPool2d,
    nn.Dropout: Dropout,
}


def replace_modules(model: nn.Module) -> dict[str, str]:
    """Let a model's modules compute with the operators of :mod:`kernels`, in place.

    Replaced are `LocalResponseNorm`, `MaxPool2d` and `Dropout`, and in an `nn.Sequential` each `Conv2d` with a `ReLU`
    right behind it: the convolution then includes the ReLU, whose place an `Identity` takes. Results are the same up to
    rounding, except for the masks of dropout. Modules stay the same objects with the same parameters, hooks and names,
    so optimizers and state_dicts go on working.

    Left alone are subclasses, convolutions that appear in several places, and convolutions or ReLUs with hooks, which
    would see other values. A caller that applies the children of an `nn.Sequential` by itself finds the ReLU's result
    behind the convolution.

    Args:
        model: any module; itself one of these, too.

    Returns:
        What was replaced, by name: {"features.0": "Conv2d + ReLU (features.1) -> ConvReLU2d", ...}.

    Raises:
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    replaced = {}
    uses = Counter(id(child) for module in model.modules() for child in module._modules.values())
    for name, module in list(model.named_modules()):
        wanted = _SAME.get(type(module))
        if wanted is not None:
            replaced[name] = f"{type(module).__name__} -> {wanted.__name__}"
            module.__class__ = wanted
        elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            prefix = f"{name}." if name else ""
            for conv, relu in _pairs(module, uses):
                replaced[prefix + conv] = f"Conv2d + ReLU ({prefix}{relu}) -> ConvReLU2d"
                module._modules[conv].__class__ = ConvReLU2d
                module._modules[relu] = nn.Identity()
    return replaced


def _pairs(sequence: nn.Sequential, uses: Counter[int]) -> list[tuple[str, str]]:
    """The names of the convolutions with a ReLU right behind them, and of that ReLU."""
    children = list(sequence._modules.items())
    return [
        (name, next_name)
        for (name, conv), (next_name, relu) in itertools.pairwise(children)
        if type(conv) is nn.Conv2d
        and type(relu) is nn.ReLU
        and uses[id(conv)] == 1
        and conv.weight.dtype in FLOATING
        and not _has_hooks(conv)
        and not _has_hooks(relu)
    ]


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
