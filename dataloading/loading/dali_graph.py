"""The DALI graph: decode, crop, flip, subtract the mean, add colour noise.

The same graph runs on a GPU (``mixed`` decoding: NVIDIA's JPEG hardware and CUDA) and without one (``device_id=None``).
It makes no random choices: encoded images, crop positions, flips and colours come from Python, batch by batch.
"""

import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

# DALI reads this variable when it is imported. Buffers larger than this many bytes are kept for the next batch. The
# default keeps only very large ones, and batches of 32 images then spend a tenth of their time on new memory pages.
os.environ.setdefault("DALI_MALLOC_POOL_THRESHOLD", str(2**20))

from nvidia.dali import Pipeline, fn, tensors, types

DataType = Literal["float32", "float16", "uint8"]
_DALI_TYPES = {"float32": types.DALIDataType.FLOAT, "float16": types.DALIDataType.FLOAT16}
PREFETCH = 3  # batches requested from the source before the first is delivered; one of them is always being processed


class Arrays(NamedTuple):
    """One batch as the graph takes it.

    Attributes:
        encoded: the files.
        x, y: place of the crop, 0 to 1 of the range that it leaves free: float32, shape (N,).
        width, height: its sides in pixels before it is resized: float32, shape (N,).
        flip: 1 mirrors the image: int32, shape (N,).
        minus_shift: minus the colour that is added: float32, shape (N, 3).
        divisor: float32, shape (N, 3).
    """

    encoded: list[NDArray[np.uint8]]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    width: NDArray[np.float32]
    height: NDArray[np.float32]
    flip: NDArray[np.int32]
    minus_shift: NDArray[np.float32]
    divisor: NDArray[np.float32]


Feed = list[Any]  # the same data as DALI tensor lists


def build(
    source: Callable[[], Feed],
    *,
    batch_size: int,
    crop_size: int,
    image_size: int,
    mean_image: NDArray[np.float32],
    dtype: DataType,
    views: int,
    resized: bool,
    noise: bool,
    threads: int,
    device: int | None,
    hardware_decoder_load: float,
) -> Pipeline:
    """Build the graph. Its one output is a batch of images, N x H x W x C, or N x 10 x H x W x C for ten views.

    Args:
        source: called once per batch, in order; returns up to `batch_size` samples (`pack`), which must not change
            until their images have been delivered.
        batch_size: maximum number of samples in a batch.
        crop_size: side of the crop in pixels.
        image_size: shorter side of the stored images, and side of the mean image, in pixels.
        mean_image: float32, image_size x image_size x 3. Its centre crop is subtracted after the flip, as in 2012.
        dtype: of the output. "uint8" delivers raw pixels, without mean subtraction and colour noise.
        views: 1, or 10 for the corners and the centre of the centre square, then the same mirrored.
        resized: crops have the source's sides, and are resized to `crop_size` by linear interpolation, which averages
            where it makes them smaller.
        noise: apply the source's colour shifts and divisors.
        threads: CPU threads of DALI.
        device: CUDA device, or None for the CPU.
        hardware_decoder_load: fraction of a batch that the GPU's JPEG hardware decodes, 0 to 1; with 0, runs are
            bitwise reproducible.
    """
    pipeline = Pipeline(batch_size, threads, device, prefetch_queue_depth=PREFETCH)
    names = ["encoded"]
    if views != 10:
        names += ["x", "y", *(("width", "height") if resized else ()), "flip"]
        names += ["minus_shift", "divisor"] if noise else []
    chosen = [Arrays._fields.index(name) for name in names]

    def feed() -> Feed:
        whole = source()
        return [whole[index] for index in chosen]

    with pipeline:
        inputs = fn.external_source(feed, num_outputs=len(names), batch=True, no_copy=True)
        data = dict(zip(names, inputs, strict=True))
        decoder = _decoder_options(device, image_size, hardware_decoder_load)
        if views == 10:
            images = _ten_views(fn.decoders.image(data["encoded"], **decoder), crop_size, image_size)
        else:
            images = fn.flip(_crop(data, crop_size, decoder), horizontal=data["flip"])
        if dtype != "uint8":
            colors = [data["minus_shift"], data["divisor"]] if "divisor" in data else []
            images = _normalise(images, _centre(mean_image, crop_size), colors, dtype, device)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def pack(arrays: Arrays) -> Feed:
    """Return a batch as DALI's tensor lists, which DALI uses without copying.

    It would convert NumPy arrays one by one, and in the training loop.
    """
    encoded, *numbers = arrays
    files = tensors.TensorListCPU([tensors.TensorCPU(file, "") for file in encoded], "")
    return [files, *(tensors.TensorListCPU(array, "") for array in numbers)]


