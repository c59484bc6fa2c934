"""Time dropout, alone and behind a bias and a ReLU: python bench/dropout.py

The other providers compute the same bits with PyTorch's operations, so that they can be judged; `F.dropout`, which
draws others, is timed beside them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import DEVICE, Benchmark, Case, compiled, image_bytes
from torch import Tensor

import kernels
from kernels.philox import keep_mask

SEED = 1


def definition(x: Tensor) -> Tensor:
    return stored_mask(x)


def fused_definition(x: Tensor, bias: Tensor) -> Tensor:
    return definition((x + bias).relu())


def ours(x: Tensor) -> Tensor:
    return kernels.dropout(x, seed=SEED)


def ours_fused(x: Tensor, bias: Tensor) -> Tensor:
    return kernels.bias_relu_dropout(x, bias, seed=SEED)


def stored_mask(x: Tensor) -> Tensor:
    """The same bits by PyTorch's operations, with the mask kept for backward as its dropout does."""
    keep = keep_mask(torch.tensor(SEED, device=x.device), torch.tensor(0, device=x.device), *x.shape, 0.5)
    return x * keep * 2


def stored_mask_fused(x: Tensor, bias: Tensor) -> Tensor:
    return stored_mask((x + bias).relu())


def main() -> None:
    bench = Benchmark("dropout", "Dropout 0.5 of 4096 features")
    for batch in [128] if bench.quick else [128, 1024]:
        for dtype in bench.dtypes():
            shape = (batch, 4096)
            size = image_bytes(shape, dtype)
            bench.run(
                Case(
                    "dropout",
                    shape,
                    dtype,
                    definition,
                    {
                        "ours": (ours, "flat"),
                        "torch eager, same bits": (stored_mask, "flat"),
                        "torch.compile, same bits": (compiled(stored_mask), "flat"),
                    },
                    {"forward": 2 * size, "backward": 2 * size, "both": 4 * size},
                )
            )
            bench.run(
                Case(
                    "bias_relu_dropout",
                    shape,
                    dtype,
                    fused_definition,
                    {
                        "ours": (ours_fused, "flat"),
                        "torch eager, same bits": (stored_mask_fused, "flat"),
                        "torch.compile, same bits": (compiled(stored_mask_fused), "flat"),
                    },
                    {"forward": 2 * size, "backward": 3 * size, "both": 5 * size},
                    others=((4096,),),
                )
            )
            # What a user has without this package: other bits, so only its rate of zeros can be judged.
            x = torch.ones(shape, dtype=dtype, device=DEVICE)
            rate = float((F.dropout(x) == 0).double().mean())
            wrong = None if abs(rate - 0.5) < 0.01 else f"{rate:.3f} of the features were dropped"
            bench.run_in_place(
                "dropout", shape, dtype, "torch eager F.dropout", lambda x=x: F.dropout(x), 2 * size, wrong
            )
    bench.finish()


if __name__ == "__main__":
    main()
