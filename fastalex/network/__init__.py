"""What the network is: its architectures as plain data, and the PyTorch modules built from them.

``architecture`` holds the data classes, ``published`` the named networks and ``variation`` the changes a user may ask
for. ``blocks`` and ``model`` turn an architecture into modules, and ``steps`` holds the modules that hooks see.
``deferred_gradients`` computes weight gradients once per step, ``precision`` sets what the modules compute in,
``weights`` reads weight files, ``means`` the means of images, also in Caffe's format (``caffe_format``), and
``footprint`` counts parameters, arithmetic and memory. The package knows nothing of recipes, devices or training runs.
"""

from typing import TYPE_CHECKING

from fastalex.startup import attributes_on_demand

if TYPE_CHECKING:
    from fastalex.network.architecture import Architecture, block_shapes
    from fastalex.network.model import AlexNet, Stage
    from fastalex.network.published import ARCHITECTURES
    from fastalex.network.variation import Variation, build_architecture
    from fastalex.network.weights import NetworkSpec, load_model

__all__ = [
    "ARCHITECTURES",
    "AlexNet",
    "Architecture",
    "NetworkSpec",
    "Stage",
    "Variation",
    "block_shapes",
    "build_architecture",
    "load_model",
]

# Imported when they are first used: options need the plain data of this package, without PyTorch.
_MODULES = {
    "Architecture": "fastalex.network.architecture",
    "block_shapes": "fastalex.network.architecture",
    "AlexNet": "fastalex.network.model",
    "Stage": "fastalex.network.model",
    "ARCHITECTURES": "fastalex.network.published",
    "Variation": "fastalex.network.variation",
    "build_architecture": "fastalex.network.variation",
    "NetworkSpec": "fastalex.network.weights",
    "load_model": "fastalex.network.weights",
}

__getattr__ = attributes_on_demand(__name__, _MODULES)
