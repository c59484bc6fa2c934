"""Hookable networks: what tools that work with hooks, with torch.fx and with modules' names find in them."""

import copy
import pickle
from dataclasses import replace
from functools import reduce

import pytest
import torch
from torch import nn

import kernels
from fastalex import AlexNet
from fastalex.network.architecture import LinearBlock
from fastalex.network.blocks import Linear
from fastalex.network.variation import Variation, build_architecture
from tests.fastalex.network.inputs import images, randomise

SIZE = 64  # becomes 15, 7, 3 and 1 pixels, as 224 become 55, 27, 13 and 6
NETWORKS = [
    ("krizhevsky", {}),
    ("paper", {"activation": "tanh"}),
    ("owt", {"dropout": 0.3}),
    ("separate", {"conv6": True}),  # fully connected layers in groups
    ("krizhevsky", {"without": ("conv2",), "lrn": False, "bottleneck": 8, "dropout": 0.0}),
]


def network(name: str, hookable: bool = False, **variation) -> AlexNet:
    """A narrow network for small images."""
    architecture = build_architecture(name, 4, Variation(width=1 / 16, **variation))
    if name != "four-layer":
        architecture = replace(architecture, image_size=SIZE)
    model = AlexNet(architecture, seed=0, hookable=hookable)
    randomise(model)
    return model


def hook_all(model: AlexNet) -> dict[str, list[torch.Tensor]]:
    """What forward hooks on all modules but the network itself see, by name."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_modules() if name}
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda module, inputs, output, name=name: seen[name].append(output))
    return seen


def step_of(model: AlexNet, name: str) -> nn.Module:
    """A module found as Brain-Score finds it."""
    return reduce(lambda module, part: module._modules[part], name.split("."), model)


@pytest.mark.parametrize(("name", "variation"), NETWORKS)
def test_hooks_see_the_activations(name, variation):
    model = network(name, **variation).eval()
    x = images(2, SIZE)
    hookable = model.hookable()
    seen = hook_all(hookable)
    with torch.no_grad():
        expected = model.activations(x, seen)  # refuses names that are no activations
        logits = hookable(x)
    # One by one and fused, the same operators round differently.
    torch.testing.assert_close(logits, model(x), rtol=1e-5, atol=1e-5)
    assert {name: len(outputs) for name, outputs in seen.items()} == dict.fromkeys(expected, 1)
    for step, value in expected.items():
        torch.testing.assert_close(seen[step][0], value, rtol=1e-6, atol=1e-6, msg=lambda text, step=step: step + text)


def test_the_steps_have_the_names_and_the_order_of_the_network():
    names = [name for name, _ in network("krizhevsky", hookable=True).named_modules() if name]
    after_conv1 = ["conv", "norm", "pool", "activation"]
    after_conv2 = ["conv", "activation", "norm", "same_map_norm", "pool"]
    expected = [
        "conv1",
        *(f"conv1.{step}" for step in after_conv1),
        "conv2",
        *(f"conv2.{step}" for step in after_conv2),
    ]
    assert names[: len(expected)] == expected
    assert names[-6:] == ["fc7", "fc7.linear", "fc7.activation", "fc7.dropout", "fc8", "fc8.linear"]
    before = [name for name, _ in network("owt", hookable=True).fc6.named_children()]
    assert before == ["dropout", "linear", "activation"]
    two = [name for name, _ in network("krizhevsky", hookable=True, without=("conv2",)).conv1.named_children()]
    assert two == ["conv", "norm", "pool", "activation", "pool2"]
    for name in ("krizhevsky", "owt"):
        without = network(name, hookable=True, dropout=0.0)
        assert list(without.fc6._modules) == ["linear", "activation"]


def test_activations_of_a_hookable_network_call_its_hooks():
    model = network("four-layer", hookable=True).eval()
    x, seen = images(2, 32), hook_all(model)
    step_of(model, "conv2.pool").register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    found = model.activations(x, ["conv2.activation", "conv2.pool", "conv2", "conv3.conv", "fc4"])
    assert {len(outputs) for outputs in seen.values()} == {1}
    assert found["conv2.activation"].any()
    assert not found["conv2.pool"].any()
    assert not found["conv2"].any()
    assert torch.equal(model(x), found["fc4"])


@pytest.mark.parametrize(("name", "variation"), [*NETWORKS, ("caffe", {})])
def test_training_draws_the_same_masks_and_gives_the_same_gradients(name, variation):
    model = network(name, **variation).train()
    x = images(4, SIZE)
    results = []
    for each in (model, model.hookable()):
        logits = torch.cat([each(x[:2], seed=3), each(x[2:], seed=3, first_row=2)])
        results.append((logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    for one, other in zip(*results, strict=True):
        # fp32 through eight layers, forward and backward, where sums cancel.
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * one.abs().max().item())


def test_without_a_seed_torchs_generator_draws_the_masks():
    model = network("krizhevsky").train()
    torch.manual_seed(5)
    fused = model(images(2, SIZE))
    torch.manual_seed(5)
    torch.testing.assert_close(model.hookable()(images(2, SIZE)), fused, rtol=1e-5, atol=1e-5)


def test_a_hookable_stage_defers_its_gradients():
    model = network("krizhevsky", lrn=False).train()
    x, results = images(2, SIZE), []
    for each in (model, model.hookable()):
        stage = each.stage(model.architecture.block_names)
        stage.configure_deferral(None, convolutions=True)
        stage.begin_step()
        for row in range(2):
            stage(x[row : row + 1], seed=3, first_row=row).square().sum().backward()
        assert stage.has_deferred
        stage.finish_gradients()
        results.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * one.abs().max().item())


def test_a_twin_has_the_same_parameters_mode_and_precision():
    model = network("krizhevsky")
    model.set_precision("bf16")
    model.eval()
    model.fc7.train()
    model.conv1.weight.requires_grad_(False)
    twin = model.hookable()
    named = dict(twin.named_parameters())
    assert list(named) == list(dict(model.named_parameters()))
    assert all(named[name] is parameter for name, parameter in model.named_parameters())
    assert twin.compute_dtype == torch.bfloat16
    assert (twin.training, twin.fc6.training, twin.fc6.dropout.training) == (False, False, False)
    assert (twin.fc7.training, twin.fc7.dropout.training) == (True, True)
    model.load_state_dict(AlexNet(model.architecture, seed=9).state_dict())
    x = images(2, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=0.02, atol=1e-3)  # bf16 has eight bits


def test_weights_load_both_ways():
    plain = network("krizhevsky")
    hookable = AlexNet(plain.architecture, seed=9, hookable=True)
    assert list(plain.state_dict()) == list(hookable.state_dict())
    hookable.load_state_dict(plain.state_dict())
    assert torch.equal(hookable.fc6.weight, plain.fc6.weight)
    other = AlexNet(plain.architecture, seed=9)
    other.load_state_dict(hookable.state_dict())
    assert torch.equal(other.conv2.weight, plain.conv2.weight)


def test_copies_conversions_and_compiled_networks_are_hookable():
    model = network("four-layer", hookable=True).eval()
    x = images(2, 32)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double()):
        assert other.conv1.weight is not model.conv1.weight
        seen = hook_all(other)
        torch.testing.assert_close(other(x).float(), expected, rtol=1e-4, atol=1e-4)  # fp64 rounds otherwise
        assert seen["conv1.pool"][0].dtype == other.conv1.weight.dtype
    seen = hook_all(model)  # before compiling: compiled code does not look for hooks that come later
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    torch.testing.assert_close(seen["fc4.linear"][0], expected)


@pytest.mark.parametrize("kind", ["reference", "native"])
@pytest.mark.parametrize(("name", "variation"), NETWORKS)
def test_torch_fx_records_every_step_as_a_node_of_its_name(name, variation, kind):
    model = network(name, hookable=True, **variation).eval()
    x = images(1, SIZE)
    with kernels.using(kind), torch.no_grad():
        traced = torch.fx.symbolic_trace(model)
        calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
        assert calls == [name for name, module in model.named_modules() if "." in name]
        assert {node.name for node in traced.graph.nodes} >= {target.replace(".", "_") for target in calls}
        assert torch.equal(traced(x), model(x))
    assert list(traced.state_dict()) == list(model.state_dict())


def cut(model: nn.Module, *targets: str) -> torch.fx.GraphModule:
    """The part of a network that computes these steps, as torchvision's create_feature_extractor cuts it out."""
    tracer = torch.fx.Tracer()
    graph = tracer.trace(model)
    nodes = {node.target: node for node in graph.nodes if node.op == "call_module"}
    (output,) = (node for node in graph.nodes if node.op == "output")
    graph.erase_node(output)
    graph.output({target: nodes[target] for target in targets})
    whole = torch.fx.GraphModule(model, graph)
    whole.graph.eliminate_dead_code()
    return torch.fx.GraphModule(whole, whole.graph)  # which has the parameters that the rest of the graph names


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_can_be_cut_at_any_step(precision):
    model = network("krizhevsky", hookable=True).eval()
    model.set_precision(precision)
    x = images(2, SIZE)
    expected = model.activations(x, ["conv1.norm", "conv3.conv"])
    part = cut(model, *expected)
    found = part(x)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    # The parameters come along, so the part can move to another device or dtype. No others do.
    blocks = {name.split(".")[0] for name, _ in part.named_parameters()}
    assert blocks == {"conv1", "conv2", "conv3"}
    assert sum(parameter.numel() for parameter in part.parameters()) == sum(
        parameter.numel() for block in list(model.blocks())[:3] for parameter in block.parameters()
    )


