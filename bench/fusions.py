"""Time the fused operator of bias, ReLU, normalisation and max-pooling: python bench/fusions.py"""

from __future__ import annotations

from functools import partial

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


def main() -> None:
    bench = Benchmark("fusions", "Bias, ReLU, normalisation and max-pooling")
    for batch in bench.batches():
        for dtype in bench.dtypes():
            for relu, channels, side in (("after", 96, 55), ("before", 96, 55), ("before", 256, 27)):
                shape = (batch, channels, side, side)
                size = image_bytes(shape, dtype)
                out = image_bytes((batch, channels, (side - 3) // 2 + 1, (side - 3) // 2 + 1), dtype)
                moved = {"forward": size + out, "backward": 2 * size + out}
                eager: Operator = partial(pytorch, relu=relu)
                bench.run(
                    Case(
                        f"bias, LRN, pool, ReLU {relu}",
                        shape,
                        dtype,
                        partial(definition, relu=relu),
                        {
                            "ours": (partial(ours, relu=relu), "channels_last"),
                            "ours, not fused": (partial(separate, relu=relu), "channels_last"),
                            "torch eager channels_last": (eager, "channels_last"),
                            "torch eager NCHW": (eager, "nchw"),
                            "torch.compile": (compiled(eager), "channels_last"),
                        },
                        moved | {"both": sum(moved.values())},
                        other_shapes=((channels,),),
                        std=10.0,
                        gradients_by_norm=True,
                    )
                )
    bench.finish()


if __name__ == "__main__":
    run_script(main)
