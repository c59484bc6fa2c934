"""The functions of native.c, called on tensors.

Tensors are fp32 or bf16, all of one dtype, dense, not empty, and all in one memory layout unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels.native import build

Result = TypeVar("Result")

_DTYPES = (torch.float32, torch.bfloat16)
_RELU = {None: 0, "before": 1, "after": 2}


def supports(x: Tensor) -> bool:
    """Whether the compiled functions can process `x`: fp32 or bf16 on a CPU, and native.c has been compiled."""
    return x.dtype in _DTYPES and x.device.type == "cpu" and build.library() is not None


def _is_bf16(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _call(name: str, *arguments) -> None:
    library = build.library()
    assert library is not None
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    pointers = (argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)
    if not getattr(library, name)(*pointers, torch.get_num_threads()):
        raise MemoryError(f"{name}: cannot allocate buffers for {torch.get_num_threads()} threads")


def run_in_threads(run: Callable[[slice], Result], images: int) -> list[Result]:
    """Split a number of images between the threads, call `run` on each thread's slice, and return the results in order.

    PyTorch parallelises each operation separately: threads wait for each other after every operation, and the next one
    reads what another core's cache holds. Here each thread takes its images through all steps. Gradients are not
    recorded. PyTorch operators called by `run` use one thread each, because nested OpenMP regions are serial.
    """
    threads = min(torch.get_num_threads(), images)
    results: list[Any] = [None] * threads
    errors: list[BaseException] = []
    inference = torch.is_inference_mode_enabled()

    def run_one(thread: int) -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad():
                results[thread] = run(slice(images * thread // threads, images * (thread + 1) // threads))
        except BaseException as error:  # C cannot propagate it
            errors.append(error)

    _call("run_in_threads", build.TASK(run_one), threads)
    if errors:
        raise errors[0]
    return results


def norm_over_channels(
    x: Tensor, grad: Tensor | None, result: Tensor, options: tuple[int, float, float, float], groups: int, inner: int
) -> None:
    """Write y or, given `grad`, grad_x to `result`. Neighbouring channels of `x` are `inner` elements apart."""
    size, alpha, beta, k = options
    channels = x.shape[1] // groups
    rows = x.numel() // (channels * inner)
    _call("norm_over_channels", x, grad, result, rows, channels, inner, size, alpha / size, beta, k, _is_bf16(x))


def norm_over_map(x: Tensor, grad: Tensor | None, result: Tensor, options: tuple[int, float, float, float]) -> None:
    """Write y or, given `grad`, grad_x to `result`; all in channels_last."""
    size, alpha, beta, k = options
    batch, channels, height, width = x.shape
    shape = batch, height, width, channels
    _call("norm_over_map", x, grad, result, *shape, size, alpha / size**2, beta, k, _is_bf16(x))


def lrn_pool_forward(
    x: Tensor,
    bias: Tensor | None,
    y: Tensor,
    argmax: Tensor,
    options: tuple[int, float, float, float],
    groups: int,
    pool: tuple[int, int],
    relu: str | None,
) -> None:
    """Write the pooled result to `y` and its maxima's positions (uint8) to `argmax`; all in channels_last.

    The bias is fp32 or of x's dtype.
    """
    bias = None if bias is None else bias.float().contiguous()
    _call("lrn_pool_forward", x, bias, y, argmax, *_lrn_pool(x, options, groups, pool, relu))


def lrn_pool_backward(
    grad: Tensor,
    argmax: Tensor,
    x: Tensor,
    bias: Tensor | None,
    grad_x: Tensor,
    options: tuple[int, float, float, float],
    groups: int,
    pool: tuple[int, int],
    relu: str | None,
) -> Tensor:
    """Write the gradient of x to `grad_x` and return the gradient of the bias; all in channels_last."""
    library = build.library()
    assert library is not None
    bias = None if bias is None else bias.float().contiguous()
    parts = torch.empty(library.lrn_pool_bias_parts(x.shape[0], x.shape[2]), x.shape[1], dtype=torch.float32)
    _call("lrn_pool_backward", grad, argmax, x, bias, grad_x, parts, *_lrn_pool(x, options, groups, pool, relu))
    return parts.sum(0)


def _lrn_pool(x, options, groups, pool, relu) -> tuple:
    size, alpha, beta, k = options
    batch, channels, height, width = x.shape
    return batch, height, width, channels, groups, size, alpha / size, beta, k, *pool, _RELU[relu], _is_bf16(x)


def sgd_update(
    weight: Tensor, gradient: Tensor, velocity: Tensor, copy: Tensor, rate: float, decay: float, momentum: float
) -> None:
    """The update of 2012 in one pass. The gradient is fp32 or bf16, the copy bf16, the others fp32."""
    tensors = weight, gradient, velocity, copy
    _call("sgd_update", *tensors, weight.numel(), rate, decay, momentum, _is_bf16(gradient))


def maps_to_tiles(
    maps: Tensor, mask: Tensor | None, values: Tensor, sums: Tensor | None, matrix: Tensor, grid: tuple[int, ...]
) -> None:
    """Write matrix @ tile @ matrix^T of all tiles to `values` and, if given, the sums over each map's pixels to `sums`.

    Args:
        maps: images x height x width x channels.
        mask: of the same shape; map elements count as 0 where it is not above 0.
        values: position x group x tile x term.
        sums: mosaics x channels, fp32.
        matrix: p x q, with p and q at most 8, fp32.
        grid: images, height, width, channels of one group, groups, stride, padding above and left, cells from one tile
            to the next, tiles per column and per row of a mosaic, maps per side of a mosaic (1 or 2), pixels from one
            map to the next below and beside it.
    """
    _call("maps_to_tiles", maps, mask, values, sums, matrix, *matrix.shape, *grid, _is_bf16(maps))


def tiles_to_maps(
    values: Tensor, bias: Tensor | None, maps: Tensor, matrix: Tensor, grid: tuple[int, ...], *, relu: bool
) -> None:
    """The adjoint of :func:`maps_to_tiles`, plus an optional bias and ReLU: write matrix @ tile @ matrix^T, summed over
    overlapping tiles, to `maps`."""
    bias = None if bias is None else bias.float().contiguous()
    _call("tiles_to_maps", values, bias, maps, matrix, *matrix.shape, relu, *grid, _is_bf16(maps))
