"""Memory that an operator saves for its backward pass, its peak, and the setting of the CPU allocator."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.device import CUDA

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory, like `fastalex.training.memory.keep_freed_memory`.

    Operator benchmarks import nothing of fastalex, so that they run where its other dependencies are not installed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def saved_and_peak_bytes(operator: Callable[..., Tensor], inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes saved between forward and backward, and the most bytes allocated beyond the inputs."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def both() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = operator(*inputs)
        torch.autograd.grad(y, [tensor for tensor in inputs if tensor.requires_grad], torch.ones_like(y))

    peak = peak_bytes(both)
    return sum(saved.values()), peak


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes that torch allocates during the work, beyond those allocated before."""
    if not CUDA:
        return _host_peak_bytes(work)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def _host_peak_bytes(work: Callable[[], Any]) -> int:
    """`peak_bytes` on a CPU, from a profiler trace: the CPU allocator has no counters."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # otherwise the profiler logs every start and stop
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(itertools.accumulate((change["args"]["Bytes"] for change in changes), initial=0))
