"""The AlexNet of 2012, trained as it was run then."""

from fastalex.architecture import ARCHITECTURES, Architecture, Variation, build_architecture
from fastalex.checkpoint import load_model
from fastalex.errors import ConfigurationError
from fastalex.model import AlexNet

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "ConfigurationError",
    "Variation",
    "build_architecture",
    "load_model",
]
