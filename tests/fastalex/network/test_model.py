"""The whole network: its implementations, stages and activations. ``test_independent.py`` compares it with another."""

import re
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import kernels
from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.network.model import Stage
from fastalex.network.precision import COMPUTE_DTYPES
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import Variation, build_architecture
from tests.fastalex.network.inputs import images, randomise

SPREAD_IMAGES = 16


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "variation",
    [{}, {"overlapping": False}, {"lrn": False, "activation": "tanh"}, {"conv6": True}],
)
def test_every_network_runs_forward_and_backward(name, variation):
    model = AlexNet(name, 6, seed=0, width=0.0625, **variation)
    x = images(2, model.architecture.image_size)
    logits = model(x, seed=1)
    assert logits.shape == (2, 6)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", ["krizhevsky", "paper"])
def test_implementations_agree(name, monkeypatch):
    """Small images, for Triton's interpreter: 64 pixels become 15, 7, 3 and 1, as 224 become 55, 27, 13 and 6."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    architecture = replace(build_architecture(name, 4, Variation(width=1 / 32)), image_size=64)
    model = AlexNet(architecture, seed=0).to(device)
    randomise(model)
    x, results = images(2, 64).to(device), {}
    for kind in ("reference", "native", "triton"):
        with kernels.using(kind):
            logits = model(x, seed=1)
            gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results[kind] = {"logits": logits.detach()} | dict(zip(model.state_dict(), gradients, strict=True))
    for kind in ("native", "triton"):
        for what, expected in results["reference"].items():
            scale = expected.abs().max().item()
            assert scale > 0, what
            # fp32 through eight layers, forward and backward, where sums cancel.
            torch.testing.assert_close(results[kind][what], expected, rtol=0, atol=1e-4 * scale)


def test_state_dict_of_owt_has_torchvisions_shapes():
    shapes = [tuple(tensor.shape) for tensor in AlexNet("owt", seed=0).state_dict().values()]
    convs = [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)]
    linears = [(4096, 9216), (4096, 4096), (1000, 4096)]
    assert shapes == [shape for weight in convs + linears for shape in (weight, weight[:1])]


# Standard deviation of the logits across images before training. On 32 photographs it was 0.048 for the source's
# configuration and 0.0038 for the paper's text. These images have no objects, so the figures here are only of the same
# order; a wrong initialisation (inputs scaled to unit variance, sigma 0.01 everywhere) would be hundreds of times off.
@pytest.mark.parametrize(("name", "published"), [("krizhevsky", 0.048), ("paper", 0.0038)])
def test_signal_at_initialisation(name, published):
    model = AlexNet(name, 1000, seed=0).eval()
    with torch.no_grad():
        spread = model(images(SPREAD_IMAGES)).std(dim=0).mean().item()
    assert published / 4 < spread < published * 4


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = AlexNet("krizhevsky", 4, seed=8, width=0.0625)
    torch.manual_seed(2)
    second = AlexNet("krizhevsky", 4, seed=8, width=0.0625)
    other = AlexNet("krizhevsky", 4, seed=9, width=0.0625)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv3.weight, other.conv3.weight)


def test_stages_in_turn_are_the_network():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.0625)
    x = images(4)
    first: Stage = model.stage(["conv1", "conv2"])
    second: Stage = model.stage(["conv3", "conv4", "conv5", "fc6", "fc7", "fc8"])
    boundary = first(x, seed=3)
    assert boundary.shape == (4, 16, 13, 13)
    assert boundary.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(second(boundary, seed=3), model(x, seed=3))


def test_a_watched_stage_tells_every_activation_in_evaluation():
    model = AlexNet("four-layer", 4, seed=0, width=0.25)
    stage, watched = model.stage(["conv1", "conv2"]), {}
    stage.watch = watched.__setitem__
    x = images(2, 32)
    with torch.no_grad():
        stage(x, seed=1)
        assert not watched
        y = stage.eval()(x)
    assert list(watched) == [
        *("conv1.conv", "conv1.pool", "conv1.activation", "conv1"),
        *("conv2.conv", "conv2.activation", "conv2.pool", "conv2"),
    ]
    assert torch.equal(y, watched["conv2"])


@pytest.mark.parametrize(("name", "dtypes"), [("krizhevsky", ["bf16", "bf16"]), ("owt", ["fp32", "bf16"])])
def test_images_to_be_divided_stay_in_fp32(name, dtypes):
    model = AlexNet(name, 4, seed=0, width=1 / 16)
    model.set_precision("bf16")
    stages = model.stage(["conv1"]), model.stage(["conv2"])
    assert [stage.input_dtype for stage in stages] == [COMPUTE_DTYPES[dtype] for dtype in dtypes]


def test_activations_are_named_and_leave_the_mode_alone():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.0625).train()
    found = model.activations(images(2), ["fc7", "conv3", "conv1.conv", "conv2.same_map_norm"])
    assert list(found) == ["fc7", "conv3", "conv1.conv", "conv2.same_map_norm"]
    assert [tuple(tensor.shape[1:]) for tensor in found.values()] == [(256,), (24, 13, 13), (8, 55, 55), (16, 27, 27)]
    assert model.training
    with pytest.raises(ConfigurationError, match=r"named conv9; did you mean conv.* Choose from conv1\.conv"):
        model.activations(images(1), ["conv9"])


def test_hooks_on_blocks_see_activations_once_and_replace_them():
    model = AlexNet("four-layer", 4, seed=0, width=0.25).eval()
    x, seen = images(2, 32), []
    plain = model.activations(x, ["conv2", "conv3.conv", "fc4"])
    model.conv2.register_forward_hook(lambda block, inputs, output: seen.append(output))
    assert torch.equal(model.activations(x, "fc4")["fc4"], plain["fc4"])
    assert len(seen) == 1
    assert torch.equal(seen[0], plain["conv2"])
    model.conv2.register_forward_hook(lambda block, inputs, output: torch.zeros_like(output))
    found = model.activations(x, ["conv2", "conv3.conv", "fc4"])
    assert not found["conv2"].any()
    assert torch.equal(found["conv3.conv"], model.conv3.bias.view(1, -1, 1, 1).expand_as(found["conv3.conv"]))
    torch.testing.assert_close(model(x), found["fc4"])
    model.conv1.register_forward_pre_hook(lambda block, inputs: (torch.full_like(inputs[0], 9.0), *inputs[1:]))
    expected = model.activations(torch.full_like(x, 9.0), "conv1")["conv1"]
    assert torch.equal(model.activations(x, "conv1")["conv1"], expected)


def test_a_single_name_is_one_activation():
    model = AlexNet("four-layer", 4, seed=0)
    assert list(model.activations(images(1, 32), "conv3.conv")) == ["conv3.conv"]
    with pytest.raises(ConfigurationError, match=r"named conv9; did you mean conv.* Choose from conv1\.conv"):
        model.activations(images(1, 32), "conv9")


def test_an_unknown_precision_is_named():
    with pytest.raises(ConfigurationError, match="unknown precision 'fp8'; choose from fp32, "):
        AlexNet("krizhevsky", 4, width=0.0625).set_precision("fp8")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.zeros(2, 3, 35, 35), r"got shape \(2, 3, 35, 35\)"),
        (torch.zeros(2, 1, 32, 32), r"got shape \(2, 1, 32, 32\)"),
        (torch.zeros(2, 32, 32, 3), r"got shape \(2, 32, 32, 3\)"),
        (torch.zeros(3, 32, 32), r"got shape \(3, 32, 32\)"),
        *(
            (torch.zeros(2, 3, 32, 32).to(dtype), rf"got {dtype}; subtract the mean image from images\.float\(\)")
            for dtype in (torch.uint8, torch.int64, torch.bool, torch.complex64)
        ),
        (torch.zeros(2, 3, 32, 32).to_sparse(), r"got layout torch\.sparse_coo; call to_dense\(\) first"),
        ([[0.0]], "got a list"),
    ],
)
def test_wrong_images_are_refused(given, found):
    model = AlexNet("four-layer", 4, seed=0)
    wanted = "four-layer takes floating-point images of shape N x 3 x 32 x 32, RGB 0-255 minus the mean; "
    for take in (model, model.stage(["conv1"]), lambda x: model.activations(x, ["conv1"])):
        with pytest.raises(ConfigurationError, match=wanted + found):
            take(given)


SCALED = {"0-1": torch.rand(2, 3, 32, 32), "unit variance": torch.randn(2, 3, 32, 32).clamp(-2.1, 2.6)}


@pytest.mark.parametrize("scaled", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("take", [AlexNet.__call__, lambda model, x: model.activations(x, "conv1")])
def test_images_that_look_scaled_are_warned_of_once(take, scaled, recwarn):
    model = AlexNet("four-layer", 4, seed=0, width=0.125).eval()
    range_ = rf"the images range from {scaled.min():.3g} to {scaled.max():.3g}, "
    take(model, torch.zeros(2, 3, 32, 32))  # which shows nothing
    take(model, scaled)
    take(model, scaled)
    (warning,) = recwarn
    assert re.match(range_ + ".* four-layer takes RGB 0-255 minus the mean: multiply by 255", str(warning.message))
    assert warning.filename == __file__


def test_other_images_are_not_warned_of(recwarn):
    x, scaled = images(2, 32), SCALED["0-1"]
    for given in (x, x.double(), x / x.abs().max() * 4.1, x[:0], torch.full_like(x, torch.nan)):
        AlexNet("four-layer", 4, seed=0, width=0.125).eval()(given)
    AlexNet("four-layer", 4, seed=0, width=0.125).train()(scaled, seed=1)
    once_right = AlexNet("four-layer", 4, seed=0, width=0.125).eval()
    once_right(x)
    once_right(scaled)
    assert not recwarn.list


def test_images_without_values_are_not_looked_at(recwarn):
    model = AlexNet("four-layer", 4, seed=0, width=0.125).eval()
    scaled = SCALED["0-1"]
    with kernels.using("reference"):
        make_fx(model)(scaled)
        traced = torch.jit.trace(model, scaled, check_trace=False)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(scaled))
    torch.compile(model, fullgraph=True, backend="aot_eager")(scaled)
    AlexNet("four-layer", 4, seed=0, width=0.125).to("meta").eval().activations(scaled.to("meta"), "fc4")
    assert traced(scaled).shape == (2, 4)
    assert not [warning for warning in recwarn if "the images range" in str(warning.message)]


def test_a_network_prints_one_line_a_block():
    with torch.device("meta"):
        lines = str(AlexNet("krizhevsky", 1000, seed=0)).splitlines()
        dropout_before = str(AlexNet("owt", 1000, seed=0))
    assert len(lines) == 8 + 3
    assert max(map(len, lines)) <= 120
    assert lines[1] == "  krizhevsky: images 3 x 224 x 224, 60,965,224 parameters"
    assert lines[2] == (
        "  (conv1): Convolution(3 -> 96, 11x11, stride 4, padding (0, 3, 0, 3); 2-tower norm, pool 3/2, relu "
        "-> 96x27x27)"
    )
    assert lines[3] == (
        "  (conv2): Convolution(96 -> 256, 5x5, padding 2, groups 2; relu, 2-tower norm, same-map norm, pool 3/2 "
        "-> 256x13x13)"
    )
    assert "  (fc6): Linear(9216 -> 4096; relu, dropout 0.5)" in lines
    assert "  (fc8): Linear(4096 -> 1000)" in lines
    assert "  (fc6): Linear(dropout 0.5; 9216 -> 4096; relu)" in dropout_before


def test_the_whole_network_compiles_into_one_graph():
    """The checks of the images, too, which look at nothing that is known at run time only."""
    model = AlexNet("four-layer", 4, seed=0, width=0.125).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(2, 32)), model(images(2, 32)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "widht",
            r"no option 'widht'; did you mean 'width'\? Choose from num_classes, seed, hookable, width, lrn, .*, init$",
        ),
        ("num_class", r"no option 'num_class'; did you mean 'num_classes'\? Choose from"),
        ("qqqq", r"no option 'qqqq'; choose from num_classes, seed, hookable, width"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(option, message):
    with pytest.raises(TypeError, match=message):
        AlexNet("krizhevsky", **{option: 0.5})


def test_options_do_not_go_with_an_architecture():
    with pytest.raises(TypeError, match="width cannot be combined with an Architecture"):
        AlexNet(build_architecture("four-layer"), width=0.5)
