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
    program = "import torch, kernels; kernels.local_response_norm(torch.ones(1, 1, 1, 1))"
    refused = run(program, FASTALEX_KERNELS="triton")
    assert refused.returncode != 0
    assert "the Triton kernels were chosen, but do not run on cpu: use a GPU, choose native" in refused.stderr
