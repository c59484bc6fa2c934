"""Time dropout, alone and after a bias and a ReLU: python bench/dropout.py

PyTorch draws other random numbers, so its result is checked by the share and the values of the features it keeps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import DEVICE, Benchmark, Case, compiled, image_bytes, run_script
from torch import Tensor

import kernels
from kernels.philox import keep_mask

# On the device, as in training: calls do not copy them.
SEED, FIRST_ROW = torch.tensor(1, device=DEVICE), torch.tensor(0, device=DEVICE)


def definition(x: Tensor) -> Tensor:
    rows, features = x.shape
    return x * keep_mask(SEED, FIRST_ROW, rows, features, 0.5) * 2


def fused_definition(x: Tensor, bias: Tensor) -> Tensor:
    return definition((x + bias).relu())


def ours(x: Tensor) -> Tensor:
    return kernels.dropout(x, seed=SEED, first_row=FIRST_ROW)


def ours_fused(x: Tensor, bias: Tensor) -> Tensor:
    return kernels.bias_relu_dropout(x, bias, seed=SEED, first_row=FIRST_ROW)


def pytorch(x: Tensor) -> Tensor:
    return F.dropout(x)


def pytorch_fused(x: Tensor, bias: Tensor) -> Tensor:
    return F.dropout((x + bias).relu())


def check(y: Tensor, inputs: list[Tensor]) -> str | None:
    """What is wrong: half of the features must be kept and doubled."""
    whole = inputs[0] if len(inputs) == 1 else (inputs[0] + inputs[1]).relu()
    kept, present = y != 0, whole != 0
    rate = float(kept.sum() / present.sum())
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
                ("dropout", definition, ours, pytorch, 2),
                ("bias_relu_dropout", fused_definition, ours_fused, pytorch_fused, 3),
            ):
                bench.run(
                    Case(
                        op,
                        shape,
                        dtype,
                        wanted,
                        {
                            "ours": (own, "flat"),
                            "torch eager, our mask": (wanted, "flat"),
                            names[0]: (theirs, "flat"),
                            names[1]: (compiled(theirs), "flat"),
                        },
                        {"forward": 2 * size, "backward": backward * size, "both": (2 + backward) * size},
                        other_shapes=((4096,),) if op == "bias_relu_dropout" else (),
                        checks=dict.fromkeys(names, check),
                    )
                )
    bench.finish()


if __name__ == "__main__":
    run_script(main)
