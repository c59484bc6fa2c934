"""The convolution's matrix products in Triton: space-to-depth, real sizes, large offsets. See test_conv_relu.py too."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from comparing import DEVICE, ends_of_grids, laid_out, random_tensor, zeros
from convolutions import ALEXNET, check_convolution, launched_with
from torch import Tensor

import kernels
from kernels import conv_gemm, launch_settings
from kernels.launch_settings import Problem, Settings


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("rearranged", [True, False])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "stride", "padding", "groups"),
    [
        ((2, 3, 19, 22), 4, (11, 11), 4, (0, 3, 0, 3), 1),
        ((1, 6, 9, 8), 4, (4, 3), 2, (1, 0, 2, 1), 2),
        ((2, 9, 7, 11), 3, (3, 6), 3, (2, 2, 0, 1), 3),
        # No window contains the last rows and columns.
        ((1, 1, 12, 11), 2, (4, 4), 4, (0, 0, 0, 0), 1),
    ],
)
def test_space_to_depth_gives_the_same_convolution(
    shape, filters, kernel, stride, padding, groups, rearranged, dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With space-to-depth, as the heuristic chooses, and without."""
    x = laid_out(random_tensor(shape, 0, dtype), "channels_last")
    weight = laid_out(random_tensor((filters, shape[1] // groups, *kernel), 1, dtype), "channels_last")
    made, make = [], conv_gemm.space_to_depth
    monkeypatch.setattr(conv_gemm, "space_to_depth", lambda *a: made.append(make(*a)) or made[-1])
    settings = None if rearranged else Settings(16, 64, 64, 4, 1, splits=2)
    bias = random_tensor((filters,), 2, dtype)
    work = torch.float32 if dtype == torch.float16 else dtype
    with kernels.using("triton"), launched_with(settings):
        check_convolution(x, weight, bias, stride, padding, groups, True, "channels_last", 0, work)
    assert len(made) == rearranged  # in forward, which keeps it for the weight gradient


@pytest.mark.skipif(DEVICE != "cuda", reason="real sizes take hours in the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", ALEXNET)
def test_real_sizes(layer: tuple, dtype: torch.dtype) -> None:
    """AlexNet's layers with the settings of the heuristic or of this GPU's table."""
    channels, side, filters, kernel, stride, padding, groups = layer
    for batch in (128, 96, 1):
        x = laid_out(random_tensor((batch, channels, side, side), 0, dtype), "channels_last")
        weight = laid_out(random_tensor((filters, channels // groups, kernel, kernel), 1, dtype, 0.1), "channels_last")
        bias = random_tensor((filters,), 2, dtype)
        with kernels.using("triton"):
            check_convolution(x, weight, bias, stride, padding, groups, True, "channels_last", 0, torch.float32)


@pytest.mark.skipif(DEVICE != "cuda", reason="a table belongs to a GPU")
def test_every_setting_of_this_gpus_table() -> None:
    table = launch_settings.load_table(launch_settings.table_path(torch.cuda.get_device_name()))
    for direction, problem in table:
        assert launch_settings.choose(direction, problem, torch.cuda.get_device_name(), True) is not None
        dtype = getattr(torch, problem.dtype)
        shape = (problem.batch, problem.channels, problem.height, problem.width)
        x = laid_out(random_tensor(shape, 0, dtype), "channels_last")
        weight = random_tensor((problem.filters, problem.channels // problem.groups, *problem.kernel), 1, dtype, 0.1)
        bias = random_tensor((problem.filters,), 2, dtype) if problem.epilogue else None
        tf32 = problem.precision == "tf32"
        with kernels.using("triton"), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            check_convolution(
                x,
                weight,
                bias,
                problem.stride,
                problem.padding,
                problem.groups,
                problem.epilogue,
                "channels_last",
                0,
                torch.float32,
            )


@pytest.mark.skipif(DEVICE != "cuda", reason="needs 8 GB of a GPU's memory")
def test_more_than_2_to_the_31_elements() -> None:
    x = random_tensor((8, 3, 224, 224), 0, torch.bfloat16).repeat(1024, 1, 1, 1)
    x = x.to(memory_format=torch.channels_last)
    weight = random_tensor((96, 3, 11, 11), 1, torch.bfloat16, 0.1)
    with kernels.using("triton"):
        y = kernels.conv2d_relu(x, weight, None, 4, (0, 3, 0, 3))
        few = kernels.conv2d_relu(x[:8], weight, None, 4, (0, 3, 0, 3))
    assert y.numel() > 2**31
    assert torch.equal(y[-8:], few)


def results(x: Tensor, weight: Tensor, stride: int, grad: Tensor) -> list[Tensor]:
    """y, and the gradients of x and of the weight, from the ends of long grids and loops."""
    leaves = x.requires_grad_(), weight.clone().requires_grad_()
    # The weight gradient has two splits, so that both begin or end with one of the images.
    settings = Settings(32, 64, 64, 4, 1, splits=2, rearranged=x.shape[1] == 3)
    with kernels.using("triton"), launched_with(settings), ends_of_grids(max(8, 2 * stride**2)):
        y = kernels.conv2d_relu(*leaves, None, stride, 1 if weight.shape[2] == 3 else 0, relu=False)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "stride", "side"),
    [
        # More elements than 32 bits count; more pixels than that; and space-to-depth.
        ((16, 3, 3), 16, 3, 1, 3),
        ((16, 5, 5), 32, 3, 2, 3),
        ((1, 3, 3), 1, 3, 1, 3),
        ((3, 4, 4), 48, 4, 4, 1),
    ],
)
def test_offsets_pass_32_bits(shape: tuple[int, ...], filters: int, kernel: int, stride: int, side: int) -> None:
    """The first and the last of many images give the same as alone. Those in between are 0, and sums twice as large."""
    images = 2**31 // min(math.prod(shape), filters * side * side) + 2
    weight = random_tensor((filters, shape[0], kernel, kernel), 2, torch.float16, 0.1)
    alone, many = [], []
    for index, (channels, height) in enumerate((shape[:2], (filters, side))):
        one = random_tensor((1, channels, height, height), index, torch.float16)
        alone.append(laid_out(one, "channels_last"))
        many.append(zeros((images, height, height, channels), torch.float16).permute(0, 3, 1, 2))
        many[-1][0] = many[-1][-1] = one[0]
    wanted, found = (results(x, weight, stride, grad) for x, grad in (alone, many))
    for single, large in zip(wanted[:2], found[:2], strict=True):
        assert large.numel() > 2**31
        # Other rows of a block: on a CPU, NumPy's product may round them differently.
        torch.testing.assert_close(large[0], single[0])
        torch.testing.assert_close(large[-1], single[0])
    torch.testing.assert_close(found[2], 2 * wanted[2])


@pytest.mark.parametrize("settings", [Settings(32, 16, 16, 8, 5), Settings(16, 32, 64, 2, 2, splits=3)])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_launches_have_the_settings_chosen(settings: Settings, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that an interpreter ignores too: warps, stages, and the rounding of factors."""
    problem = Problem(2, 4, 5, 5, 6, (3, 3), 1, (1, 1, 1, 1), 2, "float32", precision)
    x, weight, grad = (
        laid_out(random_tensor(shape, 0, torch.float32), "channels_last")
        for shape in ((2, 4, 5, 5), (6, 2, 3, 3), (2, 6, 5, 5))
    )
    launches = {}

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *_, **options: launches.update({self.name: options | {"grid": grid}})

    for name in ("conv_fwd_kernel", "conv_bwd_data_kernel", "conv_bwd_weight_kernel"):
        monkeypatch.setattr(conv_gemm, name, Recorded(name))
    conv_gemm.run_forward(x, weight, None, problem, False, settings)
    conv_gemm.run_backward_data(grad, weight, problem, settings)
    conv_gemm.run_backward_weight(grad, x, problem, settings)
    assert len(launches) == 3
    for options in launches.values():
        assert Settings(*(options[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages"))) == (
            dataclasses.replace(settings, splits=1)
        )
        assert options["PRECISION"] == precision
        assert options["enable_fp_fusion"]
