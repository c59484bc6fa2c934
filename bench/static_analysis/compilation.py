"""Compiles launches for GPUs that need not be there, and reads what the compiler reports."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from static_analysis.launches import Launch


def compiled(launch: Launch, architectures: Sequence[int]) -> Iterator[tuple[int, CompiledKernel]]:
    """The kernel for each architecture. All share the first stage, which unrolls loops and knows no architecture."""
    with tempfile.TemporaryDirectory() as folder:
        first: ASTSource | str = launch.source()
        for architecture in architectures:
            target = GPUTarget("cuda", architecture, 32)
            kernel = triton.compile(first, target=target, options=launch.compiler_options())
            yield architecture, kernel
            path = Path(folder) / "first.ttir"
            path.write_text(kernel.asm["ttir"])
            first = str(path)


def identity(launch: Launch) -> str:
    """The same for launches of the same code."""
    return launch.source().hash() + str(sorted(launch.compiler_options().items()))


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread (REG), and bytes per thread of spilled registers (STACK) and local memory (LOCAL)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(re.search(rf"\b{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")}  # type: ignore[index]


def load_widths(ptx: str) -> Counter[str]:
    """Number of loads from global memory, including asynchronous copies to shared memory, by width in bytes."""
    # Asynchronous copies bypass the registers.
    sizes = re.findall(r"cp\.async\.\S+\.shared\.global .*?(0x\w+)", ptx)
    return _widths(ptx, "ld") + Counter(str(int(size, 16)) for size in sizes)


def store_widths(ptx: str) -> Counter[str]:
    """Number of stores to global memory by width in bytes."""
    return _widths(ptx, "st")


def _widths(ptx: str, instruction: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for modifiers in re.findall(rf"{instruction}\.global(\S*)", ptx):
        vector = re.search(r"\.v(\d)", modifiers)
        bits = int(re.search(r"\.[bsuf](\d+)$", modifiers)[1])  # type: ignore[index]
        counts[str(bits // 8 * (int(vector[1]) if vector else 1))] += 1
    return counts


def versions() -> dict[str, str]:
    """The versions of the compilers: Triton, and the assembler that it uses for Hopper."""
    command = [triton.knobs.nvidia.ptxas.path, "--version"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"V([\d.]+)", text)
    return {"triton": triton.__version__, "ptxas": found[1] if found else text.strip()}
