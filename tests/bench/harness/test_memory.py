"""Memory of an operator."""

import torch
from harness.device import DEVICE
from harness.memory import saved_and_peak_bytes
from torch import Tensor


def test_saved_and_peak_bytes_are_those_of_the_operator() -> None:
    def squared(x: Tensor) -> Tensor:
        return (x * x).sum()

    x = torch.ones(2**18, device=DEVICE, requires_grad=True)
    saved, peak = saved_and_peak_bytes(squared, [x])
    assert saved == x.nbytes  # x itself
    # Forward allocates the square; backward the gradient of each factor and their sum, none for the gradient of sum().
    assert 2 * x.nbytes <= peak <= 4 * x.nbytes
