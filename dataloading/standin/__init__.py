"""A small stand-in for ImageNet, for machines that cannot download it: generated scenes in ILSVRC2012's archives.

`patterns` and `shapes` hold what the classes look like, `classes` names them, `scenes` draws pictures of them, and
`archives` writes the files of ILSVRC2012. ``python -m dataloading.standin DEST`` makes them.
"""

from dataloading.standin.archives import write_standin
from dataloading.standin.classes import CLASSES, SceneClass

__all__ = ["CLASSES", "SceneClass", "write_standin"]