def _decoder_options(device: int | None, image_size: int, hardware_load: float) -> dict[str, Any]:
    """Options of the decoder.

    On a GPU, chroma is interpolated as libjpeg does on the CPU (its "fancy upsampling"; DALI's default repeats it), and
    buffers get their final size at once, so memory use does not grow later.
    """
    common = {"output_type": types.DALIImageType.RGB, "adjust_orientation": False}
    if device is None:
        return {**common, "device": "cpu"}
    padding = 16 * 1024 * 1024 * max(1, (image_size * image_size) // (512 * 512))
    return {
        **common,
        "device": "mixed",
        "jpeg_fancy_upsampling": True,
        "hw_decoder_load": hardware_load,
        "device_memory_padding": padding,
        "host_memory_padding": padding // 2,
        "preallocate_width_hint": image_size,
        "preallocate_height_hint": image_size,
    }


def _crop(data: dict[str, Any], crop_size: int, decoder: dict[str, Any]) -> Any:
    """Decode the part of each image that is its crop, and resize it if the crops have sizes of their own."""
    place = {"crop_pos_x": data["x"], "crop_pos_y": data["y"]}
    if "width" not in data:
        return fn.decoders.image_crop(data["encoded"], crop=(crop_size, crop_size), **place, **decoder)
    sides = {"crop_w": data["width"], "crop_h": data["height"]}
    parts = fn.decoders.image_crop(data["encoded"], **sides, **place, **decoder)
    return fn.resize(parts, size=(crop_size, crop_size), interp_type=types.DALIInterpType.INTERP_LINEAR)


def _ten_views(images: Any, crop_size: int, image_size: int) -> Any:
    """Corners and centre of the centre square, then the same mirrored: 10 x H x W x C for each image."""
    images = fn.crop(images, crop=(image_size, image_size), rounding="truncate")
    margin = image_size - crop_size
    centre = (margin // 2) / max(margin, 1)
    positions = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (centre, centre)]
    crops = [fn.crop(images, crop=(crop_size, crop_size), crop_pos_x=x, crop_pos_y=y) for x, y in positions]
    return fn.stack(*crops, *(fn.flip(crop, horizontal=1) for crop in crops), axis=0)


def _centre(mean_image: NDArray[np.float32], crop_size: int) -> NDArray[np.float32]:
    border = (mean_image.shape[0] - crop_size) // 2
    return np.ascontiguousarray(mean_image[border : border + crop_size, border : border + crop_size])


def _normalise(images: Any, mean: NDArray[np.float32], colors: list[Any], dtype: DataType, device: int | None) -> Any:
    """Subtract the mean image, then apply `colors`, if any: minus the shift, and the divisor."""
    images = images - types.Constant(mean, device="cpu" if device is None else "gpu")  # uint8 - float32 is float32
    if not colors:
        return fn.cast(images, dtype=_DALI_TYPES[dtype])
    shift, divisor = colors
    return fn.crop_mirror_normalize(images, mean=shift, std=divisor, dtype=_DALI_TYPES[dtype], output_layout="HWC")
