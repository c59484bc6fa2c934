"""Local response normalisation and same-map normalisation on a CPU.

    y = x * scale^-beta        scale = k + alpha / n * (sum of x^2 over a window of n elements)

Windows run over channels (`local_response_norm`) or over each map (`same_map_norm`). `native.c` computes fp32 and bf16,
the latter with fp32 arithmetic. The implementation in PyTorch, for other dtypes and for machines without a compiler,
works on chunks that stay in the caches. It copies the squares into rows with margins, where a window sum is a few
additions of one flat array to shifted views of itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.autograd import no_double_backward, operator
from kernels.memory_format import dense_as, empty_as, is_channels_last
from kernels.native import c_functions
from kernels.native.buffers import chunk_elements, compute_dtype


def _as_rows(x: Tensor, over: str, groups: int, *, channels_last: bool) -> Tensor:
    """View of dense `x` as rows x d1 x d2 x inner, whose windows run over d1 and d2 only."""
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
    """Window sums over chunks of rows (rows x d1 x d2 x inner), computed in buffers with margins around each row."""

    def __init__(self, source: Tensor, sizes: tuple[int, int], dtype: torch.dtype) -> None:
        rows, d1, d2, inner = source.shape
        self.sizes = sizes
        self.dtype = dtype
        self.device = source.device
        self.padded = (d1 + sizes[0] - 1, d2 + sizes[1] - 1, inner)
        self.steps = ((d2 + sizes[1] - 1) * inner, inner)
        self.rows = min(max(1, chunk_elements(source) // max(1, d1 * d2 * inner)), max(rows, 1))

    def new_buffer(self, margin: float) -> Tensor:
        """A buffer for one chunk, filled with the value of the margins."""
        return torch.full((self.rows, *self.padded), margin, dtype=self.dtype, device=self.device)

    def inside(self, buffer: Tensor, like: Tensor, *, mirrored: bool) -> Tensor:
        """View of a buffer without the margins. Mirrored windows have their longer half on the other side."""
        first = [(size - 1) // 2 if mirrored else size // 2 for size in self.sizes]
        rows, d1, d2, _ = like.shape
        return buffer[:rows, first[0] : first[0] + d1, first[1] : first[1] + d2]

    def sums(self, buffer: Tensor, rows: int) -> Tensor:
        """Window sums of the first `rows` rows, flat. Values after a row's last window are meaningless."""
        flat = buffer[:rows].view(-1)
        for size, step in zip(self.sizes, self.steps, strict=True):
            if size > 1:
                flat = _shifted_sums(flat, size, step)
        return flat

    def as_rows(self, flat: Tensor, like: Tensor) -> Tensor:
        """View of flat sums, or of values computed from them, as rows x d1 x d2 x inner."""
        p1, p2, inner = self.padded
        return flat.as_strided(like.shape, (p1 * p2 * inner, p2 * inner, inner, 1))


def _denominator(scale: Tensor, beta: float) -> Tensor:
    """`scale ** beta`, without logarithms for the usual exponents."""
    if beta == 0.75:
        root = scale.sqrt()
        return root.mul_(root.sqrt())
    if beta == 0.5:
        return scale.sqrt()
    if beta == 1.0:
        return scale
    return scale.pow(beta)


def _window_sizes(over: str, size: int) -> tuple[int, int]:
    return (size, 1) if over == "channels" else (size, size)


def normalise(
    x: Tensor,
    y: Tensor,
    over: str,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
) -> None:
    """Write the normalised `x` to `y`, both dense and in one memory layout.

    Args:
        over: "channels" or "map".
    """
    if x.numel() == 0:
        return
    channels_last = is_channels_last(x)
    if _normalise_in_c(x, None, y, over, (size, alpha, beta, k), groups):
        return
    source = _as_rows(x, over, groups, channels_last=channels_last)
    result = _as_rows(y, over, groups, channels_last=channels_last)
    windows = _Windows(source, _window_sizes(over, size), compute_dtype(x))
    count = windows.sizes[0] * windows.sizes[1]
    k_per_element = torch.full((), k / count, dtype=windows.dtype, device=x.device)
    buffer = windows.new_buffer(k / count)
    for start in range(0, source.shape[0], windows.rows):
        chunk = source[start : start + windows.rows].to(windows.dtype)
        # Every element, margins included, contributes k / n, so that the window sums are the scale itself.
        torch.addcmul(
            k_per_element, chunk, chunk, value=alpha / count, out=windows.inside(buffer, chunk, mirrored=False)
        )
        denominator = _denominator(windows.sums(buffer, chunk.shape[0]), beta)
        _write(result[start : start + windows.rows], torch.div, chunk, windows.as_rows(denominator, chunk))


