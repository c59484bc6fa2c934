"""The network as a whole against plain PyTorch, and what initialisation, dropout and precision must be."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import kernels
from fastalex import AlexNet
from fastalex.errors import ConfigurationError
from fastalex.network.deferred_gradients import KeptFactors
from fastalex.network.model import Stage
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import Variation, build_architecture
from kernels.native import winograd

SPREAD_IMAGES = 16


def images(count: int, size: int = 224, scale: float = 60.0) -> torch.Tensor:
    """Smooth random images about zero, as photographs minus their mean are: grey levels, mostly of low frequency."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, 3, 9, 9, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return scale * (smooth + 0.3 * fine)


def plain_krizhevsky(model: AlexNet, x: torch.Tensor) -> torch.Tensor:
    """Configuration 145 written out with PyTorch's own functions, one line per line of its layer definition."""
    p = {name: parameter.double() for name, parameter in model.named_parameters()}

    def per_tower_norm(x):
        return torch.cat([F.local_response_norm(half, 5, alpha=1e-4, beta=0.75, k=2.0) for half in x.chunk(2, 1)], 1)

    def same_map_norm(x):
        sums = F.conv2d((x * x).flatten(0, 1)[:, None], torch.ones(1, 1, 5, 5, dtype=x.dtype), padding=2).view_as(x)
        return x / (1.0 + 0.001 / 25 * sums) ** 0.75

    x = F.pad(x.double(), (0, 3, 0, 3))
    x = F.conv2d(x, p["conv1.weight"], p["conv1.bias"], stride=4)
    x = F.relu(F.max_pool2d(per_tower_norm(x), 3, 2))
    x = F.relu(F.conv2d(x, p["conv2.weight"], p["conv2.bias"], padding=2, groups=2))
    x = F.max_pool2d(same_map_norm(per_tower_norm(x)), 3, 2)
    x = F.relu(F.conv2d(x, p["conv3.weight"], p["conv3.bias"], padding=1))
    x = F.relu(F.conv2d(x, p["conv4.weight"], p["conv4.bias"], padding=1, groups=2))
    x = F.conv2d(x, p["conv5.weight"], p["conv5.bias"], padding=1, groups=2)
    x = F.relu(F.max_pool2d(x, 3, 2)).flatten(1)
    x = 0.5 * F.relu(F.linear(x, p["fc6.weight"], p["fc6.bias"]))
    x = 0.5 * F.relu(F.linear(x, p["fc7.weight"], p["fc7.bias"]))
    return F.linear(x, p["fc8.weight"], p["fc8.bias"])


