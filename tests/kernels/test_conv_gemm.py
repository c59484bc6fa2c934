"""The convolution's matrix products in Triton: space-to-depth, real sizes, large offsets. See test_conv_relu.py too."""

from __future__ import annotations

import pytest
import torch
from comparing import DEVICE, ends_of_grids, laid_out, random_tensor, uninitialised
from convolutions import ALEXNET, check_convolution, launched_with
from torch import Tensor

import kernels
from kernels import conv_gemm, launch_settings
from kernels.launch_settings import Settings


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
    settings = None if rearranged else Settings(16, 16, 16, 4, 1, splits=2)
    bias = random_tensor((filters,), 2, dtype)
    work = torch.float32 if dtype == torch.float16 else dtype
    with kernels.using("triton"), launched_with(settings):
        check_convolution(x, weight, bias, stride, padding, groups, True, "channels_last", 0, work)
    assert len(made) == 2 * rearranged  # in forward and in the weight gradient


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


@pytest.mark.parametrize("stride", [1, 2])
def test_offsets_pass_32_bits(stride: int) -> None:
    """The first and the last image of a large batch give the same results as alone. Sums over images are left out."""
    images = 2**31 // (16 * 3 * 3) + 2
    image, grad_image = (
        random_tensor((1, 16, size, size), 0, torch.float16).to(memory_format=torch.channels_last)
        for size in (2 * stride + 1, 3)
    )
    weight = random_tensor((16, 16, 3, 3), 1, torch.float16, 0.1)

    def result_and_gradient(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        with kernels.using("triton"), ends_of_grids(8):
            y = kernels.conv2d_relu(x, weight, None, stride, 1, relu=False)
            return y.detach(), torch.autograd.grad(y, x, grad)[0]

    alone = result_and_gradient(image.clone(), grad_image)
    x, grad = (uninitialised((images, *one.shape[1:]), "channels_last", one.dtype) for one in (image, grad_image))
    x[0] = x[-1] = image[0]
    grad[0] = grad[-1] = grad_image[0]
    for many, single in zip(result_and_gradient(x, grad), alone, strict=True):
        assert many.numel() > 2**31
        assert torch.equal(many[0], single[0])
        assert torch.equal(many[-1], single[0])
