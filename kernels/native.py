"""The operators on a CPU, arranged to be fast and to keep little for backward.

Normalisation written with whole-tensor operations moves the tensor through memory once per operation. In fp32 it is
left to `native.c` where the machine has a C compiler (`kernels.native_c`). Everywhere else it is PyTorch: each step
works on a block that stays in the cores' caches, and the windows are summed without copies: the squares lie
in rows with a margin, so that a window sum is a few additions of one flat array to itself, shifted.

Arguments are as in the public functions of the same names, which check them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import native_c, reference, winograd
from kernels.autograd import no_double_backward
from kernels.memory_format import dense_as, empty_as, is_channels_last
from kernels.philox import keep_mask

# 512 KiB of fp32 per core and buffer: a handful of buffers stay in the processor's caches, and starting an operation
# costs little beside its work. Blocks small enough for a core's own cache start more operations and were slower.
_BLOCK_PER_THREAD = 131072
# A GPU has no use for small blocks, as each operation of each block is a launch. This many bound the memory taken.
_BLOCK_ON_GPU = 2**24


# ------------------------------------------------------------------------------------------------- normalisation


def _blocks(x: Tensor, over: str, groups: int, *, channels_last: bool) -> Tensor:
    """View of dense `x` as rows x d1 x d2 x inner, the windows running over d1 and d2 only."""
    batch, channels, height, width = x.shape
    if channels_last:
        x = x.permute(0, 2, 3, 1)
    if over == "map":
        return x if channels_last else x.reshape(batch * channels, height, width, 1)
    if channels_last:
        return x.reshape(batch * height * width * groups, channels // groups, 1, 1)
    return x.reshape(batch * groups, channels // groups, 1, height * width)


def _shifted_sums(flat: Tensor, size: int, step: int) -> Tensor:
    """The sums `flat[i] + flat[i + step] + ... + flat[i + (size - 1) * step]`, in about log2(size) additions."""
    total, covered = None, 0
    power, width = flat, 1
    while True:
        if size & width:
            if total is None:
                total = power
            else:
                length = flat.numel() - (covered + width - 1) * step
                total = total[:length] + power[covered * step :][:length]
            covered += width
        if covered == size:
            assert total is not None
            return total
        power = power[: power.numel() - width * step] + power[width * step :]
        width *= 2


class _Windows:
    """Window sums over blocks of rows x d1 x d2 x inner, summed in rows with margins."""

    def __init__(self, blocks: Tensor, sizes: tuple[int, int], dtype: torch.dtype) -> None:
        rows, d1, d2, inner = blocks.shape
        self.sizes = sizes
        self.dtype = dtype
        self.device = blocks.device
        self.padded = (d1 + sizes[0] - 1, d2 + sizes[1] - 1, inner)
        self.steps = ((d2 + sizes[1] - 1) * inner, inner)
        per_row = max(1, d1 * d2 * inner)
        elements = _BLOCK_ON_GPU if blocks.is_cuda else _BLOCK_PER_THREAD * torch.get_num_threads()
        self.rows = min(max(1, elements // per_row), max(rows, 1))

    def room(self, margin: float) -> Tensor:
        """A buffer of rows with margins, filled with what a margin holds."""
        return torch.full((self.rows, *self.padded), margin, dtype=self.dtype, device=self.device)

    def inside(self, room: Tensor, like: Tensor, *, mirrored: bool) -> Tensor:
        """The part of a buffer within the margins. A mirrored window has its longer half on the other side."""
        first = [(size - 1) // 2 if mirrored else size // 2 for size in self.sizes]
        rows, d1, d2, _ = like.shape
        return room[:rows, first[0] : first[0] + d1, first[1] : first[1] + d2]

    def sums(self, room: Tensor, rows: int) -> Tensor:
        """The flat sums of all windows of the first `rows` rows; what lies past a row's last window means nothing."""
        flat = room[:rows].view(-1)
        for size, step in zip(self.sizes, self.steps, strict=True):
            if size > 1:
                flat = _shifted_sums(flat, size, step)
        return flat

    def rows_of(self, flat: Tensor, like: Tensor) -> Tensor:
        """View of flat sums (or of what was computed from them) as rows x d1 x d2 x inner."""
        p1, p2, inner = self.padded
        return flat.as_strided(like.shape, (p1 * p2 * inner, p2 * inner, inner, 1))


