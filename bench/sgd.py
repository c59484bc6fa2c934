"""Time the 2012 update of all of AlexNet's parameters: python bench/sgd.py

PyTorch's optimizer applies the learning rate outside of the velocity. With a constant learning rate the weights are
the same and can be checked; when the learning rate changes, the 2012 rule differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from harness import CUDA, DEVICE, Benchmark, InPlace, run_script
from torch import Tensor

import kernels
from kernels import reference

# Shapes of the weights and biases of the 2012 network.
SHAPES = [
    (96, 3, 11, 11), (96,), (256, 48, 5, 5), (256,), (384, 256, 3, 3), (384,), (384, 192, 3, 3), (384,),
    (256, 192, 3, 3), (256,), (4096, 9216), (4096,), (4096, 4096), (4096,), (1000, 4096), (1000,),
]  # fmt: skip
RATES = [0.01, 0.02] * (len(SHAPES) // 2)
DECAYS = [0.0005, 0.0] * (len(SHAPES) // 2)
NUMBERS = {"learning_rates": RATES, "weight_decays": DECAYS}
STEPS = 3
Numbers = Mapping[str, list[float] | Tensor]
Make = Callable[[list[Tensor], list[Tensor]], Callable[[], None]]  # from weights and gradients to an update


def tensors(seed: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return [torch.randn(shape, generator=generator, device=DEVICE) for shape in shapes]


class Optimizer:
    """PyTorch's SGD with the same groups."""

    def __init__(self, weights: list[Tensor], gradients: list[Tensor], **options) -> None:
        parameters = [torch.nn.Parameter(weight) for weight in weights]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        groups = [
            {"params": parameters[start::2], "lr": RATES[start], "weight_decay": DECAYS[start]} for start in (0, 1)
        ]
        self.sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.9, **options)

    def __call__(self) -> None:
        self.sgd.step()


def update(
    function: Callable[..., None],
    weights: list[Tensor],
    gradients: list[Tensor],
    copies: bool = False,
    numbers: Numbers = NUMBERS,
) -> Callable[[], None]:
    velocities = [torch.zeros_like(weight) for weight in weights]
    halves = [weight.bfloat16() for weight in weights] if copies else None

    def step() -> None:
        function(weights, gradients, velocities, **numbers, momentum=0.9, copies=halves)

    return step


def ours(weights: list[Tensor], gradients: list[Tensor], copies: bool) -> Callable[[], None]:
    numbers: Numbers = NUMBERS
    if CUDA:
        # On the device, as in training: updates do not copy them.
        numbers = {name: torch.tensor(values, dtype=torch.float64).to(DEVICE) for name, values in NUMBERS.items()}
    return update(kernels.sgd_update_, weights, gradients, copies, numbers)


def providers() -> dict[str, Make]:
    return {
        "ours": lambda w, g: ours(w, g, False),
        "ours, with bf16 copies": lambda w, g: ours(w, g, True),
        "plain definition": lambda w, g: update(reference.sgd_update_, w, g),
        "torch.optim.SGD for-loop": lambda w, g: Optimizer(w, g, foreach=False),
        "torch.optim.SGD foreach": lambda w, g: Optimizer(w, g, foreach=True),
        "torch.optim.SGD fused": lambda w, g: Optimizer(w, g, fused=True),
        "torch.compile": lambda w, g: torch.compile(update(reference.sgd_update_, w, g)),
    }


def find_error(make: Make) -> str | None:
    """What is wrong with the weights after a few updates of small tensors, or None."""
    shapes = [(13, 7), (5,)] * (len(SHAPES) // 2)
    weights, gradients = tensors(0, shapes), tensors(1, shapes)
    wanted = [weight.double() for weight in weights]
    definition = update(reference.sgd_update_, wanted, [gradient.double() for gradient in gradients])
    step = make(weights, gradients)
    for _ in range(STEPS):
        step()
        definition()
    off = max(float((w.double() - x).abs().max()) for w, x in zip(weights, wanted, strict=True))
    return None if off < 1e-5 else f"weights are off by {off:.1e}"


def make_on_copies(make: Make, weights: list[Tensor], gradients: list[Tensor]) -> Callable[[], None]:
    """An update of copies of these weights."""
    return make([weight.clone() for weight in weights], gradients)


def main() -> None:
    bench = Benchmark("sgd", "The update of AlexNet's 61 million parameters", sized=False)
    shapes = [(shape[0] // 8, *shape[1:]) for shape in SHAPES] if bench.quick and not CUDA else SHAPES
    given, gradients = tensors(0, shapes), tensors(1, shapes)
    count = sum(weight.numel() for weight in given)
    work = {}
    for name, make in providers().items():
        # Reads weight, gradient and velocity; writes weight and velocity, and a copy in half precision.
        bytes_moved = count * (5 * 4 + (2 if "copies" in name else 0))
        work[name] = InPlace(
            partial(make_on_copies, make, given, gradients),
            bytes_moved,
            partial(find_error, make),
        )
    bench.run_in_place("sgd_update_", (count,), torch.float32, work)
    bench.finish()


if __name__ == "__main__":
    run_script(main)
