"""Counted memory against memory that real passes keep, and the paper's statements about its network."""

import pytest
import torch

from fastalex import AlexNet, build_architecture
from fastalex.network.footprint import kept_bytes, layer_costs, training_macs
from fastalex.network.model import prepare_images
from fastalex.network.variation import Variation


def really_kept(model: AlexNet, images: int) -> int:
    """Bytes that autograd keeps for a real pass of the whole network."""
    kept: dict[int, int] = {}
    alive = []
    owned = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            alive.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = model.architecture.image_size
    stage = model.stage(model.architecture.block_names).train()
    stage.configure_deferral(None, convolutions=False)
    x = prepare_images(torch.randn(images, 3, size, size), model.architecture, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for block in stage.blocks():
            x = block(x, 0, 0)
            alive.append(x)
    return sum(kept.values())


@pytest.mark.parametrize("variation", [{}, {"lrn": False, "overlapping": False}, {"activation": "tanh"}])
def test_counted_activations_are_those_that_a_real_pass_keeps(variation):
    architecture = build_architecture("krizhevsky", 10, Variation(width=1 / 8, **variation))
    model = AlexNet(architecture, seed=0)
    assert sum(kept_bytes(architecture).values()) == really_kept(model, 3) - really_kept(model, 2)


def test_gpus_keep_less_than_cpus():
    """Triton's norms and pools keep their input, and a byte where PyTorch's pooling keeps eight."""
    architecture = build_architecture("krizhevsky")
    on_gpu, on_cpu = (sum(kept_bytes(architecture, "fp32", kind).values()) for kind in ("triton", "native"))
    half = sum(kept_bytes(architecture, "bf16", "triton").values())
    assert on_gpu < on_cpu
    assert 0.5 * on_gpu <= half < 0.6 * on_gpu
    # Whatever the operators do, conv1's output is needed: 55 x 55 x 96 numbers.
    assert kept_bytes(architecture, "fp32", "triton")["conv1"] >= 4 * 290_400


def test_a_training_step_takes_three_times_the_arithmetic_but_for_the_first_layer():
    macs = training_macs(build_architecture("krizhevsky"))
    assert macs["conv1"] == 2 * 105_415_200
    assert macs["fc8"] == 3 * 4_096_000


def test_the_papers_statements_about_its_network():
    """Which of them hold for the network of 2012, and which do not."""
    layers = layer_costs(build_architecture("krizhevsky"), "fp32", "native")
    # "five convolutional and three fully-connected layers"
    assert [layer.is_convolution for layer in layers] == [True] * 5 + [False] * 3
    # "60 million parameters and 650,000 neurons"
    parameters, neurons = sum(layer.parameters for layer in layers), sum(layer.units for layer in layers)
    assert parameters == 60_965_224
    assert parameters == pytest.approx(60e6, rel=0.02)
    assert neurons == 659_272
    assert neurons == pytest.approx(650e3, rel=0.02)
    # "each convolutional layer ... contains no more than 1% of the model's parameters": true of three
    shares = {layer.name: layer.parameters / parameters for layer in layers if layer.is_convolution}
    assert [name for name, share in shares.items() if share <= 0.01] == ["conv1", "conv2", "conv5"]
    assert (shares["conv3"], shares["conv4"]) == pytest.approx((0.0145, 0.0109), abs=1e-4)


@pytest.mark.parametrize("implementation", ["triton", "native"])
def test_a_batch_of_128_fits_into_3_gigabytes_here(implementation):
    """The paper calls its networks "too big to fit on one GPU" of 3 GB. That does not hold for the memory needed here:
    weights, gradients and velocities, and what backward needs."""
    layers = layer_costs(build_architecture("krizhevsky"), "fp32", implementation)
    fixed = 3 * 4 * sum(layer.parameters for layer in layers)
    activations = 128 * sum(layer.kept_bytes for layer in layers)
    assert fixed + activations == pytest.approx({"triton": 1.23, "native": 1.37}[implementation] * 2**30, rel=0.02)