def normalise_backward(
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
    if _normalise_in_c(x, grad, grad_x, over, (size, alpha, beta, k), groups):
        return
    upstream = _as_rows(grad, over, groups, channels_last=channels_last)
    source = _as_rows(x, over, groups, channels_last=channels_last)
    result = _as_rows(grad_x, over, groups, channels_last=channels_last)
    windows = _Windows(source, _window_sizes(over, size), compute_dtype(x))
    count = windows.sizes[0] * windows.sizes[1]
    k_per_element = torch.full((), k / count, dtype=windows.dtype, device=x.device)
    squares, spread = windows.new_buffer(k / count), windows.new_buffer(0.0)
    factor = -2 * alpha * beta / count
    for start in range(0, source.shape[0], windows.rows):
        chunk = source[start : start + windows.rows].to(windows.dtype)
        torch.addcmul(
            k_per_element, chunk, chunk, value=alpha / count, out=windows.inside(squares, chunk, mirrored=False)
        )
        scale = windows.sums(squares, chunk.shape[0])
        direct = upstream[start : start + windows.rows] / windows.as_rows(_denominator(scale, beta), chunk)
        inside = windows.inside(spread, chunk, mirrored=True)
        torch.mul(direct, chunk, out=inside).div_(windows.as_rows(scale, chunk))
        sums = windows.as_rows(windows.sums(spread, chunk.shape[0]), chunk)
        _write(result[start : start + windows.rows], torch.addcmul, direct, chunk, sums, value=factor)


def _normalise_in_c(
    x: Tensor,
    grad: Tensor | None,
    result: Tensor,
    over: str,
    options: tuple[int, float, float, float],
    groups: int,
) -> bool:
    """Write y or, given `grad`, grad_x to `result`; False if native.c has no function for these arguments."""
    if not c_functions.supports(x):
        return False
    channels_last = is_channels_last(x)
    if over == "channels":
        inner = 1 if channels_last else x.shape[2] * x.shape[3]
        c_functions.norm_over_channels(x, grad, result, options, groups, inner)
    elif channels_last:
        c_functions.norm_over_map(x, grad, result, options)
    else:
        return False
    return True


def _write(out: Tensor, operation, *operands, **options) -> None:
    """`out = operation(...)`, rounded to out's dtype."""
    if out.dtype == operands[0].dtype:
        operation(*operands, out=out, **options)
    else:
        out.copy_(operation(*operands, **options))


@operator("fastalex::native_norm_forward")
def _forward(x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
    channels_last = is_channels_last(x)
    x = dense_as(x, channels_last)
    y = empty_as(x)
    normalise(x, y, over, size, alpha, beta, k, groups)
    return y


@_forward.register_fake
def _(x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
    return empty_as(x)


@operator("fastalex::native_norm_backward")
def _backward(
    grad: Tensor, x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int
) -> Tensor:
    channels_last = is_channels_last(x)
    x, grad = dense_as(x, channels_last), dense_as(grad, channels_last)
    grad_x = empty_as(x)
    normalise_backward(grad, x, grad_x, over, size, alpha, beta, k, groups)
    return grad_x


@_backward.register_fake
def _(grad: Tensor, x: Tensor, over: str, size: int, alpha: float, beta: float, k: float, groups: int) -> Tensor:
    return empty_as(x)


class _WindowNorm(torch.autograd.Function):
    """Saves x only; backward computes the scale again."""

    @staticmethod
    def forward(ctx, x, over, size, alpha, beta, k, groups):
        ctx.save_for_backward(x)
        ctx.options = (over, size, alpha, beta, k, groups)
        return _forward(x, over, size, alpha, beta, k, groups)

    @staticmethod
    @no_double_backward("normalisation over a window")
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _backward(grad, x, *ctx.options), None, None, None, None, None, None


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    *,
    groups: int,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """As :func:`kernels.local_response_norm`, without the checks."""
    wide = x
    if bias is not None:
        wide = x.to(compute_dtype(x))
        wide = wide + bias.to(wide.dtype).view(-1, 1, 1)
    return _WindowNorm.apply(wide.relu() if relu else wide, "channels", size, alpha, beta, k, groups).to(x.dtype)


def same_map_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """As :func:`kernels.same_map_norm`, without the checks."""
    return _WindowNorm.apply(x, "map", size, alpha, beta, k, 1)
