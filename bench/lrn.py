"""Time local response normalisation and same-map normalisation: python bench/lrn.py"""

from __future__ import annotations

import torch.nn.functional as F
from harness import CUDA, Benchmark, Case, Operator, compiled, image_bytes, run_script
from torch import Tensor

import kernels
from kernels import reference


def pytorch(x: Tensor) -> Tensor:
    return F.local_response_norm(x, 5, 1e-4, 0.75, 2.0)


def one_formula(x: Tensor) -> Tensor:
    """A formula that a compiler can turn into one loop: no pooling, no power function."""
    squares = F.pad(x * x, (0, 0, 0, 0, 2, 2))
    channels = x.shape[1]
    scale = 2.0 + 1e-4 / 5 * sum(squares[:, shift : shift + channels] for shift in range(5))
    assert isinstance(scale, Tensor)
    root = scale.rsqrt()
    return x * (root * root.sqrt())


def pytorch_map(x: Tensor) -> Tensor:
    return x / (1 + 1e-3 * F.avg_pool2d(x * x, 5, 1, 2)) ** 0.75


def one_formula_map(x: Tensor) -> Tensor:
    """The same for same-map normalisation, its sum by rows first."""
    height, width = x.shape[2:]
    squares = F.pad(x * x, (2, 2, 2, 2))
    rows = sum(squares[:, :, shift : shift + height] for shift in range(5))
    assert isinstance(rows, Tensor)
    scale = 1 + 1e-3 / 25 * sum(rows[..., shift : shift + width] for shift in range(5))
    assert isinstance(scale, Tensor)
    root = scale.rsqrt()
    return x * (root * root.sqrt())


def same_map_providers() -> dict[str, tuple[Operator, str]]:
    found: dict[str, tuple[Operator, str]] = {
        "ours": (lambda x: kernels.same_map_norm(x, 5, 1e-3, 0.75, 1.0), "channels_last"),
        "torch eager channels_last": (pytorch_map, "channels_last"),
        "torch eager NCHW": (pytorch_map, "nchw"),
        "torch.compile, one formula": (compiled(one_formula_map), "channels_last"),
    }
    if CUDA:  # on a CPU it is slower than the formula, and takes the longest to compile of all
        found["torch.compile"] = (compiled(pytorch_map), "channels_last")
    return found


def main() -> None:
    bench = Benchmark("lrn", "Local response normalisation")
    # On a CPU a quarter of the batch of the other operators, so that a first look takes about a minute.
    for batch in bench.batches(None if CUDA or bench.quick else [16]):
        for dtype in bench.dtypes():
            for channels, side in ((96, 55), (256, 27)):
                shape = (batch, channels, side, side)
                size = image_bytes(shape, dtype)
                bench.run(
                    Case(
                        "local_response_norm",
                        shape,
                        dtype,
                        lambda x: reference.local_response_norm(x, 5, 1e-4, 0.75, 2.0, groups=1),
                        {
                            "ours": (lambda x: kernels.local_response_norm(x, 5, 1e-4, 0.75, 2.0), "channels_last"),
                            "torch eager channels_last": (pytorch, "channels_last"),
                            "torch eager NCHW": (pytorch, "nchw"),
                            "torch.compile": (compiled(pytorch), "channels_last"),
                            "torch.compile, one formula": (compiled(one_formula), "channels_last"),
                        },
                        {"forward": 2 * size, "backward": 3 * size, "both": 5 * size},
                        std=10.0,
                    )
                )
            shape = (batch, 256, 27, 27)
            size = image_bytes(shape, dtype)
            bench.run(
                Case(
                    "same_map_norm",
                    shape,
                    dtype,
                    lambda x: reference.same_map_norm(x, 5, 1e-3, 0.75, 1.0),
                    same_map_providers(),
                    {"forward": 2 * size, "backward": 3 * size, "both": 5 * size},
                )
            )
    bench.finish()


if __name__ == "__main__":
    run_script(main)
