"""A faithful reproduction of AlexNet (Krizhevsky, Sutskever and Hinton, 2012) that trains fast on modern hardware.

``fastalex`` alone lists the commands. From Python, :class:`AlexNet` builds a network and :func:`load` loads a trained
one.
"""

from typing import TYPE_CHECKING

from fastalex.errors import ConfigurationError
from fastalex.startup import (  # before all that follows: what fails later is harder to understand
    VERSION,
    attributes_on_demand,
)

if TYPE_CHECKING:
    from fastalex.network.architecture import Architecture
    from fastalex.network.published import ARCHITECTURES
    from fastalex.network.variation import Variation, build_architecture
    from fastalex.prediction.preprocessing import UnusableImage
    from fastalex.prediction.trained import AlexNet, load

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "ConfigurationError",
    "UnusableImage",
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
    "UnusableImage": "fastalex.prediction.preprocessing",
    "Variation": "fastalex.network.variation",
    "build_architecture": "fastalex.network.variation",
    "load": "fastalex.prediction.trained",
}

__getattr__ = attributes_on_demand(__name__, _MODULES)
