"""Time normalisation fused with max-pooling, and with bias and ReLU or within a map: python bench/fusions.py"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from harness import Benchmark, Case, Operator, compiled, image_bytes, run_script
from torch import Tensor

import kernels
from kernels import reference


def pytorch(x: Tensor, bias: Tensor, relu: str) -> Tensor:
    y = x + bias.view(-1, 1, 1)
    if relu == "before":
        y = y.relu()
    y = F.max_pool2d(F.local_response_norm(y, 5, 1e-4, 0.75, 2.0), 3, 2)
    return y.relu() if relu == "after" else y


def separate(x: Tensor, bias: Tensor, relu: str) -> Tensor:
    y = x + bias.view(-1, 1, 1)
    if relu == "before":
        y = y.relu()
    y = kernels.max_pool2d(kernels.local_response_norm(y, 5, 1e-4, 0.75, 2.0), 3, 2)
    return y.relu() if relu == "after" else y


def definition(x: Tensor, bias: Tensor, relu: str) -> Tensor:
    return reference.lrn_max_pool2d(x, 5, 1e-4, 0.75, 2.0, groups=1, kernel_size=3, stride=2, bias=bias, relu=relu)


def ours(x: Tensor, bias: Tensor, relu: str) -> Tensor:
    return kernels.lrn_max_pool2d(x, 5, 1e-4, 0.75, 2.0, kernel_size=3, stride=2, bias=bias, relu=relu)


def pytorch_map(x: Tensor) -> Tensor:
    return F.max_pool2d(x / (1 + 1e-3 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75, 3, 2)


def separate_map(x: Tensor) -> Tensor:
    return kernels.max_pool2d(kernels.same_map_norm(x), 3, 2)


def definition_map(x: Tensor) -> Tensor:
    return reference.same_map_norm_max_pool2d(x, 5, 1e-3, 0.75, 1.0, kernel_size=3, stride=2)


def moved_bytes(batch: int, channels: int, side: int, dtype: torch.dtype) -> dict[str, int]:
    """Forward reads x and writes the result; backward reads x and the result's gradient, and writes that of x."""
    size, out = (image_bytes((batch, channels, length, length), dtype) for length in (side, (side - 3) // 2 + 1))
    moved = {"forward": size + out, "backward": 2 * size + out}
    return moved | {"both": sum(moved.values())}


def providers(ours: Operator, separate: Operator, eager: Operator) -> dict[str, tuple[Operator, str]]:
    return {
        "ours": (ours, "channels_last"),
        "ours, not fused": (separate, "channels_last"),
        "torch eager channels_last": (eager, "channels_last"),
        "torch eager NCHW": (eager, "nchw"),
        "torch.compile": (compiled(eager), "channels_last"),
    }


def main() -> None:
    bench = Benchmark("fusions", "Bias, ReLU, normalisation and max-pooling")
    for batch in bench.batches():
        for dtype in bench.dtypes():
            for relu, channels, side in (("after", 96, 55), ("before", 96, 55), ("before", 256, 27)):
                fused, parts, eager = (partial(operator, relu=relu) for operator in (ours, separate, pytorch))
                bench.run(
                    Case(
                        f"bias, LRN, pool, ReLU {relu}",
                        (batch, channels, side, side),
                        dtype,
                        partial(definition, relu=relu),
                        providers(fused, parts, eager),
                        moved_bytes(batch, channels, side, dtype),
                        other_shapes=((channels,),),
                        std=10.0,
                        gradients_by_norm=True,
                    )
                )
            bench.run(
                Case(
                    "same-map norm, pool",
                    (batch, 256, 27, 27),
                    dtype,
                    definition_map,
                    providers(kernels.same_map_norm_max_pool2d, separate_map, pytorch_map),
                    moved_bytes(batch, 256, 27, dtype),
                    gradients_by_norm=True,
                )
            )
    bench.finish()


if __name__ == "__main__":
    run_script(main)
