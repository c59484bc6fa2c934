"""Devices by name: ``0,1`` for two GPUs, ``cpu,cpu`` for two CPU workers, and what is used if none is named."""

from __future__ import annotations

import torch

from fastalex.errors import ConfigurationError
from kernels.dispatch import check_choice
from kernels.native.processor import filters_bf16

Devices = tuple[torch.device, ...]
"""The devices of one machine, one per worker."""


def default_devices() -> str:
    """The devices for training: two GPUs, or the only GPU, or one process on the CPU."""
    gpus = torch.cuda.device_count()
    return "0,1" if gpus >= 2 else "0" if gpus == 1 else "cpu"


def default_device() -> str:
    """The device for everything else: the first GPU, or the CPU."""
    return "0" if torch.cuda.device_count() else "cpu"


def parse_devices(text: str) -> Devices:
    """Parse ``0,1``, ``cuda:0`` or ``cpu,cpu`` into devices, one per worker.

    Raises:
        ConfigurationError: not a device, or as :func:`check_devices`.
    """
    return check_devices(tuple(_parse_device(part.strip()) for part in text.split(",")))


def check_devices(devices: Devices) -> Devices:
    """The same devices, if this machine can run workers on them.

    Raises:
        ConfigurationError: a GPU that this machine lacks or that is named twice, CPU and GPU mixed, or kernels chosen
            by FASTALEX_KERNELS that do not run on these devices.
    """
    names = ",".join(str(device) for device in devices)
    if len({device.type for device in devices}) > 1:
        raise ConfigurationError(f"devices must be all GPUs or all CPU, got {names}")
    if devices[0].type == "cuda":
        if len(set(devices)) < len(devices):
            raise ConfigurationError(
                f"devices {names} name a GPU twice; name each once (for several stages on one GPU, set stages)"
            )
        gpus = torch.cuda.device_count()
        for device in devices:
            if device.index >= gpus:
                there = (
                    f"this machine has GPUs 0 to {gpus - 1}" if gpus else "this machine has no GPU that torch can use"
                )
                raise ConfigurationError(f"device {device.index} does not exist: {there}; choose another one, or cpu")
    try:
        check_choice(devices[0])
        filters_bf16()  # refuses a wrong setting
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(str(error)) from None
    return devices


def _parse_device(part: str) -> torch.device:
    if part == "cpu":
        return torch.device("cpu")
    index = part.removeprefix("cuda:")
    if not index.isdecimal():
        raise ConfigurationError(f"{part!r} is not a device; write GPU numbers (0,1) or cpu (cpu,cpu)")
    return torch.device("cuda", int(index))
