"""Trained networks on single images: read with Pillow, prepared as the network's training images were, and classified.

Nothing here needs a prepared data set, or DALI. :func:`load` returns a network that takes images and files;
``python -m fastalex.predict`` is its command.
"""

from fastalex.prediction.preprocessing import Preprocessing
from fastalex.prediction.trained import AlexNet, Prediction, load

__all__ = ["AlexNet", "Prediction", "Preprocessing", "load"]
