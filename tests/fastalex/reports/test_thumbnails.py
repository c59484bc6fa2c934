"""Thumbnails show the centre square of an image, small."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fastalex.reports.thumbnails import LARGE, SMALL, thumbnail


class Wide:
    """A data set of one wide image: green in the centre square, red beside it."""

    def read(self, split: str, row: int) -> bytes:
        pixels = np.zeros((200, 600, 3), dtype=np.uint8)
        pixels[:, :, 0] = 255
        pixels[:, 196:404] = (0, 255, 0)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="jpeg", quality=95)
        return content.getvalue()


@pytest.mark.parametrize("side", [LARGE, SMALL])
def test_a_thumbnail_is_the_centre_square(side):
    head, content = thumbnail(Wide(), "val", 0, side).split(",", 1)
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (image.size, image.mode) == ((side, side), "RGB")
    assert max(LARGE, SMALL) <= 128
    red, green, _ = np.moveaxis(np.asarray(image).astype(int), 2, 0)
    assert red.max() < 60
    assert green.min() > 200
