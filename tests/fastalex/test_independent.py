"""The engine that trains against a second implementation, which shares no code with it (``independent_network``)."""

import pytest
import torch

from tests.fastalex.independent_check import KRIZHEVSKY, PAPER, VARIANTS, differences


@pytest.mark.parametrize("case", [KRIZHEVSKY, PAPER, *VARIANTS], ids=lambda case: case.name)
def test_every_quantity_agrees_to_rounding(case):
    found = differences(case)
    assert list(found) == ["logits", "loss", "gradients", "velocities", "weights", "evaluation"]
    assert max(found.values()) < 1e-12, found


def test_what_training_computes_in_agrees_too():
    """fp32 runs other code than float64, such as the C functions."""
    found = differences(KRIZHEVSKY, torch.float32)
    # Rounding to 24 bits, through eight layers and back. It may open a ReLU or move a maximum, which one image's
    # gradient notices and its logits do not.
    tolerances = {"logits": 1e-5, "loss": 1e-5, "gradients": 1e-3, "velocities": 1e-3, "weights": 1e-4}
    tolerances["evaluation"] = 1e-5
    assert {name for name, value in found.items() if value > tolerances[name]} == set(), found
