"""Sums over images and pixels. What they are used for is in test_conv_relu.py and test_lrn_max_pool.py."""

from __future__ import annotations

import pytest
import torch
from comparing import DEVICE, dtypes_of, ends_of_grids, random_tensor, zeros

from kernels import channel_sum as module
from kernels.channel_sum import channel_sum, sum_parts


@pytest.mark.parametrize("dtype", dtypes_of("triton"))
@pytest.mark.parametrize("shape", [(1, 2, 1, 3), (2, 70, 5, 7), (3, 8, 61, 63)])
def test_channels_are_summed_over_images_and_pixels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random_tensor(shape, 0, dtype).to(memory_format=torch.channels_last)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    found = channel_sum(x, accumulator)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(found.double(), x.double().sum((0, 2, 3)), rtol=0, atol=tolerance * shape[2])


def test_offsets_pass_32_bits() -> None:
    """The first and the last rows, with zeros in between, which are left out; and the first and the last sums."""
    row = random_tensor((2, 16), 0, torch.float16).float()
    # So many rows that the last one belongs to the last step of the last part.
    rows = module._MAX_PARTS * module._BLOCK_ROWS * (2**14 + 1)
    x = zeros((rows, 1, 1, 16), torch.float16).permute(0, 3, 1, 2)
    x[0, :, 0, 0], x[-1, :, 0, 0] = row
    assert x.numel() > 2**31
    with ends_of_grids(1):
        torch.testing.assert_close(channel_sum(x, torch.float32), row.sum(0))
    parts = zeros((2**8 + 1, 2**23), torch.float32)
    parts[:, :16] = parts[:, -16:] = row[0]
    total = torch.empty(2**23, device=DEVICE)
    with ends_of_grids(1):
        sum_parts(parts, total)
    torch.testing.assert_close(total[:16], len(parts) * row[0])
    torch.testing.assert_close(total[-16:], len(parts) * row[0])


@pytest.mark.parametrize("length", [5, 9000])
@pytest.mark.parametrize("count", [1, 20, 130])
def test_parts_are_added_up_in_blocks_of_either_size(count: int, length: int) -> None:
    parts = random_tensor((count, length), 0, torch.float64)
    total = parts.new_empty(length)
    sum_parts(parts, total)
    torch.testing.assert_close(total, parts.sum(0))
