"""Which precisions a device has, and the process-wide settings of the libraries that compute in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from fastalex.errors import ConfigurationError

# Tensor cores take TF32 and bf16 from this compute capability on.
_AMPERE = (8, 0)


def check_precision(precision: Precision, devices: Sequence[torch.device]) -> None:
    """Refuse a precision that one of the devices lacks.

    Raises:
        ConfigurationError: tf32 on a CPU; tf32 or bf16 on a GPU older than Ampere.
    """
    for device in devices:
        if device.type == "cpu" and precision == "tf32":
            raise ConfigurationError("--precision tf32 needs a GPU, not cpu; choose fp32")
        if device.type == "cuda" and precision != "fp32":
            found = torch.cuda.get_device_capability(device)
            if found < _AMPERE:
                raise ConfigurationError(
                    f"--precision {precision} needs compute capability 8.0 or higher; {device} "
                    f"({torch.cuda.get_device_name(device)}) has {found[0]}.{found[1]}; choose fp32"
                )


def slow_precision(precision: Precision, device: torch.device) -> str | None:
    """One line that says why this precision is slow on this device, or None."""
    if precision == "bf16" and device.type == "cpu" and not _multiplies_bf16():
        return "bf16 is slow here: this processor multiplies no bf16 numbers, so PyTorch emulates it; fp32 is faster"
    return None


def _multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16: AVX-512 BF16, AMX or Arm's."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(file.read().split())
    except OSError:
        return True  # unknown: say nothing
    return bool(flags & {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})


def configure_libraries(precision: Precision) -> None:
    """Tell cuDNN and cuBLAS what training on a GPU wants of them, for the whole process.

    TF32 is allowed where the precision allows as much: in bf16 the last layer's fp32 factors are rounded so, too, and
    lose fewer bits than all others. Where cuDNN computes a convolution, it measures its algorithms first: the one that
    it guesses for grouped gradients in bf16 took ten times as long. Which one wins may differ from run to run, and
    rounding with it.
    """
    allowed = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True


Precision = Literal["fp32", "tf32", "bf16"]


COMPUTE_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}
