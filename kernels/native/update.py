"""The SGD update on a CPU, by PyTorch's fused update or, with bf16 copies, `native.c`: each value passes through memory
once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import reference
from kernels.memory_format import is_dense
from kernels.native import c_functions
from kernels.native.buffers import ELEMENTS_PER_THREAD


@torch.no_grad()
def sgd_update_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    learning_rates: Sequence[float] | Tensor,
    weight_decays: Sequence[float] | Tensor,
    momentum: float,
    copies: Sequence[Tensor | None] | None,
) -> None:
    """As :func:`kernels.sgd_update_`, without the checks."""
    rates, decays = _host_values(learning_rates), _host_values(weight_decays)
    # Without momentum, PyTorch's fused update ignores the velocity.
    use_reference = torch.compiler.is_compiling() or rates is None or decays is None or momentum == 0
    for index, (weight, gradient, velocity) in enumerate(zip(weights, gradients, velocities, strict=True)):
        copy = None if copies is None else copies[index]
        tensors = [weight, gradient, velocity] + ([] if copy is None else [copy])
        same_layout = all(is_dense(t) and t.stride() == weight.stride() for t in tensors)
        if use_reference or not same_layout or weight.dtype not in (torch.float32, torch.float64):
            reference.sgd_update_(
                [weight],
                [gradient],
                [velocity],
                learning_rates=learning_rates[index : index + 1],
                weight_decays=weight_decays[index : index + 1],
                momentum=momentum,
                copies=None if copy is None else [copy],
            )
            continue
        assert rates is not None
        assert decays is not None
        _update(*(_flat(t) for t in tensors), rate=rates[index], decay=decays[index], momentum=momentum)


def _host_values(values: Sequence[float] | Tensor) -> list[float] | None:
    """The values as floats, or None if reading them would synchronise with a device."""
    if not isinstance(values, Tensor):
        return list(values)
    return values.tolist() if values.device.type == "cpu" and not torch.compiler.is_compiling() else None


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def _update(
    weight: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    copy: Tensor | None = None,
    *,
    rate: float,
    decay: float,
    momentum: float,
) -> None:
    """Update flat tensors. `copy` receives the new weights."""
    dtypes = torch.float32, torch.bfloat16
    in_c = copy is not None and rate != 0 and c_functions.supports(weight) and weight.dtype == torch.float32
    if copy is not None and in_c and gradient.dtype in dtypes:
        c_functions.sgd_update(weight, gradient, velocity, copy, rate, decay, momentum)
        return
    # With a copy, weights are updated in chunks, which are still in the cache when they are copied.
    chunk = max(weight.numel(), 1) if copy is None else ELEMENTS_PER_THREAD // 2 * torch.get_num_threads()
    for start in range(0, weight.numel(), chunk):
        w, v = weight[start : start + chunk], velocity[start : start + chunk]
        if rate != 0:
            # PyTorch computes v = m v + (1 - dampening) (g + d w) and w = w - lr v. With lr = -1 and
            # dampening = 1 + rate this is v = m v - rate (g + d w) and w = w + v, the rule of 2012.
            torch._fused_sgd_(
                [w],
                [gradient[start : start + chunk].to(w.dtype)],
                [v],
                weight_decay=decay,
                momentum=momentum,
                lr=-1.0,
                dampening=1.0 + rate,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
        if copy is not None:
            copy[start : start + chunk].copy_(w)
