"""A worker among its peers: its rank, its place in the layout, and collective operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout

T = TypeVar("T")


@dataclass
class World:
    """This worker among its peers.

    Attributes:
        rank: global rank of this worker, from 0 to ``size`` - 1.
        size: number of workers on all machines.
        device: where this worker computes.
        signal_number: of the Ctrl-C (SIGINT) or other signal that asked this worker to stop, 0 before. The handler does
            no more than set it; loops ask :meth:`stop_requested`, so that all workers stop at the same step.
        layout: how the workers share the work; set by :meth:`arrange`.

    Unless stated otherwise, methods are collective: every worker has to call them, in the same order.
    """

    rank: int
    size: int
    device: torch.device
    signal_number: int = 0
    layout: Layout = field(default_factory=Layout)
    _groups: tuple[Any, Any] = (None, None)

    def arrange(self, layout: Layout) -> None:
        """Adopt a layout and create the process groups of its replicas and pipelines.

        Raises:
            ConfigurationError: the layout is for another number of workers.
        """
        if layout.workers != self.size:
            raise ConfigurationError(
                f"{layout.replicas} replicas of {layout.ranks} devices need {layout.workers} workers, got {self.size}"
            )
        if self.size == 1 and layout.stages > 1 and not dist.is_initialized():
            # torch's pipeline stages need a process group, even in a single process.
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.layout, self._groups = layout, (None, None)
        if layout.replicas > 1:
            names = ("replicas", "stages")
            mesh = init_device_mesh(self.device.type, (layout.replicas, layout.ranks), mesh_dim_names=names)
            self._groups = mesh.get_group("replicas"), mesh.get_group("stages")

    @property
    def replica(self) -> int:
        """Index of the replica that this worker belongs to. Not collective."""
        return self.rank // self.layout.ranks

    @property
    def pipeline_rank(self) -> int:
        """Rank of this worker in the pipeline of its replica. Not collective."""
        return self.rank % self.layout.ranks

    @property
    def replica_group(self) -> Any:
        """Process group of the workers that hold the same stages; None with one replica. Not collective."""
        return self._groups[0]

    @property
    def pipeline_group(self) -> Any:
        """Process group of the workers of this replica; None stands for all workers. Not collective."""
        return self._groups[1]

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the worker that reads images, reports and writes files. Not collective."""
        return self.rank == 0

    def stop_requested(self) -> bool:
        """Whether any worker was asked to stop by a signal; all get the same answer.

        Afterwards ``signal_number`` is the same on all workers. A loop that is told to stop raises
        :class:`~fastalex.errors.Interrupted` with it.
        """
        if self.size > 1:
            number = torch.tensor(self.signal_number)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            if not number:  # a signal that has come meanwhile counts at the next call
                return False
            self.signal_number = int(number)
        return bool(self.signal_number)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a CPU tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def minimum(self, value: Tensor) -> Tensor:
        """Take the minimum of a tensor over all workers, in place, on its device and without synchronizing the host."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def from_first(self, make: Callable[[], T]) -> T:
        """Call ``make`` on the first worker and return its result on all; an exception is raised on all."""
        made: list[Any] = [None]
        if self.is_first:
            try:
                made = [make()]
            except Exception as error:
                made = [error]
        if self.size > 1:
            dist.broadcast_object_list(made, 0)
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    def barrier(self) -> None:
        """Wait until every worker has called this."""
        self.sum(torch.zeros(1))

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Collect the tensors of the first replica's workers on the CPU of rank 0; other ranks get an empty dict.

        Tensors are sent one at a time over gloo, so that at most one of them is held twice.
        """
        if self.size == 1:
            return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        shapes: list[Any] = [None] * self.size
        dist.all_gather_object(shapes, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        if not self.is_first:
            if self.replica == 0:
                for tensor in tensors.values():
                    dist.send(tensor.detach().cpu().contiguous(), 0)
            return {}
        gathered = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for rank in range(1, self.layout.ranks):
            for name, (shape, dtype) in shapes[rank].items():
                gathered[name] = torch.empty(shape, dtype=dtype)
                dist.recv(gathered[name], rank)
        return gathered

    def gather_objects(self, value: Any) -> list[Any]:
        """Collect a picklable value of every worker, in rank order, on all workers."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values
