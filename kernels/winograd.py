"""Convolution, bias and ReLU on a CPU in a quarter to a sixth of the multiplications, by PyTorch's matrix products.

m x m results of a filter of r x r come from a tile of n x n inputs, n = m + r - 1, and the next ones from a tile that
overlaps it by r - 1. With polynomials' values at n - 1 points and their highest coefficients instead of the numbers
themselves, a convolution is a product place by place:

    y = A [sum over channels of (G w G^T) * (B d B^T)] A^T

    d: n x n inputs of a tile     w: r x r weights     y: m x m results     A: m x n, G: n x r, B: n x n

so that n^2 multiplications do for m^2 r^2 (49 for 225 where m = 5 and r = 3, 64 for 400 where m = 4 and r = 5). Each of
the n^2 places is a matrix product over channels, of all tiles. A strided convolution is one of stride 1 in an image
whose stride x stride pixels are channels of one. Backward is the adjoint of each step, and shares the gradient's
transform:

    M' = A^T y' A     w' = G^T [sum over tiles of (B d B^T) M'] G     d' = B^T [sum over filters of (G w G^T) M'] B

with the d' of overlapping tiles added. Images go through all steps in blocks that the caches hold; where weights are
few, each thread has images of its own. In fp32 and with a C compiler the tiles of maps are transformed by `native.c`,
else by more matrix products.

Source: Winograd, Arithmetic Complexity of Computations (1980); Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks (2015), https://arxiv.org/abs/1509.09308. Rounding errors are about seven times those of plain sums; what is
not finite reaches all results of its tiles.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import native_c
from kernels.autograd import no_double_backward
from kernels.memory_format import dense_as, is_channels_last
from kernels.native_c import Result

# Errors grow with the powers of the points, so there are few, near 1; in this order, the first five and six do best.
_POINTS = tuple(map(Fraction, ("0", "1", "-1", "1/2", "-2", "2", "-1/2")))
_LARGEST_TILE = len(_POINTS) + 1
_SIZES = (3, 5)
# Fewer channels or filters make products too thin to pay for the transforms, fewer tiles do not pay for the weights'.
_LEAST_CHANNELS = 32
_LEAST_TILES = 64
# Tiles of a block, by channels or filters, whichever there are fewer of. The caches should hold a block's numbers from
# step to step; but each block reads all transformed weights, which weigh about as much then.
_TILES_PER_CHANNEL = 1.5
# Up to so many transformed weights, threads take images of their own, and each reads all weights. Beyond, they share
# out each step instead, and in its products the weights.
_MOST_WEIGHTS_OF_EACH_THREAD = 2**20


# ---------------------------------------------------------------------------------------------------- transforms


@dataclass(frozen=True)
class _Transforms:
    """The matrices: results is A, weights G, inputs B."""

    results: Tensor
    weights: Tensor
    inputs: Tensor


@functools.lru_cache(maxsize=8)
def _transforms(m: int, size: int, dtype: torch.dtype) -> _Transforms:
    """For m x m results of filters of size x size, computed in fractions.

    With p(x) the tile's polynomial read backwards, the product's is interpolated from its values by Lagrange's formula;
    the filter's side carries the denominators. A power of two on each row keeps both sides of one magnitude.
    """
    points = _POINTS[: m + size - 2]
    results = [[point**power for point in points] + [Fraction(power == m - 1)] for power in range(m)]
    weights, inputs = [], []
    for point in points:
        others = [other for other in points if other != point]
        denominator = math.prod(point - other for other in others)
        row, values = [*_with_roots(others), Fraction(0)], [point**power / denominator for power in range(size)]
        balance = Fraction(2) ** round(math.log2(max(map(abs, values)) / max(map(abs, row))) / 2)
        inputs.append([value * balance for value in row])
        weights.append([value / balance for value in values])
    inputs.append(_with_roots(points))
    weights.append([Fraction(power == size - 1) for power in range(size)])
    with torch.inference_mode(False):
        tensors = (
            torch.tensor([[float(x) for x in row] for row in rows], dtype=dtype) for rows in (results, weights, inputs)
        )
        return _Transforms(*tensors)


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the product of all x - root."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(-root * c for c in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _transform(matrix: Tensor, values: Tensor, half: Tensor, out: Tensor) -> Tensor:
    """matrix @ v @ matrix^T for each v of `values` (q x q x length), as p x p x length in the first part of `out`.

    `half`, of one dimension like `out`, is overwritten with the first of the two products.
    """
    p, q = matrix.shape
    length = values.numel() // q**2
    rows = torch.mm(matrix, values.view(q, q * length), out=half[: p * q * length].view(p, q * length))
    result = out[: p * p * length].view(p, p, length)
    return torch.bmm(matrix.expand(p, p, q), rows.view(p, q, length), out=result)


# -------------------------------------------------------------------------------------------------------- tiles


def _grid(size: int, out: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """m, and the tiles of a map in each direction: those that need the fewest multiplications."""
    grids = {m: (-(-out[0] // m), -(-out[1] // m)) for m in range(size - 1, _LARGEST_TILE - size + 2)}
    m = min(grids, key=lambda m: (m + size - 1) ** 2 * math.prod(grids[m]))
    return m, grids[m]


class _Filters:
    """Where a convolution's tiles lie in maps of x's size, and the transforms of its weights."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> None:
        _, channels, height, width = x.shape
        self.top, bottom, self.left, right = sides
        self.stride, self.groups, self.kernel = stride, groups, weight.shape[2]
        self.size = -(-self.kernel // stride)
        self.depth, self.filters = channels // groups, weight.shape[0] // groups
        self.terms = self.depth * stride**2
        self.out = (
            (self.top + height + bottom - self.kernel) // stride + 1,
            (self.left + width + right - self.kernel) // stride + 1,
        )
        self.m, self.grid = _grid(self.size, self.out)
        self.n = self.m + self.size - 1
        transforms = _transforms(self.m, self.size, x.dtype)
        self.inputs_matrix, self.weights_matrix, self.results_matrix = (
            transforms.inputs,
            transforms.weights,
            transforms.results,
        )

    @property
    def images_are_shared_out(self) -> bool:
        """Whether each thread makes all steps of images of its own."""
        weights = self.n**2 * self.groups * self.terms * self.filters
        return weights <= _MOST_WEIGHTS_OF_EACH_THREAD and native_c.library() is not None

    def run(self, step: Callable[[slice], Result], images: int) -> list[Result]:
        """What a function of a share of so many images returns, of each share."""
        if self.images_are_shared_out and torch.get_num_threads() > 1:
            return native_c.share_out(step, images)
        return [step(slice(0, images))]

    def of_weights(self, weight: Tensor) -> Tensor:
        """G w G^T: (n^2 groups) x terms x filters."""
        wide = self.size * self.stride
        cells = F.pad(weight, (0, wide - self.kernel) * 2).view(
            self.groups, self.filters, self.depth, self.size, self.stride, self.size, self.stride
        )
        cells = cells.permute(3, 5, 0, 4, 6, 2, 1).contiguous()
        length = cells.numel() // self.size**2
        half, out = weight.new_empty(self.n * self.size * length), weight.new_empty(self.n**2 * length)
        return _transform(self.weights_matrix, cells, half, out).view(-1, self.terms, self.filters)

    def no_gradient(self, weight: Tensor) -> Tensor:
        """Zeros, in the shape of :meth:`of_weights`."""
        return weight.new_zeros(self.n**2 * self.groups, self.terms, self.filters)

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """The adjoint of :meth:`of_weights`."""
        length = gradient.numel() // self.n**2
        half, out = gradient.new_empty(self.size * self.n * length), gradient.new_empty(self.size**2 * length)
        cells = _transform(self.weights_matrix.t(), gradient, half, out).view(
            self.size, self.size, self.groups, self.stride, self.stride, self.depth, self.filters
        )
        wide = self.size * self.stride
        cells = cells.permute(2, 6, 5, 0, 3, 1, 4).reshape(self.groups * self.filters, self.depth, wide, wide)
        return cells[:, :, : self.kernel, : self.kernel]


class _Tiles(_Filters, abc.ABC):
    """The steps of one block of images.

    Blocks are images x rows x columns x channels, and dense. What a method returns is overwritten by the next call of
    the same. Products are here, the transforms of maps in the subclasses.
    """

    def __init__(self, x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> None:
        super().__init__(x, weight, stride, sides, groups)
        tiles = _TILES_PER_CHANNEL * min(self.terms, self.filters)
        least = 1 if self.images_are_shared_out else torch.get_num_threads()
        self.images = max(1, min(len(x), max(least, round(tiles / math.prod(self.grid)))))
        self.room = self.n**2 * self.images * math.prod(self.grid) * groups * max(self.terms, self.filters)
        self._of_inputs, self._of_results = (x.new_empty(self.room) for _ in range(2))

    def of_results(self, of_inputs: Tensor, of_weights: Tensor) -> Tensor:
        """The product in each place: (n^2 groups) x tiles x filters."""
        out = self._of_results[: of_inputs.shape[0] * of_inputs.shape[1] * self.filters]
        return torch.bmm(of_inputs, of_weights, out=out.view(*of_inputs.shape[:2], self.filters))

    def inputs_gradient(self, gradient: Tensor, of_weights: Tensor) -> Tensor:
        """The adjoint of :meth:`of_results`, with respect to its inputs."""
        out = self._of_inputs[: gradient.shape[0] * gradient.shape[1] * self.terms]
        return torch.bmm(gradient, of_weights.transpose(1, 2), out=out.view(*gradient.shape[:2], self.terms))

    @abc.abstractmethod
    def of_inputs(self, block: Tensor) -> Tensor:
        """B d B^T of all tiles of a block: (n^2 groups) x tiles x terms."""

    @abc.abstractmethod
    def write_results(self, of_results: Tensor, bias: Tensor | None, place: Tensor, *, relu: bool) -> None:
        """Write A M A^T of all tiles, plus the bias, behind a ReLU if asked for, to a block."""

    @abc.abstractmethod
    def results_gradient(self, gradient: Tensor, result: Tensor | None) -> tuple[Tensor, Tensor]:
        """The adjoint of :meth:`write_results`: (n^2 groups) x tiles x filters, and the gradient of the bias.

        With a ReLU, `result` is what it gave.
        """

    @abc.abstractmethod
    def write_inputs_gradient(self, gradient: Tensor, place: Tensor) -> None:
        """Write the adjoint of :meth:`of_inputs` to a block."""


class _CompiledTiles(_Tiles):
    """Maps are transformed in C: each passes through memory once."""

    def of_inputs(self, block: Tensor) -> Tensor:
        values = self._of_inputs[: self.n**2 * len(block) * math.prod(self.grid) * self.groups * self.terms]
        native_c.tiles_of_maps(block, None, values, None, self.inputs_matrix, self._of_maps(block, inputs=True))
        return values.view(self.n**2 * self.groups, -1, self.terms)

    def write_results(self, of_results: Tensor, bias: Tensor | None, place: Tensor, *, relu: bool) -> None:
        native_c.maps_of_tiles(
            of_results, bias, place, self.results_matrix, self._of_maps(place, inputs=False), relu=relu
        )

    def results_gradient(self, gradient: Tensor, result: Tensor | None) -> tuple[Tensor, Tensor]:
        values = self._of_results[: self.n**2 * len(gradient) * math.prod(self.grid) * self.groups * self.filters]
        sums = gradient.new_empty(len(gradient), self.groups * self.filters)
        matrix = self.results_matrix.t().contiguous()
        native_c.tiles_of_maps(gradient, result, values, sums, matrix, self._of_maps(gradient, inputs=False))
        return values.view(self.n**2 * self.groups, -1, self.filters), sums.sum(0)

    def write_inputs_gradient(self, gradient: Tensor, place: Tensor) -> None:
        matrix = self.inputs_matrix.t().contiguous()
        native_c.maps_of_tiles(gradient, None, place, matrix, self._of_maps(place, inputs=True), relu=False)

    def _of_maps(self, block: Tensor, *, inputs: bool) -> tuple[int, ...]:
        """Where the tiles lie in a block of inputs or of results."""
        images, height, width, channels = block.shape
        stride, top, left = (self.stride, self.top, self.left) if inputs else (1, 0, 0)
        return images, height, width, channels // self.groups, self.groups, stride, top, left, self.m, *self.grid


class _TorchTiles(_Tiles):
    """Maps are transformed by matrix products, on copies of their tiles that the caches hold."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> None:
        super().__init__(x, weight, stride, sides, groups)
        _, channels, height, width = x.shape
        self.image = slice(self.top, self.top + height), slice(self.left, self.left + width)
        # Rows and columns of whole tiles, one more than there are: inputs of the last ones reach into it.
        side = self.m * stride
        rows = max(self.grid[0] + 1, -(-(self.top + height) // side)) * side
        columns = max(self.grid[1] + 1, -(-(self.left + width) // side)) * side
        self.padded = x.new_zeros(self.images, rows, columns, channels)
        self.results = x.new_zeros(self.images, self.m * self.grid[0], self.m * self.grid[1], weight.shape[0])
        self._plain, self._half = (x.new_empty(self.room) for _ in range(2))

    def of_inputs(self, block: Tensor) -> Tensor:
        images, n, stride = len(block), self.n, self.stride
        self.padded[:images, *self.image] = block
        _, rows, columns, channels = self.padded.shape
        down, right = stride * columns * channels, stride * channels
        tiles = self.padded.as_strided(
            (n, n, self.groups, images, *self.grid, stride, stride, self.depth),
            (down, right, self.depth, rows * columns * channels, self.m * down, self.m * right, columns * channels,
             channels, 1),
        )  # fmt: skip
        plain = self._plain[: tiles.numel()].view(tiles.shape).copy_(tiles)
        transformed = _transform(self.inputs_matrix, plain, self._half, self._of_inputs)
        return transformed.view(n**2 * self.groups, -1, self.terms)

    def write_results(self, of_results: Tensor, bias: Tensor | None, place: Tensor, *, relu: bool) -> None:
        images = len(place)
        plain = _transform(self.results_matrix, of_results, self._half, self._plain)
        tiles = plain.view(self.m, self.m, self.groups, images, *self.grid, self.filters)
        self._cells(images).copy_(tiles.permute(3, 4, 0, 5, 1, 2, 6))
        sums = self.results[:images, : self.out[0], : self.out[1]]
        if bias is None:
            place.copy_(sums)
        else:
            torch.add(sums, bias, out=place)
        if relu:
            place.relu_()

    def results_gradient(self, gradient: Tensor, result: Tensor | None) -> tuple[Tensor, Tensor]:
        if result is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        images = len(gradient)
        self.results[:images, : self.out[0], : self.out[1]] = gradient
        tiles = self._cells(images).permute(2, 4, 5, 0, 1, 3, 6)
        plain = self._plain[: tiles.numel()].view(tiles.shape).copy_(tiles)
        transformed = _transform(self.results_matrix.t(), plain, self._half, self._of_results)
        return transformed.view(self.n**2 * self.groups, -1, self.filters), gradient.sum((0, 1, 2))

    def write_inputs_gradient(self, gradient: Tensor, place: Tensor) -> None:
        m, n, stride, (down, right) = self.m, self.n, self.stride, self.grid
        plain = _transform(self.inputs_matrix.t(), gradient, self._half, self._plain)
        # Each tile has m x m pixels of its own, here, and reaches over to the next tiles' first ones.
        tiles = plain.view(n, n, self.groups, len(place), down, right, stride, stride, self.depth)
        tiles = tiles.permute(3, 4, 0, 6, 5, 1, 7, 2, 8)
        padded = torch.zeros_like(self.padded[: len(place)])
        cells = padded.view(
            len(place), -1, m, stride, padded.shape[2] // (m * stride), m, stride, self.groups, self.depth
        )
        here, over, first = slice(m), slice(m, n), slice(n - m)
        cells[:, :down, :, :, :right] = tiles[:, :, here, :, :, here]
        cells[:, 1 : down + 1, first, :, :right] += tiles[:, :, over, :, :, here]
        cells[:, :down, :, :, 1 : right + 1, first] += tiles[:, :, here, :, :, over]
        cells[:, 1 : down + 1, first, :, 1 : right + 1, first] += tiles[:, :, over, :, :, over]
        place.copy_(padded[:, *self.image])

    def _cells(self, images: int) -> Tensor:
        """View of the results by tile: images x rows x m x columns x m x groups x filters."""
        return self.results[:images].view(images, self.grid[0], self.m, self.grid[1], self.m, self.groups, self.filters)


def _tiles(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> _Tiles:
    kind = _CompiledTiles if native_c.computes(x) else _TorchTiles
    return kind(x, weight, stride, sides, groups)


# --------------------------------------------------------------------------------------------------- host functions


class KeptTransforms:
    """What the micro-batches of one step share in one layer: its weights, transformed once, and the sum of their weight
    gradients, transformed back once.

    In use between :meth:`begin` and :meth:`take`, in which time the weights must stay as they are. A weight's gradient
    is then None behind a backward pass, as far as minimal filtering computes it.

    Args:
        micro_batches: the backward pass of so many makes the gradient after all; None leaves that to :meth:`take`.

    Attributes:
        in_use: whether a step has begun.
    """

    def __init__(self, micro_batches: int | None = None) -> None:
        self.micro_batches = micro_batches
        self.clear()

    def begin(self) -> None:
        """A step begins, with nothing left of the one before."""
        self.clear()
        self.in_use = True

    def clear(self) -> None:
        """Drop what is kept; the step is over."""
        self.in_use = False
        self._of_weights: Tensor | None = None
        self._sum: tuple[_Filters, Tensor, Tensor] | None = None  # with the weight that it is of
        self._passed = 0

    @torch.no_grad()
    def take(self) -> Tensor | None:
        """The gradient of all micro-batches, which ends the step; None where there were none."""
        found = self._sum
        self.clear()
        if found is None:
            return None
        filters, summed, weight = found
        return torch.empty_like(weight).copy_(filters.weight_gradient(summed))

    def of_weights(self, filters: _Filters, weight: Tensor) -> Tensor:
        """:meth:`_Filters.of_weights`, of the step's first call."""
        if self._of_weights is None:
            self._of_weights = filters.of_weights(weight)
        return self._of_weights

    def sum_of(self, x: Tensor, weight: Tensor, *options: Any) -> Tensor:
        """Where a micro-batch adds its gradient."""
        if self._sum is None:
            filters = _Filters(x, weight, *options)
            self._sum = filters, filters.no_gradient(weight), weight
        return self._sum[1]

    def passed(self) -> Tensor | None:
        """A backward pass is done: the gradient, where it was the last."""
        self._passed += 1
        return self.take() if self._passed == self.micro_batches else None


@torch.library.custom_op("fastalex::winograd_forward", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: Sequence[int], groups: int, relu: bool
) -> Tensor:
    return _results(None, x, weight, bias, stride, sides, groups, relu)


def _results(
    kept: KeptTransforms | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    x, options = dense_as(x, channels_last=True), (stride, sides, groups)
    filters = _Filters(x, weight, *options)
    of_weights = filters.of_weights(weight) if kept is None else kept.of_weights(filters, weight)
    y = _empty_result(x, weight, stride, sides)

    def convolve(share: slice) -> None:
        tiles = _tiles(x[share], weight, *options)
        for block, place in zip(*_blocks(tiles.images, share, x, y), strict=True):
            tiles.write_results(tiles.of_results(tiles.of_inputs(block), of_weights), bias, place, relu=relu)

    filters.run(convolve, len(x))
    return y


def _blocks(images: int, share: slice, *batches: Tensor) -> list[tuple[Tensor, ...]]:
    """Blocks of so many of a share's images, of each batch."""
    return [batch[share].permute(0, 2, 3, 1).split(images) for batch in batches]


@_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, sides: Sequence[int], groups: int, relu: bool
) -> Tensor:
    return _empty_result(x, weight, stride, sides)


def _empty_result(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int]) -> Tensor:
    top, bottom, left, right = sides
    height = (top + x.shape[2] + bottom - weight.shape[2]) // stride + 1
    width = (left + x.shape[3] + right - weight.shape[3]) // stride + 1
    return torch.empty(
        (x.shape[0], weight.shape[0], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


@torch.library.custom_op("fastalex::winograd_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias; those that are not needed are empty. With a ReLU, y is its result."""
    return _gradients(None, grad, x, weight, y, stride, sides, groups, needs=needs)


def _gradients(
    kept: KeptTransforms | None,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    *,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    options = (stride, sides, groups)
    grad_x, grad_weight, grad_bias = _empty_gradients(x, weight, [needs[0], needs[1] and kept is None, needs[2]])
    x, grad = dense_as(x, channels_last=True), dense_as(grad, channels_last=True)
    filters = _Filters(x, weight, *options)
    of_weights = summed = None
    if needs[0]:
        of_weights = filters.of_weights(weight) if kept is None else kept.of_weights(filters, weight)
    if needs[1]:
        summed = filters.no_gradient(weight) if kept is None else kept.sum_of(x, weight, *options)
    batches = (grad, grad if y is None else y, x, grad_x if needs[0] else x)

    def go_back(share: slice) -> tuple[Tensor | None, Tensor]:
        tiles = _tiles(x[share], weight, *options)
        own, own_bias = summed, weight.new_zeros(weight.shape[0])
        if own is not None and share.start > 0:
            own = filters.no_gradient(weight)
        for upstream, result, block, place in zip(*_blocks(tiles.images, share, *batches), strict=True):
            gradient, bias_gradient = tiles.results_gradient(upstream, None if y is None else result)
            own_bias += bias_gradient
            if own is not None:
                own.baddbmm_(tiles.of_inputs(block).transpose(1, 2), gradient)
            if of_weights is not None:
                tiles.write_inputs_gradient(tiles.inputs_gradient(gradient, of_weights), place)
        return own, own_bias

    sums, of_bias = zip(*filters.run(go_back, len(x)), strict=True)
    if needs[2]:
        torch.sum(torch.stack(of_bias), 0, out=grad_bias)
    if summed is not None:
        for other in sums[1:]:
            summed += other
        if kept is None:
            grad_weight.copy_(filters.weight_gradient(summed))
    return grad_x, grad_weight, grad_bias


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    stride: int,
    sides: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(x, weight, needs)


def _empty_gradients(x: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[0])
    return tuple(
        gradient if needed else weight.new_empty(0)
        for gradient, needed in zip((grad_x, grad_weight, grad_bias), needs, strict=True)
    )  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------ autograd, public


class _Winograd(torch.autograd.Function):
    """Keeps x, the weight, and with a ReLU the result."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, sides, groups, relu, put_off, kept):
        if kept is None:
            y = _forward(x, weight, bias, stride, sides, groups, relu)
        else:
            y = _results(kept, x, weight, bias, stride, sides, groups, relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.options = (stride, sides, groups)
        ctx.put_off, ctx.kept = put_off, kept
        return y

    @staticmethod
    @no_double_backward("conv2d_relu")
    def backward(ctx, grad):
        needs, operands, kept = list(ctx.needs_input_grad[:3]), (grad, *ctx.saved_tensors, *ctx.options), ctx.kept
        adds = kept is not None and needs[1]
        if ctx.put_off is not None and needs[1]:
            ctx.put_off.append(functools.partial(_weight_gradient, operands, kept))
            needs[1] = adds = False
        gradients = _backward(*operands, needs) if kept is None else _gradients(kept, *operands, needs=needs)
        wanted = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
        if adds:
            wanted[1] = kept.passed()
        return *wanted, None, None, None, None, None, None


@torch.no_grad()
def _weight_gradient(operands: tuple, kept: KeptTransforms | None) -> Tensor | None:
    """One that was put off; None where it went to the sum of the step."""
    needs = [False, True, False]
    if kept is None:
        return _backward(*operands, needs)[1]
    _gradients(kept, *operands, needs=needs)
    return kept.passed()


def pays(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int]) -> bool:
    """Whether this is a convolution that is computed faster, and as exactly as its dtype deserves, this way."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    filters, depth, *kernel = weight.shape
    if kernel[0] != kernel[1] or -(-kernel[0] // stride) not in _SIZES or not is_channels_last(x):
        return False
    top, bottom, left, right = sides
    height = (top + x.shape[2] + bottom - kernel[0]) // stride + 1
    width = (left + x.shape[3] + right - kernel[1]) // stride + 1
    tiles = x.shape[0] * math.prod(_grid(-(-kernel[0] // stride), (height, width))[1])
    groups = x.shape[1] // depth
    return min(depth * stride**2, filters // groups) >= _LEAST_CHANNELS and tiles >= _LEAST_TILES


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
    kept: KeptTransforms | None = None,
) -> Tensor:
    return _Winograd.apply(x, weight, bias, stride, list(sides), groups, relu, put_off, kept)
