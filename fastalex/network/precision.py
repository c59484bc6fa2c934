"""Precisions: what modules compute in, which devices support it, and the process-wide settings of the libraries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Precision
from kernels import dispatch
from kernels.native import c_functions
from kernels.native.processor import multiplies_bf16

COMPUTE_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}
"""The dtype of activations and of the weights' copies."""

# The first compute capability with tensor cores for TF32 and bf16.
_AMPERE = (8, 0)


def check_precision(precision: Precision, devices: Sequence[torch.device]) -> None:
    """Check that all devices support a precision.

    Raises:
        ConfigurationError: tf32 on a CPU; tf32 or bf16 on a GPU older than Ampere.
    """
    for device in devices:
        if device.type == "cpu" and precision == "tf32":
            raise ConfigurationError("precision tf32 needs a GPU, got cpu; choose fp32")
        if device.type == "cuda" and precision != "fp32":
            found = torch.cuda.get_device_capability(device)
            if found < _AMPERE:
                raise ConfigurationError(
                    f"precision {precision} needs compute capability 8.0 or higher, got {found[0]}.{found[1]} of "
                    f"{device} ({torch.cuda.get_device_name(device)}); choose fp32"
                )


def slow_precision(precision: Precision, device: torch.device) -> str | None:
    """One-line warning that this precision is slow on this device, or None."""
    if precision == "bf16" and device.type == "cpu" and multiplies_bf16() is False:
        return "bf16 is slow on this CPU, which has no bf16 instructions: PyTorch emulates them; fp32 is faster"
    return None


def default_precision(devices: Sequence[torch.device]) -> Precision:
    """The precision of training if none is given: bf16 where all devices are CPUs that are faster in it, else fp32.

    They are if the processor multiplies bf16 and the operators' C code computes the rest.
    """
    if all(device.type == "cpu" for device in devices) and multiplies_bf16():
        sample = torch.empty(0, dtype=torch.bfloat16)
        if dispatch.implementation_for(sample) == "native" and c_functions.supports(sample):
            return "bf16"
    return "fp32"


def describe_precision(precision: Precision, device: torch.device) -> str:
    """The precision, and why it is fast on this device if that is a CPU."""
    if precision == "bf16" and device.type == "cpu" and multiplies_bf16():
        return "bf16, which this processor multiplies (master weights in fp32)"
    return precision


def configure_libraries(precision: Precision) -> None:
    """Set cuDNN's and cuBLAS's process-wide options for training on a GPU.

    TF32 is allowed unless the precision is fp32. With bf16 it applies to the fp32 products of the last layer, which
    lose fewer bits than all other layers.

    cuDNN benchmarks its algorithms for the convolutions that it computes: in bf16, its default choice for the gradients
    of grouped convolutions took ten times as long. The fastest algorithm, and with it the rounding, may differ between
    runs.
    """
    allowed = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = True
