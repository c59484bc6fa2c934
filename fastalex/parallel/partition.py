"""Where to cut the blocks into stages.

Analytically, cost is counted in multiply-accumulates of a training step: forward, data gradient and weight gradient,
where the first block needs no data gradient. For the 2012 network and two devices this cuts after conv2's pooling
(42.7 : 57.3); between the conv and the fully connected layers the split would be 91.5 : 8.5. Measured costs
(:mod:`fastalex.parallel.costs`) also know what does not count as arithmetic, and what crosses the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from fastalex.errors import ConfigurationError
from fastalex.network.architecture import Architecture
from fastalex.network.footprint import training_macs
from fastalex.parallel.costs import BlockCost
from fastalex.parallel.simulate import Plan, Result, fewest_seconds, simulate

Stages = tuple[tuple[str, ...], ...]
"""Consecutive block names, stage by stage."""


def check_stages(names: Sequence[str], stages: int, devices: int | None = None) -> None:
    """Refuse more stages than blocks.

    Args:
        devices: that share the work, if the remedy is to be a number of stages that fits them.

    Raises:
        ConfigurationError: a stage would have no block.
    """
    if stages > len(names):
        every = range(1, len(names) + 1)
        good = [n for n in every if devices is None or devices % n == 0 or n % devices == 0]
        raise ConfigurationError(
            f"{stages} stages for {len(names)} blocks ({', '.join(names)}); a stage needs at least one block, "
            f"so choose --stages from {', '.join(map(str, good))}"
        )


def all_cuts(names: Sequence[str], stages: int) -> Iterator[Stages]:
    """Every way to cut the blocks into so many stages."""
    for cuts in combinations(range(1, len(names)), stages - 1):
        yield tuple(tuple(names[a:b]) for a, b in pairwise((0, *cuts, len(names))))


def partition(architecture: Architecture, stages: int) -> list[tuple[str, ...]]:
    """Consecutive block names for each stage, such that the slowest stage has as little arithmetic as can be.

    Raises:
        ConfigurationError: fewer blocks than stages.
    """
    check_stages(architecture.block_names, stages)
    macs = training_macs(architecture)

    def slowest(cut: Iterable[tuple[str, ...]]) -> int:
        return max(sum(macs[name] for name in stage) for stage in cut)

    return list(min(all_cuts(architecture.block_names, stages), key=slowest))


def parse_split(architecture: Architecture, split: str, stages: int) -> Stages:
    """The stages that ``conv3,fc6`` means: the names of the first block of every stage but the first.

    One stage is the whole network: ``auto`` and ``analytic`` mean nothing else there.

    Raises:
        ConfigurationError: no such block, not in order, or another number of stages.
    """
    names = architecture.block_names
    if stages == 1 and split in ("", "auto", "analytic"):
        return (names,)
    firsts = [name.strip() for name in split.split(",")]
    unknown = [name for name in firsts if name not in names[1:]]
    if unknown:
        raise ConfigurationError(
            f"--split names {', '.join(map(repr, unknown))}; a stage can begin with {', '.join(names[1:])}, or choose "
            "auto or analytic"
        )
    places = [names.index(name) for name in firsts]
    if places != sorted(set(places)):
        raise ConfigurationError(f"--split {split} is not in the order of the blocks; write {_sorted(firsts, names)}")
    if stages == 1:
        raise ConfigurationError(
            f"--split {split} makes {len(firsts) + 1} stages, --devices and --stages make 1; leave it out"
        )
    if len(firsts) != stages - 1:
        raise ConfigurationError(
            f"--split {split} makes {len(firsts) + 1} stages, --devices and --stages make {stages}; name the first "
            f"block of each of the {stages - 1} later stages"
        )
    return tuple(names[a:b] for a, b in pairwise((0, *places, len(names))))


def _sorted(firsts: Sequence[str], names: Sequence[str]) -> str:
    return ",".join(sorted(set(firsts), key=list(names).index))


def format_split(stages: Sequence[Sequence[str]]) -> str:
    """The inverse of :func:`parse_split`."""
    return ",".join(stage[0] for stage in stages[1:])


def choose(
    plan: Plan, costs: Sequence[Sequence[BlockCost]], cuts: Sequence[Stages], micro_batches: Sequence[int]
) -> tuple[Plan, Result]:
    """The cut and the number of micro-batches with which a simulated step is shortest.

    Beside the slowest stage, transfers included, this counts what a pipeline waits at its ends: with few micro-batches
    an early small stage is worth more than an even split.

    Args:
        plan: everything but the two.
        costs: as :func:`fastalex.parallel.simulate.simulate` takes them.
    """
    plans = [replace(plan, stages=cut, micro_batches=count) for cut in cuts for count in micro_batches]
    bounds = {candidate: fewest_seconds(candidate, costs) for candidate in plans}
    best: tuple[Plan, Result] | None = None
    for candidate in sorted(plans, key=lambda plan: bounds[plan]):
        if best is not None and bounds[candidate] >= best[1].seconds:
            break
        result = simulate(candidate, costs)
        if best is None or result.seconds < best[1].seconds:
            best = candidate, result
    assert best is not None, "no cut or no number of micro-batches to choose from"
    return best
