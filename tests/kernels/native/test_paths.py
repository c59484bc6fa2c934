"""What native.c computes and what PyTorch, and a count which shows that the tests take every path of native.c.

    .venv/bin/python -m pytest -rP tests/kernels/native/test_paths.py -k every_path

prints how often each of its functions and lines ran.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import test_lrn
import test_lrn_max_pool
import test_same_map_norm
import test_special_values
import torch
from comparing import DEVICE, called_c_functions, check_against_reference, laid_out, random_tensor

import kernels
from kernels.native import build, c_functions
from native import test_c_functions, test_winograd
from native.test_winograd import ALEXNET

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="native.c computes on CPUs")

CHANNELS, MAP = {"norm_over_channels"}, {"norm_over_map"}
FUSED, TILES = {"lrn_pool_forward", "lrn_pool_backward"}, {"maps_to_tiles", "tiles_to_maps"}
FP32, FP64, FP16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


norm = partial(kernels.local_response_norm, size=5)


def fused(x: torch.Tensor, bias: torch.Tensor | None = None, **options) -> torch.Tensor:
    return kernels.lrn_max_pool2d(x, bias=bias, groups=2, relu="before", **options)


@pytest.mark.parametrize(
    ("operator", "dtype", "layout", "functions"),
    [
        *((norm, dtype, layout, CHANNELS) for layout in ("nchw", "channels_last", "sliced") for dtype in (FP32, BF16)),
        *((norm, dtype, "channels_last", set()) for dtype in (FP64, FP16)),
        (kernels.same_map_norm, FP32, "channels_last", MAP),
        (kernels.same_map_norm, BF16, "channels_last", MAP),
        (kernels.same_map_norm, FP32, "nchw", set()),
        (kernels.same_map_norm, FP64, "channels_last", set()),
        (fused, FP32, "channels_last", FUSED),
        (fused, BF16, "channels_last", FUSED),
        (lambda x: fused(x, random_tensor((8,), 1, FP32)), BF16, "channels_last", FUSED),
        (fused, FP32, "nchw", CHANNELS),
        (fused, FP64, "channels_last", set()),
        (fused, FP16, "channels_last", CHANNELS),  # maps are normalised in fp32
        (lambda x: fused(x[:0]), FP32, "channels_last", set()),
        *((lambda x, size=size: fused(x, kernel_size=size), FP32, "channels_last", functions)
          for size, functions in ((15, FUSED), (16, CHANNELS))),
        *((lambda x, dtype=dtype: fused(x, random_tensor((8,), 1, dtype)), FP32, "channels_last", functions)
          for dtype, functions in ((FP32, FUSED), (FP64, CHANNELS), (FP16, CHANNELS))),
        (partial(kernels.max_pool2d, kernel_size=3), FP32, "channels_last", set()),
    ],
)  # fmt: skip
def test_native_c_computes_where_it_can(
    operator: Callable, dtype: torch.dtype, layout: str, functions: set[str]
) -> None:
    x = laid_out(random_tensor((2, 8, 17, 18), 0, dtype), layout)
    with called_c_functions() as called:
        check_against_reference(operator, "native", [x], layout)
    assert called == functions


@pytest.mark.parametrize(
    ("dtype", "layout", "functions"),
    [
        *((dtype, "channels_last", TILES) for dtype in (FP32, BF16)),
        (FP32, "nchw", set()),
        (FP64, "channels_last", set()),
    ],
)
def test_native_c_transforms_tiles(
    dtype: torch.dtype, layout: str, functions: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTALEX_BF16_CONV", "minimal")  # on any processor
    x, weight = (laid_out(random_tensor(shape, 0, dtype), layout) for shape in ((8, 32, 13, 13), (32, 32, 3, 3)))
    with called_c_functions() as called, kernels.using("native"):
        kernels.conv2d_relu(x.requires_grad_(), weight, padding=1).sum().backward()
    assert called == functions


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_native_c_updates_weights_with_copies(dtype: torch.dtype) -> None:
    """Of several parts, the last of which is smaller."""
    weight, gradient, velocity = (random_tensor((5000,), seed, FP32) for seed in range(3))
    gradient, copy = gradient.to(dtype), torch.empty(5000, dtype=BF16)
    wanted = 0.9 * velocity - 0.3 * 0.01 * weight - 0.3 * gradient.float()
    after = weight + wanted
    options = {"learning_rates": [0.3], "weight_decays": [0.01], "momentum": 0.9}
    with called_c_functions() as called, kernels.using("native"):
        kernels.sgd_update_([weight], [gradient], [velocity], **options, copies=[copy])
    assert called == {"sgd_update"}
    torch.testing.assert_close(velocity, wanted)
    torch.testing.assert_close(weight, after)
    assert torch.equal(copy, weight.to(BF16))
    # Rounded to the nearest, and to the even one of two: 1 + 2^-8 and 1 + 3 x 2^-8 lie between two bf16.
    special = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, float("nan")])
    zeros, copy = torch.zeros(5), torch.empty(5, dtype=BF16)
    with kernels.using("native"):
        kernels.sgd_update_([special], [zeros.to(dtype)], [zeros], **options | {"weight_decays": [0.0]}, copies=[copy])
    assert torch.equal(copy[:4], special[:4].to(BF16))
    assert copy[4].isnan()


ALLOCATING = [*CHANNELS, "norm_over_channels of single pixels", *MAP, *sorted(FUSED), "tiles_to_maps"]


@pytest.mark.parametrize("function", ALLOCATING)
def test_buffers_that_cannot_be_allocated_are_an_error(function: str) -> None:
    size = 2**44  # whose buffers exceed the addresses of a process
    x, result, argmax = (torch.ones(1, 2, 2, 2, dtype=dtype) for dtype in (FP32, FP32, torch.uint8))
    options = (size, 1.0, 0.75, 1.0)
    pooled = options, 1, (1, 1), None
    grid = (1, 2**24, 2**20, 2, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0)
    calls = {
        "norm_over_channels": lambda: c_functions.norm_over_channels(x, None, result, options, 1, 4),
        "norm_over_channels of single pixels": lambda: c_functions.norm_over_channels(x, None, result, options, 1, 1),
        "norm_over_map": lambda: c_functions.norm_over_map(x, None, result, options),
        "lrn_pool_forward": lambda: c_functions.lrn_pool_forward(x, None, result, argmax, *pooled),
        "lrn_pool_backward": lambda: c_functions.lrn_pool_backward(x, argmax, x, None, result, *pooled),
    }
    calls["tiles_to_maps"] = lambda: c_functions.tiles_to_maps(x, None, x, torch.ones(2, 2), grid, relu=False)
    with pytest.raises(MemoryError, match=f"{function.split()[0]}: cannot allocate buffers for "):
        calls[function]()


# -------------------------------------------------------------------------------------------- every path is taken

# gcov has its function in the library that it counts in. It does not count in parallel regions, so there are none.
COUNTING = """
int omp_get_thread_num(void) { return 0; }
void __gcov_dump(void);
void write_counts(void) { __gcov_dump(); }
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """native.c, compiled to count how often each line runs and each branch is taken, in place of the fast one."""
    compiler = build._compiler()
    version = subprocess.run([compiler[0], "-v"], capture_output=True, text=True).stderr
    if "gcc version" not in version or shutil.which("gcov") is None:
        pytest.skip("needs gcc and gcov")
    (tmp_path / "counting.c").write_text(COUNTING)
    flags = ["-O0", "-std=gnu11", "-shared", "-fPIC", "--coverage", "-fprofile-update=atomic"]
    command = [*compiler, *flags, "-o", "counted.so", str(build.SOURCE), "counting.c", "-lm"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    library = build.declared(ctypes.CDLL(str(tmp_path / "counted.so")))
    monkeypatch.setattr(build, "library", lambda: library)
    return library


def counts(library: ctypes.CDLL, folder: Path) -> dict:
    """What gcov says about native.c."""
    library.write_counts()
    (data,) = folder.glob("*native.gcda")
    command = ["gcov", "--json-format", "--branch-probabilities", "--stdout", data.name]
    report = json.loads(subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True).stdout)
    (found,) = [file for file in report["files"] if file["file"].endswith("native.c")]
    return found


