"""What options choose between. The modules that act on a choice have these types in their signatures, too."""

from __future__ import annotations

from typing import Literal

ScheduleName = Literal["1f1b", "eager-1f1b", "gpipe", "interleaved"]
"""Pipeline schedules: the order of forward and backward passes on each rank.

- ``gpipe``: all forward passes, then all backward passes (Huang et al. 2019).
- ``1f1b``: one forward, one backward; a rank holds at most as many micro-batches as there are stages from its own to
  the last (Narayanan et al. 2019).
- ``eager-1f1b``: 1F1B in which a rank runs one more forward pass ahead for every later stage, which hides the transfer
  (Zhuang et al. 2023).
- ``interleaved``: 1F1B with several stages per rank (Narayanan et al. 2021).
"""

BadSamplePolicy = Literal["stop", "skip"]
"""What to do about a damaged image: end the run, or use another one of its class."""

NonFinitePolicy = Literal["stop", "skip"]
"""What to do about a loss or a gradient that is not finite: end the run, or leave the update out."""

FeatureFormat = Literal["npy", "h5", "mat"]
"""Files of activations: NumPy, HDF5, MATLAB."""

FeatureDType = Literal["float32", "float16"]
"""Numbers in files of activations."""

ExportFormat = Literal["onnx", "pt2", "torchvision", "timm-safetensors"]
"""Formats of other programs that networks are written in."""

Channels = Literal["rgb", "bgr"]
"""Order of the colours in an image."""
