"""Small networks, and files of their weights."""

from pathlib import Path

import numpy as np

from fastalex import AlexNet
from fastalex.network.architecture import Architecture
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import WeightsRecord, save_weights
from tests.fastalex.network.inputs import randomise

# fp32 sums of a few thousand products in another order.
ROUNDING = 1e-5

CLASSES = ("ant", "bee", "cat")


def network(architecture: str | Architecture = "krizhevsky", **variation: object) -> AlexNet:
    """A narrow network in which all parts matter."""
    if isinstance(architecture, str):
        variation = {"num_classes": 7, "width": 0.1, **variation}
    model = AlexNet(architecture, seed=0, **variation).eval()  # type: ignore[arg-type]
    randomise(model)
    return model


def record(stored: int, crop: int, kind: str = "image") -> WeightsRecord:
    """A record with a random mean image, or mean colour."""
    shape = (stored, stored, 3) if kind == "image" else (3,)
    return WeightsRecord(np.random.default_rng(3).uniform(50, 200, shape).astype(np.float32), stored, crop)


def save(path: Path, architecture: str = "four-layer", kind: str = "image", **variation: object) -> Path:
    """A file of random weights for three classes, with images of 40 pixels for 32-pixel crops, or 256 for 224."""
    spec = NetworkSpec(architecture, len(CLASSES), Variation(**variation), CLASSES, kind == "colour")  # type: ignore[arg-type]
    model = spec.build(seed=0)
    randomise(model)
    crop = model.architecture.image_size
    save_weights(path, dict(model.named_parameters()), spec, record(40 if crop == 32 else 256, crop, kind))
    return path