@torch.no_grad()
def randomise(model: AlexNet) -> None:
    """Weights of a size that keeps the signal up through all layers, so that norms, biases and ReLUs all matter."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5)


def test_krizhevsky_is_configuration_145():
    model = AlexNet("krizhevsky", 5, seed=0, width=0.25).eval()
    randomise(model)
    with torch.no_grad():
        x = images(3)
        expected = plain_krizhevsky(model, x)
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-4, atol=1e-4 * expected.std().item())


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


def test_initial_weights_and_biases():
    model = AlexNet("krizhevsky", 1000, seed=0)
    deviations = {"conv1": 0.01, "conv2": 0.01, "conv3": 0.03, "conv4": 0.03, "conv5": 0.03, "fc6": 0.01, "fc8": 0.01}
    for name, deviation in deviations.items():
        weight = model.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(deviation, rel=0.02), name
    biases = {name: model.get_submodule(name).bias.unique().tolist() for name in model.architecture.block_names}
    ones = ("conv2", "conv4", "conv5", "fc6", "fc7")
    assert biases == {name: [1.0 if name in ones else 0.0] for name in biases}


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = AlexNet("krizhevsky", 4, seed=8, width=0.0625)
    torch.manual_seed(2)
    second = AlexNet("krizhevsky", 4, seed=8, width=0.0625)
    other = AlexNet("krizhevsky", 4, seed=9, width=0.0625)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.conv3.weight, other.conv3.weight)


def test_no_two_blocks_draw_from_one_stream():
    model = AlexNet("krizhevsky", 4, seed=8, width=0.0625, conv6=True)
    for name in ("fc6", "conv5", "conv1"):
        own, other = model.conv6.weight.flatten()[:500], model.get_submodule(name).weight.flatten()[:500]
        assert torch.corrcoef(torch.stack([own, other]))[0, 1].abs() < 0.3, name


@pytest.mark.parametrize("name", ["krizhevsky", "caffe", "owt"])
def test_dropout_follows_row_and_seed_not_the_micro_batch(name):
    model = AlexNet(name, 4, seed=0, width=0.0625, lrn=False)
    x = images(6, model.architecture.image_size)
    with torch.no_grad():
        whole = model(x, seed=11)
        parts = torch.cat([model(x[row : row + 2], seed=11, first_row=row) for row in (0, 2, 4)])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model(x, seed=12), whole)
        assert not torch.allclose(model(x[:1], seed=11, first_row=1), whole[:1])


def test_dropout_of_2012_halves_in_evaluation_and_inverted_dropout_does_not():
    for name, factor in (("krizhevsky", 0.5), ("caffe", 1.0)):
        model = AlexNet(name, 4, seed=0, width=0.0625, lrn=False).eval()
        x = images(2, model.architecture.image_size)
        with torch.no_grad():
            found = model.activations(x, ["fc6.activation", "fc7.linear"])
            expected = F.linear(factor * found["fc6.activation"], model.fc7.weight, model.fc7.bias)
            torch.testing.assert_close(found["fc7.linear"], expected)
            torch.testing.assert_close(model.activations(x, ["fc8"])["fc8"], model(x), rtol=1e-4, atol=1e-6)


def test_stages_in_turn_are_the_network():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.0625)
    x = images(4)
    first: Stage = model.stage(["conv1", "conv2"])
    second: Stage = model.stage(["conv3", "conv4", "conv5", "fc6", "fc7", "fc8"])
    boundary = first(x, seed=3)
    assert boundary.shape == (4, 13, 13, 16)
    assert boundary.is_contiguous()
    assert torch.equal(second(boundary, seed=3), model(x, seed=3))


def test_activations_are_named_and_leave_the_mode_alone():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.0625).train()
    found = model.activations(images(2), ["fc7", "conv3", "conv1.conv", "conv2.same_map_norm"])
    assert list(found) == ["fc7", "conv3", "conv1.conv", "conv2.same_map_norm"]
    assert [tuple(tensor.shape[1:]) for tensor in found.values()] == [(256,), (24, 13, 13), (8, 55, 55), (16, 27, 27)]
    assert model.training
    with pytest.raises(ConfigurationError, match=r"no activation named conv9; there are conv1\.conv"):
        model.activations(images(1), ["conv9"])


def test_a_single_name_is_one_activation():
    model = AlexNet("four-layer", 4, seed=0)
    assert list(model.activations(images(1, 32), "conv3.conv")) == ["conv3.conv"]
    with pytest.raises(ConfigurationError, match=r"no activation named conv9; there are conv1\.conv"):
        model.activations(images(1, 32), "conv9")


def test_bf16_computes_on_copies_and_gives_gradients_to_fp32_weights():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.125)
    randomise(model)
    x = images(4)
    exact = torch.autograd.grad(model(x, seed=1).square().mean(), list(model.parameters()))
    model.set_precision("bf16")
    logits = model(x, seed=1)
    assert logits.dtype == torch.float32  # rounded logits would tie
    assert model.activations(x, ["fc7"])["fc7"].dtype == torch.bfloat16
    rounded = torch.autograd.grad(logits.float().square().mean(), list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), exact, rounded, strict=True):
        assert b.dtype == torch.float32
        cosine = F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
        assert cosine > 0.98, name
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_bf16_copies_follow_a_loaded_state():
    model = AlexNet("krizhevsky", 4, seed=0, width=0.0625)
    model.set_precision("bf16")
    model.load_state_dict(AlexNet("krizhevsky", 4, seed=1, width=0.0625).state_dict())
    assert torch.equal(model.conv3.weight_copy, model.conv3.weight.bfloat16())


def test_a_block_with_two_poolings_names_both():
    found = AlexNet("krizhevsky", 4, seed=0, width=0.0625, without=("conv2",)).activations(
        images(1), ["conv1.pool", "conv1.pool2", "conv1"]
    )
    assert [tensor.shape[-1] for tensor in found.values()] == [27, 13, 13]


def test_an_unknown_precision_is_named():
    with pytest.raises(ConfigurationError, match="there is no precision 'fp8'; choose from fp32, "):
        AlexNet("krizhevsky", 4, width=0.0625).set_precision("fp8")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (torch.zeros(2, 3, 35, 35), r"these have shape \(2, 3, 35, 35\)"),
        (torch.zeros(2, 1, 32, 32), r"these have shape \(2, 1, 32, 32\)"),
        (torch.zeros(2, 32, 32, 3), r"these have shape \(2, 32, 32, 3\)"),
        (torch.zeros(3, 32, 32), r"these have shape \(3, 32, 32\)"),
        *(
            (torch.zeros(2, 3, 32, 32).to(dtype), rf"these are {dtype}: subtract the mean image from images\.float\(\)")
            for dtype in (torch.uint8, torch.int64, torch.bool, torch.complex64)
        ),
        (torch.zeros(2, 3, 32, 32).to_sparse(), r"these have layout torch\.sparse_coo: call to_dense\(\) first"),
        ([[0.0]], "this is no tensor but list"),
    ],
)
def test_images_that_are_none_are_named(given, found):
    model = AlexNet("four-layer", 4, seed=0)
    wanted = "four-layer takes floating-point images of shape N x 3 x 32 x 32, RGB 0-255 minus the mean; "
    for take in (model, model.stage(["conv1"]), lambda x: model.activations(x, ["conv1"])):
        with pytest.raises(ConfigurationError, match=wanted + found):
            take(given)


def test_the_whole_network_compiles_into_one_graph():
    """The checks of the images, too, which look at nothing that is known at run time only."""
    model = AlexNet("four-layer", 4, seed=0, width=0.125).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(2, 32)), model(images(2, 32)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("widht", r"no option 'widht'; did you mean 'width'\? There are num_classes, seed, width, lrn, .*, init$"),
        ("num_class", r"no option 'num_class'; did you mean 'num_classes'\? There are"),
        ("qqqq", r"no option 'qqqq'; there are num_classes, seed, width"),
    ],
)
def test_an_unknown_option_is_named_with_the_nearest(option, message):
    with pytest.raises(TypeError, match=message):
        AlexNet("krizhevsky", **{option: 0.5})


@pytest.fixture
def minimal_filtering(monkeypatch):
    """Convolutions in fp32 are computed by minimal filtering, although they are too small for it to pay."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("within_backward", [False, True])