def test_every_path_of_native_c_is_taken(counting: ctypes.CDLL, tmp_path: Path, threads: None) -> None:
    """By the tests of the operators that it computes: those by Hypothesis, and one with maps of several bands."""
    torch.set_num_threads(2)  # one thread computes its images itself
    test_lrn.test_lrn_is_the_definition("native in C")
    test_same_map_norm.test_same_map_norm_is_the_definition("native in C")
    test_lrn_max_pool.test_fused_is_the_composition("native in C")
    test_winograd.test_result_and_gradients_match_the_definition("native in C")
    for name in test_special_values.NORMALISING:
        test_special_values.test_special_values_give_what_the_definition_gives(name, "native in C")
    for large in (("map", "channels_last", 1, 1), ("map", "channels_last", 7, 2), ("channels", "nchw", 1, 1)):
        test_c_functions.test_large_maps(*large, threads)
    test_native_c_updates_weights_with_copies(FP32)
    test_native_c_updates_weights_with_copies(BF16)
    for images, layer in ((3, ALEXNET[2]), (4, ALEXNET[1])):
        test_winograd.test_the_errors_of_bf16(images, layer)
    for function in ALLOCATING:
        test_buffers_that_cannot_be_allocated_are_an_error(function)
    found = counts(counting, tmp_path)
    source = build.SOURCE.read_text().splitlines()
    for function in found["functions"]:
        lines = [line for line in found["lines"] if line.get("function_name") == function["name"]]
        branches = [branch for line in lines for branch in line["branches"]]
        print(
            f"{function['name']}: {function['execution_count']} calls, {sum(line['count'] > 0 for line in lines)} of "
            f"{len(lines)} lines, {sum(branch['count'] > 0 for branch in branches)} of {len(branches)} branches"
        )
    missed = [
        f"line {line['line_number']}: {source[line['line_number'] - 1].strip()}"
        for line in found["lines"]
        if line["count"] == 0 or any(branch["count"] == 0 for branch in line["branches"])
    ]
    assert not missed, "\n".join(missed)
