"""What every test needs before anything is imported."""

from __future__ import annotations

import os

import torch

# Triton reads this when it is imported. Without a GPU its kernels then run in Triton's interpreter, in numpy.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
