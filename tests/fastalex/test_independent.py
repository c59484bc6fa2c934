"""The engine that trains against a second implementation, which shares no code with it (``independent_network``)."""

import pytest
import torch

from tests.fastalex import independent_check
from tests.fastalex.independent_check import FIRST_UPDATE, KRIZHEVSKY, PAPER, VARIANTS, differences


@pytest.mark.parametrize("case", [KRIZHEVSKY, PAPER, *VARIANTS], ids=lambda case: case.name)
def test_every_quantity_agrees_to_rounding(case):
    found = differences(case)
    assert list(found) == ["logits", "loss", "gradients", "velocities", "weights", "evaluation"]
    assert max(found.values()) < 1e-12, found


def test_what_training_computes_in_agrees_too():
    """fp32 runs other code than float64, such as the C functions."""
    found = differences(FIRST_UPDATE, torch.float32)
    # Rounding to 24 bits, through eight layers and back. It may open a ReLU or move a maximum, which gradients notice
    # and logits do not.
    assert max(found.pop("gradients"), found.pop("velocities")) < 1e-3, found
    assert max(found.values()) < 1e-5, found


def test_the_page_shows_the_record():
    """After a new record: python -m tests.fastalex.independent_check."""
    page = independent_check.PAGE.read_text()
    assert page == independent_check.with_table(page)
