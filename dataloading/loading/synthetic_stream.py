"""Images for a `SyntheticDataset`."""

import torch

from dataloading.loading.order import BatchRange


class SyntheticStream:
    """Delivers one batch of uniform noise again and again; a smaller batch gets the first images of it.

    Args:
        shape: of a full batch: N x 3 x H x W, or N x 10 x 3 x H x W for ten views.
        dtype: ``torch.uint8`` gives 0-255, floating-point types -127.5 to 127.5.
        device: where the images are; None means the CPU.
        seed: of the noise.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed % 2**63)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        flat = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        images = flat if dtype == torch.uint8 else flat.to(dtype) - 127.5
        self._images = images.to(device).unflatten(0, shape[:-3])
        self.replaced: dict[int, int] = {}

    def images(self, epoch: int, batch: BatchRange) -> torch.Tensor:
        """Return one image for each sample of the batch."""
        return self._images[: batch.own_stop - batch.own_start]

    def close(self) -> None:
        """Do nothing; there is no thread to end."""
