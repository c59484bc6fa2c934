"""Memory during training: peak, available bytes, and errors for batches that do not fit.

:mod:`fastalex.parallel.stage_memory` counts what a step needs, without the libraries' workspace and the gradients of
activations. A batch that is refused before training can never fit. A batch that is not refused may still run out of
memory; :func:`out_of_memory_error` then gives the same advice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import block_shapes
from fastalex.network.footprint import layer_costs
from fastalex.parallel.layout import ParallelPlan
from fastalex.parallel.stage_memory import StageMemory, stage_memory
from fastalex.training.config import RunConfig
from kernels.native.memory import keep_tensor_memory

# Resident memory of a CPU worker before its first step: Python, torch and the loader.
_PROCESS_BYTES = 400 * 2**20

# More than an image needs in any of the networks. If this much is free, counting is skipped.
_AMPLE_PER_IMAGE = 64 * 2**20

# The message of torch's CPU allocator, which raises a plain RuntimeError.
_CPU_ALLOCATION_FAILED = "can't allocate memory"

# Where the file systems of control groups are mounted if the mount table does not say, by version.
_USUAL_MOUNTS = {1: "sys/fs/cgroup/memory", 2: "sys/fs/cgroup"}

# By version, the files of a control group with its limits and its use, and the entries of memory.stat for page cache.
_GROUP_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
}

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed CPU tensors and use it again.

    By default glibc gets large blocks from the kernel and returns them at once. The activations and gradients of every
    step then lie in fresh pages, which the kernel clears one by one: hundreds of thousands of page faults per step.
    Where the allocator of :mod:`kernels.native.memory` cannot be compiled, glibc is told to keep everything. The
    process then grows as its heap is cut into pieces, by some megabytes a step beside a loader of images.

    Returns:
        Whether freed memory is kept; without a compiler only glibc can do it.
    """
    if keep_tensor_memory():
        return True
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of CUDA's allocator on a GPU, resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that this process could allocate on a device now; None if unknown.

    On a CPU: what the machine has left, or what a control group leaves of its limit, if that is less.

    Args:
        root: where ``proc`` and the file systems of the control groups lie.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        lines = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return max(0, min([available, *(limit - used for limit, used in _group_limits(root))]))


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes that this process could ever use: the machine's memory, or the smallest limit of a control group."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *(limit for limit, _ in _group_limits(root))])


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """The limit and the use of each control group around this process that has a limit, in bytes.

    The limits of all groups above apply, too. Page cache counts as unused, because the kernel gives it back.
    """
    found = []
    for top, group, version in _memory_groups(root):
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                found += _limits_of(folder, version)
    return found


def _memory_groups(root: Path) -> Iterator[tuple[Path, Path, int]]:
    """The control groups of this process that count memory: the top folder, the group's folder, and the version."""
    mounts: dict[int, tuple[Path, Path]] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/self/mountinfo").read_text().splitlines():
            fields, _, system = line.partition(" - ")
            kind, _, options = system.split()[:3]
            if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
                inside, place = (Path(re.sub(r"\\\d{3}", _character, word)) for word in fields.split()[3:5])
                mounts.setdefault(1 if kind == "cgroup" else 2, (inside, root / place.relative_to("/")))
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = {2 if line.startswith("0::") else 1: line.split(":", 2)[2] for line in lines if _counts_memory(line)}
    for version, usual in _USUAL_MOUNTS.items():
        inside, top = mounts.get(version, (Path("/"), root / usual))
        group = Path(groups.get(version, "/"))
        # In a container, the mounted part may begin below the root that the path is relative to.
        below = group.relative_to(inside) if group.is_relative_to(inside) else Path()
        yield top, top / below if ".." not in below.parts and (top / below).is_dir() else top, version


def _counts_memory(line: str) -> bool:
    """Whether a line of ``/proc/self/cgroup`` is about memory: of version 2, or of that controller of version 1."""
    controllers = line.split(":", 2)[1:2]
    return line.startswith("0::") or (bool(controllers) and "memory" in controllers[0].split(","))


def _limits_of(folder: Path, version: int) -> list[tuple[int, int]]:
    """The limits of one control group, each with the memory in use."""
    limits, usage, cache = _GROUP_FILES[version]
    try:
        used = int((folder / usage).read_text())
    except (OSError, ValueError):
        return []  # such as the topmost group
    with contextlib.suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= sum(int(counts.get(name, 0)) for name in cache)
    result = []
    for name in limits:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            result.append((int((folder / name).read_text()), max(0, used)))
    return result


