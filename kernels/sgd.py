"""The update rule of 2012: SGD with momentum, with weight decay and the learning rate inside the velocity.

    v = momentum * v - weight_decay * learning_rate * w - learning_rate * g
    w = w + v

One launch updates all tensors of one dtype: a table on the device says which block of which tensor a program handles.

Source: section 5 of Krizhevsky, Sutskever and Hinton (2012). A learning rate of 0 stops the velocity too: this is how
the released source freezes a layer.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels import arguments, dispatch, launch_settings, native, reference
from kernels.autograd import operator
from kernels.dispatch import tl, triton
from kernels.memory_format import is_dense
from kernels.vector_lanes import upcast

# Elements per program: 32 bytes of fp32 per thread and tensor. More would exceed the registers.
_BLOCK_SIZE = 1024
_ALIGNMENT = 16


@triton.jit
def sgd_kernel(
    block_ptr, address_ptr, length_ptr, rate_ptr, decay_ptr, MOMENTUM: tl.constexpr, WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr, BLOCK_SIZE: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor.

    Row `program` of the block table is (tensor, block within it). Row `tensor` of the address table holds the addresses
    of weight, gradient, velocity and copy, 0 for no copy. Length, rate and decay have one value per tensor.
    """
    # Look up the block and its tensor.
    program = tl.program_id(0)
    tensor = tl.load(block_ptr + 2 * program)
    first = tl.load(block_ptr + 2 * program + 1) * BLOCK_SIZE
    length = tl.load(length_ptr + tensor)
    rate = tl.load(rate_ptr + tensor)
    decay = tl.load(decay_ptr + tensor)
    weight_ptr = tl.load(address_ptr + 4 * tensor).to(tl.pointer_type(WEIGHT))
    gradient_ptr = tl.load(address_ptr + 4 * tensor + 1).to(tl.pointer_type(GRADIENT))
    velocity_ptr = tl.load(address_ptr + 4 * tensor + 2).to(tl.pointer_type(WEIGHT))
    copy_address = tl.load(address_ptr + 4 * tensor + 3)
    has_copy = copy_address != 0
    copy_ptr = copy_address.to(tl.pointer_type(tl.bfloat16))
    if ALIGNED:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
        gradient_ptr = tl.multiple_of(gradient_ptr, 16)
        velocity_ptr = tl.multiple_of(velocity_ptr, 16)
        copy_ptr = tl.multiple_of(copy_ptr, 16)
    # Only the last block of a tensor needs a mask, which prevents wide loads.
    if first + BLOCK_SIZE <= length:
        offset = first + tl.arange(0, BLOCK_SIZE)
        update_block(
            weight_ptr + offset, gradient_ptr + offset, velocity_ptr + offset, copy_ptr + offset, None, rate, decay,
            has_copy, MOMENTUM,
        )  # fmt: skip
    else:
        offset = first + tl.arange(0, BLOCK_SIZE)
        update_block(
            weight_ptr + offset, gradient_ptr + offset, velocity_ptr + offset, copy_ptr + offset, offset < length,
            rate, decay, has_copy, MOMENTUM,
        )  # fmt: skip


