"""One training step: on one device, on replicas of it, or over stages with ``torch.distributed.pipelining``.

All engines offer the same three things: :meth:`train_step` (forward, loss and backward of one batch; the caller
updates), :meth:`logits` (evaluation), and ``stage`` (the module whose parameters live here). All give the same
gradients: a batch is cut into micro-batches, the loss of each is divided by the whole batch, and dropout masks follow
an image's row in the batch, not the micro-batch or device that it lands on.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import _Action, _ComputationType, _PipelineScheduleRuntime

import kernels
from fastalex.network.architecture import Architecture, block_shapes
from fastalex.network.blocks import Convolution
from fastalex.network.model import AlexNet, Stage
from fastalex.parallel.cuda_graphs import GraphedStage, MicroBatch, Record
from fastalex.parallel.engine import Replica, _sum
from fastalex.parallel.layout import ScheduleName
from fastalex.parallel.schedules import check_micro_batches, puts_off
from fastalex.parallel.simulate import Kind, Orders, rank_order

_COMPUTATIONS: dict[Kind, _ComputationType] = {
    "forward": _ComputationType.FORWARD,
    "backward": _ComputationType.FULL_BACKWARD,
    "input": _ComputationType.BACKWARD_INPUT,
    "weight": _ComputationType.BACKWARD_WEIGHT,
}


@dataclass(frozen=True)
class _Recorded:
    """A pipeline's recorded steps: where they read the key of their dropout masks, and what ends them."""

    key: Tensor
    finish: Callable[[], None]


class _Apart(nn.Module):
    """A stage whose schedule asks for weight gradients by themselves: those of some micro-batches come after their
    backward pass, whenever the schedule wants; fully connected ones are made once a step, after the last.

    Args:
        apart: by micro-batch, whether its backward pass leaves them out.
    """

    def __init__(self, stage: Stage, apart: Sequence[bool]) -> None:
        super().__init__()
        self.stage = stage
        self._apart = tuple(apart)
        self._passed = [0, 0]  # micro-batches, forward and backward
        self._left: deque[list[tuple[Convolution, list[Callable[[], Tensor | None]]]]] = deque()

    def forward(self, x: Tensor, *, seed: int | Tensor = 0, first_row: int | Tensor = 0) -> Tensor:
        """As :meth:`fastalex.network.model.Stage.forward`."""
        left = []
        for block in self.stage.blocks():
            if isinstance(block, Convolution):
                block.put_off = [] if self._apart[self._passed[0]] else None
                if block.put_off is not None:
                    left.append((block, block.put_off))
        self._left.append(left)
        self._passed[0] += 1
        return self.stage(x, seed=seed, first_row=first_row)

    def weight_gradients(self) -> Callable[[], None]:
        """Called after each backward pass, in the order of the forward passes: what makes the gradients that it left
        out."""
        left = self._left.popleft()
        self._passed[1] += 1
        is_last = self._passed[1] == len(self._apart)

        def make() -> None:
            for convolution, gradients in left:
                convolution.add_gradients(gradients)
            if is_last:
                for block in self.stage.blocks():
                    if not isinstance(block, Convolution):
                        block.finish_gradient()

        return make

    def begin_step(self) -> None:
        """Forget what an unfinished step has left behind."""
        self._passed = [0, 0]
        self._left.clear()


