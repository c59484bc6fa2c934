"""Time convolution, bias and ReLU for the five layers of the 2012 network: python bench/conv_relu.py

On a GPU, `--tune` measures launch settings instead, of these layers and of normalisation and pooling, and writes the
table in `kernels/tuned/`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import CUDA, Benchmark, Case, Operator, compiled, run_script
from static_analysis.cases import CONVOLUTIONS
from torch import Tensor
from tuning import convolution, launches
from tuning.tables import write_table

import kernels
from kernels import launch_settings, tuned

GRADIENTS = {"data gradient": (0,), "weight gradient": (1, 2)}


def pytorch(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, ...], groups: int) -> Tensor:
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return F.conv2d(x, weight, bias, stride, (top, left), 1, groups).relu()
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, 1, groups).relu()


def ours(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, ...], groups: int) -> Tensor:
    return kernels.conv2d_relu(x, weight, bias, stride, padding, groups=groups)


def triton_alone(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple[int, ...], groups: int) -> Tensor:
    with kernels.using("triton"):
        return kernels.conv2d_relu(x, weight, bias, stride, padding, groups=groups)


def max_autotuned(operator: Operator) -> Operator:
    """`torch.compile` with autotuning; without CUDA graphs, which the other providers do not use either."""
    return torch.compile(operator, dynamic=False, mode="max-autotune-no-cudagraphs")


def providers(stride: int, padding: tuple[int, ...], groups: int) -> dict[str, tuple[Operator, str]]:
    theirs: Operator = partial(pytorch, stride=stride, padding=padding, groups=groups)
    found: dict[str, tuple[Operator, str]] = {
        "ours": (partial(ours, stride=stride, padding=padding, groups=groups), "channels_last"),
        "torch eager channels_last": (theirs, "channels_last"),
        "torch eager NCHW": (theirs, "nchw"),
    }
    if CUDA:
        found |= {
            "ours, Triton alone": (
                partial(triton_alone, stride=stride, padding=padding, groups=groups),
                "channels_last",
            ),
            "torch.compile": (compiled(theirs), "channels_last"),
            "torch.compile max-autotune": (max_autotuned(theirs), "channels_last"),
        }
    return found


def layer_case(name: str, batch: int, dtype: torch.dtype) -> Case:
    channels, side, filters, kernel, stride, padding, groups = CONVOLUTIONS[name]
    out = (padding[0] + side + padding[1] - kernel) // stride + 1
    product = 2 * batch * out**2 * filters * channels // groups * kernel**2
    # The images of conv1 need no gradient.
    gradients = {direction: wanted for direction, wanted in GRADIENTS.items() if name != "conv1" or 0 not in wanted}
    return Case(
        name,
        (batch, channels, side, side),
        dtype,
        partial(pytorch, stride=stride, padding=padding, groups=groups),
        providers(stride, padding, groups),
        operations=dict.fromkeys(("forward", *gradients), product) | {"both": product * (1 + len(gradients))},
        gradients=gradients,
        other_shapes=((filters, channels // groups, kernel, kernel), (filters,)),
        no_gradient=(0,) if name == "conv1" else (),
        # Up to 2304 products of such numbers add up to a multiple of 1/64, which fp32 represents exactly.
        grid=1 / 8,
    )


def tuned_problems(
    names: Sequence[str], batch: int, dtype: torch.dtype
) -> list[tuple[launch_settings.Direction, launch_settings.Problem]]:
    """The products of these layers in training, and with a bias and a ReLU as in this benchmark."""
    found: list[tuple[launch_settings.Direction, launch_settings.Problem]] = []
    for name in names:
        channels, side, filters, kernel, stride, padding, groups = CONVOLUTIONS[name]
        x = torch.empty((batch, channels, side, side), dtype=dtype, device="meta")
        weight = torch.empty((filters, channels // groups, kernel, kernel), dtype=dtype, device="meta")
        problem = launch_settings.problem_of(x, weight, stride, padding, groups)
        found += [("forward", dataclasses.replace(problem, epilogue=epilogue)) for epilogue in (False, True)]
        found.append(("weight_gradient", problem))
        if name != "conv1":
            found.append(("data_gradient", problem))
    return found


def find_settings(bench: Benchmark) -> None:
    """Measure launch settings and write this GPU's table."""
    if not CUDA:
        sys.exit("error: --tune needs a GPU, torch finds none; run without --tune to time the CPU")
    chosen = bench.arguments
    problems = [
        problem
        for dtype in bench.dtypes()
        for batch in bench.batches()
        for problem in tuned_problems(chosen.layers, batch, dtype)
    ]
    gpu = torch.cuda.get_device_name()
    path = chosen.tables / launch_settings.table_path(gpu).name
    if chosen.layers == list(CONVOLUTIONS):
        found = launches.tune(bench.dtypes(), launches.shapes_of(bench.batches()[0]))
        write_table(path, gpu, launches=tuned.load(path) | found)
    print(f"wrote {convolution.tune(problems, chosen.tables, chosen.seconds)}")


OPTIONS: dict[str, dict[str, Any]] = {
    "tune": {"action": "store_true", "help": "measure this GPU's launch settings instead"},
    "layers": {
        "nargs": "+",
        "choices": list(CONVOLUTIONS),
        "default": list(CONVOLUTIONS),
        "help": "tune these layers only, without normalisation and pooling (all)",
    },
    "tables": {
        "type": Path,
        "default": launch_settings.TABLES,
        "help": "folder of the table for --tune (kernels/tuned)",
    },
    "seconds": {"type": float, "default": 3600.0, "help": "time limit of --tune (3600)"},
}


def main() -> None:
    bench = Benchmark("conv_relu", "Convolution, bias and ReLU", options=OPTIONS)
    torch.backends.cudnn.benchmark = True
    if bench.arguments.tune:
        find_settings(bench)
        return
    # Half of the batch of the other operators on a CPU: this one computes for seconds.
    default = 128 if CUDA else 8 if bench.quick else 32
    for batch in bench.batches([default]):
        for dtype in bench.dtypes([torch.bfloat16 if CUDA else torch.float32]):
            done = len(bench.rows)
            for name in CONVOLUTIONS:
                bench.run(layer_case(name, batch, dtype))
            bench.add_sum("all five layers", bench.rows[done:], [batch])
    bench.finish()


if __name__ == "__main__":
    run_script(main)
