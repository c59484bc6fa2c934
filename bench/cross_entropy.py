"""Time the loss and the error counts of a batch: python bench/cross_entropy.py

On a CPU our implementation is plain PyTorch: logits are small, and there are no kernel launches to save.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import DEVICE, Benchmark, Case, compiled, image_bytes, run_script
from torch import Tensor

import kernels

CLASSES = 1000
# Receives the counts, so that no compiler removes them.
TOTALS = torch.zeros(4, dtype=torch.float64, device=DEVICE)


def definition(labels: Tensor) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float64 else x.float()
        return F.cross_entropy(x, labels[: len(x)], reduction="sum") / len(labels)

    return run


def ours(labels: Tensor) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        loss, counts = kernels.cross_entropy(x, labels, scale=1 / len(labels))
        TOTALS.copy_(counts)
        return loss

    return run


def pytorch(labels: Tensor) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        losses = F.cross_entropy(x.float(), labels, reduction="sum")
        with torch.no_grad():
            top5 = x.topk(5, 1).indices == labels[:, None]
            right = torch.stack([top5[:, 0].sum(), top5.sum()])
            TOTALS.copy_(torch.cat([losses[None], len(labels) - right, torch.full_like(losses[None], len(labels))]))
        return losses / len(labels)

    return run


def main() -> None:
    bench = Benchmark("cross_entropy", f"Cross-entropy and errors of {CLASSES} classes")
    for batch in bench.batches([128] if bench.quick else [128, 1024]):
        labels = torch.arange(batch, device=DEVICE) % CLASSES
        for dtype in bench.dtypes():
            shape = (batch, CLASSES)
            size = image_bytes(shape, dtype)
            bench.run(
                Case(
                    "cross_entropy",
                    shape,
                    dtype,
                    definition(labels),
                    {
                        "ours": (ours(labels), "flat"),
                        "torch eager": (pytorch(labels), "flat"),
                        "torch.compile": (compiled(pytorch(labels)), "flat"),
                    },
                    {"forward": size, "backward": 2 * size, "both": 3 * size},
                )
            )
    bench.finish()


if __name__ == "__main__":
    run_script(main)
