"""Unsupported precisions are refused, slow ones are warned of."""

import pytest
import torch

import kernels
from fastalex.errors import ConfigurationError
from fastalex.network import precision
from fastalex.network.precision import (
    check_precision,
    configure_libraries,
    default_precision,
    describe_precision,
    slow_precision,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_tf32_needs_a_gpu():
    with pytest.raises(ConfigurationError, match=r"^precision tf32 needs a GPU, got cpu; choose fp32$"):
        check_precision("tf32", [CPU])
    check_precision("fp32", [CPU])
    check_precision("bf16", [CPU, CPU])


@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_old_gpus_have_fp32_only(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.raises(
        ConfigurationError, match=rf"^precision {name} needs .* 8\.0 .*, got 7\.0 .*V100\); choose fp32$"
    ):
        check_precision(name, [GPU])
    check_precision("fp32", [GPU])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_precision(name, [GPU])


def test_emulated_bf16_is_slow(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: False)
    assert "bf16 is slow on this CPU" in (slow_precision("bf16", CPU) or "")
    assert slow_precision("fp32", CPU) is None
    assert slow_precision("bf16", GPU) is None
    for multiplies in (True, None):  # None: unknown
        monkeypatch.setattr(precision, "multiplies_bf16", lambda multiplies=multiplies: multiplies)
        assert slow_precision("bf16", CPU) is None


@pytest.mark.parametrize(
    ("multiplies", "in_c", "implementation", "devices", "wanted"),
    [
        (True, True, "native", [CPU], "bf16"),
        (True, True, "native", [CPU, CPU], "bf16"),
        (True, True, "native", [GPU], "fp32"),
        (True, True, "native", [CPU, GPU], "fp32"),
        (True, True, "reference", [CPU], "fp32"),
        (True, False, "native", [CPU], "fp32"),
        (False, True, "native", [CPU], "fp32"),
        (None, True, "native", [CPU], "fp32"),
    ],
)
def test_bf16_is_the_default_where_it_is_fast(multiplies, in_c, implementation, devices, wanted, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: multiplies)
    monkeypatch.setattr(precision.c_functions, "supports", lambda x: in_c and x.dtype == torch.bfloat16)
    with kernels.using(implementation):
        assert default_precision(devices) == wanted


def test_a_cpus_bf16_is_explained(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: True)
    assert describe_precision("bf16", CPU) == "bf16, which this processor multiplies (master weights in fp32)"
    assert describe_precision("bf16", GPU) == "bf16"
    assert describe_precision("fp32", CPU) == "fp32"
    monkeypatch.setattr(precision, "multiplies_bf16", lambda: False)
    assert describe_precision("bf16", CPU) == "bf16"


def test_the_libraries_follow_the_precision():
    try:
        for precision_name, allowed in (("tf32", True), ("fp32", False), ("bf16", True)):
            configure_libraries(precision_name)
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
            assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        torch.backends.cudnn.benchmark = False