def _denominator(scale: Tensor, beta: float) -> Tensor:
    """`scale ** beta`; the exponents in use need no logarithm."""
    if beta == 0.75:
        root = scale.sqrt()
        return root.mul_(root.sqrt())
    if beta == 0.5:
        return scale.sqrt()
    if beta == 1.0:
        return scale
    return scale.pow(beta)


def _sizes(over: str, size: int) -> tuple[int, int]:
    return (size, 1) if over == "channels" else (size, size)


def _work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("fastalex::native_norm_forward", mutates_args=())
def _norm_forward(x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
    channels_last = is_channels_last(x)
    x = dense_as(x, channels_last)
    y = empty_as(x)
    _normalise(x, y, over, size, alpha, beta, k, groups)
    return y


@_norm_forward.register_fake
def _(x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
    return empty_as(x)


def _normalise(
    x: Tensor,
    y: Tensor,
    over: str,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
) -> None:
    """Write the normalised `x` to `y`, both dense and of one layout."""
    if x.numel() == 0:
        return
    channels_last = is_channels_last(x)
    if _compiled_norm(x, None, y, over, (size, alpha, beta, k), groups):
        return
    source = _blocks(x, over, groups, channels_last=channels_last)
    result = _blocks(y, over, groups, channels_last=channels_last)
    windows = _Windows(source, _sizes(over, size), _work_dtype(x))
    count = windows.sizes[0] * windows.sizes[1]
    share = torch.full((), k / count, dtype=windows.dtype, device=x.device)
    room = windows.room(k / count)
    for start in range(0, source.shape[0], windows.rows):
        block = source[start : start + windows.rows].to(windows.dtype)
        # Every element, margins too, carries its share of k, so that the sums are the scale itself.
        torch.addcmul(share, block, block, value=alpha / count, out=windows.inside(room, block, mirrored=False))
        denominator = _denominator(windows.sums(room, block.shape[0]), beta)
        _write(result[start : start + windows.rows], torch.div, block, windows.rows_of(denominator, block))


@torch.library.custom_op("fastalex::native_norm_backward", mutates_args=())
def _norm_backward(
    grad: Tensor, x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int
) -> Tensor:
    channels_last = is_channels_last(x)
    x, grad = dense_as(x, channels_last), dense_as(grad, channels_last)
    grad_x = empty_as(x)
    _normalise_backward(grad, x, grad_x, over, size, alpha, beta, k, groups)
    return grad_x


@_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
    return empty_as(x)


def _normalise_backward(
    grad: Tensor,
    x: Tensor,
    grad_x: Tensor,
    over: str,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
) -> None:
    """grad_x = grad * scale^-beta - 2 alpha beta / n * x * (mirrored window sums of grad * x * scale^(-beta - 1))."""
    if x.numel() == 0:
        return
    channels_last = is_channels_last(x)
    if _compiled_norm(x, grad, grad_x, over, (size, alpha, beta, k), groups):
        return
    upstream = _blocks(grad, over, groups, channels_last=channels_last)
    source = _blocks(x, over, groups, channels_last=channels_last)
    result = _blocks(grad_x, over, groups, channels_last=channels_last)
    windows = _Windows(source, _sizes(over, size), _work_dtype(x))
    count = windows.sizes[0] * windows.sizes[1]
    share = torch.full((), k / count, dtype=windows.dtype, device=x.device)
    room, mirror = windows.room(k / count), windows.room(0.0)
    for start in range(0, source.shape[0], windows.rows):
        block = source[start : start + windows.rows].to(windows.dtype)
        torch.addcmul(share, block, block, value=alpha / count, out=windows.inside(room, block, mirrored=False))
        scale = windows.sums(room, block.shape[0])
        direct = upstream[start : start + windows.rows] / windows.rows_of(_denominator(scale, beta), block)
        spread = windows.inside(mirror, block, mirrored=True)
        torch.mul(direct, block, out=spread).div_(windows.rows_of(scale, block))
        sums = windows.rows_of(windows.sums(mirror, block.shape[0]), block)
        _write(
            result[start : start + windows.rows], torch.addcmul, direct, block, sums, value=-2 * alpha * beta / count
        )


def _compiled_norm(
    x: Tensor,
    grad: Tensor | None,
    result: Tensor,
    over: str,
    options: tuple[int, float, float, float],
    groups: int,
) -> bool:
    """Write y, or with a gradient grad_x, to `result`, if there is a compiled function for that."""
    if not native_c.computes(x):
        return False
    channels_last = is_channels_last(x)
    if over == "channels":
        inner = 1 if channels_last else x.shape[2] * x.shape[3]
        native_c.norm_over_channels(x, grad, result, options, groups, inner)
    elif channels_last:
        native_c.norm_over_map(x, grad, result, options)
    else:
        return False
    return True


def _write(place: Tensor, operation, *operands, **options) -> None:
    """`place = operation(...)`, rounded to place's dtype."""
    if place.dtype == operands[0].dtype:
        operation(*operands, out=place, **options)
    else:
        place.copy_(operation(*operands, **options))


class _WindowNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, over, size, alpha, beta, k, groups):
        ctx.save_for_backward(x)
        ctx.options = (over, size, alpha, beta, k, groups)
        return _norm_forward(x, over, size, alpha, beta, k, groups)

    @staticmethod
    @no_double_backward("normalisation over a window")
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _norm_backward(grad, x, *ctx.options), None, None, None, None, None, None


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, *, groups: int) -> Tensor:
    return _WindowNorm.apply(x, "channels", size, alpha, beta, k, groups)


