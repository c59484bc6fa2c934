"""The 2012 update rule."""

from __future__ import annotations

import pytest
import torch

import kernels


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3, 4, 2), (7,), (), (130, 1100)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    made[0] = made[0].to(memory_format=torch.channels_last)
    return made


RATES, DECAYS = [0.1, 0.2, 0.0, 0.05], [0.5, 0.0, 0.5, 0.01]


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_update_is_the_papers(implementation: str, as_tensor: bool) -> None:
    weights, gradients, velocities = tensors(0), tensors(1), tensors(2)
    expected_v = [
        0.9 * v - decay * rate * w - rate * g if rate else v
        for w, g, v, rate, decay in zip(weights, gradients, velocities, RATES, DECAYS, strict=True)
    ]
    expected_w = [w + v if rate else w for w, v, rate in zip(weights, expected_v, RATES, strict=True)]
    copies = [torch.empty_like(w, dtype=torch.bfloat16) for w in weights]
    with kernels.using(implementation):
        kernels.sgd_update_(
            weights,
            gradients,
            velocities,
            learning_rates=torch.tensor(RATES) if as_tensor else RATES,
            weight_decays=torch.tensor(DECAYS) if as_tensor else DECAYS,
            copies=copies,
        )
    for w, v, copy, wanted_w, wanted_v in zip(weights, velocities, copies, expected_w, expected_v, strict=True):
        torch.testing.assert_close(v, wanted_v)
        torch.testing.assert_close(w, wanted_w)
        assert torch.equal(copy, w.bfloat16())
