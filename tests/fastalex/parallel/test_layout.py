"""How devices share the network and the batch."""

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.network.variation import build_architecture
from fastalex.parallel.layout import Layout, ParallelPlan, divisors, resolve_layout
from fastalex.parallel.partition import parse_split, partition


@pytest.mark.parametrize(
    ("devices", "machines", "stages", "replicas", "schedule", "expected"),
    [
        (1, 1, None, None, None, (Layout(1, 1, 1), "eager-1f1b")),
        (2, 1, None, None, None, (Layout(1, 2, 2), "eager-1f1b")),
        (2, 1, None, None, "interleaved", (Layout(1, 2, 4), "interleaved")),
        (4, 1, 2, None, None, (Layout(2, 2, 2), "eager-1f1b")),
        (4, 1, 1, None, None, (Layout(4, 1, 1), "eager-1f1b")),
        (1, 1, 2, None, None, (Layout(1, 1, 2), "interleaved")),
        (2, 1, 4, None, None, (Layout(1, 2, 4), "interleaved")),
        (4, 1, 4, 2, None, (Layout(2, 2, 4), "interleaved")),
        (2, 3, 2, None, "gpipe", (Layout(3, 2, 2), "gpipe")),
        (2, 1, None, 2, "1f1b", (Layout(2, 1, 1), "1f1b")),
        (2, 1, 4, 2, None, (Layout(2, 1, 4), "interleaved")),
    ],
)
def test_devices_become_replicas_and_stages(devices, machines, stages, replicas, schedule, expected):
    layout, chosen = resolve_layout(devices, machines, stages, replicas, schedule)
    assert (layout, chosen) == expected
    assert layout.workers == devices * machines
    ranks = [stage for rank in range(layout.ranks) for stage in layout.local_stages(rank)]
    assert sorted(ranks) == list(range(layout.stages))


@pytest.mark.parametrize(
    ("devices", "machines", "stages", "replicas", "schedule", "message"),
    [
        (4, 1, 3, None, None, "4 devices cannot be divided into pipelines of 3 stages; choose stages from 1, 2, 4"),
        (2, 2, 3, None, None, "2 devices on each of 2 machines cannot be divided into pipelines of 3 stages"),
        (4, 1, 6, None, None, "6 stages cannot be spread evenly over 4 devices; choose stages 4 or 8"),
        (4, 1, 3, 2, None, "spread evenly over the 2 devices of each replica; choose stages 2 or 4"),
        (4, 1, None, 3, None, "4 devices cannot be divided into 3 replicas; choose replicas from 1, 2, 4"),
        (2, 1, 4, None, "1f1b", "schedule 1f1b runs one stage per device, got 4 stages on 2 devices; .* interleaved"),
        (2, 1, 2, None, "interleaved", "several stages per device, got 2 on 2 devices; choose stages 4, or .* eager-1"),
        (1, 1, 2, None, "gpipe", "schedule gpipe runs one stage per device, got 2 stages on 1 device; .* interleaved"),
        (2, 1, 0, None, None, "stages must be at least 1, got 0"),
        (2, 1, None, -1, None, "replicas must be at least 1, got -1"),
    ],
)
def test_devices_that_cannot_share(devices, machines, stages, replicas, schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_layout(devices, machines, stages, replicas, schedule)


def test_a_plan_survives_its_json():
    architecture = build_architecture("krizhevsky")
    devices = (torch.device("cuda", 0), torch.device("cuda", 1))
    plan = ParallelPlan(devices, 3, Layout(3, 2, 4), partition(architecture, 4), "interleaved", 8)
    assert ParallelPlan.from_json(plan.to_json()) == plan
    assert plan.rows(96) == 32
    assert [plan.device_of(stage) for stage in range(4)] == [*devices, *devices]
    with pytest.raises(ValueError, match="unknown pipeline schedule 'zero-bubble'"):
        ParallelPlan.from_json({**plan.to_json(), "schedule": "zero-bubble"})


def test_workers_of_several_machines_know_the_device_of_each_stage():
    names = build_architecture("krizhevsky").block_names
    devices = (torch.device("cuda", 0), torch.device("cuda", 1))
    across = ParallelPlan(devices, 2, Layout(1, 4, 4), parse_split("conv2,conv3,fc6", names, 4), "1f1b", 4)
    assert [across.device_of(stage).index for stage in range(4)] == [0, 1, 0, 1]
    alone = ParallelPlan(devices, 1, Layout(2, 1, 3), parse_split("conv2,conv3", names, 3), "interleaved", 4)
    assert [alone.device_of(stage).index for stage in range(3)] == [0, 0, 0]
    assert (across.rows(8), alone.rows(8)) == (8, 4)


def test_divisors_end_with_the_number_or_the_most():
    assert (divisors(12), divisors(1), divisors(64, 8), divisors(32)) == (
        "1, 2, 3, 4, 6, 12",
        "1",
        "1, 2, 4, 8",
        "1, 2, 4, 8, 16",
    )


def test_one_device_runs_the_whole_network():
    names = build_architecture("owt").block_names
    plan = ParallelPlan.single(torch.device("cpu"), names)
    assert (plan.layout, plan.split, plan.micro_batches, plan.device_type) == (Layout(), (names,), 1, "cpu")


def test_machines_of_one_device_each_run_their_stage_on_it():
    device = torch.device("cuda", 0)
    plan = ParallelPlan((device,), 2, Layout(1, 2, 2), (("conv1",), ("fc8",)), "1f1b", 2)
    assert [plan.device_of(stage) for stage in range(2)] == [device, device]


def test_divisors_are_named_up_to_a_limit():
    assert divisors(16 * 17) == "1, 2, 4, 8, 16"
    assert divisors(6, 3) == "1, 2, 3"
