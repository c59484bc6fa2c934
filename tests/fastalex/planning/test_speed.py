"""Memory of stages, recorded speeds, and the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastalex import build_architecture
from fastalex.errors import ConfigurationError
from fastalex.network.footprint import layer_costs
from fastalex.parallel.partition import partition
from fastalex.parallel.stage_memory import stage_memory
from fastalex.parallel.world import World
from fastalex.planning.options import PlanOptions, resolve
from fastalex.planning.report import report
from fastalex.planning.speed import recorded_speeds
from fastalex.training.options import NetworkOptions

HERE = World(0, 1, torch.device("cpu"))


def test_stages_share_the_network_and_hold_what_is_under_way():
    architecture = build_architecture("krizhevsky")
    layers = layer_costs(architecture, "fp32", "native")
    whole = stage_memory(architecture, layers, [architecture.block_names], 1, "1f1b", "fp32")[0]
    for schedule, first in (("1f1b", 2 / 4), ("eager-1f1b", 3 / 4), ("gpipe", 1.0), ("zero-bubble", 1.0)):
        stages = stage_memory(architecture, layers, partition(architecture, 2), 4, schedule, "fp32")
        assert sum(stage.fixed for stage in stages) == whole.fixed
        assert sum(stage.activations for stage in stages) == whole.activations
        assert stages[0].in_flight == first
    # What weight gradients are made of waits for the end of the step, unless there are many micro-batches.
    few, many = (stage_memory(architecture, layers, partition(architecture, 3), m, "gpipe", "fp32") for m in (4, 12))
    assert [a.whole_batch > b.whole_batch for a, b in zip(few, many, strict=True)] == [False, True, True]
    assert few == [
        replace(stage, in_flight=1.0)
        for stage in stage_memory(architecture, layers, partition(architecture, 3), 4, "zero-bubble", "fp32")
    ]
    assert stages[1].largest_batch(stages[1].total(256)) == 256
    assert stages[1].largest_batch(1) == 0


def test_records_are_ours_and_of_the_network(tmp_path: Path):
    rows = [
        {"provider": "fastalex", "architecture": "krizhevsky", "images_per_second": 27.0, "batch_size": 32},
        {"ours": True, "architecture": "krizhevsky", "images_per_second": 30.0, "batch": 128, "way": "eager"},
        {"ours": False, "architecture": "krizhevsky", "images_per_second": 99.0, "batch": 128},
        {"ours": True, "architecture": "owt", "images_per_second": 99.0, "batch": 128},
        {"ours": True, "architecture": "krizhevsky", "images_per_second": None, "batch": 128},
    ]
    (tmp_path / "machine").mkdir()
    for name in ("steps", "steps-before"):
        (tmp_path / "machine" / f"{name}.json").write_text(json.dumps({"device": "a machine", "rows": rows}))
    found = recorded_speeds("krizhevsky", tmp_path)
    assert [speed.images_per_second for speed in found] == [30.0, 27.0]
    assert found[1].days(27 * 86_400, 2) == pytest.approx(2)
    assert recorded_speeds("krizhevsky", tmp_path / "nowhere") == []


def test_the_report(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    report(HERE, resolve(PlanOptions(devices="0,1", device_memory=3, batch_size=128)))
    out = capsys.readouterr().out
    assert "conv1 to conv2" in out
    assert "222 to 267" in out
    assert "5.00 to 6.00" in out
    assert "above it: conv3 1.45 %, conv4 1.09 %" in out
    network = NetworkOptions(width=1 / 16, lrn=False)
    report(HERE, resolve(PlanOptions(network, devices="cpu", batch_size=4, measure=True)))
    out = capsys.readouterr().out
    assert "20 steps here, without data" in out
    assert "no records: they are of the named networks, unvaried" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": "7"}, "device 7 does not exist.* --device-memory GIB"),
        ({"devices": "cpu,0", "device_memory": 3}, "write GPU numbers"),
        ({"devices": "cpu,gpu", "device_memory": 3}, "write GPU numbers"),
        ({"devices": "0,1", "device_memory": 0}, "--device-memory is 0"),
        ({"devices": "7", "device_memory": 3, "measure": True}, "device 7 does not exist"),
        ({"devices": "cpu", "batch_size": 0}, "--batch-size is 0"),
        ({"devices": "cpu", "epochs": 0}, "--epochs is 0"),
        ({"devices": "cpu,cpu", "schedule": "interleaved"}, "--schedule interleaved puts several stages on a device"),
        ({"devices": "cpu,cpu", "schedule": "zero-bubble"}, "--schedule zero-bubble puts several stages on a device"),
        ({"devices": "cpu,cpu", "batch_size": 9}, "2 micro-batches do not divide a batch of 9"),
        ({"devices": ",".join(["cpu"] * 9)}, "9 stages for 8 blocks"),
        ({"network": NetworkOptions(without=("conv9",))}, "no conv layer 'conv9'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve(PlanOptions(**options))
