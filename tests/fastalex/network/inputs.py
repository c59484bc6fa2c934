"""Images and weights that make every part of a network matter."""

import torch
import torch.nn.functional as F

from fastalex import AlexNet


def images(count: int, size: int = 224, scale: float = 60.0) -> torch.Tensor:
    """Smooth random images about zero, as photographs minus their mean are: grey levels, mostly of low frequency."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, 3, 9, 9, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return scale * (smooth + 0.3 * fine)


@torch.no_grad()
def randomise(model: AlexNet) -> None:
    """Weights of a size that keeps the signal up through all layers, so that norms, biases and ReLUs all matter."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5)
