"""What is called: every operator on tiny tensors, and the training step of a narrow network.

Nothing of it computes anything worth mentioning, so that its time is that of Python and of PyTorch's dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from fastalex.network.model import AlexNet
from fastalex.network.variation import Variation, build_architecture
from fastalex.parallel.engine import WholeNetwork
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe
from fastalex.training.graphed_step import build_step

STEP = "training step"


@dataclass(frozen=True)
class Call:
    """Something to call.

    Attributes:
        op: the operator, or the training step.
        direction: "forward", or "both" for forward and backward.
        shape: shape of the first input.
        work: calls it once.
        repetitions: how often a timing repeats it, so that it takes milliseconds.
    """

    op: str
    direction: str
    shape: tuple[int, ...]
    work: Callable[[], Any]
    repetitions: int


def operator_calls() -> Iterator[Call]:
    """Every operator, forward and in both directions; inputs need gradients, as in training."""
    x = _channels_last(2, 8, 5, 5)
    weight, bias = _channels_last(8, 8, 3, 3), torch.ones(8, requires_grad=True)
    features, labels = torch.ones(2, 8, requires_grad=True), torch.arange(2)
    seed, first_row = torch.tensor(1), torch.tensor(0)  # tensors, as in training
    operators: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "local_response_norm": (lambda x: kernels.local_response_norm(x, 5, 1e-4, 0.75, 2.0), (x,)),
        "same_map_norm": (lambda x: kernels.same_map_norm(x, 5, 1e-3, 0.75, 1.0), (x,)),
        "max_pool2d": (lambda x: kernels.max_pool2d(x, 3, 2), (x,)),
        "lrn_max_pool2d": (lambda x, b: kernels.lrn_max_pool2d(x, bias=b, relu="after"), (x, bias)),
        "same_map_norm_max_pool2d": (kernels.same_map_norm_max_pool2d, (x,)),
        "conv2d_relu": (lambda x, w, b: kernels.conv2d_relu(x, w, b, padding=1), (x, weight, bias)),
        "dropout": (lambda x: kernels.dropout(x, seed=seed, first_row=first_row), (features,)),
        "bias_relu_dropout": (
            lambda x, b: kernels.bias_relu_dropout(x, b, seed=seed, first_row=first_row),
            (features, bias),
        ),
        "cross_entropy": (lambda x: kernels.cross_entropy(x, labels, scale=0.5)[0], (features,)),
    }
    for name, (function, inputs) in operators.items():
        yield from _both_directions(name, function, inputs)
    yield _update()


def _channels_last(*shape: int) -> Tensor:
    return torch.ones(shape).to(memory_format=torch.channels_last).requires_grad_()


def _both_directions(op: str, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Iterator[Call]:
    y = function(*inputs)
    grad, shape = torch.ones_like(y), tuple(inputs[0].shape)
    yield Call(op, "forward", shape, lambda: function(*inputs), 50)
    yield Call(op, "both", shape, lambda: torch.autograd.grad(function(*inputs), inputs, grad), 50)


def _update() -> Call:
    """The update of as many tensors as the 2012 network has."""
    weights, gradients, velocities = ([torch.ones(8) for _ in range(16)] for _ in range(3))
    rates, decays = (torch.full((16,), value, dtype=torch.float64) for value in (1e-2, 5e-4))

    def update() -> None:
        kernels.sgd_update_(weights, gradients, velocities, learning_rates=rates, weight_decays=decays, momentum=0.9)

    return Call("sgd_update_", "forward", (16, 8), update, 50)


def training_step() -> Call:
    """Forward, loss, backward and update of `krizhevsky`, a sixteenth as wide, for one image in fp32."""
    architecture = build_architecture("krizhevsky", 10, Variation(width=1 / 16))
    model = AlexNet(architecture, seed=0)
    model.set_precision("fp32")
    engine = WholeNetwork(model, torch.device("cpu"), 1)
    optimizer = KrizhevskySGD(engine.stage, build_recipe("krizhevsky"), engine.stage.compute_copies())
    step = build_step(engine, optimizer, graphs=False)
    images = torch.zeros(1, 3, 224, 224).to(memory_format=torch.channels_last)
    labels, number = torch.zeros(1, dtype=torch.int64), 0

    def work() -> None:
        nonlocal number
        number += 1
        step(images, labels, number)

    return Call(STEP, "both", (1, 3, 224, 224), work, 2)
