"""Choice of the implementation."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from comparing import DEVICE

import kernels
from kernels import dispatch


def test_the_device_decides_unless_told_otherwise() -> None:
    x = torch.ones(1, device=DEVICE)
    by_itself = "triton" if DEVICE == "cuda" else "native"
    assert dispatch.implementation_for(torch.ones(1)) == "native"
    assert dispatch.implementation_for(x) == by_itself
    with kernels.using("triton"):
        assert dispatch.implementation_for(x) == "triton"
        with kernels.using("reference"):
            assert dispatch.implementation_for(x) == "reference"
        assert dispatch.implementation_for(x) == "triton"
    assert dispatch.implementation_for(x) == by_itself


def test_the_choice_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), kernels.using("reference"):
        raise KeyError
    assert dispatch.implementation_for(torch.ones(1)) == "native"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="implementation must be one of triton, native, reference, got 'cuda'"):
        kernels.using("cuda").__enter__()


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "FASTALEX_KERNELS")
    }
    return subprocess.run([sys.executable, "-c", program], env=environ | environment, capture_output=True, text=True)


def test_the_environment_chooses() -> None:
    program = "import torch, kernels; print('imported', kernels.dispatch.implementation_for(torch.ones(1)))"
    assert run(program, FASTALEX_KERNELS="reference").stdout.strip() == "imported reference"
    program = "import torch, kernels; print('imported', flush=True); kernels.dispatch.implementation_for(torch.ones(1))"
    refused = run(program, FASTALEX_KERNELS="fastest")
    assert "FASTALEX_KERNELS must be one of triton, native, reference, got 'fastest'" in refused.stderr
    assert refused.stdout.strip() == "imported"


def test_triton_on_a_cpu_tensor_says_what_to_do() -> None:
    program = "import torch, kernels; kernels.local_response_norm(torch.ones(1, 1, 1, 1), 5)"
    refused = run(program, FASTALEX_KERNELS="triton")
    assert refused.returncode != 0
    assert "the Triton kernels were chosen, but do not run on cpu: use a GPU, choose native" in refused.stderr


def test_without_triton_native_and_reference_work() -> None:
    program = """if True:
        import sys
        sys.modules["triton"] = None
        import torch, kernels
        assert kernels.dispatch.implementation_for(torch.ones(1)) == "native"
        x = torch.ones(2, 4, 5, 5, requires_grad=True)
        for implementation in ("native", "reference"):
            with kernels.using(implementation):
                y = kernels.lrn_max_pool2d(kernels.conv2d_relu(x, torch.ones(4, 4, 1, 1)), relu="before")
                y = kernels.max_pool2d(kernels.same_map_norm(kernels.local_response_norm(y, 5)), 2, 1).flatten(1)
                y = kernels.dropout(kernels.bias_relu_dropout(y, torch.ones(4), seed=1), seed=2)
                kernels.cross_entropy(y, torch.tensor([0, 1]))[0].backward()
                kernels.sgd_update_([x.detach()], [x.grad], [x.grad.clone()], learning_rates=[0.1], weight_decays=[0.0])
        with kernels.using("triton"):
            kernels.local_response_norm(x, 5)
    """
    refused = run(program, CC="none")
    assert refused.stderr.strip().endswith(
        "the Triton kernels were chosen, but Triton is not installed: install triton or choose native"
    )


def test_an_export_to_onnx_uses_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert dispatch.implementation_for(torch.ones(1)) == "reference"
