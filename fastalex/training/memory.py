"""Memory while training: the peak, what there is, and batches that do not fit.

What a step needs is counted in :mod:`fastalex.planning`, without the libraries' workspace and gradients on their way:
a batch that is refused before training cannot fit, one that is not may still fail, and then is named as well.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import block_shapes
from fastalex.network.footprint import layer_costs
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.partition import parse_split, partition
from fastalex.parallel.schedules import usual_micro_batches
from fastalex.parallel.stage_memory import StageMemory, stage_memory
from fastalex.training.config import RunConfig

# Python, torch, the loader: resident before the first step of a CPU worker.
_PROCESS_BYTES = 400 * 2**20


# An image takes less than this in any network here; where so much is free, nothing has to be counted.
_AMPLE_PER_IMAGE = 64 * 2**20


# What torch's allocator says on a CPU, as a plain RuntimeError.
_CPU_ALLOCATION_FAILED = "can't allocate memory"


def peak_bytes(device: torch.device) -> int:
    """The most bytes held so far: by CUDA's allocator, or, on a CPU, resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(device: torch.device) -> int | None:
    """Bytes that a run could take on this device now, or None where that cannot be found out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            available = min(available, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        return None
    return available


def stages_memory(config: RunConfig) -> list[StageMemory]:
    """What each stage of a run needs; where the cut is still to be measured, of the one with equal arithmetic."""
    architecture, (layout, schedule) = config.network.build_architecture(), config.arranged
    device = parse_devices(config.devices)[0].type
    layers = layer_costs(architecture, config.precision, "triton" if device == "cuda" else "native")
    if config.split in ("auto", "analytic"):
        stages = partition(architecture, layout.stages)
    else:
        stages = list(parse_split(architecture, config.split, layout.stages))
    return stage_memory(architecture, layers, stages, _micro_batches(config), schedule, config.precision)


def _micro_batches(config: RunConfig) -> int:
    device = parse_devices(config.devices)[0].type
    usual = usual_micro_batches(*config.arranged, config.recipe.batch_size, device)
    return config.micro_batches or usual


def check_memory(config: RunConfig) -> None:
    """Refuse a batch that cannot fit.

    Raises:
        ConfigurationError: what is counted alone is more than is free.
    """
    available, layout = _available(config), config.layout
    parameters = sum(shape.parameters for shape in block_shapes(config.network.build_architecture()))
    if available is None or 16 * parameters + config.recipe.batch_size * _AMPLE_PER_IMAGE < min(available):
        return
    stages, rows = stages_memory(config), config.recipe.batch_size // layout.replicas
    by_rank = {rank: available[rank % len(available)] for rank in range(layout.ranks)}
    for rank, there in by_rank.items():
        needed = sum(stages[i].total(rows) for i in layout.local_stages(rank))
        if needed > there:
            numbers = " and ".join(map(str, layout.local_stages(rank)))
            raise does_not_fit(config, f"stage {numbers} needs {_gb(needed)} and more; {_gb(there)} are free", by_rank)


def does_not_fit(config: RunConfig, what: str, available: Mapping[int, int | None]) -> ConfigurationError:
    """The error that names the largest batch that would fit.

    Args:
        what: happened.
        available: bytes for the stages of each rank in question; None where that is unknown.
    """
    layout, micro_batches = config.layout, _micro_batches(config)
    rows = config.recipe.batch_size // layout.replicas
    # What does not fit takes more than there is, whatever was counted: a tenth less at least is what to try.
    stages, largest = stages_memory(config), [rows - 1]
    for rank, there in available.items():
        local = [stages[i] for i in layout.local_stages(rank)]
        needed = sum(stage.total(rows) for stage in local)
        limit = needed / 1.1 if there is None else min(there, needed / 1.1)
        largest += [stage.largest_batch(int(limit / needed * stage.total(rows))) for stage in local]
    batch = min(largest) // micro_batches * micro_batches * layout.replicas
    fits = f"about {batch} would fit: --batch-size {batch}" if batch else "not even the smallest would fit"
    return ConfigurationError(
        f"a batch of {config.recipe.batch_size} does not fit into memory ({what}); {fits}, or cut it into more parts "
        f"by --micro-batches (now {micro_batches})"
    )


def ran_out(error: BaseException, config: RunConfig, rank: int, device: torch.device) -> ConfigurationError | None:
    """The error that a worker ends with where ``error`` says that its memory ran out, else None."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
        if isinstance(cause, RuntimeError) and _CPU_ALLOCATION_FAILED in str(cause):
            break
        cause = cause.__cause__  # the pipeline's schedule wraps what a stage raises
    if cause is None:
        return None
    text = str(cause)
    what = text[max(0, text.find(_CPU_ALLOCATION_FAILED)) :].split(". ")[0] or "out of memory"
    # Stages and memory of this worker alone: it knows nothing of the others', and asking their GPUs would take some.
    there = available_bytes(device)
    if there is not None and device.type == "cpu":
        there += _resident_bytes() - _PROCESS_BYTES
    return does_not_fit(config, what, {rank: there})


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _available(config: RunConfig) -> list[int] | None:
    """Bytes for each device of this machine, while no worker runs."""
    devices = parse_devices(config.devices)
    if devices[0].type == "cpu":  # all stages share it
        there = available_bytes(devices[0])
        return None if there is None else [max(0, there // len(devices) - _PROCESS_BYTES)] * len(devices)
    # A process that asks a GPU keeps hundreds of megabytes of it until it ends; this one goes on beside the workers.
    ask = "import sys, torch; print(*(torch.cuda.mem_get_info(int(index))[0] for index in sys.argv[1:]))"
    command = [sys.executable, "-c", ask, *(str(device.index) for device in devices)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    free = [int(word) for word in answer.split()]
    return free if len(free) == len(devices) else None


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
