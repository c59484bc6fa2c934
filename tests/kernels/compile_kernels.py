"""Compile every kernel as its host function launches it at AlexNet's shapes. No GPU is needed.

    python tests/kernels/compile_kernels.py bfloat16:80 bfloat16:90 bfloat16:100 float32:80 float32:90 float32:100

leaves out launches that add little to the others; with --everything it compiles those, too, which takes several times
as long. It prints one JSON object per line: kernel, case, architecture, registers, bytes of stack and shared memory,
the number of instructions and the matrix instructions in the PTX, and the number of loads (including asynchronous
copies) and stores of each width. It runs in a process of its own, because a process that imports Triton with its
interpreter cannot compile.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

import kernels
from kernels import launch_settings

_TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
_LAUNCHES: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []
_EVERYTHING = "--everything" in sys.argv[1:]


def _record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    _LAUNCHES.append((self, args, options))


# Memory formats of an operator's input and of the gradient of its result. In NCHW, maps of 55 x 55 cannot be loaded 16
# bytes at a time.
_LAYOUTS = {
    "": (torch.channels_last, torch.channels_last),
    " in NCHW": (torch.contiguous_format, torch.contiguous_format),
    " with its gradient in NCHW": (torch.channels_last, torch.contiguous_format),
}


def _normalise_and_pool(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    for suffix, formats in _LAYOUTS.items():
        for case, call in _blocks(dtype, *formats):
            # In other formats, the code differs by operator but hardly by size.
            one_size = case in ("lrn conv1", "max_pool conv1", "same_map_norm")
            if _EVERYTHING or not suffix or one_size or case + suffix == "lrn_max_pool paper in NCHW":
                yield case + suffix, call


def _blocks(
    dtype: torch.dtype, memory_format: torch.memory_format, gradient_format: torch.memory_format
) -> Iterator[tuple[str, Callable[[], None]]]:
    def both(operator: Callable[..., torch.Tensor], **options: Any) -> Callable[[], None]:
        return lambda x=x: _both(operator(x, **options), gradient_format)

    for name, channels, side in (("conv1", 96, 55), ("conv2", 256, 27), ("conv5", 256, 13)):
        x = torch.zeros(1, channels, side, side, dtype=dtype).to(memory_format=memory_format).requires_grad_()
        yield f"max_pool {name}", both(kernels.max_pool2d, kernel_size=3, stride=2)
        if name == "conv5":
            continue
        yield f"lrn {name}", both(kernels.local_response_norm, size=5, k=2.0, groups=2)
        bias = torch.zeros(channels, requires_grad=True)
        if name == "conv1":
            # As in the 2012 source, and as in the paper and in Caffe; other sizes give the same code.
            yield "lrn_max_pool source", both(kernels.lrn_max_pool2d, groups=2, bias=bias, relu="after")
            yield "lrn_max_pool paper", both(kernels.lrn_max_pool2d, bias=bias, relu="before")
            if _EVERYTHING:
                # Without the argmax, which only backward needs, the kernel is a part of the other one.
                yield "lrn_max_pool inference", partial(kernels.lrn_max_pool2d, x.detach(), bias=bias.detach())
        else:
            yield "same_map_norm", both(kernels.same_map_norm)
            if _EVERYTHING:
                yield "lrn_max_pool conv2", both(kernels.lrn_max_pool2d, groups=2, bias=bias, relu="before")


# Windows and strides far from AlexNet's: loops that are not unrolled, and blocks of one pixel. The fused block takes
# windows up to 4 x 4 and 7 channels, and leaves larger ones to the other operators.
WINDOWS = ((5, 1), (5, 2), (8, 2), (16, 1), (17, 2), (32, 1), (32, 2), (32, 40), (3, 40))
FUSED_WINDOWS = ((1, 1, 5), (4, 1, 5), (4, 2, 7), (3, 40, 5))


def _unusual_windows(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    x = _channels_last((1, 64, 80, 80), dtype).requires_grad_()
    for window, stride in WINDOWS:
        yield f"window {window}, stride {stride}", lambda k=window, s=stride: _both(kernels.max_pool2d(x, k, s))
    # Triton checks the types of what a loop carries; the interpreter does not.
    bias = torch.zeros(64, dtype=torch.float64)
    for window, stride, size in FUSED_WINDOWS:
        yield (
            f"window {window}, stride {stride}, {size} channels",
            lambda k=window, s=stride, n=size: _both(
                kernels.lrn_max_pool2d(x, n, kernel_size=k, stride=s, bias=bias, relu="before")
            ),
        )


# The layers of the 2012 network: channels, side, filters, kernel, stride, padding, groups.
CONVOLUTIONS = {
    "conv1": (3, 224, 96, 11, 4, (0, 3, 0, 3), 1),
    "conv2": (96, 27, 256, 5, 1, 2, 2),
    "conv3": (256, 13, 384, 3, 1, 1, 1),
    "conv4": (384, 13, 384, 3, 1, 1, 2),
    "conv5": (384, 13, 256, 3, 1, 1, 2),
}


def _convolution(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    # Networks are trained in half precision. In fp32, one layer with narrow loads and one without are enough.
    names = ("conv1", "conv3") if dtype == torch.float32 and not _EVERYTHING else tuple(CONVOLUTIONS)
    for name in names:
        channels, side, filters, kernel, stride, padding, groups = CONVOLUTIONS[name]
        # As in training: the first layer's input needs no gradient, and lrn_max_pool2d adds bias and ReLU itself.
        relu = name not in ("conv1", "conv2")
        x = _channels_last((128, channels, side, side), dtype).requires_grad_(name != "conv1")
        weight = _channels_last((filters, channels // groups, kernel, kernel), dtype).requires_grad_()
        bias = torch.empty(filters, dtype=dtype, requires_grad=True) if relu else None
        yield (
            name,
            lambda x=x, w=weight, b=bias, s=stride, p=padding, g=groups, r=relu: _both(
                kernels.conv2d_relu(x, w, b, s, p, groups=g, relu=r)
            ),
        )
    # Bias and ReLU after cuDNN's product.
    y = _channels_last((2, 96, 5, 5), dtype)
    yield "epilogue", lambda: kernels.conv_relu.add_bias_relu_(y, torch.empty(96, dtype=dtype), True)


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _fully_connected(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    x = torch.zeros(2, 4096, dtype=dtype, requires_grad=True)
    bias = torch.zeros(4096, dtype=torch.float32, requires_grad=True)
    yield "dropout", lambda: _both(kernels.dropout(x, seed=1))
    yield "bias_relu_dropout", lambda: _both(kernels.bias_relu_dropout(x, bias, seed=1))
    logits, labels = torch.zeros(2, 1000, dtype=dtype, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    yield "cross_entropy", lambda: _both(kernels.cross_entropy(logits, labels)[0])
    other = {"scale": 0.3, "ignore_index": 3}
    yield "cross_entropy with other numbers", lambda: _both(kernels.cross_entropy(logits, labels, **other)[0])
    yield "bias_relu_dropout evaluation", lambda: _both(kernels.bias_relu_dropout(x, bias, seed=1, training=False))


def _update(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    for case, first in (("sgd", 0), ("sgd unaligned", 1)):
        weight, velocity = (torch.zeros(4097)[first:] for _ in range(2))
        yield (
            case,
            lambda weight=weight, velocity=velocity: kernels.sgd_update_(
                [weight],
                [weight.to(dtype)],
                [velocity],
                learning_rates=[0.01],
                weight_decays=[0.0005],
                copies=[weight.bfloat16()],
            ),
        )


def _is_left_out(case: str, dtype: torch.dtype, architecture: int) -> bool:
    """Whether this launch adds little to what is compiled in bf16 for Hopper.

    fp32 needs fewer registers than bf16, which is computed in fp32 too, in longer vectors. Matrix products differ by
    GPU in fp32 as well. The fused kernels take most of the time: on other GPUs and in fp32, one case is enough. Unusual
    windows are compiled for one GPU.
    """
    if _EVERYTHING:
        return False
    if case.startswith("window"):
        return architecture != 90 or (dtype == torch.float32 and case.endswith("channels"))
    if dtype == torch.float32:
        left_out = case.endswith("in NCHW") or case == "lrn_max_pool paper"
        return left_out or (architecture != 90 and not case.startswith("conv"))
    return architecture != 90 and (case.endswith("in NCHW") or case == "lrn_max_pool paper")


def _both(y: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format) -> None:
    y.backward(torch.empty_like(y, memory_format=memory_format))


def _source(kernel: JITFunction, args: tuple[Any, ...], options: dict[str, Any]) -> ASTSource:
    """The source that Triton would compile for this launch, with the alignment of tensors on a GPU."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        k: v for k, v in options.items() if k in kernel.arg_names
    }
    constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
    signature, alignment = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        if kernel.params[index].annotation_type:
            signature[name], aligned = kernel.params[index].annotation_type, False
        elif isinstance(values[name], int):
            signature[name] = "i32"
            aligned = values[name] % 16 == 0 and not kernel.params[index].do_not_specialize
        else:
            # PyTorch's allocator aligns each tensor to 512 bytes.
            signature[name] = _TYPES[values[name].dtype]
            aligned = True
        if aligned:
            alignment[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=alignment)


