"""Networks in the formats of other programs; one file per format.

In: ``from_torchvision``, ``from_caffe`` and ``from_onnx`` read an AlexNet as a :class:`ForeignNetwork`: weights by our
names, and the architecture that they belong to. ``layers`` compares the layers of a file with that architecture,
because weights of the same shapes may belong to another network. ``conversion`` adds the mean and the classes and
writes the file.

Out: ``exporting`` writes a trained network: ``onnx_export`` as an ONNX graph, ``exported_program`` as a program of
``torch.export``, ``torchvision_export`` as weights by torchvision's names, in torchvision's and in timm's layout.
``preprocessing_module`` says what a network expects of its images: as operators in the file, or as JSON beside it.
"""

from fastalex.interchange.conversion import Conversion, convert, read_network
from fastalex.interchange.foreign_network import ForeignNetwork

__all__ = ["Conversion", "ForeignNetwork", "convert", "read_network"]
