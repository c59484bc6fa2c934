"""The update rule of 2012, step by step."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import Change, Plateau, Recipe


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"conv1": nn.Linear(5, 4), "fc8": nn.Linear(4, 3)})


def recipe(**values) -> Recipe:
    return Recipe(**{"name": "test", "epochs": 10, "batch_size": 1, "lr": 0.1, "weight_decay": 0.05, **values})


def test_velocity_holds_the_learning_rate_and_biases_do_not_decay():
    module = network()
    schedule = recipe(changes=(Change(3, 0.1),))
    optimizer = KrizhevskySGD(module, schedule)
    weights = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    velocities = {name: torch.zeros_like(w) for name, w in weights.items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        optimizer.set_epoch(step + 1)
        for name, parameter in module.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            bias = name.endswith("bias")
            rate = (0.1 if step < 2 else 0.01) * (2 if bias else 1)
            decay = 0.0 if bias else 0.05
            g = parameter.grad.double()
            velocities[name] = 0.9 * velocities[name] - decay * rate * weights[name] - rate * g
            weights[name] = weights[name] + velocities[name]
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), weights[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.velocity(parameter).double(), velocities[name], rtol=1e-5, atol=1e-6)


def test_equals_pytorchs_sgd_until_the_rate_changes():
    ours, theirs = network(), network()
    optimizer = KrizhevskySGD(ours, recipe(bias_lr_multiplier=1.0, weight_decay=0.0))
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for step in range(8):
        if step == 5:
            optimizer.recipe = recipe(bias_lr_multiplier=1.0, weight_decay=0.0, lr=0.01)
            optimizer.set_epoch(1)
            reference.param_groups[0]["lr"] = 0.01
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        optimizer.step()
        reference.step()
        same = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert same == (step < 5)


def updates(optimizer: KrizhevskySGD, module: nn.Module, schedule: list[tuple[int, float]]) -> None:
    """A step for each epoch and warm-up factor, with gradients of ones."""
    for epoch, warmup in schedule:
        optimizer.set_epoch(epoch)
        optimizer.set_warmup(warmup)
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


DROPS = {"bias_lr_multiplier": 1.0, "decay_biases": True, "rescale_velocity": True}
SCHEDULE = [(1, 0.5), (1, 0.75), (1, 1.0), (2, 1.0), (2, 1.0), (3, 1.0), (3, 1.0)]


def test_a_rescaled_velocity_makes_pytorchs_updates_whenever_the_rate_changes():
    ours, theirs = network(), network()
    changes = (Change(2, 0.1), Change(3, 0.3))
    updates(KrizhevskySGD(ours, recipe(changes=changes, **DROPS)), ours, SCHEDULE)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)
    for epoch, warmup in SCHEDULE:
        reference.param_groups[0]["lr"] = 0.1 * {1: 1.0, 2: 0.1, 3: 0.3}[epoch] * warmup
        for parameter in theirs.parameters():
            parameter.grad = torch.ones_like(parameter)
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_frozen_velocity_goes_on_at_the_rate_after_the_freeze():
    module = network()
    changes = (Change(2, 0.0, layers=("conv1",)), Change(3, 0.1, layers=("conv1",)))
    optimizer = KrizhevskySGD(module, recipe(changes=changes, **DROPS))
    updates(optimizer, module, [(1, 1.0)])
    weight = module["conv1"].weight
    before = optimizer.velocity(weight).clone()
    updates(optimizer, module, [(2, 1.0)])
    assert torch.equal(optimizer.velocity(weight), before)
    decay = 0.05 * weight.detach()
    updates(optimizer, module, [(3, 1.0)])
    torch.testing.assert_close(optimizer.velocity(weight), 0.9 * 0.1 * before - 0.01 * (1 + decay), rtol=1e-5, atol=0)


@pytest.mark.parametrize("stop", range(1, len(SCHEDULE)))
def test_a_resumed_optimizer_rescales_as_if_it_had_gone_on(stop):
    schedule = recipe(changes=(Change(2, 0.1), Change(3, 0.3)), **DROPS)
    straight, stopped = network(), network()
    one, two = KrizhevskySGD(straight, schedule), KrizhevskySGD(stopped, schedule)
    updates(one, straight, SCHEDULE)
    updates(two, stopped, SCHEDULE[:stop])
    resumed = KrizhevskySGD(stopped, schedule)
    for parameter in stopped.parameters():
        resumed.velocity(parameter).copy_(two.velocity(parameter))
    resumed.velocity_rates = dict(two.velocity_rates)
    updates(resumed, stopped, SCHEDULE[stop:])
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), stopped.parameters(), strict=True))


def test_rate_zero_freezes_weight_and_velocity():
    module = network()
    optimizer = KrizhevskySGD(module, recipe(changes=(Change(2, 0.0, layers=("conv1",)),)))
    for epoch in range(1, 4):
        optimizer.set_epoch(epoch)
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        velocity = optimizer.velocity(module["conv1"].weight).clone()
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        frozen = torch.equal(module["conv1"].weight, before["conv1.weight"])
        assert frozen == (epoch >= 2)
        assert torch.equal(module["conv1"].bias, before["conv1.bias"]) == (epoch >= 2)
        assert torch.equal(optimizer.velocity(module["conv1"].weight), velocity) == (epoch >= 2)
        assert not torch.equal(module["fc8"].weight, before["fc8.weight"])


def test_plateau_divides_all_rates():
    optimizer = KrizhevskySGD(network(), recipe(plateau=Plateau(factor=0.1)))
    optimizer.set_epoch(3, divisions=2)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"conv1.weight": 1e-3, "conv1.bias": 2e-3, "fc8.weight": 1e-3, "fc8.bias": 2e-3})


def test_copies_follow_the_weights_that_have_gradients():
    module = network()
    first, *_, last = module.parameters()
    copies = {parameter: parameter.detach().bfloat16() for parameter in module.parameters() if parameter is not last}
    optimizer = KrizhevskySGD(module, recipe(), copies)
    before = copies[first].clone()
    for missing in (first, None):
        for parameter in module.parameters():
            parameter.grad = None if parameter is missing else torch.ones_like(parameter)
        optimizer.step()
        assert all(torch.equal(copy, parameter.detach().bfloat16()) for parameter, copy in copies.items())
        assert torch.equal(copies[first], before) == (missing is first)


def test_a_disabled_update_changes_nothing():
    module = network()
    optimizer = KrizhevskySGD(module, recipe())
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for enabled in (0.0, 1.0):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(enabled=torch.tensor(enabled, dtype=torch.float64))
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter, before[name]) == (not enabled)
            assert bool(optimizer.velocity(parameter).any()) == bool(enabled)


def test_a_warm_up_factor_replaces_the_one_before_and_survives_the_next_epoch():
    module = network()
    optimizer = KrizhevskySGD(module, recipe(changes=(Change(1, 0.1),)))
    for epoch, factor, expected in ((0, 0.5, 0.05), (0, 0.25, 0.025), (1, 0.25, 0.0025), (1, 1.0, 0.01)):
        optimizer.set_epoch(epoch)
        optimizer.set_warmup(factor)
        assert optimizer.rates.tolist() == pytest.approx([expected, 2 * expected] * 2)


@pytest.mark.parametrize("lars", [None, 0.5])
@pytest.mark.parametrize("missing", [(), ("conv1.weight",), ("conv1.bias", "fc8.weight")])
def test_every_parameter_with_a_gradient_gets_its_own_update(lars, missing):
    """Velocities are compared: an update is small beside its weight."""
    module = network()
    schedule = recipe(lars=lars, weight_decay=2.0, changes=(Change(0, 0.1, layers=("conv1",), parameters="weights"),))
    optimizer = KrizhevskySGD(module, schedule)
    optimizer.set_warmup(0.5)
    generator = torch.Generator().manual_seed(1)
    expected = {}
    for name, parameter in module.named_parameters():
        w, g = parameter.detach().double(), torch.randn(parameter.shape, generator=generator)
        rate, decay = {"conv1.weight": (0.005, 2.0), "fc8.weight": (0.05, 2.0)}.get(name, (0.1, 0.0))
        if lars is not None and name.endswith("weight"):
            rate *= lars * w.norm() / (g.double().norm() + decay * w.norm())
        expected[name] = -rate * (decay * w + g.double())
        if name in missing:
            expected[name].zero_()
        else:
            parameter.grad = g
    optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(optimizer.velocity(parameter).double(), expected[name], rtol=1e-5, atol=1e-8)


def test_layer_wise_rates_leave_what_has_no_ratio_to_the_plain_rule():
    """A gradient of zeros, and weights of zeros, which a ratio of zero would never let go."""
    module = network()
    optimizer = KrizhevskySGD(module, recipe(lars=0.001))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    module["conv1"].weight.grad.zero_()
    with torch.no_grad():
        module["fc8"].weight.zero_()
    decayed = -0.1 * 0.05 * module["conv1"].weight.detach()
    optimizer.step()
    torch.testing.assert_close(optimizer.velocity(module["conv1"].weight), decayed)
    torch.testing.assert_close(module["fc8"].weight.detach(), torch.full((3, 4), -0.3))


class _NoCopies(TorchDispatchMode):
    """Refuses what a CUDA graph cannot record: tensors made of the host's numbers, and indices from there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in ("lift_fresh", "aten.index")), func
        return func(*args, **(kwargs or {}))


def test_layer_wise_rates_can_be_captured_in_a_cuda_graph():
    module = network()
    optimizer = KrizhevskySGD(module, recipe(lars=0.001))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with _NoCopies():
        optimizer.step()
