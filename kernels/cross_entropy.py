"""Softmax cross-entropy of a batch, which also counts the top-1 and top-5 errors.

    loss = scale * sum over rows n of  log(sum_c exp(x[n, c])) - x[n, label[n]]
    d loss / d x[n, c] = scale * (exp(x[n, c]) / sum_j exp(x[n, j]) - [c = label[n]])

A row is a top-1 (top-5) error unless the score of its label is strictly larger than all others (all but 4 others). Ties
and NaN scores are errors, so a network with constant outputs gets nothing right.

The tensors have a few hundred kilobytes, and plain PyTorch launches a kernel for each of many small operations. Here
forward launches two kernels, one over rows and one that sums the rows in order, and backward launches one. Backward
saves the logits, the labels and one number per row, the logarithm of the sum.

Source: section 4 of Krizhevsky, Sutskever and Hinton (2012), a 1000-way softmax with the multinomial logistic loss; the
error rates are those of section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from kernels import arguments, dispatch, launch_settings, native, reference
from kernels.autograd import no_double_backward, operator
from kernels.dispatch import tl, triton
from kernels.vector_lanes import upcast

# Scores of a row that a program handles at a time: 8 per thread.
_BLOCK_SIZE = 1024


@triton.jit(do_not_specialize=["ignore_index"])
def cross_entropy_fwd_kernel(
    x_ptr, label_ptr, log_sum_ptr, loss_ptr, better_ptr, ignore_index: tl.int64, CLASSES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """For one row: the logarithm of the sum, the loss, and how many other scores are not below the label's (better).

    An ignored row has loss 0 and -1 better scores.
    """
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * CLASSES
    label = tl.load(label_ptr + row)
    # A label out of range makes the loss and the gradient NaN, which stops training, and counts as an error.
    own = upcast(tl.load(x_ptr + label, mask=(label >= 0) & (label < CLASSES), other=float("nan")))
    # The largest score.
    column = tl.arange(0, BLOCK_SIZE)
    top = tl.full([BLOCK_SIZE], float("-inf"), own.dtype)
    for start in range(0, CLASSES, BLOCK_SIZE):
        value = tl.load(x_ptr + start + column, mask=start + column < CLASSES, other=float("-inf"))
        top = tl.maximum(top, upcast(value))
    largest = tl.max(top, 0)
    # The sum of exponentials, and the scores that are not below the label's.
    total = tl.zeros([BLOCK_SIZE], own.dtype)
    better = tl.zeros([BLOCK_SIZE], tl.int32)
    for start in range(0, CLASSES, BLOCK_SIZE):
        inside = start + column < CLASSES
        value = upcast(tl.load(x_ptr + start + column, mask=inside, other=float("-inf")))
        # NaN if the largest score is infinite, and so is the loss, as in PyTorch.
        total += tl.where(inside, tl.exp(value - largest), 0.0)
        # ~(value < own) instead of value >= own counts NaN too.
        better += (inside & ~(value < own)).to(tl.int32)
    log_sum = largest + tl.log(tl.sum(total, 0))
    tl.store(log_sum_ptr + row, log_sum)
    ignored = label == ignore_index
    tl.store(loss_ptr + row, tl.where(ignored, 0.0, log_sum - own))
    # A label with score NaN is a top-5 error even among five classes or fewer.
    tl.store(better_ptr + row, tl.where(ignored, -1, tl.where(own == own, tl.sum(better, 0) - 1, 5)))


@triton.jit(do_not_specialize=["rows"])
def cross_entropy_sum_kernel(
    loss_ptr, better_ptr, scaled_ptr, counts_ptr, rows, scale: tl.float64, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Sums over the rows in fp64: the scaled loss; and as counts the loss, top-1 errors, top-5 errors and rows.

    Rows with less than 0 better scores are not counted.
    """
    loss = tl.zeros([BLOCK_SIZE], tl.float64)
    top1 = tl.zeros([BLOCK_SIZE], tl.int32)
    top5 = tl.zeros([BLOCK_SIZE], tl.int32)
    images = tl.zeros([BLOCK_SIZE], tl.int32)
    for start in range(0, rows, BLOCK_SIZE):
        row = start + tl.arange(0, BLOCK_SIZE)
        inside = row < rows
        loss += tl.load(loss_ptr + row, mask=inside, other=0.0).to(tl.float64)
        better = tl.load(better_ptr + row, mask=inside, other=-1)
        top1 += (better >= 1).to(tl.int32)
        top5 += (better >= 5).to(tl.int32)
        images += (better >= 0).to(tl.int32)
    total = tl.sum(loss, 0)
    tl.store(scaled_ptr, total * scale)
    tl.store(counts_ptr, total)
    tl.store(counts_ptr + 1, tl.sum(top1, 0).to(tl.float64))
    tl.store(counts_ptr + 2, tl.sum(top5, 0).to(tl.float64))
    tl.store(counts_ptr + 3, tl.sum(images, 0).to(tl.float64))


