"""All operators under `torch.compile(fullgraph=True)`, in one graph: compiling takes far longer than running."""

from __future__ import annotations

import pytest
import torch
from comparing import IMPLEMENTATIONS, laid_out, random_tensor
from torch import Tensor

import kernels


@pytest.mark.usefixtures("without_tf32")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_compiles_into_one_graph(implementation: str) -> None:
    torch.compiler.reset()  # otherwise the second run, with other shapes, would be compiled for all shapes
    # Large enough for minimal filtering, or small enough for an interpreter.
    batch, channels, side = (8, 32, 13) if implementation == "native" else (2, 2, 7)
    x = laid_out(random_tensor((batch, 2 * channels, side, side), 0, torch.float32), "channels_last")
    weight = random_tensor((2 * channels, channels, 3, 3), 1, torch.float32, 0.1)
    features = 2 * channels * (side // 2 - 1) ** 2
    bias, features_bias = (random_tensor((length,), 2, torch.float32) for length in (2 * channels, features))
    labels = torch.arange(batch, device=x.device)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias, features_bias)]

    def network(
        x: Tensor, weight: Tensor, bias: Tensor, features_bias: Tensor, seed: Tensor, updated: list[Tensor]
    ) -> tuple[Tensor, ...]:
        # The update rule, too, so that the compiler is needed once. It changes what it is given.
        parameter, gradient, velocity = ([tensor] for tensor in updated)
        kernels.sgd_update_(parameter, gradient, velocity, learning_rates=[0.1], weight_decays=[0.01])
        y = kernels.conv2d_relu(x * 2, weight, bias, 1, (0, 2, 1, 1), 2)
        y = kernels.lrn_max_pool2d(y, bias=bias, relu="after", groups=2)
        y = kernels.same_map_norm(kernels.local_response_norm(y, groups=2), 3)
        maps = kernels.max_pool2d(y, 2, 1)
        y = kernels.bias_relu_dropout(maps.flatten(1), features_bias, 0.3, seed=seed)
        logits = kernels.dropout(y, seed=seed, first_row=2) + 1
        loss, counts = kernels.cross_entropy(logits, labels, scale=0.25)
        return loss, counts, maps, logits

    seed = torch.tensor(2**62 + 1, device=x.device)
    updated, updated_eagerly = ([random_tensor((33,), number, torch.float32) for number in range(3)] for _ in range(2))
    with kernels.using(implementation):
        wanted = network(*leaves, seed, updated_eagerly)
        found = torch.compile(network, fullgraph=True)(*leaves, seed, updated)
        expected, gradients = (torch.autograd.grad(results[0], leaves) for results in (wanted, found))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients, expected)
    torch.testing.assert_close(updated, updated_eagerly)
    assert not torch.equal(updated[0], random_tensor((33,), 0, torch.float32))
    assert [tensor.stride() for tensor in found] == [tensor.stride() for tensor in wanted]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_compiled_graph_takes_any_seed(implementation: str) -> None:
    x, bias = random_tensor((3, 20), 0, torch.float32), random_tensor((20,), 1, torch.float32)

    def function(x: Tensor, bias: Tensor, seed: int) -> Tensor:
        return kernels.dropout(kernels.bias_relu_dropout(x, bias, 0.3, seed=seed), seed=seed, first_row=2)

    with kernels.using(implementation):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for seed in (1, 2**62 + 1):
            torch.testing.assert_close(compiled(x, bias, seed), function(x, bias, seed))