@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_weight_gradients_made_once_a_step_are_those_of_autograd(
    precision, within_backward, convolutions, begun, minimal_filtering
):
    micro_batches = 3

    def gradients(deferred: bool) -> dict[str, torch.Tensor]:
        model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False, dropout=0.0)
        model.set_precision(precision)
        stage = model.stage(model.architecture.block_names)
        if deferred:
            stage.defer_weight_gradients(micro_batches if within_backward else None, convolutions=convolutions)
        for step in range(2):  # the second step adds to the first one's gradients
            if deferred and begun:
                stage.begin_step()
            for part in images(6).split(6 // micro_batches):
                stage(part).logsumexp(1).sum().backward()
            if deferred and convolutions and precision == "fp32":
                waiting = [name for name, block in stage.named_children() if getattr(block, "put_off", None)]
                assert waiting == ["conv1", "conv2", "conv3", "conv4", "conv5"]
            if begun and within_backward and precision == "fp32" and step == 0:
                waiting = [name for name, parameter in stage.named_parameters() if parameter.grad is None]
                assert bool(waiting) == (deferred and convolutions)
            stage.finish_gradients()
            with torch.no_grad():  # nothing of the first step's weights may be left
                for block in stage.blocks():
                    block.weight.mul_(0.5)
                    for parameter, copy in block.copies().items():
                        copy.copy_(parameter)
        return {name: parameter.grad for name, parameter in stage.named_parameters()}

    expected = gradients(False)
    rounding = 1e-5 if precision == "fp32" else 2e-2  # bf16 has 8 bits, and rounds one sum where autograd rounds three
    for name, gradient in gradients(True).items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=rounding, atol=rounding * scale, msg=name)