def test_a_graph_checks_images_and_trains():
    model = network("owt", hookable=True).train()
    traced = torch.fx.symbolic_trace(model)
    x = images(2, SIZE)
    assert torch.equal(traced(x, seed=3, first_row=1), model(x, seed=3, first_row=1))
    assert not torch.equal(traced(x), traced(x))  # draws a seed in each call
    with pytest.raises(ValueError, match=r"owt takes floating-point images .* got shape \(2, 3, 9, 9\)"):
        traced(x[..., :9, :9])


@pytest.mark.parametrize("training", [True, False])
def test_a_block_becomes_hookable_in_its_mode(training):
    spec = LinearBlock("fc6", 64, activation=False, dropout="after")
    block = Linear(spec, 8, build_architecture("krizhevsky"), seed=0).train(training)
    x = images(4, 8)[:, 0, 0]
    fused = block(x, seed=1)
    block.make_hookable()
    assert (fused == 0).any() == training
    torch.testing.assert_close(block(x, seed=1), fused)


def test_a_step_that_is_no_module_names_what_has_it():
    model = AlexNet("krizhevsky", num_classes=10, width=0.0625)
    message = r"conv2.norm is not a module: .*; model.hookable\(\).conv2.norm is one, .*\['conv2.norm'\]\) returns its"
    with pytest.raises(AttributeError, match=message):
        _ = model.conv2.norm
    with pytest.raises(AttributeError, match="has no attribute 'nrom'"):
        _ = model.conv2.nrom
    assert not hasattr(model.fc6, "linear")
    assert model.hookable().conv2.norm is not None
