"""One device's gradients, and minimal filtering for networks that are too small for it to pay."""

import pytest
import torch

from fastalex.parallel.engine import WholeNetwork
from kernels.native import winograd
from tests.fastalex.parallel.engine_workers import BATCH, batch, filter_everything, network

CPU = torch.device("cpu")
STEPS = 3


def single_device(micro_batches: int, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """What `pipeline_gradients` saves, from one device."""
    engine = WholeNetwork(network(precision), CPU, BATCH, micro_batches)
    saved = {}
    for step in range(STEPS):
        images, labels = batch(step)
        engine.stage.zero_grad()
        saved[f"{step}.counts"] = engine.train_step(images, labels, seed=step)
        saved |= {f"{step}.{name}": p.grad.clone() for name, p in engine.stage.named_parameters()}
        saved[f"{step}.logits"] = engine.logits(images).double()
    return saved


@pytest.fixture
def minimal_filtering(monkeypatch):
    """Here and in the workers that are told so."""
    for name in ("MIN_CHANNELS", "MIN_TILES"):
        monkeypatch.setattr(winograd, name, getattr(winograd, name))  # to be set back
    filter_everything()
