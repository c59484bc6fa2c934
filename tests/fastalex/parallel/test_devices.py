"""Devices by name, and defaults."""

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.parallel.devices import default_device, default_devices, parse_devices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a device"),
        ("cpu,gpu", "'gpu' is not a device; write GPU numbers"),
        ("-1", "'-1' is not a device"),
        ("97", "device 97 does not exist"),
        ("cuda:97", "device 97 does not exist"),
    ],
)
def test_text_that_names_no_device(text, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_devices(text)


def test_text_that_names_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert parse_devices("0, 3") == (torch.device("cuda:0"), torch.device("cuda:3"))
    assert parse_devices("cuda:1") == (torch.device("cuda:1"),)
    assert parse_devices("cpu,cpu") == (torch.device("cpu"),) * 2
    with pytest.raises(ConfigurationError, match="device 4 does not exist: this machine has GPUs 0 to 3; choose"):
        parse_devices("0,4")
    with pytest.raises(ConfigurationError, match="name a GPU twice"):
        parse_devices("1,1")
    with pytest.raises(ConfigurationError, match="must be all GPUs or all CPU, got cpu,cuda:1"):
        parse_devices("cpu,1")


@pytest.mark.parametrize(
    ("gpus", "for_training", "otherwise"), [(0, "cpu", "cpu"), (1, "0", "0"), (2, "0,1", "0"), (8, "0,1", "0")]
)
def test_default_devices(monkeypatch, gpus, for_training, otherwise):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_devices() == for_training
    assert default_device() == otherwise
