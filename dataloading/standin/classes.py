"""The classes of the stand-in: a pattern or a shape each, with a name and a description as in WordNet."""

from dataclasses import dataclass

from dataloading.standin import patterns, shapes
from dataloading.standin.patterns import Pattern
from dataloading.standin.shapes import Shape


@dataclass(frozen=True)
class SceneClass:
    """A class and what its pictures show: either a pattern or a shape.

    Attributes:
        words: its names, separated by commas.
        gloss: a description.
        pattern, shape: one of them; the other one is None.
    """

    words: str
    gloss: str
    pattern: Pattern | None = None
    shape: Shape | None = None


# Patterns and shapes in turn, so that the first classes have both.
CLASSES = (
    SceneClass("stripe, striping", "parallel bands of two colours", patterns.stripes),
    SceneClass("star", "a figure with five or six points", shape=shapes.star),
    SceneClass("checkerboard, checker board", "squares of two colours in turn", patterns.checks),
    SceneClass("heart", "a figure with two lobes and a point", shape=shapes.heart),
    SceneClass("polka dot", "discs on a square grid", patterns.dots),
    SceneClass("bull's eye, concentric rings", "rings around one point", patterns.rings),
    SceneClass("arrow", "a shaft with a head that shows a direction", shape=shapes.arrow),
    SceneClass("spiral", "curves that wind around a point", patterns.spiral),
    SceneClass("crescent, half-moon", "a disc without a part of its edge", shape=shapes.crescent),
    SceneClass("brickwork, brick wall", "shifted rows of bricks with mortar between", patterns.bricks),
    SceneClass("gear, cogwheel", "a wheel with teeth", shape=shapes.gear),
    SceneClass("wave, undulation", "curved bands", patterns.waves),
    SceneClass("flower, blossom", "round petals around one point", shape=shapes.flower),
    SceneClass("plaid, tartan", "stripes in two directions, woven", patterns.plaid),
    SceneClass("cross", "two bars across each other", shape=shapes.cross),
    SceneClass("honeycomb", "hexagonal cells with walls", patterns.honeycomb),
    SceneClass("zigzag, herringbone", "bands with sharp bends", patterns.zigzag),
    SceneClass("thunderbolt, bolt of lightning", "a flash with two bends", shape=shapes.bolt),
    SceneClass("sunburst, rays", "rays from one point", patterns.rays),
    SceneClass("camouflage", "irregular patches of two colours", patterns.camouflage),
    SceneClass("grid, lattice", "thin lines in two directions", patterns.grid),
    SceneClass("basket weave", "squares of stripes, in turn along and across", patterns.basket),
    SceneClass("fish scale, shell pattern", "shifted rows of arcs", patterns.shells),
    SceneClass("triangle tiling", "triangles of two colours in turn", patterns.triangles),
)
