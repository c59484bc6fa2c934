"""Unsupported precisions are refused, slow ones are warned of."""

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.network import precision
from fastalex.network.precision import check_precision, configure_libraries, slow_precision

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
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    assert "bf16 is slow on this CPU" in (slow_precision("bf16", CPU) or "")
    assert slow_precision("fp32", CPU) is None
    assert slow_precision("bf16", GPU) is None
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    assert slow_precision("bf16", CPU) is None


def test_the_libraries_follow_the_precision():
    try:
        for precision_name, allowed in (("tf32", True), ("fp32", False), ("bf16", True)):
            configure_libraries(precision_name)
            assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
            assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        torch.backends.cudnn.benchmark = False
