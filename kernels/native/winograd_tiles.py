"""The steps of Winograd convolution: transforms of weights and maps, and the products between them.

Names follow :mod:`kernels.native.winograd`. A strided convolution is computed as one of stride 1 over cells of
stride x stride pixels; the channels of a cell's pixels are its terms. Maps are images x rows x columns x channels.
Transformed tiles are (n^2 groups) x tiles x terms, or x filters for results.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.native import build, c_functions
from kernels.native.buffers import compute_dtype
from kernels.native.c_functions import Result
from kernels.native.winograd_transforms import MAX_TILE, transform, transform_matrices

# Tiles per chunk of images, as a multiple of the number of terms or filters, whichever is smaller, and twice as many in
# bf16. A chunk's tiles should stay in the caches from step to step, but each chunk reads all transformed weights, which
# then are about as large.
TILES_PER_CHANNEL = 1.5
# Up to this number of transformed weights, each thread processes images of its own and reads all weights. With more
# weights, all threads work on the same images, and split the weights in products.
MAX_WEIGHTS_PER_THREAD = 2**20


# Largest tiles whose products are in bf16, by the side of the filters. Their rounding errors grow with the number of
# points: F(5, 3) would have twice the error of F(4, 3).
MAX_BF16_TILES = {3: 6, 5: 8}


def tile_grid(
    size: int, out: tuple[int, int], dtype: torch.dtype, pitch: tuple[int, int] | None = None
) -> tuple[int, int, tuple[int, int]]:
    """Choose m, the side of a tile's results, to need the fewest multiplications.

    Args:
        size: side of the filters, in cells.
        out: height and width of the results.
        dtype: of the products.
        pitch: distance of the results of two images in a mosaic; None for no mosaics.

    Returns:
        m, the images per side of a mosaic, and the tiles per column and per row of a mosaic.
    """
    best, fewest = (0, 1, (0, 0)), 0.0
    # A loop, because torch.compile cannot trace min() with a key for sizes that vary.
    largest = MAX_BF16_TILES.get(size, MAX_TILE) if dtype == torch.bfloat16 else MAX_TILE
    for m in range(size - 1, largest - size + 2):
        for side in (1, 2) if pitch is not None else (1,):
            last = (0, 0) if pitch is None else ((side - 1) * pitch[0], (side - 1) * pitch[1])
            grid = -(-(last[0] + out[0]) // m), -(-(last[1] + out[1]) // m)
            products = (m + size - 1) ** 2 * grid[0] * grid[1] / side**2
            if best[0] == 0 or products < fewest:
                best, fewest = (m, side, grid), products
    return best


class Tiling:
    """How a convolution is divided into tiles, and the transforms of its weights.

    Attributes:
        size: side of the filters, in cells.
        depth, filters: input channels and filters of one group.
        terms: channels of a cell, of one group.
        out: height and width of the results.
        m, n: sides of a tile's results and inputs, in cells.
        compute_dtype: of transforms and of sums over chunks; transformed tiles and weights have x's dtype.
        side: images per side of a mosaic, 1 or 2. Images in a mosaic share tiles and the padding between them: at 13 x
            13 pixels and m = 4, four images need 49 tiles instead of 64.
        pitch: distance of two images in a mosaic, below and beside each other.
        grid: tiles per column and per row of a mosaic.
    """

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
        # The padding between two images must hold that of either one.
        self.pitch = (
            max(height + max(self.top, bottom), self.out[0]),
            max(width + max(self.left, right), self.out[1]),
        )
        mosaics = stride == 1 and c_functions.supports(x) and x.dtype == torch.bfloat16
        self.m, self.side, self.grid = tile_grid(self.size, self.out, x.dtype, self.pitch if mosaics else None)
        self.n = self.m + self.size - 1
        self.compute_dtype = compute_dtype(x)
        self.matrices = transform_matrices(self.m, self.size, self.compute_dtype)

    def tiles(self, images: int) -> int:
        """The number of tiles of some images."""
        return -(-images // self.side**2) * self.grid[0] * self.grid[1]

    @property
    def threads_split_images(self) -> bool:
        """Whether each thread takes images of its own through all steps."""
        weights = self.n**2 * self.groups * self.terms * self.filters
        return weights <= MAX_WEIGHTS_PER_THREAD and build.library() is not None

    def run(self, step: Callable[[slice], Result], images: int) -> list[Result]:
        """Call `step` on each thread's slice of the images, or once on all of them, and return the results."""
        if self.threads_split_images and torch.get_num_threads() > 1:
            return c_functions.run_in_threads(step, images)
        return [step(slice(0, images))]

    def transform_weights(self, weight: Tensor) -> Tensor:
        """G w G^T: (n^2 groups) x terms x filters."""
        wide = self.size * self.stride
        cells = F.pad(weight.to(self.compute_dtype), (0, wide - self.kernel) * 2).view(
            self.groups, self.filters, self.depth, self.size, self.stride, self.size, self.stride
        )
        cells = cells.permute(3, 5, 0, 4, 6, 2, 1).contiguous()
        length = cells.numel() // self.size**2
        half, out = cells.new_empty(self.n * self.size * length), cells.new_empty(self.n**2 * length)
        transformed = transform(self.matrices.weights, cells, half, out).view(-1, self.terms, self.filters)
        return transformed.to(weight.dtype)

    def zero_gradient(self, weight: Tensor) -> Tensor:
        """Zeros of the shape of :meth:`transform_weights`, in :attr:`compute_dtype`."""
        shape = self.n**2 * self.groups, self.terms, self.filters
        return weight.new_zeros(shape, dtype=self.compute_dtype)

    def weight_gradient(self, transformed: Tensor) -> Tensor:
        """The weight's gradient from the transformed weights': the adjoint of :meth:`transform_weights`."""
        length = transformed.numel() // self.n**2
        half, out = transformed.new_empty(self.size * self.n * length), transformed.new_empty(self.size**2 * length)
        cells = transform(self.matrices.weights.t(), transformed, half, out).view(
            self.size, self.size, self.groups, self.stride, self.stride, self.depth, self.filters
        )
        wide = self.size * self.stride
        cells = cells.permute(2, 6, 5, 0, 3, 1, 4).reshape(self.groups * self.filters, self.depth, wide, wide)
        return cells[:, :, : self.kernel, : self.kernel]


