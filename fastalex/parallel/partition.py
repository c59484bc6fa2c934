"""Where the network is cut into stages.

By default the cut is the one that balances counted arithmetic: multiply-accumulates of a training step (forward, data
gradient and weight gradient; the first block needs no data gradient). For the network of 2012 and two devices this
cuts after conv2's pooling (42.7 : 57.3); between conv and fully connected layers it would be 91.5 : 8.5.
:mod:`fastalex.parallel.block_times` balances measured times instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.footprint import training_macs
from fastalex.parallel.layout import Split


def partition(architecture: Architecture, stages: int) -> Split:
    """The split whose slowest stage has the least arithmetic.

    Raises:
        ConfigurationError: more stages than blocks.
    """
    return balanced(architecture.block_names, stages, training_macs(architecture))


def balanced(block_names: Sequence[str], stages: int, costs: Mapping[str, float]) -> Split:
    """The split whose most expensive stage is cheapest.

    Args:
        costs: of each block, in any unit.

    Raises:
        ConfigurationError: more stages than blocks.
    """
    check_stages(block_names, stages)

    def slowest(split: Split) -> float:
        return max(sum(costs[name] for name in stage) for stage in split)

    return min(all_splits(block_names, stages), key=slowest)


def all_splits(block_names: Sequence[str], stages: int) -> Iterator[Split]:
    """Every way to cut the blocks into this number of stages."""
    for cuts in combinations(range(1, len(block_names)), stages - 1):
        yield _cut(block_names, cuts)


def check_stages(block_names: Sequence[str], stages: int, is_possible: Callable[[int], bool] | None = None) -> None:
    """Refuse more stages than blocks.

    Args:
        is_possible: restricts the numbers of stages that the error proposes.

    Raises:
        ConfigurationError: a stage would have no block.
    """
    if stages > len(block_names):
        possible = [n for n in range(1, len(block_names) + 1) if is_possible is None or is_possible(n)]
        raise ConfigurationError(
            f"{stages} stages need at least as many blocks, got {len(block_names)} ({', '.join(block_names)}); choose "
            f"stages from {', '.join(map(str, possible))}"
        )


def parse_split(text: str, block_names: Sequence[str], stages: int) -> Split:
    """The split that ``conv3,fc6`` names by the first block of every stage but the first.

    Raises:
        ConfigurationError: an unknown block, blocks out of order, or another number of stages.
    """
    firsts = [name.strip() for name in text.split(",")]
    unknown = [name for name in firsts if name not in block_names[1:]]
    if unknown:
        raise ConfigurationError(
            f"split names {', '.join(map(repr, unknown))}; a stage can begin with {', '.join(block_names[1:])}"
        )
    cuts = [list(block_names).index(name) for name in firsts]
    if cuts != sorted(set(cuts)):
        in_order = ",".join(sorted(set(firsts), key=list(block_names).index))
        raise ConfigurationError(f"split {text} must follow the order of the blocks; write {in_order}")
    if stages == 1:
        raise ConfigurationError(f"split {text} makes {len(firsts) + 1} stages, but the layout has 1; leave it out")
    if len(firsts) != stages - 1:
        raise ConfigurationError(
            f"split {text} makes {len(firsts) + 1} stages, but the layout has {stages}; name the first block of each "
            f"of the {stages - 1} later stages"
        )
    return _cut(block_names, cuts)


def format_split(split: Split) -> str:
    """The inverse of :func:`parse_split`; empty for one stage."""
    return ",".join(stage[0] for stage in split[1:])


def _cut(block_names: Sequence[str], cuts: Sequence[int]) -> Split:
    return tuple(tuple(block_names[a:b]) for a, b in pairwise((0, *cuts, len(block_names))))
