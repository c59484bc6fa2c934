"""Options of the plan: its defaults, and what is refused."""

from pathlib import Path

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.parallel.layout import Layout
from fastalex.planning import options
from fastalex.planning.options import GIB, PlanOptions, resolve
from fastalex.recipes.published import build_recipe
from fastalex.training.options import NetworkOptions


def test_devices_of_another_machine_need_not_exist():
    plan = resolve(PlanOptions(devices="0, cuda:1", device_memory=3, batch_size=128))
    assert plan.devices == (torch.device("cuda", 0), torch.device("cuda", 1))
    assert plan.memory == (3 * GIB, 3 * GIB)
    parallel = plan.parallel
    assert (parallel.machines, parallel.layout, parallel.schedule, parallel.micro_batches) == (
        1,
        Layout(1, 2, 2),
        "eager-1f1b",
        8,
    )


def test_workers_on_the_cpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(options, "memory_limit", lambda: 9 * GIB)
    assert resolve(PlanOptions(devices="cpu,cpu,cpu", batch_size=6)).memory == (3 * GIB,) * 3
    assert resolve(PlanOptions(devices="cpu", device_memory=0.5)).memory == (GIB // 2,)


@pytest.mark.parametrize(
    ("devices", "batch_size", "micro_batches"), [("cpu", 9, 1), ("cpu,cpu", 128, 4), ("cpu,cpu", 6, 3)]
)
def test_micro_batches_are_those_of_training(devices, batch_size, micro_batches):
    assert resolve(PlanOptions(devices=devices, batch_size=batch_size)).parallel.micro_batches == micro_batches


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": "7"}, "device 7 does not exist.* --device-memory GIB"),
        ({"devices": "cpu,0", "device_memory": 3}, "write GPU numbers"),
        ({"devices": "cpu,gpu", "device_memory": 3}, "write GPU numbers"),
        ({"devices": "0,1", "device_memory": 0}, "--device-memory must be positive, got 0"),
        ({"devices": "7", "device_memory": 3, "measure": True}, "device 7 does not exist"),
        ({"devices": "cpu", "batch_size": 0}, "--batch-size .* 0"),
        ({"devices": "cpu", "epochs": 0}, "--epochs .* 0"),
        ({"devices": "cpu,cpu", "schedule": "interleaved"}, "--schedule interleaved puts several stages on a device"),
        ({"devices": "cpu,cpu", "batch_size": 9, "micro_batches": 2}, "a batch of 9 cannot be divided into 2"),
        ({"devices": ",".join(["cpu"] * 9)}, "9 stages"),
        ({"network": NetworkOptions(without=("conv9",))}, "no conv layer 'conv9'"),
        ({"devices": "cpu,cpu", "split": "conv9"}, "split names 'conv9'"),
        ({"devices": "cpu", "split": "conv3"}, "split conv3 makes 2 stages, but the layout has 1"),
        ({"draw": Path("network.png")}, r"network.png must end with .svg, got '.png'"),
        ({"force": True}, "--force replaces the files of --draw and --json, which are not given; leave it out"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        resolve(PlanOptions(**given))


def test_the_split_may_be_given():
    split = resolve(PlanOptions(devices="cpu,cpu", split="fc6")).parallel.split
    assert split == (("conv1", "conv2", "conv3", "conv4", "conv5"), ("fc6", "fc7", "fc8"))


def test_a_drawing_replaces_a_file_only_if_told_so(tmp_path):
    path = tmp_path / "network.svg"
    assert resolve(PlanOptions(devices="cpu", draw=path)).draw == path
    assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"network.svg exists already; choose another file, or add --force"):
        resolve(PlanOptions(devices="cpu", draw=path))
    assert resolve(PlanOptions(devices="cpu", draw=path, force=True)).draw == path
    assert path.read_text() == "mine"
    with pytest.raises(ConfigurationError, match=r"x.svg cannot be written: Not a directory; choose another file"):
        resolve(PlanOptions(devices="cpu", draw=path / "x.svg"))


def test_the_epochs_are_those_of_the_recipe():
    assert resolve(PlanOptions(devices="cpu")).epochs == build_recipe("krizhevsky").epochs
