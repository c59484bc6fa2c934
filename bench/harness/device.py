"""The device that benchmarks run on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TRAINING_DTYPE = torch.bfloat16 if CUDA else torch.float32
"""The dtype in which training computes on this device."""

_BF16_UNITS = (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16"))


def device_name() -> str:
    """The name of the GPU, or of the CPU with the number of threads that torch uses."""
    return torch.cuda.get_device_name() if CUDA else f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """The name of the CPU, with its unit for bf16: processors with and without one share names."""
    if os.path.exists("/proc/cpuinfo"):
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"model name\s*:\s*(.+)", text):
            unit = next((f" with {unit}" for flag, unit in _BF16_UNITS if re.search(rf"\b{flag}\b", text)), "")
            return found[1] + unit
    return platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A device's name as the name of its folder of records."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")