@triton.jit
def update_block(
    weight_ptrs, gradient_ptrs, velocity_ptrs, copy_ptrs, mask, rate, decay, has_copy, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """Update the elements at these pointers; the copy is written only if `has_copy`."""
    weight = upcast(tl.load(weight_ptrs, mask=mask))
    if rate != 0.0:
        gradient = tl.load(gradient_ptrs, mask=mask).to(weight.dtype)
        velocity = tl.load(velocity_ptrs, mask=mask).to(weight.dtype)
        velocity = MOMENTUM * velocity - (decay * rate).to(weight.dtype) * weight - rate.to(weight.dtype) * gradient
        weight += velocity
        tl.store(velocity_ptrs, velocity, mask=mask)
        tl.store(weight_ptrs, weight, mask=mask)
    if has_copy:  # via fp32, because Triton's interpreter turns fp64 into NaN when it casts to bf16
        tl.store(copy_ptrs, weight.to(tl.float32), mask=mask)


_TRITON_TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@functools.lru_cache(maxsize=16)
def _block_table(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tensor and the block that each program updates, and the lengths of all tensors. Same in every step."""
    _refuse_while_capturing(device, _TABLE)
    blocks = torch.tensor([triton.cdiv(length, _BLOCK_SIZE) for length in lengths], dtype=torch.int64)
    tensors = torch.arange(len(lengths)).repeat_interleave(blocks)
    first = torch.cumsum(blocks, 0) - blocks
    table = torch.stack((tensors, torch.arange(tensors.numel()) - first[tensors]), dim=1)
    return table.to(device), torch.tensor(lengths, dtype=torch.int64).to(device)


@functools.lru_cache(maxsize=64)
def _address_table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """The addresses of all tensors. Cached, because allocators return the same addresses in every step."""
    _refuse_while_capturing(device, _TABLE)
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


_TABLE = (
    "build its table of addresses while a CUDA graph is captured, got tensors that it has not updated before: call it "
    "once with the same tensors before the capture (learning rates of 0 change nothing)"
)


def _refuse_while_capturing(device: torch.device, what: str) -> None:
    """Refuse to copy from the host's memory while a CUDA graph is captured: a replay would read that memory again."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"sgd_update_ cannot {what}")


# The tables that CUDA graphs read: a graph may be replayed after the caches have dropped them.
_recorded: list[tuple[Tensor, ...]] = []


@operator("fastalex::sgd_update", mutates_args=("weights", "velocities", "copies"))
def _update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    copies: Sequence[Tensor],
    copied: Sequence[int],
    rates: Tensor,
    decays: Tensor,
    momentum: float,
) -> None:
    """Update tensors of one dtype with gradients of one dtype. All are dense and have the strides of their weight.

    `copies` belong to the weights with the indices `copied`.
    """
    copy_of = {index: copy.data_ptr() for index, copy in zip(copied, copies, strict=True)}
    addresses = tuple(
        (w.data_ptr(), g.data_ptr(), v.data_ptr(), copy_of.get(index, 0))
        for index, (w, g, v) in enumerate(zip(weights, gradients, velocities, strict=True))
    )
    blocks, lengths = _block_table(tuple(w.numel() for w in weights), weights[0].device)
    if blocks.shape[0] == 0:
        return
    table = _address_table(addresses, weights[0].device)
    if weights[0].is_cuda and torch.cuda.is_current_stream_capturing():
        _recorded.append((blocks, lengths, table))
    with launch_settings.on_device_of(weights[0]):
        sgd_kernel[(blocks.shape[0],)](
            blocks,
            table,
            lengths,
            rates,
            decays,
            MOMENTUM=momentum,
            WEIGHT=_TRITON_TYPES[weights[0].dtype],
            GRADIENT=_TRITON_TYPES[gradients[0].dtype],
            BLOCK_SIZE=_BLOCK_SIZE,
            ALIGNED=all(start % _ALIGNMENT == 0 for row in addresses for start in row),
            **launch_settings.OPTIONS,
        )


@_update.register_fake
def _(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    copies: Sequence[Tensor],
    copied: Sequence[int],
    rates: Tensor,
    decays: Tensor,
    momentum: float,
) -> None:
    return None


def _on_device(name: str, values: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """The numbers as an fp64 tensor on the weights' device."""
    if isinstance(values, Tensor) and values.device == device:
        return values.to(torch.float64)
    where = f"a tensor on {values.device}" if isinstance(values, Tensor) else "numbers"
    _refuse_while_capturing(
        device, f"copy {name} to {device} while a CUDA graph is captured, got {where}: pass a tensor on {device}"
    )
    return torch.as_tensor(values, dtype=torch.float64).to(device, non_blocking=True)


@torch.no_grad()
def _update_in_triton(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    learning_rates: Sequence[float] | Tensor,
    weight_decays: Sequence[float] | Tensor,
    momentum: float,
    copies: Sequence[Tensor | None] | None,
) -> None:
    """`sgd_update_` by Triton, one launch per combination of dtypes."""
    device = weights[0].device
    rates = _on_device("learning_rates", learning_rates, device)
    decays = _on_device("weight_decays", weight_decays, device)
    groups: dict[tuple[torch.dtype, torch.dtype], list[int]] = {}
    for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        groups.setdefault((weight.dtype, gradient.dtype), []).append(index)
    for members in groups.values():
        all_weights = len(members) == len(weights)
        copy_of = {} if copies is None else {position: copies[index] for position, index in enumerate(members)}
        copied = [position for position, copy in copy_of.items() if copy is not None]
        _update(
            [weights[index] for index in members],
            [_with_strides_of(weights[index], gradients[index]) for index in members],
            [velocities[index] for index in members],
            [copy for copy in copy_of.values() if copy is not None],
            copied,
            rates if all_weights else rates[members],
            decays if all_weights else decays[members],
            momentum,
        )


def _with_strides_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient itself if it has the weight's strides, else a copy that has."""
    if gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)


def _all_dense(weights: Sequence[Tensor], others: Sequence[Sequence[Tensor | None]]) -> bool:
    """Whether each weight is dense, and the other tensors that are written have its strides."""
    return all(
        is_dense(weight) and all(t.stride() == weight.stride() for t in beside if t is not None)
        for weight, *beside in zip(weights, *others, strict=True)
    )


def sgd_update_(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    learning_rates: Sequence[float] | Tensor,
    weight_decays: Sequence[float] | Tensor,
    momentum: float = 0.9,
    copies: Sequence[Tensor | None] | None = None,
) -> None:
    """Update weights and velocities in place, each tensor with its own learning rate and weight decay.

        v = momentum * v - weight_decay * learning_rate * w - learning_rate * g;  w = w + v

    A tensor with learning rate 0 keeps its weight and its velocity. Like PyTorch's own in-place operations, an update
    increments version counters, so that backward through results of the previous weights raises. On meta tensors it
    does nothing else.

    Args:
        weights: floating-point tensors of any shape and dtype, all on one device.
        gradients, velocities: one per weight, of its shape and on its device; velocities of its dtype.
        learning_rates, weight_decays: one number per weight, or a floating-point tensor with one value per weight,
            which is not copied to the host.
        momentum: in [0, 1).
        copies: bfloat16 copies of the weights, updated in the same pass; None for a weight without a copy, or for all.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is changed.
        RuntimeError: a CUDA graph is captured, and an update of the same tensors did not precede it, or learning rates
            or weight decays are not on the weights' device.
    """
    _check(weights, gradients, velocities, learning_rates, weight_decays, momentum, copies)
    if not weights:
        return
    if weights[0].is_meta:
        increment_version([*weights, *velocities])
        return
    chosen = dispatch.implementation_for(weights[0])
    written = [velocities] if copies is None else [velocities, copies]
    if chosen == "triton" and _all_dense(weights, written):
        update = _update_in_triton
    else:
        update = reference.sgd_update_ if chosen == "reference" else native.sgd_update_
    update(
        weights,
        gradients,
        velocities,
        learning_rates=learning_rates,
        weight_decays=weight_decays,
        momentum=momentum,
        copies=copies,
    )
    # PyTorch's fused update and native.c, which the native implementation uses in eager mode, do not increment version
    # counters.
    if update is native.sgd_update_ and not torch.compiler.is_compiling():
        increment_version([*weights, *velocities, *(copy for copy in copies or () if copy is not None)])


def _check(weights, gradients, velocities, learning_rates, weight_decays, momentum, copies) -> None:
    beside = [("gradients", gradients), ("velocities", velocities)]
    if copies is not None:
        beside.append(("copies", copies))
    for name, tensors in [("weights", weights), *beside]:
        if not isinstance(tensors, Sequence):
            raise TypeError(f"{name} must be a sequence of tensors, got {type(tensors).__name__}")
        if len(tensors) != len(weights):
            tensors_wanted = arguments.count(len(weights), "tensor")
            raise ValueError(f"{name} must have {tensors_wanted}, one per weight, got {len(tensors)}")
    for name, values in (("learning_rates", learning_rates), ("weight_decays", weight_decays)):
        _check_numbers(name, values, len(weights))
    arguments.check_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    for index, weight in enumerate(weights):
        arguments.check_tensor(f"weights[{index}]", weight)
        _check_writable(f"weights[{index}]", weight)
        if weight.device != weights[0].device:
            raise ValueError(
                f"weights[{index}] must be on the device of weights[0], {weights[0].device}, got {weight.device}: "
                "update the weights of each device in a separate call"
            )
        for name, tensors in beside:
            if name == "copies" and tensors[index] is None:
                continue
            other, label = tensors[index], f"{name}[{index}]"
            arguments.check_tensor(label, other)
            if other.shape != weight.shape:
                raise ValueError(
                    f"{label} must have the shape of weights[{index}], {tuple(weight.shape)}, got {tuple(other.shape)}"
                )
            if other.device != weight.device:
                raise ValueError(f"{label} must be on the device of its weight, {weight.device}, got {other.device}")
            wanted = {"gradients": other.dtype, "velocities": weight.dtype, "copies": torch.bfloat16}[name]
            if other.dtype != wanted:
                raise TypeError(f"{label} must be {wanted}, got {other.dtype}")
            if name != "gradients":
                _check_writable(label, other)


def _check_writable(name: str, x: Tensor) -> None:
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise ValueError(f"{name} must have memory for each of its elements, got strides {x.stride()}: clone() it")


def _check_numbers(name: str, values: Sequence[float] | Tensor, count: int) -> None:
    if isinstance(values, Tensor):
        arguments.check_tensor(name, values, 1, "one value per weight")
    elif not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of numbers or a tensor, got {type(values).__name__}: {values!r}")
    if len(values) != count:
        raise ValueError(f"{name} must have {arguments.count(count, 'value')}, one per weight, got {len(values)}")
    if isinstance(values, Tensor):
        return
    for index, value in enumerate(values):
        arguments.check_number(f"{name}[{index}]", value)
        if value < 0:
            raise ValueError(f"{name}[{index}] must be at least 0, got {value}")
