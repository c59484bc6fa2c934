"""A drawing of a network as SVG, in the manner of the paper's figure 2: every block with its sizes, tower by tower.

All numbers come from :func:`~fastalex.network.architecture.block_shapes` and the split; none are typed in. The file
uses no fonts or scripts from elsewhere, keeps its text as text, and follows the reader's light or dark mode.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from fastalex.network.architecture import (
    Activation,
    Architecture,
    Block,
    BlockShape,
    ConvBlock,
    LocalResponseNorm,
    MaxPool,
    SameMapNorm,
    Step,
    block_shapes,
)
from fastalex.network.footprint import training_macs
from fastalex.parallel.layout import Split

Element = ElementTree.Element

# All lengths are in pixels.
LABELS = 96  # width of the names of the rows of text
COLUMN = 152  # width of a block's column
GAP = 148  # between stages
MARGIN = 16
LANE = 130  # height of a tower
LINE = 17  # of text
HEADER = 4 * LINE + 10  # of a stage's frame
TOP = 84  # of the frames
SLAB = (12.0, 44.0)  # narrowest and widest front of a block
FACE = (26.0, 62.0)  # lowest and highest

_STYLE = """
text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle;
  font-variant-numeric: tabular-nums; }
.frame, .link, .cross { fill: none; stroke-width: 1.4; }
.front, .side, .top { stroke-width: 0.7; stroke-linejoin: round; }
.cross { stroke-dasharray: 5 3; } .cut { stroke-dasharray: 2 4; }
.heading { font-size: 17px; } .heading, .name, .both { font-weight: 600; }
.left { text-anchor: start; } .label { text-anchor: end; }
"""
# Custom properties would be shorter, but some viewers of SVG files do not know them.
_COLOURS = """
text { fill: INK; } .soft, .label { fill: SOFT; } .both { fill: CROSS; } .paper { fill: PAPER; }
.frame { stroke: FRAME; } .link { stroke: LINE; } .cross { stroke: CROSS; } .cut { stroke: SOFT; }
.front { fill: FRONT; } .side { fill: SIDE; } .top { fill: TOP; } .front, .side, .top { stroke: INK; }
"""
_LIGHT = {"INK": "#1f2328", "SOFT": "#59636e", "LINE": "#8b949e", "FRAME": "#c8d1da", "PAPER": "#ffffff"} | {
    "FRONT": "#bcd7f5", "SIDE": "#95bbe6", "TOP": "#dcebfb", "CROSS": "#b04a00"
}  # fmt: skip
_DARK = {"INK": "#e6edf3", "SOFT": "#9aa4af", "LINE": "#7d8590", "FRAME": "#3d444d", "PAPER": "#0d1117"} | {
    "FRONT": "#2b527f", "SIDE": "#1d3a5c", "TOP": "#3a689c", "CROSS": "#ffa657"
}  # fmt: skip


@dataclass(frozen=True)
class _Box:
    """A block, or the part of it in one tower, on the page: its front from (x, y), and how far it reaches back."""

    x: float
    y: float
    width: float
    height: float
    depth: float

    @property
    def entry(self) -> tuple[float, float]:
        """Where connections arrive."""
        return self.x, self.y + (self.height - self.depth) / 2

    @property
    def exit(self) -> tuple[float, float]:
        """Where connections leave: the middle of the side."""
        return self.x + self.width + self.depth / 2, self.entry[1]


@dataclass(frozen=True)
class _Page:
    """Where things are on the page.

    Args:
        towers: rows of blocks; 1 for a network without groups.
        left: left edge of every block's column, and of the image's before them.
        lines: lines of text below the blocks.
    """

    towers: int
    left: tuple[float, ...]
    lines: int

    @property
    def width(self) -> float:
        """Of the whole drawing."""
        return self.left[-1] + COLUMN + 2 * MARGIN

    @property
    def lanes(self) -> float:
        """Upper edge of the first tower."""
        return TOP + HEADER + 2 * LINE

    @property
    def text(self) -> float:
        """Base line of the first line of text."""
        return self.lanes + self.towers * LANE + LINE

    @property
    def bottom(self) -> float:
        """Of the frames."""
        return self.text + self.lines * LINE

    @property
    def height(self) -> float:
        """Of the whole drawing."""
        return self.bottom + MARGIN


def draw_network(
    architecture: Architecture,
    split: Split,
    devices: Sequence[str],
    *,
    seconds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
) -> str:
    """The network over its stages, as the text of an SVG file.

    From left to right: the image and the blocks, each with its layer and steps, its output (channels x height x
    width), parameters and multiply-accumulates of the forward pass for one image. Blocks with groups are drawn as
    towers, one below the other; a block that reads more than its own tower is told apart. Frames are stages, and
    between them are the bytes that cross per image, as activations forward and as gradients backward.

    Args:
        split: block names of every stage.
        devices: name of every stage's device.
        seconds: measured time of each block in a training step, if known.
        batch_size: images of that step.
    """
    shapes = block_shapes(architecture)
    towers = max(block.groups for block in architecture.blocks)
    rows = _text_rows(architecture, shapes, towers, seconds)
    firsts = [names[0] for names in split[1:]]
    left = [float(MARGIN + LABELS)]  # of the image, then of the blocks
    for shape in shapes:
        left.append(left[-1] + COLUMN + (GAP if shape.name in firsts else 0))
    page = _Page(towers, tuple(left), sum(max(map(len, cells)) for cells in rows.values()))

    size = {"width": _number(page.width), "height": _number(page.height)}
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, "viewBox": f"0 0 {' '.join(size.values())}"})
    title = f"{architecture.name}: {len(shapes)} blocks, {sum(shape.parameters for shape in shapes):,} parameters"
    _add(root, "title", title)
    _add(root, "style", f"{_STYLE}{_coloured(_LIGHT)}@media (prefers-color-scheme: dark) {{{_coloured(_DARK)}}}\n")
    _add(root, "rect", class_="paper", **size)
    _text(root, MARGIN, 30, title, "heading left")
    _text(root, MARGIN, 30 + 1.2 * LINE, _subtitle(shapes, towers, seconds, batch_size), "soft left")
    _draw_stages(root, page, architecture, split, devices, seconds)
    boxes = _boxes(page, architecture, shapes)
    _draw_links(root, architecture, boxes)
    outputs = [(3, architecture.image_size, architecture.image_size), *(shape.output for shape in shapes)]
    for name, x, own, output in zip(("image", *architecture.block_names), page.left, boxes, outputs, strict=True):
        group = _add(root, "g", id=name)
        _text(group, x + COLUMN / 2, page.lanes - 6, name, "name")
        for box in own:
            _draw_box(group, box)
            if len(own) > 1:
                in_tower = _size((output[0] // towers, *output[1:]))
                _text(group, x + COLUMN / 2, box.y + box.height + LINE, in_tower, "soft")
    _draw_text_rows(root, page, rows)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def boundary_bytes(shape: BlockShape) -> dict[str, int]:
    """Bytes of a block's output for one image, by precision: what crosses if the network is cut behind it."""
    elements = math.prod(shape.output)
    return {"fp32": 4 * elements, "bf16": 2 * elements}


