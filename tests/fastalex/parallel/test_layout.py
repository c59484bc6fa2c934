"""How devices share the network and the batch, and what cannot be shared out."""

from dataclasses import replace

import pytest

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout, resolve_layout
from fastalex.parallel.schedules import check_batch, check_micro_batches, possible_micro_batches, usual_micro_batches
from fastalex.training.options import ParallelOptions
from fastalex.training.resolve import machine_again


@pytest.mark.parametrize(
    ("devices", "machines", "stages", "replicas", "schedule", "expected"),
    [
        (1, 1, None, None, None, (Layout(1, 1, 1), "1f1b")),
        (2, 1, None, None, None, (Layout(1, 2, 2), "1f1b")),
        (2, 1, None, None, "interleaved", (Layout(1, 2, 4), "interleaved")),
        (4, 1, 2, None, None, (Layout(2, 2, 2), "1f1b")),
        (4, 1, 1, None, None, (Layout(4, 1, 1), "1f1b")),
        (1, 1, 2, None, None, (Layout(1, 1, 2), "interleaved")),
        (2, 1, 4, None, None, (Layout(1, 2, 4), "interleaved")),
        (4, 1, 4, 2, None, (Layout(2, 2, 4), "interleaved")),
        (2, 3, 2, None, "gpipe", (Layout(3, 2, 2), "gpipe")),
        (2, 1, None, None, "zero-bubble", (Layout(1, 2, 4), "zero-bubble")),
        (2, 1, 5, 1, "zero-bubble", (Layout(1, 2, 5), "zero-bubble")),
        (4, 1, 3, 2, "zero-bubble", (Layout(2, 2, 3), "zero-bubble")),
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
        (4, 1, 3, None, None, "3 stages do not divide 4 devices; choose --stages from 1, 2, 4"),
        (2, 2, 3, None, None, "3 stages do not divide 2 devices on each of 2 machines"),
        (4, 1, 6, None, None, "6 stages do not go evenly on 4 devices; choose --stages 4 or 8, or --sched"),
        (4, 1, None, 3, None, "3 replicas do not divide 4 devices; choose --replicas from 1, 2, 4"),
        (2, 1, 4, None, "1f1b", "runs one stage a device; 4 stages on 2 devices need --schedule interleaved or z"),
        (
            2,
            1,
            2,
            None,
            "interleaved",
            "--stages 2 on 2 devices makes one: choose --stages 4, or --schedule eager-1f1b",
        ),
        (4, 1, 3, 1, "zero-bubble", "3 stages on 4 devices leave devices without one; choose --stages 4 or more"),
        (1, 1, 2, None, "gpipe", "runs one stage a device; 2 stages on 1 device need --schedule interleaved or zero-b"),
        (2, 1, 0, None, None, "--stages is 0"),
    ],
)
def test_devices_that_cannot_be_shared(devices, machines, stages, replicas, schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve_layout(devices, machines, stages, replicas, schedule)


@pytest.mark.parametrize(
    ("batch_size", "micro_batches", "stages", "schedule", "message"),
    [
        (30, 4, 2, "1f1b", "4 micro-batches do not divide a batch of 30; choose --micro-batches from 1, 2, 3, 5, 6"),
        (32, 0, 1, "1f1b", "--micro-batches is 0"),
        (32, 2, 4, "1f1b", "at least as many micro-batches as stages: 2 micro-batches, 4 stages"),
        (30, 5, 2, "interleaved", "equal rounds of 2 or more: 5 micro-batches on 2 devices"),
    ],
)
def test_what_cannot_run_is_refused(batch_size, micro_batches, stages, schedule, message):
    with pytest.raises(ConfigurationError, match=message):
        check_micro_batches(batch_size, micro_batches, stages, schedule)


def test_gpipe_runs_fewer_micro_batches_than_stages():
    check_micro_batches(32, 2, 4, "gpipe")


def test_a_batch_that_replicas_do_not_divide():
    with pytest.raises(ConfigurationError, match=r"4 replicas do not divide a batch of 30; .* such as 32"):
        check_batch(Layout(4, 2, 2), "1f1b", 30, 2)


def test_micro_batches_to_choose_from():
    assert possible_micro_batches(Layout(2, 4, 4), "1f1b", 96) == [4, 6, 8, 12, 16]
    assert possible_micro_batches(Layout(1, 2, 4), "interleaved", 24) == [1, 2, 3, 4, 6, 8, 12]
    with pytest.raises(ConfigurationError, match="2 micro-batches do not divide a batch of 127"):
        possible_micro_batches(Layout(1, 2, 2), "1f1b", 127)
    assert usual_micro_batches(Layout(1, 2, 2), "1f1b", 32, "cpu") == 2
    assert usual_micro_batches(Layout(1, 2, 2), "1f1b", 33, "cpu") == 3
    assert usual_micro_batches(Layout(1, 2, 2), "1f1b", 32, "cuda") == 4
    assert usual_micro_batches(Layout(4, 1, 1), "1f1b", 32, "cuda") == 1


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"devices": "cpu,cpu", "stages": 2, "schedule": "1f1b", "split": "conv4"}, True),
        ({"split": "auto"}, False),
        ({"devices": "cpu,cpu,cpu"}, False),
        ({"schedule": "gpipe"}, False),
        ({"replicas": 2, "stages": 1}, False),
    ],
)
def test_a_run_that_goes_on_alike_keeps_what_it_measured(config, options, kept):
    run = replace(config, devices="cpu,cpu", stages=2, replicas=1, split="conv4", micro_batches=4)
    again = replace(run, **machine_again(ParallelOptions(**options), run))
    assert (again == run) == kept
    assert kept or (again.split, again.micro_batches) == ("auto", None)
    assert replace(run, **machine_again(ParallelOptions(micro_batches=8), run)) == replace(run, micro_batches=8)
