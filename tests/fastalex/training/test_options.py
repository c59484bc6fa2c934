"""How options become a run, without starting one."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout
from fastalex.training.config import RunConfig
from fastalex.training.options import ParallelOptions, TrainOptions
from fastalex.training.resolve import _resolve_or_restart, new_run, resolve


def asked(data: Path, **machine) -> TrainOptions:
    return TrainOptions(data, machine=ParallelOptions(**machine))


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"devices": "cpu", "max_restarts": -1}, "--max-restarts is -1; 0 or more is wanted"),
        ({"devices": "cpu", "split": "conv3"}, "--split conv3 makes 2 stages, --devices and --stages make 1; leave it"),
        ({"devices": "cpu,cpu", "stages": 1, "split": "conv9"}, "--split names 'conv9'"),
        (
            {"devices": "cpu,cpu", "stages": 1, "schedule": "zero-bubble"},
            "--schedule zero-bubble orders the passes of several stages, --devices and --stages make 1; leave it out",
        ),
        ({"devices": "cpu", "schedule": "gpipe"}, "--schedule gpipe orders the passes of several stages"),
        (
            {"devices": "cpu,cpu", "stages": 99},
            "99 stages for 8 blocks .* choose --stages from 1, 2, 4, 6, 8$",
        ),
        ({"devices": ",".join(["cpu"] * 9)}, "9 stages for 8 blocks .* choose --stages from 1, 3$"),
    ],
)
def test_what_cannot_be_split_or_restarted(prepared, tmp_path, monkeypatch, machine, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        resolve(asked(prepared, **machine))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("machine", "stages", "schedule"),
    [
        ({}, None, None),
        ({"replicas": 1}, None, None),
        ({"stages": 2}, 2, "1f1b"),
        ({"stages": 4}, 4, "interleaved"),
        ({"schedule": "gpipe"}, 2, "gpipe"),
        ({"split": "conv3"}, 2, "1f1b"),
        ({"schedule": "zero-bubble"}, None, "zero-bubble"),
        ({"schedule": "zero-bubble", "stages": 3}, 3, "zero-bubble"),
        ({"schedule": "zero-bubble", "split": "conv2,conv3,conv5,fc6"}, 5, "zero-bubble"),
        ({"schedule": "zero-bubble", "split": "analytic"}, 4, "zero-bubble"),
        ({"replicas": 2}, 1, "1f1b"),
    ],
)
def test_the_schedule_is_left_to_measuring_only_where_nothing_says_it(prepared, machine, stages, schedule):
    config = new_run(asked(prepared, devices="cpu,cpu", **machine))
    assert (config.stages, config.schedule) == (stages, schedule)


def test_devices_of_another_machine_are_counted_and_not_looked_for(config):
    assert replace(config, devices="97,98").layout == Layout(1, 2, 2)


def test_a_restarted_worker_of_torchrun_finds_its_run(prepared, tmp_path, monkeypatch):
    options = replace(asked(prepared, devices="cpu"), output=tmp_path / "run")
    first = _resolve_or_restart(options)
    with pytest.raises(ConfigurationError, match="run exists already"):
        _resolve_or_restart(options)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert _resolve_or_restart(options) == first == RunConfig.load(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigurationError, match="torchrun --max-restarts needs --output"):
        _resolve_or_restart(replace(options, output=None))
    with pytest.raises(ConfigurationError, match="is torchrun's option here"):
        _resolve_or_restart(replace(options, machine=replace(options.machine, max_restarts=1)))
