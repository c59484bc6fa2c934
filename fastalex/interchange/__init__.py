"""Networks of other programs, one file per format.

``from_torchvision``, ``from_caffe`` and ``from_onnx`` read an AlexNet as a :class:`ForeignNetwork`: weights by our
names, and the architecture that they belong to. ``layers`` compares the layers of a file with that architecture,
because weights of the same shapes may belong to another network. ``conversion`` adds the mean and the classes and
writes the file.
"""

from fastalex.interchange.conversion import Conversion, convert, read_network
from fastalex.interchange.foreign_network import ForeignNetwork

__all__ = ["Conversion", "ForeignNetwork", "convert", "read_network"]