def test_an_unfinished_step_leaves_nothing_to_the_next(minimal_filtering):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    stage = model.stage(model.architecture.block_names)
    stage.defer_weight_gradients(convolutions=True)
    stage.begin_step()
    stage(images(2), seed=1).sum().backward()
    assert stage.conv3.put_off
    stage.conv3.put_off.pop()()  # to what is kept
    stage.drop_kept()
    assert not stage.conv3.put_off
    stage.finish_gradients()
    assert stage.conv3.weight.grad is None


def test_no_evaluation_reads_the_weights_of_an_unfinished_step(minimal_filtering):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    stage = model.stage(model.architecture.block_names)
    stage.defer_weight_gradients()
    stage.begin_step()
    stage(images(2), seed=1)
    with torch.no_grad():
        stage.conv3.weight.zero_()
        stage.conv3.bias.zero_()
        assert not model.activations(images(1), "conv3")["conv3"].any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_weight_gradient_waits_and_takes_the_memory_of_the_one_before(precision):
    model = AlexNet("krizhevsky", 5, seed=1, width=1 / 16, lrn=False)
    model.set_precision(precision)
    stage = model.stage(model.architecture.block_names)
    stage.defer_weight_gradients()
    addresses = set()
    for _ in range(2):
        stage(images(2), seed=1).sum().backward()
        assert [n for n, p in stage.named_parameters() if p.grad is None] == [f"fc{i}.weight" for i in (6, 7, 8)]
        stage.finish_gradients()
        addresses.add(stage.get_parameter("fc6.weight").grad.data_ptr())
        stage.zero_grad()
    assert len(addresses) == 1


@pytest.mark.parametrize("has_onednn", [False, True])
@pytest.mark.parametrize("rows", [1, 6])
def test_fully_connected_products_are_those_of_either_library(monkeypatch, has_onednn, rows):
    """Where autograd looks on, behind it, and in the backward pass that makes the weight's gradient later."""
    if has_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr("fastalex.network.deferred_gradients._HAS_ONEDNN", has_onednn)
    model = AlexNet("krizhevsky", 5, seed=2, width=1 / 16)
    block = model.get_submodule("fc8")
    x = torch.randn(rows, block.weight.shape[1], generator=torch.Generator().manual_seed(0), requires_grad=True)
    double = [tensor.detach().double().requires_grad_() for tensor in (x, block.weight, block.bias)]
    expected = torch.nn.functional.linear(*double)
    expected.square().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(block(x).double(), expected, rtol=1e-5, atol=1e-6)
    for kept in (None, KeptFactors()):
        block.kept, x.grad = kept, None
        model.zero_grad()
        y = block(x)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
        y.square().sum().backward()
        if kept is not None:
            kept.add_product_to(block.weight)
        for found, wanted in zip((x, block.weight, block.bias), double, strict=True):
            torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-5)
