"""native.c at sizes that span several buffers, bands and threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from comparing import DEVICE, check_against_reference, laid_out, random_tensor, using

import kernels
from kernels.native import c_functions

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="native.c computes on CPUs")

NORMS = {
    "channels": lambda x: kernels.local_response_norm(x, 5, 0.3, groups=2),
    "window larger than the number of channels": lambda x: kernels.local_response_norm(x, 30, 0.3, 0.6),
    "map": lambda x: kernels.same_map_norm(x, 5, 0.3),
    "even window of a map": lambda x: kernels.same_map_norm(x, 4, 0.3, 0.6),
    "window larger than the map": lambda x: kernels.same_map_norm(x, 45, 0.3),
    "pooled": lambda x: kernels.lrn_max_pool2d(x, 5, 0.3, groups=2, relu="before"),
    "pooled in windows with gaps": lambda x: kernels.lrn_max_pool2d(x, 5, 0.3, kernel_size=2, stride=5, relu="after"),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize(("images", "count"), [(1, 1), (1, 3), (7, 2)])
def test_large_maps(name: str, layout: str, images: int, count: int, threads: None) -> None:
    """41 x 37 pixels are several bands of rows and spans of pixels; the last ones are smaller."""
    torch.set_num_threads(count)
    x = laid_out(random_tensor((images, 6, 41, 37), 0, torch.float32), layout)
    # Windows within a map are native.c's in channels_last only.
    implementation = "native" if "map" in name and layout == "nchw" else "native in C"
    check_against_reference(NORMS[name], implementation, [x], layout)


@pytest.mark.parametrize("name", NORMS)
def test_results_do_not_depend_on_the_number_of_threads(name: str, threads: None) -> None:
    x = laid_out(random_tensor((3, 6, 41, 37), 0, torch.float32), "channels_last").requires_grad_()
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        with using("native in C"):
            y = NORMS[name](x)
            found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_a_bias_gradient_does_not_depend_on_the_number_of_threads(threads: None) -> None:
    x = laid_out(random_tensor((5, 6, 41, 37), 0, torch.float32), "channels_last")
    bias = random_tensor((12,), 1, torch.float32)[::2].requires_grad_()
    found = []
    for count in (1, 4):
        torch.set_num_threads(count)
        with using("native in C"):
            y = kernels.lrn_max_pool2d(x, bias=bias, relu="before")
            found += torch.autograd.grad(y.square().sum(), bias)
    assert torch.equal(*found)
    check_against_reference(
        lambda x, bias: kernels.lrn_max_pool2d(x, bias=bias, relu="before"), "native in C", [x, bias], "channels_last"
    )


@pytest.mark.parametrize(("count", "images"), [(1, 4), (2, 1), (2, 5), (3, 7), (4, 3)])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_images_are_split_between_threads(count: int, images: int, mode: type, threads: None) -> None:
    torch.set_num_threads(count)
    leaf = torch.ones(64, 64, requires_grad=True)
    with mode():
        out = torch.zeros(images, 64, 64)

        def run(part: slice) -> tuple[slice, int, bool, bool]:
            for image in range(part.start, part.stop):
                torch.mm(leaf, leaf, out=out[image])  # an error if gradients are recorded
            return part, threading.get_ident(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        found = c_functions.run_in_threads(run, images)
    parts, thread_ids, grad_modes, inference_modes = zip(*found, strict=True)
    assert [image for part in parts for image in range(part.start, part.stop)] == list(range(images))
    assert max(part.stop - part.start for part in parts) == -(-images // count)
    assert len(set(thread_ids)) == len(parts) == min(count, images)
    assert not any(grad_modes)
    assert set(inference_modes) == {mode is torch.inference_mode}
    assert torch.equal(out, torch.full_like(out, 64.0))
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_thread_is_raised(failing: int, threads: None) -> None:
    torch.set_num_threads(2)
    done = []

    def run(part: slice) -> None:
        if part.start == failing:
            raise KeyError(f"image {failing}")
        done.append(part.start)

    with pytest.raises(KeyError, match=f"image {failing}"):
        c_functions.run_in_threads(run, 2)
    assert done == [1 - failing]


def test_several_python_threads_can_compute_together() -> None:
    inputs = [laid_out(random_tensor((2, 6, 41, 37), seed, torch.float32), "channels_last") for seed in range(8)]
    with using("native in C"):
        wanted = [kernels.lrn_max_pool2d(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(kernels.lrn_max_pool2d, inputs))
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one, two)
