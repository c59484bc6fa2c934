"""owt's weights in torchvision's definition of the network, written down here from its public list of layers."""

import io

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastalex import ConfigurationError
from fastalex.interchange.exporting import relative_difference
from fastalex.interchange.torchvision_export import (
    build_timm,
    build_torchvision,
    check_timm,
    check_torchvision,
    normalisation,
    timm_config,
)
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec
from tests.fastalex.interchange.exported_networks import CLASSES, ROUNDING, network, record


class TorchvisionAlexNet(nn.Module):
    """torchvision.models.AlexNet."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@torch.no_grad()
def test_torchvisions_network_gives_the_same_logits_after_its_own_preprocessing():
    """At full width, because torchvision has no other; the only network of this size in these tests."""
    model = network("owt", num_classes=3, width=1.0)
    spec, about = NetworkSpec("owt", 3, classes=CLASSES, channel_means=True), record(256, 224, "colour")
    crop = torch.randint(256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = model(crop - torch.from_numpy(about.mean).view(3, 1, 1))
    values = normalisation(spec, about)
    mean, std = (torch.tensor(values[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.device("meta"):
        theirs = TorchvisionAlexNet(3).eval()
    weights = torch.load(io.BytesIO(build_torchvision(model)))
    theirs.load_state_dict(weights, strict=True, assign=True)
    assert relative_difference(theirs((crop.float() / 255 - mean) / std), expected) < ROUNDING
    assert list(weights) == list(theirs.state_dict())
    assert all(weight.is_contiguous() for weight in weights.values())
    assert values["std"] == pytest.approx([0.229, 0.224, 0.225])


def test_a_folder_for_timm(tmp_path):
    model = network("owt", num_classes=3)
    (tmp_path / "model.safetensors").write_bytes(build_timm(model))
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(weights["features.10.weight"], model.get_submodule("conv5").weight)
    assert torch.equal(weights["classifier.6.bias"], model.get_submodule("fc8").bias)
    assert len(weights) == 16
    about = record(256, 224, "colour")
    config = timm_config(NetworkSpec("owt", 3, classes=CLASSES, channel_means=True), about)
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("alexnet", 3, 4096)
    assert config["label_names"] == ["ant", "bee", "cat"]
    pretrained = config["pretrained_cfg"]
    assert (pretrained["input_size"], pretrained["crop_pct"], pretrained["crop_mode"]) == (
        [3, 224, 224],
        0.875,
        "center",
    )
    assert pretrained["mean"] == pytest.approx([float(value) / 255 for value in about.mean])
    assert (pretrained["first_conv"], pretrained["classifier"]) == ("features.0", "classifier.6")


@pytest.mark.parametrize(
    ("architecture", "variation"),
    [
        ("krizhevsky", {}),
        ("owt", {"width": 0.5}),
        ("owt", {"conv6": True}),
        ("owt", {"activation": "tanh"}),
        ("owt", {"overlapping": False}),
    ],
)
def test_other_networks_are_refused(architecture, variation):
    spec = NetworkSpec(architecture, 3, Variation(**variation))
    with pytest.raises(ConfigurationError, match=r"alexnet is the network owt; .* has other layers: export it to onnx"):
        check_torchvision(spec)


def test_dropout_and_classes_may_differ():
    check_torchvision(NetworkSpec("owt", 3, Variation(dropout=0.2, lrn=False)))


@pytest.mark.parametrize(("about", "found"), [(None, "an unknown mean"), (record(256, 224), "a mean image")])
def test_timm_needs_a_mean_colour(about, found):
    spec = NetworkSpec("owt", 3)
    with pytest.raises(ConfigurationError, match=f"one mean per colour, these weights have {found}; export them to"):
        check_timm(spec, about)
    assert normalisation(spec, about)["mean"] is None