def _coloured(colours: Mapping[str, str]) -> str:
    return re.sub("[A-Z]{3,}", lambda name: colours[name[0]], _COLOURS)


# --- what is said -----------------------------------------------------------------------------------------------------


def _subtitle(
    shapes: Sequence[BlockShape], towers: int, seconds: Mapping[str, float] | None, batch_size: int | None
) -> str:
    text = f"{sum(shape.macs for shape in shapes):,} multiply-accumulates (MACs) per image, forward"
    if towers > 1:
        text += f"; {towers} towers; dashed: connections between towers"
    if seconds is not None:
        text += f"; times of a training step of {batch_size} images, measured"
    return text


def _text_rows(
    architecture: Architecture, shapes: Sequence[BlockShape], towers: int, seconds: Mapping[str, float] | None
) -> dict[str, list[list[str]]]:
    """Lines of text by row and column; the first column is the image's."""
    size, blocks = architecture.image_size, architecture.blocks
    rows = {
        "output": [[_size((3, size, size))], *([_size(shape.output)] for shape in shapes)],
        "parameters": [[""], *([f"{shape.parameters:,}"] for shape in shapes)],
        "MACs": [[""], *([f"{shape.macs:,}"] for shape in shapes)],
    }
    if seconds is not None:
        rows["time"] = [[""], *([f"{1000 * seconds[shape.name]:,.2f} ms"] for shape in shapes)]
    if towers > 1:
        rows["reads"] = [[""], ["the image"], *([_reads(block, towers)] for block in blocks[1:])]
    rows["layer"] = [[""], *([_layer(block)] for block in blocks)]
    rows["then"] = [[""], *(_steps(block, architecture) or [""] for block in blocks)]
    return rows


