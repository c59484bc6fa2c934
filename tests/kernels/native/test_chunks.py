"""Operators that PyTorch computes in chunks, which stay in the caches: with several chunks the same as with one."""

from __future__ import annotations

import pytest
import torch
from comparing import DEVICE, check_against_reference, check_close, laid_out, random_tensor, using

import kernels
from kernels.native import buffers, update

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="chunks are larger on a GPU")

# Seven images: with one thread, the fused operator takes four at a time.
MAPS = {
    "local_response_norm": lambda x: kernels.local_response_norm(x, 4, 0.3, groups=2),
    "same_map_norm": lambda x: kernels.same_map_norm(x, 4, 0.3),
    "lrn_max_pool2d before": lambda x: kernels.lrn_max_pool2d(x, 4, 0.3, groups=2, relu="before"),
    "lrn_max_pool2d after": lambda x: kernels.lrn_max_pool2d(x, 4, 0.3, groups=2, relu="after"),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    torch.set_num_threads(1)
    for module in (buffers, update):
        monkeypatch.setattr(module, "ELEMENTS_PER_THREAD", 100)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_maps(name: str, layout: str, dtype: torch.dtype) -> None:
    x = laid_out(random_tensor((7, 4, 5, 6), 0, dtype), layout)
    check_against_reference(MAPS[name], "native in PyTorch", [x], layout)


def test_a_bias_gradient_is_summed_over_all_chunks() -> None:
    tensors = [random_tensor((7, 4, 5, 6), 0), random_tensor((4,), 1)]
    check_against_reference(
        lambda x, bias: kernels.lrn_max_pool2d(x, bias=bias, relu="before"), "native in PyTorch", tensors, "nchw"
    )


def test_the_rows_of_dropout() -> None:
    """Each row has its own number, whichever chunk it is in."""
    x, bias = random_tensor((7, 40), 0), random_tensor((40,), 1)
    check_against_reference(lambda x: kernels.dropout(x, seed=3, first_row=5), "native", [x], "nchw")
    check_against_reference(
        lambda x, bias: kernels.bias_relu_dropout(x, bias, seed=3, first_row=5), "native", [x, bias], "nchw"
    )


def test_an_update_with_a_copy() -> None:
    weight, gradient, velocity = random_tensor((3, 130), 0, torch.float32)
    copy = torch.zeros(130, dtype=torch.bfloat16)
    w, g, v = (tensor.double() for tensor in (weight, gradient, velocity))
    wanted = 0.9 * v - 0.1 * 0.5 * w - 0.5 * g
    with using("native"):
        kernels.sgd_update_(
            [weight], [gradient], [velocity], learning_rates=[0.5], weight_decays=[0.1], copies=[copy], momentum=0.9
        )
    check_close(velocity, wanted, torch.float32, "velocity")
    check_close(weight, w + wanted, torch.float32, "weight")
    assert torch.equal(copy, weight.bfloat16())
