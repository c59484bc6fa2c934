"""A faithful reproduction of AlexNet (Krizhevsky, Sutskever and Hinton, 2012) that trains fast on modern hardware.

``fastalex`` alone lists the commands. From Python, :class:`AlexNet` builds a network and :func:`load` loads a trained
one.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastalex.errors import ConfigurationError
from fastalex.startup import VERSION  # before all that follows: what fails later is harder to understand

if TYPE_CHECKING:
    from fastalex.network.architecture import Architecture
    from fastalex.network.published import ARCHITECTURES
    from fastalex.network.variation import Variation, build_architecture
    from fastalex.prediction.trained import AlexNet, load

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "ConfigurationError",
    "Variation",
    "build_architecture",
    "load",
]

__version__ = VERSION

# Imported when they are first used, so that a command imports what it needs and no more.
_MODULES = {
    "ARCHITECTURES": "fastalex.network.published",
    "AlexNet": "fastalex.prediction.trained",
    "Architecture": "fastalex.network.architecture",
    "Variation": "fastalex.network.variation",
    "build_architecture": "fastalex.network.variation",
    "load": "fastalex.prediction.trained",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
