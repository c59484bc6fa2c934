"""The operators as modules: each is PyTorch's module of the same kind, computed by :mod:`kernels`.

They take PyTorch's arguments and have its parameters, so a state_dict fits both. :func:`replace_modules` puts them into
an existing model.
"""

from kernels.nn.modules import ConvReLU2d, Dropout, LocalResponseNorm, MaxPool2d
from kernels.nn.replacement import replace_modules

__all__ = ["ConvReLU2d", "Dropout", "LocalResponseNorm", "MaxPool2d", "replace_modules"]