def _size(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _reads(block: Block, towers: int) -> str:
    if block.groups == towers:
        return "its own tower"
    return "both towers" if towers == 2 else "all towers"


def _layer(block: Block) -> str:
    if not isinstance(block, ConvBlock):
        return "fully connected"
    stride = f", stride {block.stride}" if block.stride > 1 else ""
    return f"{block.kernel_size} × {block.kernel_size}{stride}"


def _steps(block: Block, architecture: Architecture) -> list[str]:
    """What follows the layer, in order."""
    activation = {"relu": "ReLU"}.get(architecture.activation, architecture.activation)
    if isinstance(block, ConvBlock):
        return [_step(step, activation) for step in block.steps]
    steps = [activation] if block.activation else []
    if block.dropout == "none" or not architecture.dropout:
        return steps
    dropout = f"dropout {architecture.dropout:g}"
    return [f"({dropout} before)", *steps] if block.dropout == "before" else [*steps, dropout]


def _step(step: Step, activation: str) -> str:
    match step:
        case Activation():
            return activation
        case LocalResponseNorm():
            return "LRN in each tower" if step.towers > 1 else "LRN"
        case SameMapNorm():
            return "norm in each map"
        case MaxPool():
            return f"max pool {step.kernel_size} × {step.kernel_size} / {step.stride}"


# --- where it is ------------------------------------------------------------------------------------------------------


def _boxes(page: _Page, architecture: Architecture, shapes: Sequence[BlockShape]) -> list[list[_Box]]:
    """The boxes of the image and of every block: one per tower, or one in the middle for what towers share."""
    widest = max((len(shape.output) == 3) * shape.output[0] for shape in shapes)
    result = [[_box(page, 0, None, SLAB[0] / 2, FACE[1])]]
    for column, (block, shape) in enumerate(zip(architecture.blocks, shapes, strict=True), 1):
        if isinstance(block, ConvBlock):
            width = SLAB[0] + (SLAB[1] - SLAB[0]) * shape.output[0] / widest
            height = FACE[0] + (FACE[1] - FACE[0]) * math.sqrt(shape.output[1] / architecture.image_size)
        else:
            width, height = SLAB[0], FACE[1]
        is_shared = shape is shapes[-1] or shape.output[0] % page.towers
        lanes: Sequence[int | None] = [None] if is_shared else range(page.towers)
        result.append([_box(page, column, lane, width, height) for lane in lanes])
    return result


def _box(page: _Page, column: int, lane: int | None, width: float, height: float) -> _Box:
    """A box in the middle of its column and of its tower, or of all towers."""
    depth = 0.35 * height if width != SLAB[0] else 6.0  # vectors have no spatial size
    middle = page.left[column] + COLUMN / 2
    centre = page.lanes + LANE * (page.towers / 2 if lane is None else lane + 0.5)
    return _Box(middle - (width + depth) / 2, centre - (height - depth) / 2, width, height, depth)


# --- how it is drawn --------------------------------------------------------------------------------------------------


def _draw_stages(
    root: Element,
    page: _Page,
    architecture: Architecture,
    split: Split,
    devices: Sequence[str],
    seconds: Mapping[str, float] | None,
) -> None:
    """A frame for every stage, and what crosses between two of them."""
    shapes = {shape.name: shape for shape in block_shapes(architecture)}
    left = dict(zip(architecture.block_names, page.left[1:], strict=True))
    macs = training_macs(architecture)
    for number, (names, device) in enumerate(zip(split, devices, strict=True), 1):
        x, right = left[names[0]], left[names[-1]] + COLUMN
        stage = _add(root, "g", id=f"stage-{number}")
        width = {"width": _number(right - x), "height": _number(page.bottom - TOP)}
        _add(stage, "rect", class_="frame", x=_number(x), y=_number(TOP), rx="8", **width)
        header = [f"stage {number} of {len(split)}", device]
        header.append(f"{sum(shapes[name].parameters for name in names):,} parameters")
        if seconds is None:
            share = sum(macs[name] for name in names) / sum(macs.values())
            header.append(f"{100 * share:.1f} % of training MACs")
        else:
            header.append(f"{1000 * sum(seconds[name] for name in names):,.2f} ms")
        for line, text in enumerate(header):
            _text(stage, (x + right) / 2, TOP + (line + 1) * LINE, text, "soft" if line else "name")
        if number < len(split):
            middle = right + GAP / 2
            ends = {"y1": _number(page.lanes - LINE), "y2": _number(page.bottom)}
            cut = _add(root, "g", id=f"cut-{number}")
            _add(cut, "line", class_="cut", x1=_number(middle), x2=_number(middle), **ends)
            crossing = [f"{count:,} bytes {dtype}" for dtype, count in boundary_bytes(shapes[names[-1]]).items()]
            for line, text in enumerate(["each way, per image", *crossing]):
                _text(cut, middle, TOP + (line + 1) * LINE, text, "" if line else "soft")


def _draw_links(root: Element, architecture: Architecture, boxes: Sequence[Sequence[_Box]]) -> None:
    """Connections between neighbouring blocks; those between towers are told apart."""
    towers = max(block.groups for block in architecture.blocks)
    for block, before, own in zip(architecture.blocks, boxes, boxes[1:], strict=False):
        group = _add(root, "g", id=f"into-{block.name}")
        for source, start in enumerate(before):
            for target, end in enumerate(own):
                is_own = source == target or len(before) == 1
                if block.groups == towers > 1 and not is_own:
                    continue
                crosses = len(before) > 1 and (not is_own or len(own) == 1)
                ends = dict(zip(("x1", "y1", "x2", "y2"), map(_number, (*start.exit, *end.entry)), strict=True))
                _add(group, "line", class_="cross" if crosses else "link", **ends)


def _draw_box(group: Element, box: _Box) -> None:
    """A cuboid: front, top and side."""
    x, y, right, bottom, back = box.x, box.y, box.x + box.width, box.y + box.height, box.depth
    faces = {
        "front": [(x, y), (right, y), (right, bottom), (x, bottom)],
        "top": [(x, y), (x + back, y - back), (right + back, y - back), (right, y)],
        "side": [(right, y), (right + back, y - back), (right + back, bottom - back), (right, bottom)],
    }
    for name, corners in faces.items():
        _add(group, "polygon", class_=name, points=" ".join(f"{_number(a)},{_number(b)}" for a, b in corners))


def _draw_text_rows(root: Element, page: _Page, rows: Mapping[str, Sequence[Sequence[str]]]) -> None:
    y = page.text
    for name, cells in rows.items():
        group = _add(root, "g", id=f"row-{name}")
        _text(group, MARGIN + LABELS - 8, y, name, "label")
        for left, lines in zip(page.left, cells, strict=True):
            for line, text in enumerate(lines):
                if text:
                    kind = "both" if name == "reads" and text.endswith("towers") else ""
                    _text(group, left + COLUMN / 2, y + line * LINE, text, kind)
        y += LINE * max(map(len, cells))


def _text(parent: Element, x: float, y: float, text: str, kind: str = "") -> None:
    _add(parent, "text", text, x=_number(x), y=_number(y), **({"class_": kind} if kind else {}))


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    element = ElementTree.SubElement(parent, tag, {name.rstrip("_"): value for name, value in attributes.items()})
    element.text = text
    return element


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
