"""Time dropout, alone and behind a bias and a ReLU: python bench/dropout.py

PyTorch's dropout draws other random numbers, so it is judged by what it keeps and how often.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import DEVICE, Benchmark, Case, compiled, image_bytes
from torch import Tensor

import kernels
from kernels.philox import keep_mask

# On the device, as in training, so that no call copies them there.
SEED, FIRST_ROW = torch.tensor(1, device=DEVICE), torch.tensor(0, device=DEVICE)


def definition(x: Tensor) -> Tensor:
    return x * keep_mask(SEED, FIRST_ROW, *x.shape, 0.5) * 2


def fused_definition(x: Tensor, bias: Tensor) -> Tensor:
    return definition((x + bias).relu())


def ours(x: Tensor) -> Tensor:
    return kernels.dropout(x, seed=SEED, first_row=FIRST_ROW)


def ours_fused(x: Tensor, bias: Tensor) -> Tensor:
    return kernels.bias_relu_dropout(x, bias, seed=SEED, first_row=FIRST_ROW)


def pytorchs(x: Tensor) -> Tensor:
    return F.dropout(x)


def pytorchs_fused(x: Tensor, bias: Tensor) -> Tensor:
    return F.dropout((x + bias).relu())


def judge(y: Tensor, inputs: list[Tensor]) -> str | None:
    """Half of the features are kept, and twice as large."""
    whole = inputs[0] if len(inputs) == 1 else (inputs[0] + inputs[1]).relu()
    kept, there = y != 0, whole != 0
    rate = float(kept.sum() / there.sum())
    if abs(rate - 0.5) > 0.01:
        return f"{rate:.3f} of the features were kept"
    return None if torch.allclose(y[kept], 2 * whole[kept], rtol=1e-2) else "kept features are not doubled"


def main() -> None:
    bench = Benchmark("dropout", "Dropout 0.5 of 4096 features")
    for batch in bench.batches([128] if bench.quick else [128, 1024]):
        for dtype in bench.dtypes():
            shape = (batch, 4096)
            size = image_bytes(shape, dtype)
            names = ("torch eager", "torch.compile")
            for op, wanted, own, theirs, backward in (
                ("dropout", definition, ours, pytorchs, 2),
                ("bias_relu_dropout", fused_definition, ours_fused, pytorchs_fused, 3),
            ):
                bench.run(
                    Case(
                        op,
                        shape,
                        dtype,
                        wanted,
                        {
                            "ours": (own, "flat"),
                            "torch eager, our bits": (wanted, "flat"),
                            names[0]: (theirs, "flat"),
                            names[1]: (compiled(theirs), "flat"),
                        },
                        {"forward": 2 * size, "backward": backward * size, "both": (2 + backward) * size},
                        others=((4096,),) if op == "bias_relu_dropout" else (),
                        judges=dict.fromkeys(names, judge),
                    )
                )
    bench.finish()


if __name__ == "__main__":
    main()
