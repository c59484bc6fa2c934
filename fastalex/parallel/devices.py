"""Devices by name: ``0,1`` for two GPUs, ``cpu,cpu`` for two CPU workers, and what is used if none is named."""

from __future__ import annotations

import torch

from fastalex.errors import ConfigurationError
from kernels.dispatch import check_choice


def default_devices() -> str:
    """The devices for training: two GPUs, or the only GPU, or one process on the CPU."""
    gpus = torch.cuda.device_count()
    return "0,1" if gpus >= 2 else "0" if gpus == 1 else "cpu"


def default_device() -> str:
    """The device for everything else: the first GPU, or the CPU."""
    return "0" if torch.cuda.device_count() else "cpu"


def parse_devices(text: str) -> tuple[torch.device, ...]:
    """Parse ``0,1``, ``cuda:0`` or ``cpu,cpu`` into devices, one per worker.

    Raises:
        ConfigurationError: not a device, a GPU that this machine lacks or that is named twice, CPU and GPU mixed, or
            kernels chosen by FASTALEX_KERNELS that do not run on these devices.
    """
    devices = tuple(_parse_device(part.strip()) for part in text.split(","))
    if len({device.type for device in devices}) > 1:
        raise ConfigurationError(f"devices must be all GPUs or all CPU, got {text}")
    gpus = [device.index for device in devices if device.type == "cuda"]
    if len(set(gpus)) < len(gpus):
        raise ConfigurationError(
            f"devices {text} name a GPU twice; name each once (for several stages on one GPU, set stages)"
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
        available = f"this machine has GPUs 0 to {gpus - 1}" if gpus else "this machine has no GPU that torch can use"
        raise ConfigurationError(f"device {index} does not exist: {available}; choose another one, or cpu")
    return torch.device("cuda", int(index))
