"""Training and evaluation over pipeline stages with ``torch.distributed.pipelining``.

Between stages, activations cross as N x H x W x C: the network keeps channels last in memory, so this shape is
contiguous without a copy, which gloo requires.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import kernels
from fastalex.network.architecture import Architecture, block_shapes
from fastalex.network.model import AlexNet, Stage
from fastalex.parallel.cuda_graphs import GraphedStage, MicroBatch, Record
from fastalex.parallel.engine import Engine, Replica, WholeNetwork, common_capture_obstacle, sum_counts
from fastalex.parallel.layout import ParallelPlan, ScheduleName, Split
from fastalex.parallel.schedules import check_micro_batches, defers_convolutions, evaluation_order, rank_order
from fastalex.parallel.world import World

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

# torch.distributed.pipelining takes as long to import as the rest of torch. The methods that build a pipeline import
# it, so that commands on one device start sooner.


def build_engine(model: AlexNet, world: World, plan: ParallelPlan, batch_size: int) -> Engine:
    """The engine of this worker.

    Args:
        model: the whole network, with the same weights on every worker.
        plan: how the workers share the work.
        batch_size: images per step of all replicas together.
    """
    layout, rows = plan.layout, plan.rows(batch_size)
    replica = Replica(world.replica, world.replica_group) if layout.replicas > 1 else None
    if layout.stages == 1:
        return WholeNetwork(model, world.device, rows, plan.micro_batches, replica)
    return Pipeline(
        model,
        plan.split,
        world.pipeline_rank,
        world.device,
        rows,
        plan.micro_batches,
        plan.schedule,
        ranks=layout.ranks,
        group=world.pipeline_group,
        replica=replica,
    )


class TransportedStage(nn.Module):
    """A stage whose input and output have the layout in which activations cross between stages."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.is_first, self.is_last = stage.is_first, stage.is_last

    def forward(self, x: Tensor, *, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """As :meth:`fastalex.network.model.Stage.forward`, with N x H x W x C at the boundaries to other stages."""
        if not self.is_first and x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
        y = self.stage(x, seed=seed, first_row=first_row)
        if self.is_last:
            return y
        return (y.permute(0, 2, 3, 1) if y.dim() == 4 else y).contiguous()


@dataclass(frozen=True)
class _CapturedStep:
    """The captured passes of a step: ``seed`` is where they read the key of the dropout masks, ``finish`` ends them."""

    seed: Tensor
    finish: Callable[[], None]


class Pipeline(Engine):
    """One or several stages of the network, on one of the workers that share it.

    Args:
        model: the whole network (same weights on every worker); this rank's blocks move to ``device``.
        split: block names of every stage; stage i runs on rank i % ranks.
        rank: of this worker in the pipeline.
        batch_size: images per step of this replica.
        schedule: pipeline schedule.
        ranks: workers of this pipeline; by default one per stage.
        group: their process group; None is the default group.
        replica: which replica this pipeline is; None if there is only one.

    Raises:
        ConfigurationError: the schedule cannot run this number of micro-batches.
    """

    captures_passes = True

    def __init__(
        self,
        model: AlexNet,
        split: Split,
        rank: int,
        device: torch.device,
        batch_size: int,
        micro_batches: int,
        schedule: ScheduleName = "eager-1f1b",
        *,
        ranks: int | None = None,
        group: Any = None,
        replica: Replica | None = None,
    ) -> None:
        self._ranks = len(split) if ranks is None else ranks
        check_micro_batches(batch_size, micro_batches, len(split), schedule, self._ranks)
        self.device, self.batch_size, self.micro_batches = device, batch_size, micro_batches
        self._split, self._rank, self._group, self._replica = split, rank, group, replica
        self._local = range(rank, len(split), self._ranks)
        self.is_first, self.is_last = rank == 0, len(split) - 1 in self._local
        self.stage = model.stage([name for index in self._local for name in split[index]]).to(device)
        self._modules = [self._local_stage(model, index) for index in self._local]
        self._graphed = [] if replica else [GraphedStage(module, device) for module in self._modules]
        first_row = replica.index * batch_size if replica else 0
        self._first_rows = torch.arange(first_row, first_row + batch_size, batch_size // micro_batches, device=device)
        self._counts: list[Tensor] = []
        self._captured: _CapturedStep | None = None
        self._order = rank_order(schedule, rank, self._ranks, len(split), micro_batches)
        trained = [replica.wrap(module) for module in self._modules] if replica else self._graphed
        self._train = self._training_schedule(schedule, trained)
        self._evaluate = self._evaluation_schedule()

    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """See :meth:`Engine.train_step`."""
        self._set_mode(training=True)
        if self._captured is None:
            self.stage.begin_step()
        else:
            self._captured.seed.fill_(seed)
        self._counts.clear()
        inputs = () if images is None else (self._placed(images),)
        target = None if labels is None else labels.to(self.device, non_blocking=True)
        # The schedule cuts tensor keyword arguments into micro-batches with the images: one row number each.
        self._train.step(*inputs, target=target, return_outputs=False, seed=seed, first_row=self._first_rows)
        if self._captured is None:
            self.stage.finish_gradients()
        else:
            self._captured.finish()
        return sum_counts(self._counts) if self.is_last else None

    @torch.no_grad()  # the schedule's own eval() keeps gradients on, and with them the activations of all micro-batches
    def logits(self, images: Tensor | None) -> Tensor | None:
        """See :meth:`Engine.logits`."""
        self._set_mode(training=False)
        if self._evaluate is not None:
            return self._evaluate.eval() if images is None else self._evaluate.eval(self._placed(images))
        assert images is not None
        parts = self._placed(images).split(self.batch_size // self.micro_batches)
        return torch.cat([functools.reduce(lambda x, module: module(x), self._modules, part) for part in parts])

    def watch(self, tell: Callable[[str, Tensor], None]) -> None:
        """See :meth:`Engine.watch`."""
        for module in self._modules:
            module.stage.watch = tell

    def capture_obstacle(self, requested: bool | None) -> str | None:
        """See :meth:`Engine.capture_obstacle`. Graphs of stages are off unless requested: they have not run on a
        GPU."""
        obstacle = common_capture_obstacle(self.device, requested, replicated=self._replica is not None)
        if obstacle is None and requested is None:
            return "CUDA graphs are off: for pipeline stages they are experimental and must be requested"
        return obstacle

    def capture(self, record: Record) -> None:
        """Capture all passes of a training step, to be replayed in every step from now on.

        Replayed gradients stay at the addresses of the capture; they are not added to those of an earlier step.

        Args:
            record: :func:`fastalex.parallel.cuda_graphs.in_graphs` on a GPU.

        Raises:
            RuntimeError: raised by ``record``; the passes then stay uncaptured.
        """
        assert self._graphed, "replicas exchange gradients within their backward passes"
        self._set_mode(training=True)
        self.stage.discard_deferred()
        self.stage.zero_grad()
        seed = torch.zeros((), dtype=torch.int64, device=self.device)
        passes = {index: self._micro_batches(index, seed) for index in self._local}
        try:
            for kind, index, number in self._order:
                passes[index][number].record(kind, record)
            # An empty graph would be a warning.
            replay = record(self.stage.finish_gradients) if self.stage.has_deferred else self.stage.finish_gradients
            gradients = [(parameter, parameter.grad) for parameter in self.stage.parameters()]
        finally:
            self.stage.discard_deferred()
            self.stage.zero_grad()

        def finish() -> None:
            replay()
            for parameter, gradient in gradients:
                if parameter.grad is None:  # the update has dropped it
                    parameter.grad = gradient

        self._captured = _CapturedStep(seed, finish)
        for index, graphed in zip(self._local, self._graphed, strict=True):
            graphed.micro_batches = passes[index]

    def _local_stage(self, model: AlexNet, index: int) -> TransportedStage:
        stage = model.stage(self._split[index])
        # Deferred to the end of the step, while earlier stages still compute; replicas need all gradients in the last
        # backward pass.
        replicas = 2 if self._replica else 1
        stage.configure_deferral(
            self.micro_batches if self._replica else None,
            convolutions=defers_convolutions(index, self._ranks, self.micro_batches, replicas),
        )
        return TransportedStage(stage)

    def _placed(self, images: Tensor) -> Tensor:
        """Images on this device, with the strides that the first stage declares: the loader's, so nothing is copied."""
        return images.to(self.device, non_blocking=True, memory_format=torch.channels_last)

    def _micro_batches(self, index: int, seed: Tensor) -> list[MicroBatch]:
        """The micro-batches of one stage, before their passes are captured."""
        module = self._modules[self._local.index(index)]
        rows, layout = self.batch_size // self.micro_batches, torch.contiguous_format if index else torch.channels_last
        dtype = module.stage.input_dtype
        like = _boundary(self.stage.architecture, self._split, index, rows, dtype, grad=False)
        options: dict[str, Any] = {"dtype": dtype, "device": self.device, "memory_format": layout}
        return [MicroBatch(module, torch.zeros_like(like, **options), seed, row) for row in self._first_rows]

    def _set_mode(self, *, training: bool) -> None:
        # The scheduled modules share their blocks with self.stage, but each module has a mode of its own.
        for module in (self.stage, *self._modules):
            module.train(training)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss, counts = kernels.cross_entropy(logits, labels, scale=1 / self.batch_size)
        self._counts.append(counts)
        return loss

    def _training_schedule(self, name: ScheduleName, modules: Sequence[nn.Module]) -> Any:
        from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

        stages = self._pipeline_stages(modules, training=True)
        # The loss divides by the batch size itself. A schedule's own scaling would divide gradients of earlier steps,
        # too.
        options: dict[str, Any] = {"loss_fn": self._loss, "scale_grads": False}
        if name in ("eager-1f1b", "interleaved"):  # with one stage per rank, torch's interleaved schedule is eager 1F1B
            return ScheduleInterleaved1F1B(stages, self.micro_batches, **options)
        return (ScheduleGPipe if name == "gpipe" else Schedule1F1B)(stages[0], self.micro_batches, **options)

    def _evaluation_schedule(self) -> Any:
        """GPipe, or its order with several stages per rank; None on one rank, which calls its stages one by one."""
        from torch.distributed.pipelining import ScheduleGPipe
        from torch.distributed.pipelining.schedules import _Action, _ComputationType, _PipelineScheduleRuntime

        if self._ranks == 1:
            return None
        stages = self._pipeline_stages(self._modules, training=False)
        if len(self._split) == self._ranks:
            return ScheduleGPipe(stages[0], self.micro_batches, loss_fn=None, scale_grads=False)
        schedule = _PipelineScheduleRuntime(stages, self.micro_batches, loss_fn=None, scale_grads=False)
        kinds = {"forward": _ComputationType.FORWARD, "backward": _ComputationType.FULL_BACKWARD}
        actions: dict[int, list[_Action | None]] = {
            rank: [
                _Action(stage, kinds[kind], m)
                for kind, stage, m in evaluation_order(rank, self._ranks, len(self._split), self.micro_batches)
            ]
            for rank in range(self._ranks)
        }
        schedule._prepare_schedule_with_comms(actions)
        return schedule

    def _pipeline_stages(self, modules: Sequence[nn.Module], *, training: bool) -> list[Any]:
        return [
            self._pipeline_stage(module, index, training=training)
            for module, index in zip(modules, self._local, strict=True)
        ]

    def _pipeline_stage(self, module: nn.Module, index: int, *, training: bool) -> PipelineStage:
        from torch.distributed.pipelining import PipelineStage

        # Shapes are given on both sides; without them torch runs an extra forward pass to infer them. torch does not
        # check them, so they are computed from the architecture. A stage's buffers keep their shape for life: hence one
        # PipelineStage for training and one for evaluation.
        count, rows, dtype = len(self._split), self.batch_size // self.micro_batches, self.stage.compute_dtype
        out_dtype = torch.float32 if index == count - 1 else dtype
        architecture = self.stage.architecture
        inputs = _boundary(architecture, self._split, index, rows, dtype, training and index > 0)
        outputs = _boundary(architecture, self._split, index + 1, rows, out_dtype, training)
        stage = PipelineStage(
            module, index, count, self.device, input_args=(inputs,), output_args=(outputs,), group=self._group
        )
        if self._ranks == 1:  # nothing is sent; torch 2.11 would connect the rank with itself, which gloo cannot
            stage._get_init_p2p_neighbors_ops = list  # type: ignore[method-assign]
        return stage


def _boundary(
    architecture: Architecture, split: Split, index: int, rows: int, dtype: torch.dtype, grad: bool
) -> Tensor:
    """A meta tensor like the one that enters stage ``index`` for one micro-batch."""
    if index == 0:
        size = architecture.image_size
        # torch 2.11, and later versions when they debug, compare the strides of images with these.
        return torch.empty(rows, 3, size, size, device="meta", memory_format=torch.channels_last)
    shape = {shape.name: shape.output for shape in block_shapes(architecture)}[split[index - 1][-1]]
    if len(shape) == 3:  # as TransportedStage hands it on
        shape = (*shape[1:], shape[0])
    return torch.empty(rows, *shape, dtype=dtype, device="meta", requires_grad=grad)