class ChunkSteps(Tiling, abc.ABC):
    """The steps on one chunk of images, with buffers that all chunks use in turn.

    Maps are dense. Each method overwrites what its previous call returned. The products are implemented here, the
    transforms of maps in the subclasses.

    Attributes:
        images: the number of images per chunk.
    """

    def __init__(self, x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> None:
        super().__init__(x, weight, stride, sides, groups)
        tiles = TILES_PER_CHANNEL * min(self.terms, self.filters) * self.compute_dtype.itemsize // x.element_size()
        least = 1 if self.threads_split_images else torch.get_num_threads()
        mosaics = max(least, round(tiles / math.prod(self.grid)))
        self.images = max(1, min(len(x), mosaics * self.side**2))
        self.buffer_length = self.n**2 * self.tiles(self.images) * groups * max(self.terms, self.filters)
        self._inputs, self._results = (x.new_empty(self.buffer_length) for _ in range(2))

    def multiply(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Transformed results, from transformed inputs and weights."""
        out = self._results[: inputs.shape[0] * inputs.shape[1] * self.filters]
        return torch.bmm(inputs, weights, out=out.view(*inputs.shape[:2], self.filters))

    def multiply_backward(self, gradient: Tensor, weights: Tensor) -> Tensor:
        """The gradient of the transformed inputs, from that of the transformed results."""
        out = self._inputs[: gradient.shape[0] * gradient.shape[1] * self.terms]
        return torch.bmm(gradient, weights.transpose(1, 2), out=out.view(*gradient.shape[:2], self.terms))

    def add_weight_gradient(self, total: Tensor, inputs: Tensor, gradient: Tensor) -> None:
        """Add the gradient of the transformed weights to `total`, from transformed inputs and results' gradient."""
        if total.dtype == inputs.dtype:
            total.baddbmm_(inputs.transpose(1, 2), gradient)
        else:
            total += torch.bmm(inputs.transpose(1, 2), gradient)

    @abc.abstractmethod
    def transform_inputs(self, x: Tensor) -> Tensor:
        """B d B^T of all tiles of x: (n^2 groups) x tiles x terms."""

    @abc.abstractmethod
    def write_results(self, transformed: Tensor, bias: Tensor | None, y: Tensor, *, relu: bool) -> None:
        """Write A M A^T of all tiles, plus the bias, followed by the ReLU, to y."""

    @abc.abstractmethod
    def transform_gradient(self, gradient: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """The adjoint of :meth:`write_results`: the gradients of the transformed results and of the bias.

        Args:
            y: the results if a ReLU was applied, else None.
        """

    @abc.abstractmethod
    def write_inputs_gradient(self, transformed: Tensor, grad_x: Tensor) -> None:
        """Write the adjoint of :meth:`transform_inputs` to grad_x."""


class _StepsInC(ChunkSteps):
    """Maps are transformed by native.c, which reads and writes each of them once."""

    def transform_inputs(self, x: Tensor) -> Tensor:
        values = self._inputs[: self.n**2 * self.tiles(len(x)) * self.groups * self.terms]
        c_functions.maps_to_tiles(x, None, values, None, self.matrices.inputs, self._c_grid(x, inputs=True))
        return values.view(self.n**2 * self.groups, -1, self.terms)

    def write_results(self, transformed: Tensor, bias: Tensor | None, y: Tensor, *, relu: bool) -> None:
        grid = self._c_grid(y, inputs=False)
        c_functions.tiles_to_maps(transformed, bias, y, self.matrices.results, grid, relu=relu)

    def transform_gradient(self, gradient: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        values = self._results[: self.n**2 * self.tiles(len(gradient)) * self.groups * self.filters]
        mosaics = self.tiles(len(gradient)) // math.prod(self.grid)
        sums = gradient.new_empty(mosaics, self.groups * self.filters, dtype=self.compute_dtype)
        matrix = self.matrices.results.t().contiguous()
        c_functions.maps_to_tiles(gradient, y, values, sums, matrix, self._c_grid(gradient, inputs=False))
        return values.view(self.n**2 * self.groups, -1, self.filters), sums.sum(0)

    def write_inputs_gradient(self, transformed: Tensor, grad_x: Tensor) -> None:
        matrix = self.matrices.inputs.t().contiguous()
        c_functions.tiles_to_maps(transformed, None, grad_x, matrix, self._c_grid(grad_x, inputs=True), relu=False)

    def _c_grid(self, maps: Tensor, *, inputs: bool) -> tuple[int, ...]:
        """The `grid` argument for maps of inputs or of results; see :func:`c_functions.maps_to_tiles`."""
        images, height, width, channels = maps.shape
        stride, top, left = (self.stride, self.top, self.left) if inputs else (1, 0, 0)
        mosaic = self.side, *self.pitch
        return (
            *(images, height, width, channels // self.groups, self.groups, stride, top, left, self.m),
            *(*self.grid, *mosaic),
        )


class _StepsInTorch(ChunkSteps):
    """Maps are transformed by matrix products, on copies of their tiles that stay in the caches."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> None:
        super().__init__(x, weight, stride, sides, groups)
        _, channels, height, width = x.shape
        self.image = slice(self.top, self.top + height), slice(self.left, self.left + width)
        # Whole tiles, and one more row and column of them, into which the inputs of the last tiles extend.
        side = self.m * stride
        rows = max(self.grid[0] + 1, -(-(self.top + height) // side)) * side
        columns = max(self.grid[1] + 1, -(-(self.left + width) // side)) * side
        self.padded = x.new_zeros(self.images, rows, columns, channels)
        self.results = x.new_zeros(self.images, self.m * self.grid[0], self.m * self.grid[1], weight.shape[0])
        self._plain, self._half = (x.new_empty(self.buffer_length) for _ in range(2))

    def transform_inputs(self, x: Tensor) -> Tensor:
        images, n, stride = len(x), self.n, self.stride
        self.padded[:images, *self.image] = x
        _, rows, columns, channels = self.padded.shape
        down, right = stride * columns * channels, stride * channels
        tiles = self.padded.as_strided(
            (n, n, self.groups, images, *self.grid, stride, stride, self.depth),
            (down, right, self.depth, rows * columns * channels, self.m * down, self.m * right, columns * channels,
             channels, 1),
        )  # fmt: skip
        plain = self._plain[: tiles.numel()].view(tiles.shape).copy_(tiles)
        transformed = transform(self.matrices.inputs, plain, self._half, self._inputs)
        return transformed.view(n**2 * self.groups, -1, self.terms)

    def write_results(self, transformed: Tensor, bias: Tensor | None, y: Tensor, *, relu: bool) -> None:
        images = len(y)
        plain = transform(self.matrices.results, transformed, self._half, self._plain)
        tiles = plain.view(self.m, self.m, self.groups, images, *self.grid, self.filters)
        self._result_tiles(images).copy_(tiles.permute(3, 4, 0, 5, 1, 2, 6))
        sums = self.results[:images, : self.out[0], : self.out[1]]
        if bias is None:
            y.copy_(sums)
        else:
            torch.add(sums, bias, out=y)
        if relu:
            y.relu_()

    def transform_gradient(self, gradient: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        images = len(gradient)
        self.results[:images, : self.out[0], : self.out[1]] = gradient
        tiles = self._result_tiles(images).permute(2, 4, 5, 0, 1, 3, 6)
        plain = self._plain[: tiles.numel()].view(tiles.shape).copy_(tiles)
        transformed = transform(self.matrices.results.t(), plain, self._half, self._results)
        return transformed.view(self.n**2 * self.groups, -1, self.filters), gradient.sum((0, 1, 2))

    def write_inputs_gradient(self, transformed: Tensor, grad_x: Tensor) -> None:
        m, n, stride, (down, right) = self.m, self.n, self.stride, self.grid
        plain = transform(self.matrices.inputs.t(), transformed, self._half, self._plain)
        # Each tile owns its first m x m cells (`own`) and overlaps the first cells of the next tiles (`over`).
        tiles = plain.view(n, n, self.groups, len(grad_x), down, right, stride, stride, self.depth)
        tiles = tiles.permute(3, 4, 0, 6, 5, 1, 7, 2, 8)
        padded = torch.zeros_like(self.padded[: len(grad_x)])
        cells = padded.view(
            len(grad_x), -1, m, stride, padded.shape[2] // (m * stride), m, stride, self.groups, self.depth
        )
        own, over, first = slice(m), slice(m, n), slice(n - m)
        cells[:, :down, :, :, :right] = tiles[:, :, own, :, :, own]
        cells[:, 1 : down + 1, first, :, :right] += tiles[:, :, over, :, :, own]
        cells[:, :down, :, :, 1 : right + 1, first] += tiles[:, :, own, :, :, over]
        cells[:, 1 : down + 1, first, :, 1 : right + 1, first] += tiles[:, :, over, :, :, over]
        grad_x.copy_(padded[:, *self.image])

    def _result_tiles(self, images: int) -> Tensor:
        """View of the results by tile: images x rows x m x columns x m x groups x filters."""
        return self.results[:images].view(images, self.grid[0], self.m, self.grid[1], self.m, self.groups, self.filters)


def chunk_steps(x: Tensor, weight: Tensor, stride: int, sides: Sequence[int], groups: int) -> ChunkSteps:
    """The steps for chunks of x, in C if native.c supports x, else in PyTorch."""
    kind = _StepsInC if c_functions.supports(x) else _StepsInTorch
    return kind(x, weight, stride, sides, groups)
