"""Time overlapping max-pooling: python bench/max_pool.py"""

from __future__ import annotations

import torch.nn.functional as F
from harness import Benchmark, Case, compiled, image_bytes
from torch import Tensor

import kernels


def pytorchs(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def main() -> None:
    bench = Benchmark("max_pool", "Overlapping max-pooling, 3 x 3, stride 2")
    for batch in bench.batches():
        for dtype in bench.dtypes():
            for channels, side in ((96, 55), (256, 27), (256, 13)):
                shape = (batch, channels, side, side)
                size = image_bytes(shape, dtype)
                elements = batch * channels * ((side - 3) // 2 + 1) ** 2
                out = elements * dtype.itemsize
                # Backward must learn where each maximum was: one byte per output is the least.
                moved = {"forward": size + out, "backward": size + out + elements}
                bench.run(
                    Case(
                        "max_pool2d",
                        shape,
                        dtype,
                        pytorchs,
                        {
                            "ours": (kernels.max_pool2d, "channels_last"),
                            "torch eager channels_last": (pytorchs, "channels_last"),
                            "torch eager NCHW": (pytorchs, "nchw"),
                            "torch.compile": (compiled(pytorchs), "channels_last"),
                        },
                        moved | {"both": sum(moved.values())},
                    )
                )
    bench.finish()


if __name__ == "__main__":
    main()
