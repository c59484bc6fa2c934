"""TODO."""

from __future__ import annotations

import torch

from fastalex.errors import ConfigurationError
from kernels.dispatch import check_choice


def default_devices() -> str:
    """Two GPUs if there are two, one if there is one, else two CPU workers."""
    gpus = torch.cuda.device_count()
    return "0,1" if gpus >= 2 else "0" if gpus == 1 else "cpu,cpu"


def parse_devices(text: str) -> tuple[torch.device, ...]:
    """``"0,1"``, ``"cuda:0"``, ``"cpu,cpu"`` as devices, one per worker.

    Raises:
        ConfigurationError: not a device, a GPU that this machine lacks or that is named twice, or CPU and GPU mixed;
            or what FASTALEX_KERNELS names does not run there.
    """
    devices = tuple(_parse_device(part.strip()) for part in text.split(","))
    if len({device.type for device in devices}) > 1:
        raise ConfigurationError(f"--devices {text} mixes CPU and GPU; name devices of one kind")
    gpus = [device.index for device in devices if device.type == "cuda"]
    if len(set(gpus)) < len(gpus):
        raise ConfigurationError(
            f"--devices {text} names a GPU twice; name each once (several stages on one GPU: --stages)"
        )
    try:
        check_choice(devices[0])
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(str(error)) from None
    return devices


def _parse_device(part: str) -> torch.device:
    if part == "cpu":
        return torch.device("cpu")
    index = part.removeprefix("cuda:")
    if not index.isdecimal():
        raise ConfigurationError(f"{part!r} is not a device; write GPU numbers (0,1) or cpu (cpu,cpu)")
    gpus = torch.cuda.device_count()
    if int(index) >= gpus:
        there = f"this machine has GPUs 0 to {gpus - 1}" if gpus else "this machine has no GPU that torch can use"
        raise ConfigurationError(f"device {index} does not exist: {there}; name another one, or cpu")
    return torch.device("cuda", int(index))


def default_device() -> str:
    """The first GPU if there is one, else the CPU."""
    return "0" if torch.cuda.device_count() else "cpu"
