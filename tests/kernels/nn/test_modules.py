"""The operators as modules against PyTorch's, and models with replaced modules against the originals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from comparing import DEVICE, random_tensor
from torch import Tensor, nn

import kernels

# Rounding errors of fp32 after a few layers; minimal filtering has about seven times those of plain sums.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def alexnet(width: int) -> nn.Module:
    """torchvision's AlexNet, written by hand, with `width` / 64 of its channels."""

    class AlexNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            w = width
            self.features = nn.Sequential(
                nn.Conv2d(3, w, 11, stride=4, padding=2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2),
                nn.Conv2d(w, 3 * w, 5, padding=2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(kernel_size=3, stride=2),
                nn.Conv2d(3 * w, 6 * w, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(6 * w, 4 * w, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(4 * w, 4 * w, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2),
            )
            self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
            self.classifier = nn.Sequential(
                nn.Dropout(p=0.5), nn.Linear(4 * w * 36, 32), nn.ReLU(inplace=True),
                nn.Dropout(p=0.5), nn.Linear(32, 32), nn.ReLU(inplace=True), nn.Linear(32, 10),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    return AlexNet()


def googlenet_stem() -> nn.Module:
    """The first layers of GoogLeNet (2014), where normalisation follows pooling and precedes it."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.LocalResponseNorm(5, alpha=0.3, beta=0.75, k=1.0), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding="same", dilation=2, bias=False), nn.ReLU(), nn.LocalResponseNorm(5),
        nn.MaxPool2d((3, 2), stride=(2, 1), padding=1, ceil_mode=True), nn.Flatten(), nn.Linear(240, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "alexnet": (lambda: alexnet(4), 63, 10),
    "googlenet": (googlenet_stem, 17, 7),
}


def result_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("implementation", ["native", "triton", "reference"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("without_tf32")
def test_a_model_with_replaced_modules_computes_the_same(name: str, implementation: str) -> None:
    make, side, _ = MODELS[name]
    torch.manual_seed(0)
    model = make().to(DEVICE).eval()
    replaced = copy.deepcopy(model)
    kernels.replace_modules(replaced)
    x = random_tensor((2, 3, side, side), 0, torch.float32, 1.0)
    with kernels.using(implementation):
        for found, wanted in zip(result_and_gradients(replaced, x), result_and_gradients(model, x), strict=True):
            torch.testing.assert_close(found, wanted, **TOLERANCE)
    assert list(replaced.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_what_was_replaced_is_said(name: str) -> None:
    make, _, count = MODELS[name]
    model = make()
    parameters = list(model.parameters())
    replaced = kernels.replace_modules(model)
    first = "features.0" if name == "alexnet" else "0"
    relu = first.removesuffix("0") + "1"
    assert replaced[first] == f"Conv2d + ReLU ({relu}) -> ConvReLU2d"
    assert isinstance(model.get_submodule(first), kernels.nn.ConvReLU2d)
    assert isinstance(model.get_submodule(relu), nn.Identity)
    assert len(replaced) == count
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert kernels.replace_modules(model) == {}


def test_modules_whose_values_somebody_sees_are_left_alone() -> None:
    shared, hooked, watched = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    watched.register_forward_hook(lambda *_: None)

    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](self[1](x))

    class MyPool(nn.MaxPool2d):
        pass

    model = nn.ModuleDict(
        {
            "shared": nn.Sequential(shared, nn.ReLU(), shared),
            "hooked": nn.Sequential(hooked, nn.ReLU(), nn.Conv2d(3, 3, 1), watched),
            "reversed": Reversed(nn.Conv2d(3, 3, 1), nn.ReLU()),
            "apart": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), MyPool(2)),
        }
    )
    assert kernels.replace_modules(model) == {}


def test_a_model_may_be_a_single_module() -> None:
    pool = nn.MaxPool2d(2)
    assert kernels.replace_modules(pool) == {"": "MaxPool2d -> MaxPool2d"}
    assert isinstance(pool, kernels.nn.MaxPool2d)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        kernels.replace_modules([pool])


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (lambda: kernels.nn.LocalResponseNorm(3, 0.3), lambda: nn.LocalResponseNorm(3, 0.3), (2, 4, 3)),
        (lambda: kernels.nn.LocalResponseNorm(4, 0.3), lambda: nn.LocalResponseNorm(4, 0.3), (2, 6, 2, 2, 3)),
        (lambda: kernels.nn.MaxPool2d(2), lambda: nn.MaxPool2d(2), (3, 5, 5)),
        (
            lambda: kernels.nn.MaxPool2d(2, return_indices=True),
            lambda: nn.MaxPool2d(2, return_indices=True),
            (1, 3, 5, 5),
        ),
        (
            lambda: kernels.nn.ConvReLU2d(3, 4, 3, padding=1, padding_mode="reflect"),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
            (3, 5, 5),
        ),
        (lambda: kernels.nn.Dropout(1.0), lambda: nn.Dropout(1.0), (2, 3, 4)),
        (lambda: kernels.nn.Dropout(0.0), lambda: nn.Dropout(0.0), (2, 3)),
    ],
)
def test_modules_are_pytorchs(ours, theirs, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    wanted = theirs().to(DEVICE)
    torch.manual_seed(0)
    found = ours().to(DEVICE)
    x = random_tensor(shape, 1, torch.float32)
    torch.testing.assert_close(found(x), wanted(x), **TOLERANCE)


def test_dropout_follows_pytorchs_generator() -> None:
    module, x = kernels.nn.Dropout(0.25), torch.ones(4, 50, 10, device=DEVICE)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(module(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert masks[0].unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (masks[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert module.eval()(x) is x


def test_groups_are_shown() -> None:
    module = kernels.nn.LocalResponseNorm(5, k=2.0, groups=2)
    assert repr(module) == "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=2.0, groups=2)"
    x = random_tensor((1, 4, 2, 2), 0)
    assert torch.equal(module(x), kernels.local_response_norm(x, 5, k=2.0, groups=2))
