"""The ways of computing one training step that `bench/train_step.py` times."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from harness import CUDA, DEVICE
from plain_network import PlainNetwork
from torch import Tensor, nn

import kernels
from fastalex.network.model import AlexNet
from fastalex.network.precision import Precision, configure_libraries
from fastalex.network.variation import build_architecture
from fastalex.parallel.engine import SingleDevice
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe
from fastalex.training.allocator import keep_freed_memory
from fastalex.training.graphed_step import build_step
from fastalex.training.memory import peak_bytes

# The check needs few images: every operator runs, and gradients of single images are what differs most. Of fewer than
# eight, a CPU computes some convolutions in another way.
CHECKED = 8
# How far gradients may be from plain fp32's, as a share of their norm. Where the two largest values of a pooling window
# agree to the last bits, rounding hands the gradient to another pixel: f of the windows make a distance of sqrt(2 f).
# With operands rounded as tf32 and bf16 do, 0.07 and 0.26 were seen for conv1 of two images.
TOLERANCES = {"fp32": 1e-2, "tf32": 0.15, "bf16": 0.5}
# How far the loss may be, and that of a replayed step from a plain one.
LOSS_TOLERANCES = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 2e-2}
# Losses of one network whose dropout masks differ.
DROPOUT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Way:
    """How a step is computed.

    ``compile`` is torch.compile's mode, ``graphs`` whether our step is captured in CUDA graphs, ``keeps_memory``
    whether a CPU's allocator keeps what our step frees.
    """

    name: str
    precision: Precision
    ours: bool = False
    channels_last: bool = True
    compile: Literal["default", "max-autotune"] | None = None
    graphs: bool = False
    keeps_memory: bool = True


def ways() -> list[Way]:
    """All ways that make sense on this device."""
    if CUDA:
        return [
            Way("ours bf16", "bf16", ours=True, graphs=True),
            Way("compile max-autotune bf16", "bf16", compile="max-autotune"),
            Way("compile bf16", "bf16", compile="default"),
            Way("eager bf16", "bf16"),
            Way("eager fp32", "fp32", channels_last=False),
            Way("ours bf16, no graphs", "bf16", ours=True),
            Way("ours tf32", "tf32", ours=True, graphs=True),
            Way("ours fp32", "fp32", ours=True, graphs=True),
        ]
    return [
        Way("ours fp32", "fp32", ours=True),
        Way("ours fp32, fresh pages", "fp32", ours=True, keeps_memory=False),
        Way("eager fp32 NCHW", "fp32", channels_last=False),
        Way("eager fp32", "fp32"),
        Way("compile fp32", "fp32", compile="default"),
        Way("compile max-autotune fp32", "fp32", compile="max-autotune"),
        Way("ours bf16", "bf16", ours=True),
        Way("eager bf16", "bf16"),
        Way("compile bf16", "bf16", compile="default"),
    ]


class Step:
    """A training step, ready to be timed."""

    def __init__(self, way: Way, architecture: str, batch: int) -> None:
        self.way, self.batch = way, batch
        self.architecture = build_architecture(architecture)
        configure_libraries(way.precision)
        generator = torch.Generator().manual_seed(0)
        size = self.architecture.image_size
        images = torch.randint(0, 256, (batch, 3, size, size), generator=generator).float() - 118
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        self.images = images.to(DEVICE, memory_format=layout)
        self.labels = torch.randint(0, self.architecture.num_classes, (batch,), generator=generator).to(DEVICE)
        model = AlexNet(self.architecture, seed=0)
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.number = 0
        self._build_ours(model) if way.ours else self._build_plain()

    def _build_ours(self, model: AlexNet) -> None:
        if not CUDA and self.way.keeps_memory:
            keep_freed_memory()  # as the trainer does
        model.set_precision(self.way.precision)
        self.engine = SingleDevice(model, torch.device(DEVICE), self.batch)
        stage = self.engine.stage
        self.optimizer: Any = KrizhevskySGD(stage, build_recipe("krizhevsky"), stage.compute_copies())
        self.notes: list[str] = []
        self.step = build_step(self.engine, self.optimizer, graphs=self.way.graphs, say=self.notes.append)

    def _build_plain(self) -> None:
        network = PlainNetwork(self.architecture)
        network.load_state_dict(self.weights)
        network.to(DEVICE, memory_format=torch.channels_last if self.way.channels_last else torch.contiguous_format)
        self.network = network
        self.forward: Any = network
        if self.way.compile is not None:
            self.forward = torch.compile(network, mode=self.way.compile, dynamic=False)
        groups = [
            {"params": [p for n, p in network.named_parameters() if n.endswith(kind)], "lr": lr, "weight_decay": decay}
            for kind, lr, decay in (("weight", 0.01, 5e-4), ("bias", 0.02, 0.0))
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)

    def __call__(self) -> None:
        """One step: forward, loss, backward, update; gradients are dropped."""
        self.number += 1
        if self.way.ours:
            self.step(self.images, self.labels, self.number)
        else:
            self._plain_loss(self.forward, self.images, self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _plain_loss(self, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        half = self.way.precision == "bf16"
        with torch.autocast(DEVICE, torch.bfloat16) if half else nullcontext():
            logits = forward(images)
        return F.cross_entropy(logits.float(), labels)

    def warm_up(self) -> str | None:
        """Compile, capture, fill caches. Returns what there is to say about it."""
        for _ in range(5 if CUDA else 2):
            self()
        _synchronise()
        return self.notes[0] if self.way.ours and self.notes else None

    def check_warm(self) -> str | None:
        """What is wrong with the loss that a replayed graph or a compiled network finds, or None."""
        if self.way.compile is not None:
            return self._check_compiled()
        return self._check_replay() if self.way.graphs else None

    def _check_compiled(self) -> str | None:
        with torch.no_grad():
            wanted = self._plain_loss(self.network, self.images, self.labels).item()
        loss = self._plain_loss(self.forward, self.images, self.labels)
        loss.backward()
        self.optimizer.zero_grad()
        off = abs(loss.item() - wanted) / abs(wanted)
        return None if off <= DROPOUT_TOLERANCE else f"the compiled network's loss is off by {off:.1e}"

    def _check_replay(self) -> str | None:
        self.number += 1
        plain = self.engine.train_step(self.images, self.labels, self.number)
        assert plain is not None
        wanted = plain.tolist()
        replayed = self.step(self.images, self.labels, self.number)
        assert replayed is not None
        off = abs(replayed.tolist()[0] - wanted[0]) / abs(wanted[0])
        return None if off <= LOSS_TOLERANCES[self.way.precision] else f"the replayed step's loss is off by {off:.1e}"

    def time(self, steps: int) -> float:
        """Milliseconds per step of so many in a row."""
        if CUDA:
            self()  # takes back the memory that the turn before gave back
        _synchronise()
        begin = time.perf_counter()
        for _ in range(steps):
            self()
        _synchronise()
        return (time.perf_counter() - begin) * 1e3 / steps

    def peak_bytes(self) -> int:
        """Most bytes held so far: by CUDA's allocator, or on a CPU resident in this process."""
        return peak_bytes(torch.device(DEVICE))

    def check(self) -> str | None:
        """What is wrong with the loss or the gradients, without dropout, or None."""
        images, labels = self.images[:CHECKED], self.labels[:CHECKED]
        reference = PlainNetwork(self.architecture).to(DEVICE).eval()
        reference.load_state_dict(self.weights)
        configure_libraries("fp32")
        wanted = F.cross_entropy(reference(images.contiguous()), labels)
        wanted.backward()
        configure_libraries(self.way.precision)
        if self.way.ours:
            module: nn.Module = self.engine.stage.eval()
            loss, _ = kernels.cross_entropy(self.engine.stage(images), labels, scale=1 / len(labels))
        else:
            module = self.network.eval()
            loss = self._plain_loss(self.network, images, labels)
        loss.backward()
        if self.way.ours:
            self.engine.stage.finish_gradients()
        found = {name: p.grad for name, p in module.named_parameters()}
        module.zero_grad()
        module.train()
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        return _difference(loss, wanted, found, reference, self.way.precision)


def _difference(
    loss: Tensor, wanted: Tensor, found: dict[str, Tensor | None], reference: nn.Module, precision: Precision
) -> str | None:
    off = abs(loss.item() - wanted.item()) / abs(wanted.item())
    if not off <= LOSS_TOLERANCES[precision]:
        return f"the loss is off by {off:.1e}"
    for name, parameter in reference.named_parameters():
        gradient = found[name]
        assert parameter.grad is not None
        if gradient is None:
            return f"{name} has no gradient"
        off = float((gradient - parameter.grad).norm() / parameter.grad.norm())
        if not off <= TOLERANCES[precision]:
            return f"the gradient of {name} is off by {off:.1e}"
    return None


def give_back_memory() -> None:
    """Leave a GPU's memory to the other processes: at large batches all of them together need more than there is."""
    if CUDA:
        torch.cuda.empty_cache()


def _synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()