def _character(octal: re.Match[str]) -> str:
    return chr(int(octal[0][1:], 8))


def stages_memory(config: RunConfig) -> list[StageMemory]:
    """The memory that each stage of a run needs."""
    plan, architecture = config.parallel, config.network.build_architecture()
    layers = layer_costs(architecture, config.precision, "triton" if plan.device_type == "cuda" else "native")
    return stage_memory(architecture, layers, plan.split, plan.micro_batches, plan.schedule, config.precision)


def check_memory(config: RunConfig) -> None:
    """Refuse a batch that cannot fit into memory.

    Raises:
        ConfigurationError: the counted memory alone exceeds what is available.
    """
    plan, batch_size = config.parallel, config.recipe.batch_size
    available = _available_per_device(plan)
    parameters = sum(shape.parameters for shape in block_shapes(config.network.build_architecture()))
    if available is None or 16 * parameters + batch_size * _AMPLE_PER_IMAGE < min(available):
        return
    stages, rows = stages_memory(config), plan.rows(batch_size)
    by_rank = {rank: available[rank % len(available)] for rank in range(plan.layout.ranks)}
    for rank, free in by_rank.items():
        local = plan.layout.local_stages(rank)
        needed = sum(stages[index].total(rows) for index in local)
        if needed > free:
            numbers = " and ".join(map(str, local))
            raise does_not_fit(config, f"stage {numbers} needs at least {_gb(needed)}, {_gb(free)} are free", by_rank)


def does_not_fit(config: RunConfig, reason: str, available: Mapping[int, int | None]) -> ConfigurationError:
    """The error for a batch that does not fit, with the largest batch size that would.

    Args:
        reason: what was found, such as the allocator's message.
        available: by rank, the bytes that its stages could use; None if unknown. Other ranks are not considered.
    """
    plan, batch_size = config.parallel, config.recipe.batch_size
    rows, stages = plan.rows(batch_size), stages_memory(config)
    largest = [rows - 1]
    for rank, free in available.items():
        local = [stages[index] for index in plan.layout.local_stages(rank)]
        needed = sum(stage.total(rows) for stage in local)
        # The batch did not fit although less may have been counted, so recommend at least a tenth less than that.
        limit = needed / 1.1 if free is None else min(free, needed / 1.1)
        largest += [stage.largest_batch(int(limit / needed * stage.total(rows))) for stage in local]
    fitting = min(largest) // plan.micro_batches * plan.micro_batches * plan.layout.replicas
    advice = f"a batch size of about {fitting} would fit" if fitting else "not even the smallest batch would fit"
    return ConfigurationError(
        f"a batch size of {batch_size} does not fit into memory ({reason}); {advice}, or use more micro-batches than "
        f"{plan.micro_batches}"
    )


def out_of_memory_error(
    error: BaseException, config: RunConfig, rank: int, device: torch.device
) -> ConfigurationError | None:
    """The error to report instead of ``error`` if this worker has run out of memory, else None.

    Args:
        rank: of this worker in its pipeline.
    """
    # The pipeline's schedule wraps the exception of a stage.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
        if isinstance(cause, RuntimeError) and _CPU_ALLOCATION_FAILED in str(cause):
            break
        cause = cause.__cause__
    if cause is None:
        return None
    text = str(cause)
    reason = text[max(0, text.find(_CPU_ALLOCATION_FAILED)) :].split(". ")[0] or "out of memory"
    # Only of this worker: querying the GPUs of others would take memory on them.
    free = available_bytes(device)
    if free is not None and device.type == "cpu":
        free += _resident_bytes() - _PROCESS_BYTES
    return does_not_fit(config, reason, {rank: free})


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _available_per_device(plan: ParallelPlan) -> list[int] | None:
    """Available bytes of each device of this machine before the workers start; None if unknown."""
    if plan.device_type == "cpu":  # all workers share the memory
        free, workers = available_bytes(plan.devices[0]), len(plan.devices)
        return None if free is None else [max(0, free // workers - _PROCESS_BYTES)] * workers
    # A process that uses a GPU occupies hundreds of megabytes of it until it ends, so a short-lived process asks.
    ask = "import sys, torch; print(*(torch.cuda.mem_get_info(int(index))[0] for index in sys.argv[1:]))"
    command = [sys.executable, "-c", ask, *(str(device.index) for device in plan.devices)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    free_bytes = [int(word) for word in answer.split()]
    return free_bytes if len(free_bytes) == len(plan.devices) else None


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
