"""Compile every kernel as its host function launches it at AlexNet's shapes. No GPU is needed.

    python tests/kernels/compile_kernels.py bfloat16:80 bfloat16:90 bfloat16:100 float32:80 float32:90 float32:100

leaves out launches that add little to the others; with --everything it compiles those, too, which takes several times
as long. It prints one JSON object per line: kernel, case, architecture, registers, bytes of stack and shared memory,
the number of instructions and the matrix instructions in the PTX, and the number of loads (including asynchronous
copies) and stores of each width. At the end come the rows of `bench/static.py` ("row"), from the same compilation, the
launches of its record that were left out ("left_out"), and the versions of the compilers ("versions"). It runs in a
process of its own, because a process that imports Triton with its interpreter cannot compile.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.compiler import CompiledKernel

import kernels

sys.path.append(str(Path(__file__).parents[2] / "bench"))  # at the end, so that scripts shadow no package

from static_analysis import cases, compilation, prediction, rows
from static_analysis.cases import Case
from static_analysis.launches import Launch, launches_of

_EVERYTHING = "--everything" in sys.argv[1:]

# Memory formats of an operator's input and of the gradient of its result. In NCHW, maps of 55 x 55 cannot be loaded 16
# bytes at a time.
_OTHER_LAYOUTS = {
    " in NCHW": (torch.contiguous_format, torch.contiguous_format),
    " with its gradient in NCHW": (torch.channels_last, torch.contiguous_format),
}


def _cases(dtype: torch.dtype) -> Iterator[Case]:
    yield from cases.network(dtype)
    for suffix, formats in _OTHER_LAYOUTS.items():
        for case in cases.blocks(dtype, *formats):
            # In other formats, the code differs by operator but hardly by size.
            one_size = case.name in ("lrn conv1", "max_pool conv1", "same_map_norm")
            if _EVERYTHING or one_size or case.name + suffix == "lrn_max_pool paper in NCHW":
                yield dataclasses.replace(case, name=case.name + suffix)
    if _EVERYTHING:
        # Without the argmax, which only backward needs, the kernel is a part of the other one.
        x = torch.empty(1, 96, 55, 55, dtype=dtype, memory_format=torch.channels_last)
        yield Case("lrn_max_pool inference", (), partial(kernels.lrn_max_pool2d, x, bias=torch.zeros(96)))
    yield from _unusual_windows(dtype)
    # Bias and ReLU after cuDNN's product.
    y = torch.empty(2, 96, 5, 5, dtype=dtype, memory_format=torch.channels_last)
    yield Case("epilogue", (), partial(kernels.conv_relu.add_bias_relu_, y, torch.empty(96, dtype=dtype), True))
    yield from _other_arguments(dtype)


# Windows and strides far from AlexNet's: loops that are not unrolled, and blocks of one pixel. The fused operators take
# windows up to 4 x 4 and 7 channels or pixels, and leave larger ones to the other operators.
WINDOWS = ((5, 1), (5, 2), (8, 2), (16, 1), (17, 2), (32, 1), (32, 2), (32, 40), (3, 40))
FUSED_WINDOWS = ((1, 1, 5), (4, 1, 5), (4, 2, 7), (3, 40, 5))
FUSED_MAP_WINDOWS = ((1, 1, 5), (4, 1, 7), (4, 3, 7), (1, 3, 5))


def _unusual_windows(dtype: torch.dtype) -> Iterator[Case]:
    x = torch.empty(1, 64, 80, 80, dtype=dtype, memory_format=torch.channels_last).requires_grad_()
    for window, stride in WINDOWS:
        yield Case(f"window {window}, stride {stride}", (), partial(kernels.max_pool2d, x, window, stride))
    # Triton checks the types of what a loop carries; the interpreter does not.
    options = {"bias": torch.zeros(64, dtype=torch.float64), "relu": "before"}
    for window, stride, size in FUSED_WINDOWS:
        call = partial(kernels.lrn_max_pool2d, x, size, kernel_size=window, stride=stride, **options)
        yield Case(f"window {window}, stride {stride}, {size} channels", (), call)
    for window, stride, size in FUSED_MAP_WINDOWS:
        call = partial(kernels.same_map_norm_max_pool2d, x, size, kernel_size=window, stride=stride)
        yield Case(f"window {window}, stride {stride}, {size} x {size} pixels", (), call)
    # The largest windows of the normalisations, which leave larger ones to PyTorch.
    yield Case("window over 16 channels", (), partial(kernels.local_response_norm, x, 16))
    yield Case("window over 16 x 16 pixels of all channels", (), partial(kernels.same_map_norm, x, 16))


def _other_arguments(dtype: torch.dtype) -> Iterator[Case]:
    logits, labels = torch.zeros(2, 1000, dtype=dtype, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    other = {"scale": 0.3, "ignore_index": 3}
    yield Case("cross_entropy with other numbers", (), lambda: kernels.cross_entropy(logits, labels, **other)[0])
    x = torch.zeros(2, 4096, dtype=dtype, requires_grad=True)
    bias = torch.zeros(4096, dtype=torch.float32, requires_grad=True)
    evaluation = partial(kernels.bias_relu_dropout, x, bias, seed=1, training=False)
    yield Case("bias_relu_dropout evaluation", (), evaluation)
    for name, first in (("sgd", 0), ("sgd unaligned", 1)):
        weight, velocity = (torch.zeros(4097)[first:] for _ in range(2))
        numbers = {"learning_rates": [0.01], "weight_decays": [0.0005], "copies": [weight.bfloat16()]}
        yield Case(name, (), partial(kernels.sgd_update_, [weight], [weight.to(dtype)], [velocity], **numbers))


def _is_left_out(launch: Launch, dtype: torch.dtype, architecture: int) -> bool:
    """Whether this launch adds little to what is compiled in bf16 for Hopper.

    fp32 needs fewer registers than bf16, which is computed in fp32 too, in longer vectors. Matrix products differ by
    GPU in fp32 as well, but in fp32 one layer with narrow loads and one without are enough: networks are trained in
    half precision. The fused kernels take most of the time: on other GPUs and in fp32, one case is enough, and
    everywhere one size. Unusual windows are compiled for one GPU. What was tuned on Hopper does not fit other GPUs.
    """
    case = launch.case.name
    if case.endswith("tuned"):
        return architecture != rows.ARCHITECTURE
    if _EVERYTHING:
        return False
    if case.startswith("window"):
        return architecture != 90 or (dtype == torch.float32 and case.endswith(("channels", "pixels")))
    if case.startswith("lrn_max_pool conv2"):
        return True
    one_of_many = case.endswith("in NCHW") or case in ("lrn_max_pool paper", "update")
    if dtype == torch.float32:
        return (
            one_of_many or case in ("conv2", "conv4", "conv5") or (architecture != 90 and not case.startswith("conv"))
        )
    return architecture != 90 and one_of_many


def _launches(dtype: torch.dtype) -> Iterator[Launch]:
    """Every launch of the operators with this dtype, and with --everything of the tuned convolutions."""
    for case in _cases(dtype):
        yield from launches_of(case)
    if dtype == torch.bfloat16 and _EVERYTHING:
        for case, _ in cases.tuned_convolutions(prediction.GPU):
            yield from launches_of(case)


def _record(launch: Launch, kernel: CompiledKernel, dtype: str, architecture: int) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    return {
        "kernel": launch.kernel.__name__,
        "case": launch.case.name,
        "dtype": dtype,
        "architecture": architecture,
        "shared": kernel.metadata.shared,
        "instructions": len(re.findall(r"^\t[^.]", ptx, re.MULTILINE)),
        "matrix_instructions": sorted(set(re.findall(r"wgmma|tcgen05|mma\.sync", ptx))),
        "loads": compilation.load_widths(ptx),
        "stores": compilation.store_widths(ptx),
        **compilation.resources(kernel.asm["cubin"]),
    }


def main(wanted: list[str]) -> None:
    architectures: dict[str, list[int]] = {}
    for item in wanted:
        if item != "--everything":
            dtype, architecture = item.split(":")
            architectures.setdefault(dtype, []).append(int(architecture))
    hopper: dict[str, CompiledKernel] = {}  # in bf16
    for dtype in architectures:
        done = set()
        for launch in _launches(getattr(torch, dtype)):
            identity = compilation.identity(launch)
            targets = [a for a in architectures[dtype] if not _is_left_out(launch, getattr(torch, dtype), a)]
            if identity in done or not targets:
                continue
            done.add(identity)
            for architecture, kernel in compilation.compiled(launch, targets):
                print(json.dumps(_record(launch, kernel, dtype, architecture)), flush=True)
                if (dtype, architecture) == ("bfloat16", rows.ARCHITECTURE):
                    hopper[identity] = kernel
    if "bfloat16:90" in wanted:
        _print_rows(hopper)


def _print_rows(hopper: dict[str, CompiledKernel]) -> None:
    """The rows of the launches that a record of `bench/static.py` has, from the compiled kernels by identity."""
    found = [launch for case in cases.network(torch.bfloat16) for launch in launches_of(case)]
    found += [launch for case, _ in cases.tuned_convolutions(prediction.GPU) for launch in launches_of(case)]
    compiled = [launch for launch in found if compilation.identity(launch) in hopper]
    left_out = [launch for launch in found if compilation.identity(launch) not in hopper]
    for row in rows.rows_of(compiled, [hopper[compilation.identity(launch)] for launch in compiled]):
        print(json.dumps({"row": row}))
    for launch in left_out:
        print(json.dumps({"left_out": launch.key}))
    print(json.dumps({"versions": compilation.versions()}))


if __name__ == "__main__":
    main(sys.argv[1:])
