"""A network as a program of ``torch.export`` (``.pt2``), which runs with PyTorch alone.

It holds PyTorch's own operators only: the network is traced with the reference implementation of its operators.
"""

from __future__ import annotations

import copy
import io

import torch
from torch import Tensor, nn

import kernels
from fastalex.interchange.preprocessing_module import StoredPreprocessing
from fastalex.network.model import AlexNet

DESCRIPTION = "description.json"
"""Name of the description in the file: ``extra_files`` of ``torch.export.load``."""


class InferenceModule(nn.Module):
    """A network in evaluation, with its preprocessing if asked for: tensors in, tensors out, nothing else.

    Without preprocessing: float32 N x 3 x C x C (RGB 0-255 minus the mean) to logits, N x classes. With it: stored
    images, uint8 N x 3 x S x S, to probabilities. The parameters are copies, under their own names.
    """

    std: Tensor | None

    def __init__(self, model: AlexNet, preprocessing: StoredPreprocessing | None) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        std = model.architecture.input_std
        self.register_buffer("std", None if std is None else torch.tensor(std).view(1, -1, 1, 1))
        self.names = model.architecture.block_names
        for block in copy.deepcopy(model).blocks():
            self.add_module(block.spec.name, block)
        for parameter in self.parameters():
            # torch.export.save warns of tensors in channels_last, which it takes for parts of larger ones.
            parameter.data = parameter.data.contiguous()
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits or probabilities."""
        x = images if self.preprocessing is None else self.preprocessing(images)
        if self.std is not None:
            x = x / self.std
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x if self.preprocessing is None else x.softmax(1)


def build_program(model: AlexNet, preprocessing: StoredPreprocessing | None = None, description: str = "") -> bytes:
    """The content of a ``.pt2`` file; its input and output are those of :class:`InferenceModule`, for any batch size.

    Args:
        model: in fp32 and evaluation mode, on the CPU.
        preprocessing: to include.
        description: text that the file holds, too.
    """
    if preprocessing is None:
        side, dtype = model.architecture.image_size, torch.float32
    else:
        side, dtype = preprocessing.stored_size, torch.uint8
    # Two images: with one, the batch size would become a constant.
    example = torch.zeros(2, 3, side, side, dtype=dtype)
    with kernels.using("reference"), torch.no_grad():
        program = torch.export.export(
            InferenceModule(model, preprocessing), (example,), dynamic_shapes={"images": {0: torch.export.Dim("N")}}
        )
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={DESCRIPTION: description})
    return content.getvalue()
