"""Building blocks of the Triton kernels: which part of a tensor a program handles, and how to load and store it.

A program handles `ITEMS` items of one image. An item is one pixel and `VECTOR` neighbouring channels of it. Kernels
hold an item's channels either as one [ITEMS, VECTOR] tile, or as a Python tuple of `VECTOR` tensors of shape [ITEMS],
the item's lanes, so that sums over neighbouring channels are plain additions in registers. In channels_last, the lanes
of an item are loaded as one vector of 16 bytes.

Offsets within an image are 32 bits wide and the image itself is addressed with 64 bits, so a batch may have any size.
"""

# A tuple that grows in a loop changes its type in each iteration.
# mypy: disable-error-code="assignment"

from __future__ import annotations

from kernels.dispatch import tl, triton


@triton.jit
def locate(VECTORS: tl.constexpr, PIXELS: tl.constexpr, ITEMS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """This program's image (64 bits), and for each item its channel vector, its pixel, and whether it exists."""
    BLOCKS: tl.constexpr = (VECTORS * PIXELS + ITEMS - 1) // ITEMS
    program = tl.program_id(0)
    image = (program // BLOCKS).to(tl.int64)
    item = (program % BLOCKS) * ITEMS + tl.arange(0, ITEMS)
    if CHANNELS_LAST:
        vector = item % VECTORS
        pixel = item // VECTORS
    else:
        vector = item // PIXELS
        pixel = item % PIXELS
    return image, vector, pixel, item < VECTORS * PIXELS


@triton.jit
def upcast(values):
    """Values in the dtype of all arithmetic: fp64 for fp64, fp32 for other floating dtypes, int32 for integers."""
    if values.dtype == tl.float64:
        return values
    elif values.dtype.is_floating():
        return values.to(tl.float32)
    else:
        return values.to(tl.int32)


@triton.jit
def zero_accumulator(ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A [ROWS, COLUMNS] tile of zeros that accumulates what `ptr` points to: fp64 for fp64, fp32 for the others."""
    if ptr.dtype.element_ty == tl.float64:
        return tl.zeros([ROWS, COLUMNS], tl.float64)
    else:
        return tl.zeros([ROWS, COLUMNS], tl.float32)


@triton.jit
def element_offset(
    vector, pixel, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """Offsets within an image of an [ITEMS, VECTOR] tile; `vector` and `pixel` have shape [ITEMS]."""
    lane = tl.arange(0, VECTOR)[None, :]
    if CHANNELS_LAST:
        return (pixel * CHANNELS + vector * VECTOR)[:, None] + lane
    else:
        return (vector[:, None] * VECTOR + lane) * PIXELS + pixel[:, None]


@triton.jit
def unpack(tile, ITEMS: tl.constexpr, VECTOR: tl.constexpr):
    """The lanes of an [ITEMS, VECTOR] tile. Each thread holds whole rows of the tile, so no data moves."""
    if VECTOR == 1:
        return (tl.reshape(tile, [ITEMS]),)
    elif VECTOR == 2:
        first, second = tl.split(tile)
        return (first, second)
    elif VECTOR == 4:
        even, odd = tl.split(tl.reshape(tile, [ITEMS, 2, 2]))
        lane0, lane2 = tl.split(even)
        lane1, lane3 = tl.split(odd)
        return (lane0, lane1, lane2, lane3)
    else:
        even, odd = tl.split(tl.reshape(tile, [ITEMS, 4, 2]))
        evens = unpack(even, ITEMS, 4)
        odds = unpack(odd, ITEMS, 4)
        return (evens[0], odds[0], evens[1], odds[1], evens[2], odds[2], evens[3], odds[3])


@triton.jit
def pack(lanes, ITEMS: tl.constexpr, VECTOR: tl.constexpr):
    """The [ITEMS, VECTOR] tile of the lanes: the inverse of `unpack`."""
    if VECTOR == 1:
        return tl.reshape(lanes[0], [ITEMS, 1])
    elif VECTOR == 2:
        return tl.join(lanes[0], lanes[1])
    elif VECTOR == 4:
        return tl.reshape(tl.join(tl.join(lanes[0], lanes[2]), tl.join(lanes[1], lanes[3])), [ITEMS, 4])
    else:
        evens = pack((lanes[0], lanes[2], lanes[4], lanes[6]), ITEMS, 4)
        odds = pack((lanes[1], lanes[3], lanes[5], lanes[7]), ITEMS, 4)
        return tl.reshape(tl.join(evens, odds), [ITEMS, 8])


@triton.jit
def load_lanes(
    image_ptr, vector, pixel, mask, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The lanes of each item in the tensor's own dtype, zero where the mask is False."""
    if CHANNELS_LAST:
        offset = element_offset(vector, pixel, PIXELS, CHANNELS, VECTOR, True)
        return unpack(tl.load(image_ptr + offset, mask=mask[:, None], other=0), ITEMS, VECTOR)
    else:
        lanes = ()
        for lane in tl.static_range(VECTOR):
            offset = (vector * VECTOR + lane) * PIXELS + pixel
            lanes += (tl.load(image_ptr + offset, mask=mask, other=0),)
        return lanes


@triton.jit
def load_tile(
    image_ptr, vector, pixel, mask, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The upcast [ITEMS, VECTOR] tile of the items' channels, zero where the mask is False."""
    offset = element_offset(vector, pixel, PIXELS, CHANNELS, VECTOR, CHANNELS_LAST)
    return upcast(tl.load(image_ptr + offset, mask=mask[:, None], other=0))


@triton.jit
def store_lanes(
    image_ptr, lanes, vector, pixel, mask, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Store the lanes of each item where the mask is True, rounded to the tensor's dtype."""
    if CHANNELS_LAST:
        offset = element_offset(vector, pixel, PIXELS, CHANNELS, VECTOR, True)
        tl.store(image_ptr + offset, pack(lanes, ITEMS, VECTOR), mask=mask[:, None])
    else:
        for lane in tl.static_range(VECTOR):
            offset = (vector * VECTOR + lane) * PIXELS + pixel
            tl.store(image_ptr + offset, lanes[lane], mask=mask)


@triton.jit
def load_neighbours(
    image_ptr, vector, pixel, mask, HALO: tl.constexpr, GROUP_VECTORS: tl.constexpr, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Upcast lanes of each item and of the `HALO` vectors on either side of it, zero outside the item's group.

    Lane `i` of the item itself is at index `HALO * VECTOR + i`.
    """
    vector_in_group = vector % GROUP_VECTORS
    lanes = ()
    for neighbour in tl.static_range(-HALO, HALO + 1):
        inside = mask & (vector_in_group + neighbour >= 0) & (vector_in_group + neighbour < GROUP_VECTORS)
        loaded = load_lanes(
            image_ptr, vector + neighbour, pixel, inside, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
        )
        for lane in tl.static_range(VECTOR):
            lanes += (upcast(loaded[lane]),)
    return lanes


@triton.jit
def load_bias(
    bias_ptr, vector, mask, HAS_BIAS: tl.constexpr, HALO: tl.constexpr, GROUP_VECTORS: tl.constexpr,
    CHANNELS: tl.constexpr, ITEMS: tl.constexpr, VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Upcast lanes of the bias of each item's channels and their neighbours; zero outside the group."""
    if HAS_BIAS:
        # Loaded the way x is. Vectors of 16 bytes would, in NCHW, put lanes into other threads than those that add them
        # to x; moving them through shared memory takes so many registers that some spill.
        return load_neighbours(
            bias_ptr, vector, vector * 0, mask, HALO, GROUP_VECTORS, 1, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
        )
    else:
        return ()


@triton.jit
def load_biased(
    image_ptr, bias_lanes, vector, pixel, mask, RELU_BEFORE: tl.constexpr, HAS_BIAS: tl.constexpr, HALO: tl.constexpr,
    GROUP_VECTORS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ITEMS: tl.constexpr,
    VECTOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Upcast lanes of x, with bias and ReLU, of each item and its channel neighbours; zero outside the group."""
    x_lanes = load_neighbours(
        image_ptr, vector, pixel, mask, HALO, GROUP_VECTORS, PIXELS, CHANNELS, ITEMS, VECTOR, CHANNELS_LAST
    )
    lanes = ()
    for lane in tl.static_range((2 * HALO + 1) * VECTOR):
        value = x_lanes[lane]
        if HAS_BIAS:
            # In x's precision, even if the bias has a higher one.
            value = value + bias_lanes[lane].to(value.dtype)
        if RELU_BEFORE:
            # This comparison keeps NaN.
            value = tl.where(value <= 0.0, 0.0, value)
        lanes += (value,)
    return lanes
