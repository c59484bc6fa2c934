"""A faithful reproduction of AlexNet (Krizhevsky, Sutskever and Hinton, 2012) that trains fast on modern hardware.

The commands are ``python -m fastalex.train``, ``evaluate``, ``features``, ``show``, ``plan``, ``study`` and
``baseline``. From Python, :class:`AlexNet` builds a network and :func:`load_model` loads a trained one.
"""

import fastalex.startup  # noqa: F401 (first, because what fails later is harder to understand)
from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.model import AlexNet
from fastalex.network.published import ARCHITECTURES
from fastalex.network.variation import Variation, build_architecture
from fastalex.network.weights import load_model

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "ConfigurationError",
    "Variation",
    "build_architecture",
    "load_model",
]
