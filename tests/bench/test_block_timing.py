"""What is left to measuring, and what was decided before."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastalex.parallel.costs import seconds_at
from fastalex.parallel.simulate import Plan, orders
from fastalex.parallel.tuning import (
    _possible,
    _save_costs,
    _settled_before,
    all_cores,
    arithmetic_table,
    counted_costs,
    orders_of,
    settle,
)

from fastalex.network.footprint import training_macs
from fastalex.network.variation import build_architecture
from fastalex.parallel.layout import Layout
from fastalex.parallel.partition import parse_split
from fastalex.parallel.world import World

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"devices": "cpu,cpu"},
            [
                ("1f1b", [2, 4, 8], 7),
                ("eager-1f1b", [1, 2, 4, 8], 7),
                ("interleaved", [1, 2, 4, 8], 35),
                ("zero-bubble", [1, 2, 4, 8], 2**7 - 1),
            ],
        ),
        (
            {"devices": "cpu,cpu", "micro_batches": 4},
            [("1f1b", [4], 7), ("eager-1f1b", [4], 7), ("interleaved", [4], 35), ("zero-bubble", [4], 2**7 - 1)],
        ),
        (
            {"devices": "cpu,cpu", "micro_batches": 4, "cuda_graphs": True},
            [("1f1b", [4], 7), ("eager-1f1b", [4], 7), ("interleaved", [4], 35)],
        ),
        ({"devices": "cpu,cpu", "schedule": "gpipe"}, [("gpipe", [1, 2, 4, 8], 7)]),
        ({"devices": "cpu,cpu", "stages": 2, "schedule": "1f1b", "split": "conv3"}, [("1f1b", [2, 4, 8], 1)]),
        (
            {"devices": ",".join(["cpu"] * 5), "replicas": 1},
            [("1f1b", [8], 35), ("eager-1f1b", [1, 2, 4, 8], 35), ("zero-bubble", [1, 2, 4, 8], 35 + 21 + 7 + 1)],
        ),  # 10 stages for 8 blocks: not possible
        ({"devices": "cpu,cpu", "schedule": "zero-bubble", "stages": 3}, [("zero-bubble", [1, 2, 4, 8], 21)]),
    ],
)
def test_what_there_is_to_choose_from(config, changes, expected):
    config = replace(config, **{"stages": None, "schedule": None, "split": "auto", "micro_batches": None, **changes})
    possible = _possible(config, config.network.build_architecture())
    assert [(schedule, counts, len(cuts)) for schedule, counts, cuts in possible] == expected


def test_a_restarted_run_keeps_what_it_decided_and_another_run_does_not(config):
    asked = replace(config, devices="cpu,cpu", stages=None, schedule=None, split="auto", micro_batches=None)
    asked.save()
    assert _settled_before(asked) is None
    decided = {"schedule": "interleaved", "stages": 4, "split": "conv2,conv3,conv5", "micro_batches": 4}
    replace(asked, **decided).save()
    assert _settled_before(asked) == decided
    assert _settled_before(replace(asked, seed=7)) is None
    world = World(0, 2, CPU, layout=Layout(1, 2, 2))
    world.from_first = lambda make: make()
    assert settle(world, asked) == replace(asked, **decided)
    assert world.layout == Layout(1, 2, 4)


def test_the_order_of_passes_comes_from_measured_or_counted_costs(config):
    architecture = build_architecture("krizhevsky")
    world = World(0, 2, CPU, layout=Layout(1, 2, 3))
    world.from_first = lambda make: make()
    named = {"devices": "cpu,cpu", "stages": 3, "split": "conv3,fc6", "micro_batches": 4}
    assert orders_of(world, replace(config, **named | {"schedule": "interleaved", "stages": 4}), architecture) is None
    settled = replace(config, **named, schedule="zero-bubble")
    rows = settled.recipe.batch_size
    plan = Plan(parse_split(architecture, "conv3,fc6", 3), 2, rows, 4, "zero-bubble")
    counted, macs = counted_costs(architecture, rows), training_macs(architecture)
    for cost in counted:
        assert seconds_at(cost.forward, rows) + seconds_at(cost.backward, rows) + cost.product == rows * macs[cost.name]
    assert orders_of(world, settled, architecture) == orders(plan, [counted])
    # Measured: the last stage takes nearly all of the time, so other gradients are apart.
    costs = [[replace(cost.times(1000.0 if cost.name == "fc6" else 1.0), product=1.0) for cost in counted]] * 2
    Path(settled.output).mkdir(exist_ok=True)
    _save_costs(Path(settled.output) / "costs.json", costs, plan)
    assert orders_of(world, settled, architecture) == orders(plan, costs)
    assert orders(plan, costs) != orders(plan, [counted])
    # Those of two devices say nothing of three.
    plan, settled = replace(plan, ranks=3), replace(settled, devices="cpu,cpu,cpu")
    assert orders_of(world, settled, architecture) == orders(plan, [counted])


def test_cores_of_all_machines_are_counted(monkeypatch):
    here = all_cores(CPU)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "6"), ("GROUP_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    assert all_cores(CPU) == 3 * here
    assert all_cores(torch.device("cuda")) == math.inf


def test_a_cut_that_is_not_measured_is_printed_with_its_arithmetic(config, capsys):
    world = World(0, 2, CPU, layout=Layout(1, 2, 2))
    settled = settle(world, replace(config, devices="cpu,cpu", split="analytic", micro_batches=None))
    assert (settled.split, settled.micro_batches) == ("conv2", 2)
    assert "multiply-accumulates" in capsys.readouterr().out
    Path(settled.output).mkdir(exist_ok=True)
    (Path(settled.output) / "costs.json").write_text(
        '{"blocks": [[], []]}'
    )  # as of a run that goes on, whose table was shown at its start
    assert settle(world, settled) == settled
    assert capsys.readouterr().out == ""
    architecture = build_architecture("krizhevsky")
    shares = arithmetic_table(architecture, parse_split(architecture, "conv3", 2)).columns[3]
    assert list(shares.cells) == ["42.7 %", "57.3 %"]
