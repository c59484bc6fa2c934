"""The engine that trains beside ``independent_network``: the same updates from the same weights, images and masks.

``python -m tests.fastalex.independent_check`` runs all cases and the network at its full width, which takes minutes and
6 GB. It writes the record ``independent.json`` and puts its table into ``docs/fidelity.md``.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kernels
from fastalex import AlexNet
from fastalex.parallel.engine import WholeNetwork
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.published import build_recipe
from fastalex.training.step import TrainingStep
from tests.fastalex import independent_network as independent
from tests.fastalex.network.inputs import images, randomise

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fidelity.md"

# Epochs, counted from 1, of the updates of a run of 2012: the last with the first rate; the first with a tenth of it
# for the weights alone; and the first with conv1 frozen.
EPOCHS = (24, 25, 72)


def rate_of_145(parameter: str, update: int) -> float:
    return independent.rate_of_145(parameter, EPOCHS[update])


@dataclass(frozen=True)
class Case:
    """A network and recipe of ours, and the function that computes the same network independently.

    Args:
        variation: of the architecture.
        rate: learning rate of a parameter in an update, counted from 0.
        divisions: of our learning rates by the recipe's plateau, for every update.
    """

    name: str
    network: Callable[..., Tensor]
    architecture: str = "krizhevsky"
    variation: dict[str, Any] = field(default_factory=dict)
    recipe: str = "krizhevsky"
    rate: Callable[[str, int], float] = rate_of_145
    divisions: tuple[int, ...] = (0,)


def _case_145(name: str, architecture: str, variation: dict[str, Any], **facts: Any) -> Case:
    return Case(name, functools.partial(independent.configuration_145, **facts), architecture, variation)


KRIZHEVSKY = Case("krizhevsky", independent.configuration_145, divisions=(0, 0, 0))
FIRST_UPDATE = replace(KRIZHEVSKY, divisions=(0,))
PAPER = Case(
    "paper",
    independent.papers_text,
    architecture="paper",
    recipe="paper",
    rate=lambda _, update: (1e-2, 1e-3)[update],
    divisions=(0, 1),
)
VARIANTS = (
    _case_145("half", "half", {}, towers=1),
    _case_145("separate", "separate", {}, separate=True),
    _case_145("2 x 2 pooling", "krizhevsky", {"overlapping": False}, overlap=False),
    _case_145("no norms, sixth convolution", "krizhevsky", {"lrn": False, "conv6": True}, norms=False, conv6=True),
    Case("caffe", independent.bvlc_alexnet, "caffe"),
    Case("owt", independent.torchvision_alexnet, "owt"),
)


def differences(
    case: Case, dtype: torch.dtype = torch.float64, *, width: float = 1 / 16, classes: int = 10, batch: int = 2
) -> dict[str, float]:
    """The largest difference of every quantity between the engine in ``dtype`` and the independent network.

    A difference is relative to the largest value of its tensor, and the largest is that of all tensors and updates.
    "evaluation" are the logits without dropout after each update, "velocities" the updates of the weights.
    """
    model = AlexNet(case.architecture, classes, seed=0, width=width, **case.variation)
    randomise(model)
    model.to(dtype)
    x, labels = images(batch, model.architecture.image_size).to(dtype), torch.arange(batch) * 7 % classes
    weights = {name: parameter.detach().to(torch.float64, copy=True) for name, parameter in model.named_parameters()}
    velocities = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    # Ours: the engine with two micro-batches, the recipe's optimizer and the training step.
    engine = WholeNetwork(model, torch.device("cpu"), batch, micro_batches=2)
    optimizer = KrizhevskySGD(engine.stage, build_recipe(case.recipe))
    step = TrainingStep(engine, optimizer)
    outputs: list[Tensor] = []  # of the last layer, by micro-batch
    model.get_submodule("fc8").register_forward_hook(lambda _module, _inputs, output: outputs.append(output.detach()))

    worst: dict[str, float] = {}

    def compare(quantity: str, ours: Tensor, theirs: Tensor) -> None:
        assert torch.isfinite(theirs).all(), quantity
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        worst[quantity] = max(worst.get(quantity, 0.0), difference)

    for number, divisions in enumerate(case.divisions):
        # Forward and backward.
        outputs.clear()
        seed = kernels.philox.derive_seed(3, number)
        optimizer.set_epoch(EPOCHS[number], divisions)
        counts, enabled = step.compute_gradients(x, labels, seed)
        assert counts is not None
        logits, loss, gradients = _gradients(case, x.double(), labels, weights, _shared_masks(model, seed, batch))
        compare("logits", torch.cat(outputs), logits)
        compare("loss", counts[0] / batch, loss)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            compare("gradients", parameter.grad, gradients[name])
        # Update.
        optimizer.step(enabled=enabled)
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            rate, decay = case.rate(name, number), 0.0005 if name.endswith("weight") else 0.0
            weights[name], velocities[name] = independent.update(
                weights[name], velocities[name], gradients[name], rate, decay
            )
            compare("velocities", optimizer.velocity(parameter), velocities[name])
            compare("weights", parameter.detach(), weights[name])
        # Evaluate.
        evaluated = engine.logits(x)
        assert evaluated is not None
        compare("evaluation", evaluated, case.network(x.double(), weights, None))
    return worst


def _gradients(
    case: Case, x: Tensor, labels: Tensor, weights: dict[str, Tensor], masks: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, loss and gradients of the independent network in training."""
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    logits = case.network(x, leaves, masks)
    loss = independent.mean_loss(logits, labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return logits.detach(), loss.detach(), dict(zip(leaves, gradients, strict=True))


def _shared_masks(model: AlexNet, seed: int, batch: int) -> dict[str, Tensor]:
    """What dropout keeps of fc6 and fc7 in one step, as ones and zeros. Chance decides that, and no fact: it is shared.

    The engine's layers add their number to the step's seed.
    """
    masks = {}
    for layer, number in (("fc6", 6), ("fc7", 7)):
        outputs, inputs = model.get_parameter(f"{layer}.weight").shape
        features = inputs if model.architecture.name == "owt" else outputs  # torchvision drops what enters the layer
        key, first_row = torch.tensor(seed + number), torch.tensor(0)
        masks[layer] = kernels.philox.keep_mask(key, first_row, batch, features, 0.5).double()
    return masks


# --- the record and its table -----------------------------------------------------------------------------------------


def table() -> str:
    """The newest committed record as a table."""
    records = [json.loads(path.read_text()) for path in (ROOT / "bench" / "results").glob("*/independent.json")]
    record = max(records, key=lambda record: record["date"])
    quantities = list(record["rows"][0]["differences"])
    lines = [["network", "width", "our dtype", "updates", *quantities]]
    for row in record["rows"]:
        width = "full" if row["width"] == 1 else f"1/{round(1 / row['width'])}"
        found = [f"{row['differences'][quantity]:.0e}" for quantity in quantities]
        lines.append([row["network"], width, row["dtype"], str(row["updates"]), *found])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_table(page: str) -> str:
    """The page with the table between its markers replaced."""
    marked = re.compile(r"(<!-- table: independent -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
    (match,) = marked.finditer(page)
    return page[: match.start()] + f"{match[1]}\n{table()}\n{match[2]}" + page[match.end() :]


def main() -> None:
    """Run all cases; write the record and the page's table."""
    sys.path.append(str(ROOT / "bench"))
    import harness  # here, because nothing else needs what it imports

    small: dict[str, Any] = {"width": 1 / 16, "classes": 10}
    full: dict[str, Any] = {"width": 1, "classes": 1000}
    runs = [(case, torch.float64, small) for case in (KRIZHEVSKY, PAPER, *VARIANTS)]
    runs += [(KRIZHEVSKY, torch.float32, small), (KRIZHEVSKY, torch.float64, full)]
    # A rate for 128 images throws the full network off if there are two: the second loss is 31. There, fp32's rounding
    # decides which ReLUs are open.
    runs.append((FIRST_UPDATE, torch.float32, full))
    rows = []
    for case, dtype, sizes in runs:
        found = {quantity: float(f"{value:.2e}") for quantity, value in differences(case, dtype, **sizes).items()}
        name = str(dtype).removeprefix("torch.")
        print(f"{case.name}, width {sizes['width']:g}, {name}: {found}", flush=True)
        rows.append(
            {"network": case.name, "dtype": name, **sizes, "updates": len(case.divisions), "differences": found}
        )
    harness.write_record("independent", {"batch": 2, "micro_batches": 2, "epochs": EPOCHS}, rows)
    PAGE.write_text(with_table(PAGE.read_text()))


if __name__ == "__main__":
    main()
