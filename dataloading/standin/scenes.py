"""Pictures of the classes, as varied as photographs: size, colours, position, scale, rotation, light, clutter, noise.

Colours are random and the same for all classes, so a mean colour says nothing about the class. Everything is drawn at
twice the size and reduced, which smooths the edges.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dataloading.standin.classes import SceneClass

SHORTER_SIDE = (256, 320)  # pixels
LONGEST_ASPECT = 4 / 3
GREY_SHARE = 0.02  # ILSVRC has pictures without colour, too

Colour = tuple[int, int, int]


def draw_scene(scene_class: SceneClass, random: np.random.Generator) -> Image.Image:
    """A picture of a class: RGB, or 8-bit grey for a few; sides from 256 to 427 pixels."""
    short = int(random.integers(*SHORTER_SIDE, endpoint=True))
    long = round(short * random.uniform(1, LONGEST_ASPECT))
    width, height = (long, short) if random.random() < 0.6 else (short, long)
    canvas = _background(2 * width, 2 * height, random)
    if scene_class.pattern is not None:
        _fill(canvas, scene_class, random)
    else:
        _place(canvas, scene_class, random)
    picture = canvas.reduce(2)
    if random.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.2)))
    picture = Image.fromarray(_lit(np.asarray(picture), random))
    return picture.convert("L") if random.random() < GREY_SHARE else picture


def jpeg_of(picture: Image.Image, random: np.random.Generator) -> bytes:
    """The picture as the bytes of a JPEG file of good quality."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(random.integers(80, 96)))
    return buffer.getvalue()


def _background(width: int, height: int, random: np.random.Generator) -> Image.Image:
    """A smooth change of two colours with clutter on it: discs, boxes and lines, out of focus."""
    colours = np.array([_colour(random), _colour(random)])
    small = colours[random.integers(0, 2, (3, 4))] + random.integers(-40, 41, (3, 4, 3))
    smooth = Image.fromarray(small.clip(0, 255).astype(np.uint8))
    # An eighth of the size is enough for what is out of focus.
    canvas = smooth.resize((width // 8, height // 8), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(3, 12)):
        x, y = random.uniform(0, canvas.width), random.uniform(0, canvas.height)
        a, b = random.uniform(2, 18, 2)
        kind, colour = random.integers(3), _colour(random)
        if kind == 0:
            draw.ellipse((x - a, y - b, x + a, y + b), fill=colour)
        elif kind == 1:
            draw.rectangle((x - a, y - b, x + a, y + b), fill=colour)
        else:
            draw.line((x - 2 * a, y - b, x + 2 * a, y + b), fill=colour, width=int(random.integers(1, 5)))
    blurred = canvas.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 2)))
    return blurred.resize((width, height), Image.Resampling.BICUBIC)


def _fill(canvas: Image.Image, scene_class: SceneClass, random: np.random.Generator) -> None:
    """Fill a large region of the picture with the pattern."""
    assert scene_class.pattern is not None
    width, height = canvas.size
    # Coordinates: turned, in periods, from a point near the middle.
    angle = random.uniform(0, 2 * math.pi)
    period = random.uniform(0.09, 0.2) * min(width, height)
    x = (np.arange(width, dtype=np.float32) - np.float32(random.uniform(0.35, 0.65) * width))[None, :] / period
    y = (np.arange(height, dtype=np.float32) - np.float32(random.uniform(0.35, 0.65) * height))[:, None] / period
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    share = scene_class.pattern((cos * x + sin * y).astype(np.float32), (cos * y - sin * x).astype(np.float32), random)
    mask = Image.fromarray((255 * share).astype(np.uint8))
    first = _colour(random)
    filled = Image.composite(
        Image.new("RGB", canvas.size, first), Image.new("RGB", canvas.size, _colour(random, unlike=first)), mask
    )
    canvas.paste(filled, mask=_region(width, height, random))


def _region(width: int, height: int, random: np.random.Generator) -> Image.Image:
    """Where the pattern is: everywhere, or in an ellipse or a turned box of about half the picture or more."""
    if random.random() < 0.3:
        return Image.new("L", (width, height), 255)
    region = Image.new("L", (width, height), 0)
    x, y = random.uniform(0.4, 0.6, 2) * (width, height)
    a, b = random.uniform(0.34, 0.5, 2) * (width, height)
    if random.random() < 0.5:
        ImageDraw.Draw(region).ellipse((x - a, y - b, x + a, y + b), fill=255)
    else:
        corners = np.array([(-a, -b), (a, -b), (a, b), (-a, b)])
        turned = corners @ _rotation(random.uniform(-0.5, 0.5)) + (x, y)
        ImageDraw.Draw(region).polygon([(float(u), float(v)) for u, v in turned], fill=255)
    return region


def _place(canvas: Image.Image, scene_class: SceneClass, random: np.random.Generator) -> None:
    """Draw the shape: a large one, and perhaps smaller ones of the same colour."""
    assert scene_class.shape is not None
    draw, size = ImageDraw.Draw(canvas), np.array(canvas.size)
    red, green, blue = canvas.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    colour = _colour(random, unlike=(red, green, blue))
    edge = _colour(random, unlike=colour)
    outline = int(random.integers(0, 9))
    for number in range(random.integers(1, 5)):
        radius = random.uniform(0.26, 0.42) if number == 0 else random.uniform(0.1, 0.22)
        stretch = (1, random.uniform(0.8, 1.0))
        corners = scene_class.shape(random) * stretch @ _rotation(random.uniform(0, 2 * math.pi))
        middle = random.uniform(0.35, 0.65, 2) if number == 0 else random.uniform(0.05, 0.95, 2)
        points = [(float(x), float(y)) for x, y in radius * size.min() * corners + middle * size]
        draw.polygon(points, fill=colour)
        if outline:
            draw.line([*points, points[0], points[1]], fill=edge, width=outline, joint="curve")


def _lit(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """The picture under light from one side, with the noise of a sensor."""
    height, width, _ = pixels.shape
    direction = random.uniform(0, 2 * math.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    strength = np.float32(random.uniform(0, 0.7))
    light = np.float32(random.uniform(0.8, 1.1)) + strength * (math.cos(direction) * x + math.sin(direction) * y)
    noise = random.standard_normal(pixels.shape, dtype=np.float32) * np.float32(random.uniform(1, 12))
    lit: NDArray[np.float32] = pixels * light[:, :, None].astype(np.float32) + noise
    return lit.clip(0, 255).round().astype(np.uint8)


def _colour(random: np.random.Generator, unlike: Colour | None = None) -> Colour:
    """A random colour; far enough from another one to tell them apart."""
    while True:
        red, green, blue = (int(level) for level in random.integers(0, 256, 3))
        if unlike is None or abs(red - unlike[0]) + abs(green - unlike[1]) + abs(blue - unlike[2]) >= 200:
            return red, green, blue


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
