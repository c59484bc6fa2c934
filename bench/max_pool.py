"""Time overlapping max-pooling: python bench/max_pool.py"""

from __future__ import annotations

import torch.nn.functional as F
from harness import Benchmark, Case, compiled, image_bytes, run_script
from torch import Tensor

import kernels


def pytorch(x: Tensor) -> Tensor:
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
                # Backward needs the position of each maximum: at least one byte per output.
                moved = {"forward": size + out, "backward": size + out + elements}
                bench.run(
                    Case(
                        "max_pool2d",
                        shape,
                        dtype,
                        pytorch,
                        {
                            "ours": (lambda x: kernels.max_pool2d(x, 3, 2), "channels_last"),
                            "torch eager channels_last": (pytorch, "channels_last"),
                            "torch eager NCHW": (pytorch, "nchw"),
                            "torch.compile": (compiled(pytorch), "channels_last"),
                        },
                        moved | {"both": sum(moved.values())},
                    )
                )
    bench.finish()


if __name__ == "__main__":
    run_script(main)