def _resources(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]


def _widths(ptx: str, instruction: str) -> collections.Counter[str]:
    """Number of global loads or stores by width in bytes."""
    counts: collections.Counter[str] = collections.Counter()
    for modifiers in re.findall(rf"{instruction}\.global(\S*)", ptx):
        vector = re.search(r"\.v(\d)", modifiers)
        bits = int(re.search(r"\.[bsuf](\d+)$", modifiers)[1])  # type: ignore[index]
        counts[str(bits // 8 * (int(vector[1]) if vector else 1))] += 1
    return counts


def _copies(ptx: str) -> collections.Counter[str]:
    """Number of asynchronous copies from global to shared memory, which bypass the registers, by width in bytes."""
    sizes = re.findall(r"cp\.async\.\S+\.shared\.global .*?(0x\w+)", ptx)
    return collections.Counter(str(int(size, 16)) for size in sizes)


def _launches(dtype: torch.dtype) -> Iterator[tuple[str, JITFunction, ASTSource, dict[str, Any]]]:
    """Every launch of the operators with this dtype, without duplicates."""
    done = set()
    for cases in (_normalise_and_pool, _unusual_windows, _convolution, _fully_connected, _update):
        for case, call in cases(dtype):
            _LAUNCHES.clear()
            with kernels.using("triton"):
                call()
            for kernel, args, options in _LAUNCHES:
                source = _source(kernel, args, options)
                if source.hash() not in done:
                    done.add(source.hash())
                    yield case, kernel, source, options


def _compiled(
    source: ASTSource, architectures: list[int], options: dict[str, Any]
) -> Iterator[tuple[int, CompiledKernel]]:
    """The kernel for each architecture. All share the first stage, which unrolls loops and knows no architecture."""
    with tempfile.TemporaryDirectory() as folder:
        first: ASTSource | str = source
        for architecture in architectures:
            compiled = triton.compile(first, target=GPUTarget("cuda", architecture, 32), options=options)
            yield architecture, compiled
            path = Path(folder) / "first.ttir"
            path.write_text(compiled.asm["ttir"])
            first = str(path)


def main(wanted: list[str]) -> None:
    # Launches are recorded, not run, so CPU tensors are enough.
    JITFunction.run = _record
    kernels.dispatch._INTERPRETED = True
    architectures: dict[str, list[int]] = {}
    for item in wanted:
        if item == "--everything":
            continue
        dtype, architecture = item.split(":")
        architectures.setdefault(dtype, []).append(int(architecture))
    for dtype in architectures:
        for case, kernel, source, options in _launches(getattr(torch, dtype)):
            settings = {name: options[name] for name in (*launch_settings.OPTIONS, "num_stages") if name in options}
            targets = [
                architecture
                for architecture in architectures[dtype]
                if not _is_left_out(case, getattr(torch, dtype), architecture)
            ]
            for architecture, compiled in _compiled(source, targets, settings):
                record = {
                    "kernel": kernel.__name__,
                    "case": case,
                    "dtype": dtype,
                    "architecture": architecture,
                    "shared": compiled.metadata.shared,
                    "instructions": len(re.findall(r"^\t[^.]", compiled.asm["ptx"], re.MULTILINE)),
                    "matrix_instructions": sorted(set(re.findall(r"wgmma|tcgen05|mma\.sync", compiled.asm["ptx"]))),
                    "loads": _widths(compiled.asm["ptx"], "ld") + _copies(compiled.asm["ptx"]),
                    "stores": _widths(compiled.asm["ptx"], "st"),
                    **_resources(compiled.asm["cubin"]),
                }
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