class Pipeline:
    """One or several stages of the network, in one of the worker processes that share it.

    Args:
        model: the whole network (same weights on every worker); the blocks of this rank's stages move to ``device``.
        stages: block names of every stage, in order; stage i belongs to rank i % ranks.
        rank: this worker's place in the pipeline.
        batch_size: rows of this replica.
        schedule: the order of the passes; see :data:`fastalex.parallel.layout.ScheduleName`.
        orders: what ``zero-bubble`` comes to (:func:`fastalex.parallel.simulate.orders`), the same on every worker.
        ranks: workers of this pipeline; one for each stage if left out.
        group: their process group; None for the default group.
        replica: this worker among those that run the same stages on other rows, or None.
    """

    def __init__(
        self,
        model: AlexNet,
        stages: Sequence[Sequence[str]],
        rank: int,
        device: torch.device,
        batch_size: int,
        micro_batches: int,
        schedule: ScheduleName = "1f1b",
        *,
        orders: Orders | None = None,
        ranks: int | None = None,
        group: Any = None,
        replica: Replica | None = None,
    ) -> None:
        self._ranks = len(stages) if ranks is None else ranks
        check_micro_batches(batch_size, micro_batches, len(stages), schedule, self._ranks)
        self.device = device
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self._stages, self._group = stages, group
        self._local = range(rank, len(stages), self._ranks)
        self.is_first = rank == 0
        self.is_last = len(stages) - 1 in self._local
        self.stage = model.stage([name for index in self._local for name in stages[index]]).to(device)
        self._modules = [model.stage(stages[index]) for index in self._local]
        for index, module in zip(self._local, self._modules, strict=True):
            # Put off to the end of the step, when the stages before are still busy; but no later than the last backward
            # pass where replicas wait for them.
            module.defer_weight_gradients(
                micro_batches if replica else None,
                convolutions=orders is None and puts_off(index, self._ranks, micro_batches, 2 if replica else 1),
            )
        self._counts: list[Tensor] = []
        start = replica.index * batch_size if replica else 0
        self._first_rows = torch.arange(start, start + batch_size, batch_size // micro_batches, device=device)
        self.replicated = replica is not None
        self._replayed: list[GraphedStage] = []
        self._apart: list[_Apart] = []
        self._recorded: _Recorded | None = None
        # The loss's gradient is scaled here, never by a schedule: its own scaling divides whatever gradients there are,
        # those of earlier steps as well, and even when it only evaluates.
        if schedule == "zero-bubble":
            assert orders is not None, "the order of the passes is not the schedule's own"
            apart = {one[1:] for order in orders for one in order if one[0] == "input"}
            if replica is None:
                every = range(micro_batches)
                self._apart = [
                    _Apart(module, [(index, m) in apart for m in every])
                    for index, module in zip(self._local, self._modules, strict=True)
                ]
            self._train = self._in_order(orders, self._wrapped(self._apart, replica), loss=self._loss)
        else:
            self._order = rank_order(schedule, rank, self._ranks, len(stages), micro_batches)
            if replica is None:
                self._replayed = [GraphedStage(module, device) for module in self._modules]
            self._train = self._schedule(schedule, self._wrapped(self._replayed, replica), loss=self._loss)
        self._evaluate = None
        if self._ranks > 1:
            self._evaluate = (
                self._in_order(_there_and_back(len(stages), self._ranks, micro_batches), self._modules, loss=None)
                if len(stages) > self._ranks
                else self._schedule("gpipe", self._modules, loss=None)
            )

    def train_step(self, images: Tensor | None, labels: Tensor | None, seed: int | Tensor) -> Tensor | None:
        """As :meth:`SingleDevice.train_step`, on this replica's rows."""
        self._set_mode(training=True)
        if self._recorded is None:
            self.stage.begin_step()
        for apart in self._apart:
            apart.begin_step()
        self._counts.clear()
        inputs = () if images is None else (images.to(self.device, non_blocking=True),)
        target = None if labels is None else labels.to(self.device, non_blocking=True)
        # The schedule cuts tensor keyword arguments into micro-batches with the images: one row number each.
        if self._recorded is not None:
            self._recorded.key.fill_(seed)
        self._train.step(*inputs, target=target, return_outputs=False, seed=seed, first_row=self._first_rows)
        if self._recorded is None:
            self.stage.finish_gradients()
        else:
            self._recorded.finish()
        return _sum(self._counts) if self.is_last else None

    def record(self, record: Record) -> None:
        """Have all passes of a training step recorded now, and replayed in every step from then on.

        The gradients of a replayed step are where they were recorded. They are not added to those of an earlier step.

        Args:
            record: :func:`fastalex.parallel.cuda_graphs.in_graphs` on a GPU.

        Raises:
            RuntimeError: of ``record``; the passes stay as they were.
        """
        assert self._replayed, "replicas exchange gradients within their backward passes, zero-bubble has other passes"
        self._set_mode(training=True)
        self.stage.drop_kept()
        self.stage.zero_grad()
        key = torch.zeros((), dtype=torch.int64, device=self.device)
        passes = {index: self._micro_batches(index, key) for index in self._local}
        try:
            for kind, index, number in self._order:
                passes[index][number].record(kind, record)
            # A graph of nothing is a warning.
            replay = record(self.stage.finish_gradients) if self.stage.has_put_off() else self.stage.finish_gradients
            gradients = [(parameter, parameter.grad) for parameter in self.stage.parameters()]
        finally:
            self.stage.drop_kept()
            self.stage.zero_grad()

        def finish() -> None:
            replay()
            for parameter, gradient in gradients:
                if parameter.grad is None:  # dropped since, as the update does
                    parameter.grad = gradient

        self._recorded = _Recorded(key, finish)
        for index, replayed in zip(self._local, self._replayed, strict=True):
            replayed.micro_batches = passes[index]

    def _micro_batches(self, index: int, key: Tensor) -> list[MicroBatch]:
        """Those of a stage, none of whose passes is recorded yet."""
        module = self._modules[self._local.index(index)]
        rows, layout = self.batch_size // self.micro_batches, torch.contiguous_format if index else torch.channels_last
        like = _boundary(self.stage.architecture, self._stages, index, rows, module.input_dtype, grad=False)
        options: dict[str, Any] = {"dtype": module.input_dtype, "device": self.device, "memory_format": layout}
        return [MicroBatch(module, torch.zeros_like(like, **options), key, row) for row in self._first_rows]

    @torch.no_grad()  # the schedule's own eval() leaves gradients on, and with them every micro-batch's activations
    def logits(self, images: Tensor | None) -> Tensor | None:
        """As :meth:`SingleDevice.logits`."""
        self._set_mode(training=False)
        if images is not None:
            images = images.to(self.device, non_blocking=True)
        if self._evaluate is not None:
            return self._evaluate.eval() if images is None else self._evaluate.eval(images)
        assert images is not None
        parts = images.split(self.batch_size // self.micro_batches)
        return torch.cat([functools.reduce(lambda x, module: module(x), self._modules, part) for part in parts])

    @property
    def records(self) -> bool:
        """Whether :meth:`record` can be called."""
        return bool(self._replayed)

    def watch(self, tell: Callable[[str, Tensor], None]) -> None:
        """As :meth:`SingleDevice.watch`, of this worker's stages."""
        for module in self._modules:
            module.watch = tell

    def _set_mode(self, *, training: bool) -> None:
        # The stage's blocks are those of the modules that the schedule runs, but each has a mode of its own.
        for module in (self.stage, *self._modules):
            module.train(training)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss, counts = kernels.cross_entropy(logits, labels, scale=1 / self.batch_size)
        self._counts.append(counts)
        return loss

    def _wrapped(self, alone: Sequence[nn.Module], replica: Replica | None) -> Sequence[nn.Module]:
        return alone if replica is None else [replica.wrap(module) for module in self._modules]

    def _schedule(self, name: ScheduleName, modules: Sequence[nn.Module], loss: Any) -> Any:
        pipelined, options = self._pipelined(modules, loss)
        if name in (
            "eager-1f1b",
            "interleaved",
        ):  # with one stage a rank, torch's interleaved schedule is the eager one
            return ScheduleInterleaved1F1B(pipelined, self.micro_batches, **options)
        return (ScheduleGPipe if name == "gpipe" else Schedule1F1B)(pipelined[0], self.micro_batches, **options)

    def _in_order(self, orders: Orders, modules: Sequence[nn.Module], loss: Any) -> Any:
        """torch's runtime with an order of ours; it adds what is sent and received, and checks that nothing lacks."""
        pipelined, options = self._pipelined(modules, loss)
        schedule = _PipelineScheduleRuntime(pipelined, self.micro_batches, **options)
        actions: dict[int, list[_Action | None]] = {
            rank: [_Action(stage, _COMPUTATIONS[kind], m) for kind, stage, m in order]
            for rank, order in enumerate(orders)
        }
        schedule._prepare_schedule_with_comms(actions)
        return schedule

    def _pipelined(self, modules: Sequence[nn.Module], loss: Any) -> tuple[list[Any], dict[str, Any]]:
        pipelined = [
            self._pipeline_stage(module, index, training=loss is not None)
            for module, index in zip(modules, self._local, strict=True)
        ]
        return pipelined, {"loss_fn": loss, "scale_grads": False}

    def _pipeline_stage(self, module: nn.Module, index: int, *, training: bool) -> PipelineStage:
        # Explicit shapes on both sides. Without them the engine runs a forward pass of its own to find out,
        # differently in each torch release; and nothing checks them, so they are computed from the architecture and
        # nowhere written by hand. A pair of stage and schedule keeps its buffers' shape for life: hence one for
        # training, one for evaluation.
        count, rows, dtype = len(self._stages), self.batch_size // self.micro_batches, self.stage.compute_dtype
        out_dtype = torch.float32 if index == count - 1 else dtype
        architecture = self.stage.architecture
        inputs = _boundary(architecture, self._stages, index, rows, dtype, training and index > 0)
        outputs = _boundary(architecture, self._stages, index + 1, rows, out_dtype, training)
        return PipelineStage(
            module,
            index,
            count,
            self.device,
            input_args=(inputs,),
            output_args=(outputs,),
            group=self._group,
            dw_builder=module.weight_gradients if isinstance(module, _Apart) else None,
        )


def _there_and_back(stages: int, ranks: int, micro_batches: int) -> Orders:
    """Stage by stage: the order of an evaluation, in which backward passes are nothing."""
    every = range(micro_batches)
    return tuple(
        tuple(("forward", stage, m) for stage in range(rank, stages, ranks) for m in every)
        + tuple(("backward", stage, m) for stage in reversed(range(rank, stages, ranks)) for m in every)
        for rank in range(ranks)
    )


def _boundary(
    architecture: Architecture, stages: Sequence[Sequence[str]], index: int, rows: int, dtype: torch.dtype, grad: bool
) -> Tensor:
    """A meta tensor like the one that enters stage ``index`` for one micro-batch."""
    if index == 0:
        size = architecture.image_size
        return torch.empty(rows, 3, size, size, device="meta")
    shape = {shape.name: shape.output for shape in block_shapes(architecture)}[stages[index - 1][-1]]
    if len(shape) == 3:  # as :class:`~fastalex.network.model.Stage` has it
        shape = (*shape[1:], shape[0])
    return torch.empty(rows, *shape, dtype=dtype, device="meta", requires_grad=grad)