def same_map_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return _WindowNorm.apply(x, "map", size, alpha, beta, k, 1)


# ------------------------------------------------------------------------------------------------------- pooling


def max_pool2d(x: Tensor, kernel_size: int, stride: int, padding: int, *, ceil_mode: bool) -> Tensor:
    return F.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)


@torch.library.custom_op("fastalex::native_lrn_pool_forward", mutates_args=())
def _lrn_pool_forward(
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> tuple[Tensor, Tensor]:
    """The result, and where in its window each of its elements came from: see `_Places`."""
    channels_last = is_channels_last(x)
    x = dense_as(x, channels_last)
    places = _Places(x, kernel_size, stride)
    y, kept = places.empty(x.dtype), places.empty(places.dtype)
    if _compiled_pool(x, bias, places):
        native_c.lrn_pool_forward(x, bias, y, kept, (size, alpha, beta, k), groups, (kernel_size, stride), relu)
        return y, kept
    scratch = _images(x)
    for images in range(0, x.shape[0], scratch.shape[0] or 1):
        block = slice(images, min(images + scratch.shape[0], x.shape[0]))
        biased = _biased(x[block], bias, relu)
        normalised = scratch[: biased.shape[0]]
        _normalise(biased, normalised, "channels", size, alpha, beta, k, groups)
        pooled, indices = torch.ops.aten.max_pool2d_with_indices(normalised, [kernel_size] * 2, [stride] * 2)
        y[block] = pooled
        found = places.of_indices(indices)
        kept[block] = found.masked_fill_(pooled <= 0, places.nowhere) if relu == "after" else found
    return y.relu_() if relu == "after" else y, kept


@_lrn_pool_forward.register_fake
def _(
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> tuple[Tensor, Tensor]:
    places = _Places(x, kernel_size, stride)
    return places.empty(x.dtype), places.empty(places.dtype)


@torch.library.custom_op("fastalex::native_lrn_pool_backward", mutates_args=())
def _lrn_pool_backward(
    grad: Tensor,
    kept: Tensor,
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and, in the precision that the work is done in, of the bias."""
    channels_last = is_channels_last(x)
    x, grad = dense_as(x, channels_last), dense_as(grad, channels_last)
    places = _Places(x, kernel_size, stride)
    grad_x = empty_as(x)
    if _compiled_pool(x, bias, places):
        options = (size, alpha, beta, k), groups, (kernel_size, stride), relu
        return grad_x, native_c.lrn_pool_backward(grad, kept, x, bias, grad_x, *options)
    grad_bias = torch.zeros(x.shape[1], dtype=_work_dtype(x), device=x.device)
    scratch = _images(x)
    for images in range(0, x.shape[0], scratch.shape[0] or 1):
        block = slice(images, min(images + scratch.shape[0], x.shape[0]))
        biased = _biased(x[block], bias, relu)
        buffer = scratch[: biased.shape[0]]
        upstream, indices = grad[block].to(biased.dtype), kept[block].long()
        if relu == "after":
            dead = indices == places.nowhere
            upstream, indices = upstream.masked_fill(dead, 0), indices.masked_fill_(dead, 0)
        indices = places.to_indices(indices)
        upstream = torch.ops.aten.max_pool2d_with_indices_backward(
            upstream, buffer, [kernel_size] * 2, [stride] * 2, [0, 0], [1, 1], False, indices
        )
        _normalise_backward(upstream, biased, buffer, "channels", size, alpha, beta, k, groups)
        if relu == "before":
            torch.ops.aten.threshold_backward(buffer, biased, 0, grad_input=buffer)
        grad_x[block] = buffer
        if bias is not None:
            grad_bias += buffer.sum((0, 2, 3))
    return grad_x, grad_bias


@_lrn_pool_backward.register_fake
def _(
    grad: Tensor,
    kept: Tensor,
    x: Tensor,
    bias: Tensor | None,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: int,
    stride: int,
    relu: str | None,
) -> tuple[Tensor, Tensor]:
    grad_bias = torch.empty(x.shape[1], dtype=_work_dtype(x), device=x.device)
    return empty_as(x), grad_bias


def _images(x: Tensor) -> Tensor:
    """Room for four images a thread, or for all on a GPU, in x's layout: one was slower, as small blocks are."""
    images = x.shape[0] if x.is_cuda else min(4 * torch.get_num_threads(), x.shape[0])
    return empty_as(x, (images, *x.shape[1:]), _work_dtype(x))


def _biased(block: Tensor, bias: Tensor | None, relu: str | None) -> Tensor:
    wide = block.to(_work_dtype(block))
    if bias is not None:
        wide = wide + bias.to(wide.dtype).view(-1, 1, 1)
    return wide.relu() if relu == "before" else wide


def _compiled_pool(x: Tensor, bias: Tensor | None, places: _Places) -> bool:
    """Whether the compiled functions take this."""
    fitting = is_channels_last(x) and (bias is None or bias.dtype == x.dtype) and places.dtype == torch.uint8
    return fitting and x.numel() > 0 and native_c.computes(x)


class _Places:
    """Where in its window each pooled element lies: dh * kernel_size + dw, counted from the window's corner.

    Attributes:
        nowhere: stands for an element that the ReLU took away.
        dtype: the narrowest that holds them: a byte where the window is at most 15 wide.
    """

    def __init__(self, x: Tensor, kernel_size: int, stride: int) -> None:
        height, width = ((length - kernel_size) // stride + 1 for length in x.shape[2:])
        self.like, self.shape, self.kernel_size = x, (*x.shape[:2], height, width), kernel_size
        rows, columns = (torch.arange(count, device=x.device) * stride for count in (height, width))
        self._corners = rows[:, None] * x.shape[3] + columns
        self.dtype = torch.uint8 if kernel_size**2 <= 255 else torch.int32
        self.nowhere = torch.iinfo(self.dtype).max

    def empty(self, dtype: torch.dtype) -> Tensor:
        """Room for all, in x's layout."""
        return empty_as(self.like, self.shape, dtype)

    def of_indices(self, indices: Tensor) -> Tensor:
        """The places of elements that PyTorch counts over the map; `indices` is overwritten."""
        indices -= self._corners
        return indices - indices // self.like.shape[3] * (self.like.shape[3] - self.kernel_size)

    def to_indices(self, places: Tensor) -> Tensor:
        """The inverse of :meth:`of_indices`, of int64 places."""
        return places + places // self.kernel_size * (self.like.shape[3] - self.kernel_size) + self._corners


class _LrnMaxPool(torch.autograd.Function):
    """Keeps the raw input, the bias, and a byte for each pooled element; backward makes the scales again."""

    @staticmethod
    def forward(ctx, x, bias, *options):
        y, kept = _lrn_pool_forward(x, bias, *options)
        ctx.save_for_backward(kept, x, bias)
        ctx.options = options
        return y

    @staticmethod
    @no_double_backward("lrn_max_pool2d")
    def backward(ctx, grad):
        kept, x, bias = ctx.saved_tensors
        grad_x, grad_bias = _lrn_pool_backward(grad, kept, x, bias, *ctx.options)
        return grad_x, None if bias is None else grad_bias.to(bias.dtype), *([None] * len(ctx.options))


def lrn_max_pool2d(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    groups: int,
    kernel_size: int,
    stride: int,
    bias: Tensor | None,
    relu: str | None,
) -> Tensor:
    return _LrnMaxPool.apply(x, bias, size, alpha, beta, k, groups, kernel_size, stride, relu)


# --------------------------------------------------------------------------------------------------- convolution


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: tuple[int, int, int, int],
    groups: int,
    *,
    relu: bool,
    put_off: list[Callable[[], Tensor | None]] | None = None,
    kept: winograd.KeptTransforms | None = None,
) -> Tensor:
    if winograd.pays(x, weight, stride, sides):
        return winograd.conv2d_relu(x, weight, bias, stride, sides, groups, relu=relu, put_off=put_off, kept=kept)
    top, bottom, left, right = sides
    if top == bottom and left == right:
        y = F.conv2d(x, weight, bias, stride, (top, left), 1, groups)
    else:
        y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, 1, groups)
    return y.relu_() if relu else y


# ------------------------------------------------------------------------------------------------------- dropout


class _Dropout(torch.autograd.Function):
    """Keeps the mask, a byte per feature: to make it again takes ten times as long as to read it."""

    @staticmethod
    def forward(ctx, x, seed, first_row, p, scale):
        y, kept = _masked(x, seed, first_row, p, scale)
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return y

    @staticmethod
    @no_double_backward("dropout")
    def backward(ctx, grad):
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None, None, None, None


# An operator of its own: torch.compile takes minutes over ten rounds in which each word is used twice.
@torch.library.custom_op("fastalex::native_mask", mutates_args=())
def _masked(x: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> tuple[Tensor, Tensor]:
    """x * kept * scale, and kept."""
    y, kept = _empty_masked(x)
    rows, features = x.shape
    elements = _BLOCK_ON_GPU if x.is_cuda else _BLOCK_PER_THREAD * torch.get_num_threads()
    block = max(1, elements // max(features, 1))
    for start in range(0, rows, block):
        part, mask = x[start : start + block], kept[start : start + block]
        mask.copy_(keep_mask(seed, first_row + start, part.shape[0], features, p))
        torch.mul(part, mask.to(x.dtype).mul_(scale), out=y[start : start + block])
    return y, kept


@_masked.register_fake
def _(x: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_masked(x)


def _empty_masked(x: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, torch.empty_like(y, dtype=torch.bool)


def dropout(x: Tensor, p: float, *, seed: Tensor, first_row: Tensor, training: bool, inverted: bool) -> Tensor:
    if not training:
        return x if inverted else x * (1 - p)
    if p == 0:
        return x
    return _Dropout.apply(x, seed, first_row, p, 1 / (1 - p) if inverted else 1.0)


class _BiasReluDropout(torch.autograd.Function):
    """Keeps the result, which says where the ReLU was on and what was kept, and the seed and the row number."""

    @staticmethod
    def forward(ctx, x, bias, seed, first_row, p, scale):
        y, _ = _masked((x + bias.to(x.dtype)).relu_(), seed, first_row, p, scale)
        ctx.save_for_backward(y, seed, first_row)
        ctx.options = (p, scale)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    @no_double_backward("bias_relu_dropout")
    def backward(ctx, grad):
        grad_x = _relu_dropout_backward(grad, *ctx.saved_tensors, *ctx.options)
        grad_bias = grad_x.sum(0, dtype=_work_dtype(grad_x)).to(ctx.bias_dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None, None, None, None


@torch.library.custom_op("fastalex::native_relu_dropout_backward", mutates_args=())
def _relu_dropout_backward(grad: Tensor, y: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    grad_x = torch.ops.aten.threshold_backward(grad, y, 0)
    # A result above 0 was kept. Of a NaN only the mask can tell.
    if y.isnan().any():
        return _masked(grad_x, seed, first_row, p, scale)[0]
    return grad_x.mul_(scale) if scale != 1 else grad_x


@_relu_dropout_backward.register_fake
def _(grad: Tensor, y: Tensor, seed: Tensor, first_row: Tensor, p: float, scale: float) -> Tensor:
    return torch.empty_like(torch.ops.aten.threshold_backward(grad, y, 0))


def bias_relu_dropout(
    x: Tensor, bias: Tensor, p: float, *, seed: Tensor, first_row: Tensor, training: bool, inverted: bool
) -> Tensor:
    if training and p > 0:
        return _BiasReluDropout.apply(x, bias, seed, first_row, p, 1 / (1 - p) if inverted else 1.0)
    y = (x + bias.to(x.dtype)).relu_()
    return dropout(y, p, seed=seed, first_row=first_row, training=training, inverted=inverted)


# ------------------------------------------------------------------------------------------------- cross-entropy

# A CPU needs nothing faster: the logits are few.
cross_entropy = reference.cross_entropy


# ---------------------------------------------------------------------------------------------------- SGD update


def _flat(x: Tensor) -> Tensor:
    return x.as_strided((x.numel(),), (1,))


def without_gaps(x: Tensor) -> bool:
    """Whether x's elements fill one stretch of memory, in either layout."""
    return x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))


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
    rates, decays = _host_numbers(learning_rates), _host_numbers(weight_decays)
    # Without momentum, PyTorch's update takes no velocity.
    simple = torch.compiler.is_compiling() or rates is None or decays is None or momentum == 0
    for index, (weight, gradient, velocity) in enumerate(zip(weights, gradients, velocities, strict=True)):
        copy = None if copies is None else copies[index]
        tensors = [weight, gradient, velocity] + ([] if copy is None else [copy])
        same_layout = all(without_gaps(t) and t.stride() == weight.stride() for t in tensors)
        if simple or not same_layout or weight.dtype not in (torch.float32, torch.float64):
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


def _host_numbers(values: Sequence[float] | Tensor) -> list[float] | None:
    """The values as floats, or None where reading them would wait for a device."""
    if not isinstance(values, Tensor):
        return list(values)
    return values.tolist() if values.device.type == "cpu" and not torch.compiler.is_compiling() else None


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
    """The update of flat tensors, each of whose values passes through memory once."""
    # A copy is made of weights that are still in the cache.
    block = max(weight.numel(), 1) if copy is None else _BLOCK_PER_THREAD // 2 * torch.get_num_threads()
    for start in range(0, weight.numel(), block):
        w, v = weight[start : start + block], velocity[start : start + block]
        if rate != 0:
            # PyTorch's rule is v = m v + (1 - dampening) (g + d w); w = w - lr v, which these two constants make ours.
            torch._fused_sgd_(
                [w],
                [gradient[start : start + block].to(w.dtype)],
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
            copy[start : start + block].copy_(w)
