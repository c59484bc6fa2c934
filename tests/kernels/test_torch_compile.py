"""All operators under `torch.compile(fullgraph=True)` and `torch.export`, also with shapes and numbers that vary."""

from __future__ import annotations

from collections.abc import Callable

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
        y = kernels.conv2d_relu(x * 2, weight, bias, 1, (0, 2, 1, 1), groups=2)
        y = kernels.lrn_max_pool2d(y, bias=bias, relu="after", groups=2)
        y = kernels.same_map_norm(kernels.local_response_norm(y, 5, groups=2), 3)
        maps = kernels.max_pool2d(y, 2, 1) + kernels.same_map_norm_max_pool2d(y, 3, kernel_size=2, stride=1)
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


def _maps(*shape: int) -> Tensor:
    return laid_out(random_tensor(shape, sum(shape), torch.float32), "channels_last")


def _rows(*shape: int) -> Tensor:
    return random_tensor(shape, sum(shape), torch.float32)


def _mean_loss(x: Tensor) -> Tensor:
    return kernels.cross_entropy(x, torch.arange(x.shape[0], device=x.device) % 3, scale=1 / x.shape[0])[0]


# Each operator as a function of x and a number, with arguments that differ in shape or in the number.
VARIED: dict[str, tuple[Callable[..., Tensor], list[tuple[Tensor, float]]]] = {
    "local_response_norm": (
        lambda x, number: kernels.local_response_norm(x, 5, number),
        [(_maps(2, 4, 3, 3), 0.3), (_maps(3, 4, 2, 4), 0.2)],
    ),
    "same_map_norm": (
        lambda x, number: kernels.same_map_norm(x, 3, number),
        [(_maps(2, 4, 3, 3), 0.3), (_maps(3, 4, 2, 4), 0.2)],
    ),
    "max_pool2d": (lambda x, number: kernels.max_pool2d(x, 3, 2), [(_maps(2, 4, 5, 5), 0.0), (_maps(3, 4, 3, 7), 0.0)]),
    "lrn_max_pool2d": (
        lambda x, number: kernels.lrn_max_pool2d(x, 5, number, bias=x[0, :, 0, 0], relu="before"),
        [(_maps(2, 4, 5, 5), 0.3), (_maps(3, 4, 3, 7), 0.2)],
    ),
    "same_map_norm_max_pool2d": (
        lambda x, number: kernels.same_map_norm_max_pool2d(x, 3, number),
        [(_maps(2, 4, 5, 5), 0.3), (_maps(3, 4, 3, 7), 0.2)],
    ),
    "dropout": (lambda x, number: kernels.dropout(x, number, seed=1), [(_rows(2, 8), 0.5), (_rows(3, 12), 0.3)]),
    "bias_relu_dropout": (
        lambda x, number: kernels.bias_relu_dropout(x, x[0], number, seed=1),
        [(_rows(2, 8), 0.5), (_rows(3, 12), 0.3)],
    ),
    "cross_entropy": (lambda x, number: _mean_loss(x), [(_rows(8, 5), 0.0), (_rows(6, 7), 0.0)]),
    "conv2d_relu": (
        lambda x, number: kernels.conv2d_relu(x, x[:2, :, :3, :3].contiguous(), x[0, :2, 0, 0], 2, 1),
        [(_maps(2, 4, 5, 5), 0.0), (_maps(3, 4, 6, 4), 0.0)],
    ),
}


def _compare(compiled: Callable[..., Tensor], operator: Callable[..., Tensor], x: Tensor, number: float) -> None:
    """The compiled operator computes what the operator does, forward and backward."""
    results = []
    for function in (operator, compiled):
        leaf = x.detach().clone().requires_grad_()
        y = function(leaf, number)
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        results.append((y, gradient))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("name", VARIED)
@pytest.mark.usefixtures("without_tf32")
def test_compiles_for_shapes_and_numbers_that_vary(name: str, implementation: str) -> None:
    torch.compiler.reset()
    operator, arguments = VARIED[name]
    with kernels.using(implementation):
        compiled = torch.compile(operator, fullgraph=True, dynamic=True, backend="aot_eager")
        for x, number in arguments:
            _compare(compiled, operator, x, number)


@pytest.mark.parametrize("name", ["local_response_norm", "dropout", "cross_entropy"])
def test_a_second_shape_or_number_compiles_without_being_told(name: str) -> None:
    torch.compiler.reset()
    operator, arguments = VARIED[name]
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    for x, number in arguments:
        _compare(compiled, operator, x, number)


def test_minimal_filtering_compiles_for_another_image_size() -> None:
    torch.compiler.reset()
    weight = laid_out(random_tensor((32, 32, 3, 3), 1, torch.float32, 0.1), "channels_last")

    def operator(x: Tensor, number: float) -> Tensor:
        return kernels.conv2d_relu(x, weight, None, 1, 1)

    with kernels.using("native"):
        compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
        for x in (_maps(8, 32, 13, 13), _maps(9, 32, 12, 15)):
            _compare(compiled, operator, x, 0.0)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_all_operators_export_with_a_batch_left_open(implementation: str) -> None:
    """In one program. Under the reference it consists of PyTorch's own operators alone."""

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
            y = kernels.conv2d_relu(x, weight, bias, 1, 1)
            y = kernels.lrn_max_pool2d(y, bias=bias, relu="before")
            y = kernels.same_map_norm(kernels.local_response_norm(y, 5), 3)
            y = (kernels.max_pool2d(y, 2, 1) + kernels.same_map_norm_max_pool2d(y, kernel_size=2, stride=1)).flatten(1)
            y = kernels.dropout(kernels.bias_relu_dropout(y, y.new_ones(y.shape[1]), seed=1), seed=2)
            return kernels.cross_entropy(y, torch.zeros(y.shape[0], dtype=torch.int64, device=y.device), scale=0.5)

    # Enough channels for minimal filtering.
    channels, side = (32, 13) if implementation == "native" else (4, 7)
    weight, bias = random_tensor((channels, channels, 3, 3), 1, torch.float32, 0.1), random_tensor((channels,), 2)
    operands = (weight, bias.float())
    with kernels.using(implementation):
        program = torch.export.export(
            Network(),
            (_maps(8, channels, side, side), *operands),
            dynamic_shapes=({0: torch.export.Dim("n", max=256)}, None, None),
        )
        assert ("fastalex" in str(program.graph)) == (implementation != "reference")
        x = _maps(3, channels, side, side)
        torch.testing.assert_close(program.module()(x, *operands), Network()(x, *operands))
