"""Every kernel compiles for three generations of GPUs into code that uses them as intended, without one at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Shared memory that one program may have, in bytes.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

KERNELS = {
    "lrn_fwd_kernel",
    "lrn_bwd_kernel",
    "same_map_fwd_kernel",
    "same_map_spread_kernel",
    "same_map_bwd_kernel",
    "max_pool_fwd_kernel",
    "max_pool_bwd_kernel",
    "lrn_pool_fwd_kernel",
    "lrn_pool_bwd_kernel",
    "dropout_fwd_kernel",
    "relu_dropout_bwd_kernel",
    "sgd_kernel",
}

# Loads and stores narrower than 16 bytes, and what they are. A maximum's place is one byte for each channel of a
# vector, 8 in half precision and 4 in fp32. Counters are single int64 values. The update reads its table, and masks the
# last, incomplete block of a tensor.
NARROW = {
    "max_pool_fwd_kernel": {"4", "8"},
    "max_pool_bwd_kernel": {"4", "8"},
    "lrn_pool_fwd_kernel": {"4", "8"},
    "lrn_pool_bwd_kernel": {"4", "8"},
    "dropout_fwd_kernel": {"8"},
    "relu_dropout_bwd_kernel": {"8"},
    "sgd_kernel": {"1", "2", "4", "8"},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    script = Path(__file__).with_name("compile_kernels.py")
    wanted = ["bfloat16:80", "bfloat16:90", "bfloat16:100", "float32:90"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, str(script), *wanted], env=environment, cwd=root, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_kernel_was_compiled_for_every_architecture(records: list[dict]) -> None:
    for architecture in SHARED_LIMITS:
        assert {record["kernel"] for record in records if record["architecture"] == architecture} == KERNELS


def test_nothing_spills_and_nothing_is_in_local_memory(records: list[dict]) -> None:
    for record in records:
        assert (record["STACK"], record["LOCAL"]) == (0, 0), record


def test_shared_memory_is_within_limits(records: list[dict]) -> None:
    for record in records:
        assert record["shared"] <= SHARED_LIMITS[record["architecture"]], record


def test_tensors_are_loaded_and_stored_16_bytes_at_a_time(records: list[dict]) -> None:
    for record in records:
        for way in ("loads", "stores"):
            wide = {width for width in record[way] if int(width) >= 16}
            narrow = set(record[way]) - wide
            places_only = record["kernel"] == "lrn_pool_fwd_kernel" and way == "stores" and narrow
            assert wide or places_only, record
            assert narrow <= NARROW.get(record["kernel"], set()), record
