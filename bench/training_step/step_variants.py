"""The implementations of one training step that `bench/train_step.py` times."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from harness import CUDA, DEVICE
from torch import Tensor, nn

import kernels
from fastalex.network.model import AlexNet
from fastalex.network.precision import Precision, configure_libraries
from fastalex.network.variation import build_architecture
from fastalex.parallel.engine import WholeNetwork
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe
from fastalex.training.graphed_step import build_step
from fastalex.training.memory import keep_freed_memory, peak_bytes
from training_step.plain_network import PlainNetwork

# Images in the check. A CPU uses other algorithms for fewer than eight.
CHECKED_IMAGES = 8
# Allowed distance of a gradient from that of plain fp32, relative to its norm. If the two largest values of a pooling
# window agree to the last bits, rounding moves the gradient to another pixel: a share f of such windows makes a
# distance of sqrt(2 f). For conv1 of two images, tf32 gave 0.07 and bf16 0.26.
GRADIENT_TOLERANCES = {"fp32": 1e-2, "tf32": 0.15, "bf16": 0.5}
# Allowed relative error of the loss, also between a replayed step and a plain one.
LOSS_TOLERANCES = {"fp32": 1e-3, "tf32": 5e-3, "bf16": 2e-2}
# Allowed relative difference of mean losses with different dropout masks.
DROPOUT_TOLERANCE = 0.05


@dataclass(frozen=True)
class Variant:
    """One implementation of the step.

    Attributes:
        ours: our implementation, otherwise plain PyTorch.
        compile: mode of torch.compile, or None.
        graphs: whether our step runs from CUDA graphs.
        overlap_update: whether our fully connected weights are updated during the backward pass.
        keeps_memory: whether the CPU allocator keeps the memory that our step frees.
        banded: whether the plain network's local response normalisation is a product with a banded matrix.
        training: whether to train; otherwise one evaluation of the batch is timed as a step.
    """

    name: str
    precision: Precision
    ours: bool = False
    channels_last: bool = True
    compile: Literal["default", "max-autotune"] | None = None
    graphs: bool = False
    overlap_update: bool = False
    keeps_memory: bool = True
    banded: bool = False
    training: bool = True


def variants() -> list[Variant]:
    """The implementations for this device."""
    if CUDA:
        return [
            Variant("ours bf16", "bf16", ours=True, graphs=True),
            Variant("compile max-autotune bf16", "bf16", compile="max-autotune"),
            Variant("compile bf16", "bf16", compile="default"),
            Variant("eager bf16", "bf16"),
            Variant("eager fp32", "fp32", channels_last=False),
            Variant("ours bf16, update overlapped", "bf16", ours=True, graphs=True, overlap_update=True),
            Variant("ours bf16, no graphs", "bf16", ours=True),
            Variant("ours tf32", "tf32", ours=True, graphs=True),
            Variant("ours fp32", "fp32", ours=True, graphs=True),
        ]
    return [
        Variant("ours fp32", "fp32", ours=True),
        Variant("ours fp32, fresh pages", "fp32", ours=True, keeps_memory=False),
        Variant("eager fp32 NCHW", "fp32", channels_last=False),
        Variant("eager fp32", "fp32"),
        Variant("compile fp32", "fp32", compile="default"),
        Variant("compile max-autotune fp32", "fp32", compile="max-autotune"),
        Variant("compile banded fp32", "fp32", compile="default", banded=True),
        Variant("ours bf16", "bf16", ours=True),
        Variant("eager bf16", "bf16"),
        Variant("eager banded bf16", "bf16", banded=True),
        Variant("compile bf16", "bf16", compile="default"),
        Variant("compile banded bf16", "bf16", compile="default", banded=True),
        Variant("compile max-autotune banded bf16", "bf16", compile="max-autotune", banded=True),
        Variant("ours fp32, evaluation", "fp32", ours=True, training=False),
        Variant("ours bf16, evaluation", "bf16", ours=True, training=False),
        Variant("eager banded bf16, evaluation", "bf16", banded=True, training=False),
    ]


class Step:
    """A training step, ready to be timed."""

    def __init__(self, variant: Variant, architecture: str, batch: int) -> None:
        self.variant, self.batch = variant, batch
        self.architecture = build_architecture(architecture)
        configure_libraries(variant.precision)
        generator = torch.Generator().manual_seed(0)
        size = self.architecture.image_size
        images = torch.randint(0, 256, (batch, 3, size, size), generator=generator).float() - 118
        memory_format = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.images = images.to(DEVICE, memory_format=memory_format)
        self.labels = torch.randint(0, self.architecture.num_classes, (batch,), generator=generator).to(DEVICE)
        model = AlexNet(self.architecture, seed=0)
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.number = 0
        self._build_ours(model) if variant.ours else self._build_plain()

    def _build_ours(self, model: AlexNet) -> None:
        if not CUDA and self.variant.keeps_memory:
            keep_freed_memory()  # like the trainer
        model.set_precision(self.variant.precision)
        self.engine = WholeNetwork(model, torch.device(DEVICE), self.batch)
        stage = self.engine.stage
        self.optimizer: Any = KrizhevskySGD(stage, build_recipe("krizhevsky"), stage.compute_copies())
        self.notes: list[str] = []
        self.step = build_step(
            self.engine,
            self.optimizer,
            graphs=self.variant.graphs,
            overlap_update=self.variant.overlap_update,
            say=self.notes.append,
        )

    def _build_plain(self) -> None:
        network = PlainNetwork(self.architecture, banded=self.variant.banded)
        network.load_state_dict(self.weights)
        layout = torch.channels_last if self.variant.channels_last else torch.contiguous_format
        network.to(DEVICE, memory_format=layout)  # type: ignore[call-overload]  # torch's overloads lack memory_format
        self.network = network
        self.forward: Any = network
        if self.variant.compile is not None:
            self.forward = torch.compile(network, mode=self.variant.compile, dynamic=False)
        groups = [
            {"params": [p for n, p in network.named_parameters() if n.endswith(kind)], "lr": lr, "weight_decay": decay}
            for kind, lr, decay in (("weight", 0.01, 5e-4), ("bias", 0.02, 0.0))
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True)

    def __call__(self) -> None:
        """Run one step: forward, loss, backward, update; gradients are dropped. Or evaluate the batch."""
        self.number += 1
        if not self.variant.training:
            self._evaluate()
            return
        if self.variant.ours:
            self.step(self.images, self.labels, self.number)
        else:
            self._plain_loss(self.forward, self.images, self.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    @torch.inference_mode()
    def _evaluate(self) -> Tensor:
        """The logits of the batch."""
        if self.variant.ours:
            return self.engine.stage.eval()(self.images)
        with torch.autocast(DEVICE, torch.bfloat16) if self.variant.precision == "bf16" else nullcontext():
            return self.network.eval()(self.images)

    def _plain_loss(self, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        half = self.variant.precision == "bf16"
        with torch.autocast(DEVICE, torch.bfloat16) if half else nullcontext():
            logits = forward(images)
        return F.cross_entropy(logits.float(), labels)

    def warm_up(self) -> str | None:
        """Compile, capture and fill caches. Returns a note about it, or None."""
        for _ in range(5 if CUDA else 2):
            self()
        _synchronise()
        return self.notes[0] if self.variant.ours and self.notes else None

    def check_warm(self) -> str | None:
        """What is wrong with the loss of a replayed graph or a compiled network, or None."""
        if self.variant.compile is not None:
            return self._check_compiled()
        return self._check_replay() if self.variant.graphs else None

    def _check_compiled(self) -> str | None:
        # The masks differ, and move one loss by up to 6 %.
        with torch.no_grad():
            wanted = [self._plain_loss(self.network, self.images, self.labels).item() for _ in range(4)]
        losses = [self._plain_loss(self.forward, self.images, self.labels) for _ in range(4)]
        losses[-1].backward()
        self.optimizer.zero_grad()
        off = abs(sum(loss.item() for loss in losses) / sum(wanted) - 1)
        return None if off <= DROPOUT_TOLERANCE else f"the compiled network's loss is off by {off:.1e}"

    def _check_replay(self) -> str | None:
        self.number += 1
        plain = self.engine.train_step(self.images, self.labels, self.number)
        assert plain is not None
        wanted = plain.tolist()
        replayed = self.step(self.images, self.labels, self.number)
        assert replayed is not None
        off = abs(replayed.tolist()[0] - wanted[0]) / abs(wanted[0])
        tolerance = LOSS_TOLERANCES[self.variant.precision]
        return None if off <= tolerance else f"the replayed step's loss is off by {off:.1e}"

    def time(self, steps: int) -> float:
        """Milliseconds per step of several in a row."""
        if CUDA:
            self()  # allocates the memory freed after the previous turn
        _synchronise()
        begin = time.perf_counter()
        for _ in range(steps):
            self()
        _synchronise()
        return (time.perf_counter() - begin) * 1e3 / steps

    def peak_bytes(self) -> int:
        """The most bytes allocated so far on a GPU, or the peak resident size of this process on a CPU."""
        return peak_bytes(torch.device(DEVICE))

    def check(self) -> str | None:
        """What is wrong with the loss or the gradients without dropout, or None."""
        images, labels = self.images[:CHECKED_IMAGES], self.labels[:CHECKED_IMAGES]
        reference = PlainNetwork(self.architecture).to(DEVICE).eval()
        reference.load_state_dict(self.weights)
        configure_libraries("fp32")
        wanted = F.cross_entropy(reference(images.contiguous()), labels)
        wanted.backward()
        configure_libraries(self.variant.precision)
        if self.variant.ours:
            module: nn.Module = self.engine.stage.eval()
            self.engine.stage.begin_step()
            loss, _ = kernels.cross_entropy(self.engine.stage(images), labels, scale=1 / len(labels))
        else:
            module = self.network.eval()
            loss = self._plain_loss(self.network, images, labels)
        loss.backward()
        if self.variant.ours:
            self.engine.stage.finish_gradients()
        found = {name: p.grad for name, p in module.named_parameters()}
        module.zero_grad()
        module.train()
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        return _difference(loss, wanted, found, reference, self.variant.precision)


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
        if not off <= GRADIENT_TOLERANCES[precision]:
            return f"the gradient of {name} is off by {off:.1e}"
    return None


def release_memory() -> None:
    """Leave the memory of a GPU to the other processes, which do not all fit at large batches."""
    if CUDA:
        torch.cuda.empty_cache()


def _synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()
