"""TODO."""

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

    ``device`` is where it computes; ``signal_number`` is set by Ctrl-C and SIGTERM, which do nothing else: all workers
    agree on it (:meth:`sum`) and stop at the same step. ``layout`` says which part of the work is whose
    (:meth:`arrange`).
    """

    rank: int
    size: int
    device: torch.device
    signal_number: int = 0
    layout: Layout = field(default_factory=Layout)
    _groups: tuple[Any, Any] = (None, None)

    def arrange(self, layout: Layout) -> None:
        """Share the work out; every worker calls this.

        Raises:
            ConfigurationError: the layout is for another number of workers.
        """
        if layout.workers != self.size:
            raise ConfigurationError(
                f"{layout.replicas} replicas of {layout.ranks} devices are {layout.workers} workers; there are "
                f"{self.size}"
            )
        if self.size == 1 and layout.stages > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # the stages' engine asks
        self.layout, self._groups = layout, (None, None)
        if layout.replicas > 1:
            names = ("replicas", "stages")
            mesh = init_device_mesh(self.device.type, (layout.replicas, layout.ranks), mesh_dim_names=names)
            self._groups = mesh.get_group("replicas"), mesh.get_group("stages")

    @property
    def replica(self) -> int:
        """Which replica of the network this worker belongs to."""
        return self.rank // self.layout.ranks

    @property
    def pipeline_rank(self) -> int:
        """This worker's place in its replica's pipeline."""
        return self.rank % self.layout.ranks

    @property
    def replica_group(self) -> Any:
        """The process group of the workers with the same stages; None means that there is only one replica."""
        return self._groups[0]

    @property
    def pipeline_group(self) -> Any:
        """The process group of this replica's workers; None means all workers."""
        return self._groups[1]

    @property
    def is_first(self) -> bool:
        """Whether this worker reads images, reports and writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a CPU tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def minimum(self, value: Tensor) -> Tensor:
        """The minimum of a tensor over all workers, in place, on its device and without waiting for it."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first worker, on all of them; what it raises there, all raise."""
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
        """Wait until every worker is here."""
        self.sum(torch.zeros(1))

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first replica's workers, on the first one's CPU; others get an empty dict.

        Sent one by one over gloo, so that nothing is held twice but the tensor under way.
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
        """Every worker's value, in the order of ranks, on all of them."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values