@triton.jit(do_not_specialize=["ignore_index"])
def cross_entropy_bwd_kernel(
    grad_ptr, x_ptr, label_ptr, log_sum_ptr, grad_x_ptr, scale: tl.float64, ignore_index: tl.int64,
    CLASSES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """BLOCK_SIZE elements of one row of grad_x. `grad_ptr` points to the gradient of the loss."""
    BLOCKS: tl.constexpr = (CLASSES + BLOCK_SIZE - 1) // BLOCK_SIZE
    program = tl.program_id(0)
    row = (program // BLOCKS).to(tl.int64)
    column = program % BLOCKS * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = column < CLASSES
    label = tl.load(label_ptr + row)
    log_sum = tl.load(log_sum_ptr + row)
    value = upcast(tl.load(x_ptr + row * CLASSES + column, mask=inside, other=0.0))
    # The product with the scale is rounded once, from fp64.
    factor = (upcast(tl.load(grad_ptr)) * scale).to(value.dtype)
    factor = tl.where((label >= 0) & (label < CLASSES), factor, float("nan"))
    factor = tl.where(label == ignore_index, 0.0, factor)
    grad = (tl.exp(value - log_sum) - (column == label).to(value.dtype)) * factor
    tl.store(grad_x_ptr + row * CLASSES + column, grad, mask=inside)


@operator("fastalex::cross_entropy_forward")
def _forward(x: Tensor, labels: Tensor, scale: float, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    arguments.check_elements("logits", x.shape[1], " per row")
    x, labels = x.contiguous(), labels.contiguous()
    loss, counts, log_sums = _empty_results(x)
    losses, better = torch.empty_like(log_sums), torch.empty_like(log_sums, dtype=torch.int32)
    with launch_settings.on_device_of(x):
        if x.shape[0] > 0:
            cross_entropy_fwd_kernel[(x.shape[0],)](
                x,
                labels,
                log_sums,
                losses,
                better,
                ignore_index,
                CLASSES=x.shape[1],
                BLOCK_SIZE=_BLOCK_SIZE,
                **launch_settings.OPTIONS,
            )
        cross_entropy_sum_kernel[(1,)](
            losses, better, loss, counts, x.shape[0], scale, BLOCK_SIZE=_BLOCK_SIZE, **launch_settings.OPTIONS
        )
    return loss, counts, log_sums


@_forward.register_fake
def _(x: Tensor, labels: Tensor, scale: float, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(x)


def _empty_results(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the loss, the counts, and the logarithm of each row's sum."""
    accumulator = torch.float64 if x.dtype == torch.float64 else torch.float32
    shapes = ((), accumulator), (4, torch.float64), (x.shape[0], accumulator)
    loss, counts, log_sums = (torch.empty(shape, dtype=dtype, device=x.device) for shape, dtype in shapes)
    return loss, counts, log_sums


@operator("fastalex::cross_entropy_backward")
def _backward(grad: Tensor, x: Tensor, labels: Tensor, log_sums: Tensor, scale: float, ignore_index: int) -> Tensor:
    x, labels = x.contiguous(), labels.contiguous()
    grad_x = torch.empty_like(x)
    if x.shape[0] > 0:
        with launch_settings.on_device_of(x):
            cross_entropy_bwd_kernel[(x.shape[0] * triton.cdiv(x.shape[1], _BLOCK_SIZE),)](
                grad,
                x,
                labels,
                log_sums,
                grad_x,
                scale,
                ignore_index,
                CLASSES=x.shape[1],
                BLOCK_SIZE=_BLOCK_SIZE,
                **launch_settings.OPTIONS,
            )
    return grad_x


@_backward.register_fake
def _(grad: Tensor, x: Tensor, labels: Tensor, log_sums: Tensor, scale: float, ignore_index: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _CrossEntropy(torch.autograd.Function):
    """Saves the logits, the labels and the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx, x, labels, scale, ignore_index):
        loss, counts, log_sums = _forward(x, labels, scale, ignore_index)
        ctx.save_for_backward(x, labels, log_sums)
        ctx.options = (scale, ignore_index)
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)  # zeros for the counts would cost a launch
        return loss, counts

    @staticmethod
    @no_double_backward("cross_entropy")
    def backward(ctx, grad, _):
        grad_x = None if grad is None else _backward(grad, *ctx.saved_tensors, *ctx.options)
        return grad_x, None, None, None


def _can_be_read(labels: Tensor) -> bool:
    """Whether the labels have values that can be read without synchronising with a GPU."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return labels.device.type == "cpu" and not transformed and not isinstance(labels, FakeTensor)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    scale: float = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy in nats, summed over the rows and scaled, and counts for reporting.

    Unlike `torch.nn.functional.cross_entropy`, it returns a pair, sums instead of averaging (for the mean, `scale` is
    1 / rows), and computes and returns fp32 for half precision. It has no class weights and takes no probabilities.

        loss = scale * sum over rows n of  log(sum_c exp(logits[n, c])) - logits[n, label[n]]

    A row is a top-1 (top-5) error unless the score of its label is strictly larger than all others (all but 4 others);
    ties and NaN scores are errors. Counts of several batches can be added.

    Differentiable once in Triton: there is no double backward, except on CPUs, where PyTorch computes. No transform of
    `torch.func` (grad, jvp, vmap) works. Under `kernels.using("reference")` both work.

    Args:
        logits: N x classes; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        labels: N values, int64, from 0 to classes - 1, or `ignore_index`. A label out of range raises on a CPU. On a
            GPU, which is not synchronised, it makes the loss and the row's gradient NaN and counts as an error.
        scale: factor of the loss and its gradient, for example 1 / (images in the whole batch).
        ignore_index: rows with this label have no loss, no gradient, and are not counted.
        label_smoothing: in [0, 1]; mixes the label with the uniform distribution, as in PyTorch, whose operators then
            compute.

    Returns:
        The loss, a tensor without dimensions in fp32 (fp64 for fp64), and the counts, four float64 values without a
        gradient: sum of the unscaled losses, top-1 errors, top-5 errors, and rows that are not ignored.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before any computation.
    """
    arguments.check_tensor("logits", logits, 2, "N x classes")
    arguments.check_labels("labels", labels, logits)
    arguments.check_number("scale", scale)
    arguments.check_int("ignore_index", ignore_index, -(2**63))
    arguments.check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    chosen = dispatch.implementation_for(logits)
    if chosen == "triton" and label_smoothing == 0:
        return _CrossEntropy.apply(logits, labels, float(scale), ignore_index)
    if _can_be_read(labels):
        arguments.check_label_values("labels", labels, logits.shape[1], ignore_index)
    plain = reference if chosen == "reference" else native
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    return plain.cross_entropy(logits, labels, scale=scale, **options)
