"""Every kernel compiles for three generations of GPUs into efficient code. No GPU is needed.

Efficient means: no spills, wide loads, tensor cores; and for sm_90 no more instructions and no fewer resident warps
than in the record of `bench/static.py`.

`.venv/bin/python -m pytest tests/kernels/test_compiled.py --everything` compiles all combinations of operator, size,
layout, dtype and GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from static_analysis.budget import Budget
from static_analysis.rows import key_of

# Most instructions of a kernel with an unusual window, in PTX. The time to compile grows with their number.
INSTRUCTION_LIMIT = 4000
# Seconds after which a compiler is taken to hang; all cases together take minutes on a busy machine.
HANG = 3600

# Largest shared memory of one program, in bytes.
SHARED_LIMITS = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}

ROOT = Path(__file__).parents[2]
KERNELS = {
    name
    for path in (ROOT / "kernels").glob("*.py")
    for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)
}

# Widths in bytes of the expected loads and stores narrower than 16, with the reason.
NARROW = {
    # The first convolution's three channels, its rows of 363 weights, and biases.
    ("conv_fwd_kernel", "loads"): {"2", "4", "8"},
    # In fp32, operands that are transposed on their way to the tensor cores.
    ("conv_bwd_data_kernel", "loads"): {"4"},
    ("conv_bwd_weight_kernel", "loads"): {"2", "4"},
    # Rows of 363 weights.
    ("conv_bwd_weight_kernel", "stores"): {"4"},
    # A program has one row of a square of 4 x 4 pixels: 12 numbers, 24 bytes in half precision.
    ("space_to_depth_kernel", "stores"): {"8"},
    # Sums of one column per thread.
    ("sum_parts_kernel", "stores"): {"2", "4"},
    ("bias_relu_bwd_kernel", "stores"): {"4"},
    # The argmax is one byte for each channel of a vector, 8 in half precision and 4 in fp32.
    ("max_pool_fwd_kernel", "stores"): {"4", "8"},
    ("max_pool_bwd_kernel", "loads"): {"4", "8"},
    ("lrn_pool_fwd_kernel", "stores"): {"4", "8"},
    ("lrn_pool_bwd_kernel", "loads"): {"4", "8"},
    # An item has four channels, because the sums of several rows take the registers.
    ("same_map_pool_fwd_kernel", "loads"): {"8"},
    ("same_map_pool_fwd_kernel", "stores"): {"4", "8"},
    ("same_map_pool_bwd_kernel", "loads"): {"4", "8"},
    ("same_map_pool_bwd_kernel", "stores"): {"8"},
    # Counters are single int64 values.
    ("dropout_fwd_kernel", "loads"): {"8"},
    ("relu_dropout_bwd_kernel", "loads"): {"8"},
    # The label of a row and its score; one number per row, and their sums.
    ("cross_entropy_fwd_kernel", "loads"): {"2", "4", "8"},
    ("cross_entropy_fwd_kernel", "stores"): {"4"},
    ("cross_entropy_sum_kernel", "loads"): {"4"},
    ("cross_entropy_sum_kernel", "stores"): {"4", "8"},
    ("cross_entropy_bwd_kernel", "loads"): {"4", "8"},
    # The tables, and the last block of a tensor, which is masked.
    ("sgd_kernel", "loads"): {"2", "4", "8"},
    ("sgd_kernel", "stores"): {"2", "4"},
}


# The record of `bench/static.py`.
RECORD = ROOT / "bench" / "results" / "static" / "kernels.json"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict]:
    """What `compile_kernels.py` prints: one compilation for all tests."""
    script = Path(__file__).with_name("compile_kernels.py")
    wanted = ["bfloat16:80", "bfloat16:90", "bfloat16:100", "float32:90"]
    if request.config.getoption("--everything"):
        wanted.append("--everything")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    result = subprocess.run(
        [sys.executable, str(script), *wanted],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def records(output: list[dict]) -> list[dict]:
    return [item for item in output if "kernel" in item]


def test_every_kernel_was_compiled_for_every_architecture(records: list[dict]) -> None:
    for architecture in SHARED_LIMITS:
        assert {record["kernel"] for record in records if record["architecture"] == architecture} == KERNELS


def test_a_new_number_is_not_a_new_kernel(records: list[dict]) -> None:
    cases = {record["case"] for record in records}
    assert "cross_entropy" in cases
    assert "cross_entropy with other numbers" not in cases


def test_nothing_spills_and_nothing_is_in_local_memory(records: list[dict]) -> None:
    for record in records:
        # With --everything, the largest products of fp32 weight gradients for sm_100 spill four registers.
        place = record["kernel"], record["case"], record["dtype"], record["architecture"]
        spilled = 16 if place == ("conv_bwd_weight_kernel", "conv5", "float32", 100) else 0
        assert record["STACK"] <= spilled, record
        assert record["LOCAL"] == 0, record


def test_no_window_is_unrolled_into_code_that_takes_long_to_compile(records: list[dict]) -> None:
    windows = [record for record in records if record["case"].startswith("window")]
    operators = ("max_pool", "lrn_pool", "lrn", "same_map", "same_map_pool")
    wanted = {f"{operator}_{way}_kernel" for operator in operators for way in ("fwd", "bwd")}
    assert {record["kernel"] for record in windows} == wanted | {"same_map_spread_kernel"}
    for record in windows:
        assert record["instructions"] <= INSTRUCTION_LIMIT, record


def test_shared_memory_is_within_limits(records: list[dict]) -> None:
    for record in records:
        assert record["shared"] <= SHARED_LIMITS[record["architecture"]], record


def test_products_use_the_tensor_cores_of_their_generation(records: list[dict]) -> None:
    instructions = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}
    products = [
        record for record in records if re.fullmatch(r"conv_(fwd|bwd_data|bwd_weight)_kernel", record["kernel"])
    ]
    assert {record["case"].removesuffix(" tuned") for record in products} == {f"conv{layer}" for layer in range(1, 6)}
    for record in products:
        assert instructions[record["architecture"]] in record["matrix_instructions"], record


def test_only_the_first_layers_pixels_and_biases_are_loaded_narrowly(records: list[dict]) -> None:
    """In bf16, all other operands of the three products are loaded 16 bytes at a time, bypassing the registers."""
    for record in records:
        if record["dtype"] == "bfloat16" and record["kernel"].startswith("conv_") and record["case"] != "conv1":
            narrow = sum(count for width, count in record["loads"].items() if int(width) < 16)
            assert narrow <= 8, record
            assert narrow == 0 or record["kernel"] == "conv_fwd_kernel", record


def test_tensors_are_loaded_and_stored_16_bytes_at_a_time(records: list[dict]) -> None:
    for record in records:
        if record["case"].endswith("in NCHW"):
            continue
        if record["case"] == "sgd unaligned":
            # Wider ones would fault. The numbers in the tables have 8 bytes.
            assert set(record["loads"]) <= {"2", "4", "8"}, record
            assert set(record["stores"]) <= {"2", "4"}, record
            continue
        if record["case"].startswith("window") and "pixels" in record["case"]:
            continue  # an item has fewer channels, because the sums of many rows take the registers
        for way in ("loads", "stores"):
            wide = {width for width in record[way] if int(width) >= 16}
            narrow = set(record[way]) - wide
            # Four channels in half precision; rows of four pixels; sums, which are all that is stored without a ReLU;
            # one number per row of logits; the first layer's 363 weights; transposed operands in fp32.
            narrow_only = {
                ("same_map_pool_fwd_kernel", way if record["dtype"] != "float32" else ""),
                ("same_map_pool_bwd_kernel", way if record["dtype"] != "float32" else ""),
                ("space_to_depth_kernel", "stores" if record["dtype"] != "float32" else ""),
                ("sum_parts_kernel", "stores"),
                ("cross_entropy_fwd_kernel", "stores"),
                ("cross_entropy_sum_kernel", way),
                ("bias_relu_bwd_kernel", "stores" if "lrn" in record["case"] else ""),
                ("conv_bwd_weight_kernel", "stores" if record["case"] == "conv1" else ""),
                ("conv_bwd_weight_kernel", "loads" if record["dtype"] == "float32" else ""),
            }
            assert wide or (narrow and (record["kernel"], way) in narrow_only), record
            assert narrow <= NARROW.get((record["kernel"], way), set()), record


def test_hopper_code_is_no_worse_than_recorded(output: list[dict]) -> None:
    rows = [item["row"] for item in output if "row" in item]
    record, versions = json.loads(RECORD.read_text()), next(item["versions"] for item in output if "versions" in item)
    if versions["triton"].split(".")[:2] not in (["3", "6"], ["3", "7"]):  # what a GPU build of torch 2.11 to 2.13 has
        pytest.skip(f"the record is of Triton {record['versions']['triton']}; {versions['triton']} makes other code")
    problems = list(Budget.of(record, versions).problems(rows))
    assert not problems, "\n" + "\n".join(problems)


def test_the_record_has_exactly_the_launches_of_today(output: list[dict], request: pytest.FixtureRequest) -> None:
    left_out = [tuple(item["left_out"]) for item in output if "left_out" in item]
    assert bool(left_out) != request.config.getoption("--everything")
    recorded = {key_of(row) for row in json.loads(RECORD.read_text())["rows"]}
    today = {key_of(item["row"]) for item in output if "row" in item} | set(left_out)
    assert recorded == today, "renew the record: python bench/static.py"
