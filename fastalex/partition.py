"""Where to cut the blocks so that several devices have equal work.

Cost is counted in multiply-accumulates of a training step: forward, data gradient and weight gradient, where the first
block needs no data gradient. For the 2012 network and two devices this cuts after conv2's pooling (42.7 : 57.3);
between the conv and the fully connected layers the split would be 91.5 : 8.5.
"""

from __future__ import annotations

from itertools import combinations, pairwise

from fastalex.architecture import Architecture, block_shapes
from fastalex.errors import ConfigurationError


def training_macs(architecture: Architecture) -> dict[str, int]:
    """Multiply-accumulates per image of one training step, by block."""
    shapes = block_shapes(architecture)
    return {shape.name: shape.macs * (2 if index == 0 else 3) for index, shape in enumerate(shapes)}


def partition(architecture: Architecture, stages: int) -> list[tuple[str, ...]]:
    """Consecutive block names for each stage, such that the slowest stage is as fast as can be.

    Raises:
        ConfigurationError: fewer blocks than stages.
    """
    names = architecture.block_names
    if stages > len(names):
        raise ConfigurationError(
            f"{stages} devices for {len(names)} blocks ({', '.join(names)}); a stage needs at least one block, "
            f"so name at most {len(names)} devices"
        )
    costs = training_macs(architecture)

    def slowest(cuts: tuple[int, ...]) -> int:
        return max(sum(costs[name] for name in names[a:b]) for a, b in pairwise((0, *cuts, len(names))))

    best = min(combinations(range(1, len(names)), stages - 1), key=slowest)
    return [names[a:b] for a, b in pairwise((0, *best, len(names)))]
