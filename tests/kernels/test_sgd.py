"""The 2012 update rule."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from comparing import DEVICE, IMPLEMENTATIONS, TOLERANCES, dtypes, examples, random_tensor, seeds
from hypothesis import given

import kernels
from kernels import sgd

SHAPES = [(5, 3, 4, 2), (7,), (), (130, 31), (0, 3), (4, 3, 3, 3)]
RATES, DECAYS = [0.1, 0.2, 0.0, 0.05, 0.1, 0.3], [0.5, 0.0, 0.5, 0.01, 0.1, 0.2]


def tensors(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    made = [random_tensor(shape, seed + index, dtype) for index, shape in enumerate(SHAPES)]
    made[0] = made[0].to(memory_format=torch.channels_last)
    return made


copied = st.none() | st.tuples(*[st.booleans()] * len(SHAPES))


def copies_of(weights: list[torch.Tensor], which: tuple[bool, ...] | None) -> list[torch.Tensor | None] | None:
    if which is None:
        return None
    return [
        torch.empty_like(weight, dtype=torch.bfloat16) if one else None
        for weight, one in zip(weights, which, strict=True)
    ]


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@examples(12)
@given(dtypes, dtypes, st.booleans(), copied, st.sampled_from([0.0, 0.9]), seeds)
def test_update_is_the_papers(implementation, dtype, gradient_dtype, as_tensor, with_copies, momentum, seed):
    weights, gradients, velocities = tensors(seed, dtype), tensors(seed + 10, gradient_dtype), tensors(seed + 20, dtype)
    # A gradient may be laid out unlike its weight.
    gradients[0], gradients[5] = gradients[0].contiguous(), gradients[5].to(memory_format=torch.channels_last)
    wanted = []
    for w, g, v, rate, decay in zip(weights, gradients, velocities, RATES, DECAYS, strict=True):
        w, g, v = w.double(), g.double(), v.double()
        new_v = momentum * v - decay * rate * w - rate * g if rate else v
        wanted.append((w + new_v if rate else w, new_v))
    copies = copies_of(weights, with_copies)
    with kernels.using(implementation):
        kernels.sgd_update_(
            weights,
            gradients,
            velocities,
            learning_rates=torch.tensor(RATES, dtype=torch.float64, device=DEVICE) if as_tensor else RATES,
            weight_decays=torch.tensor(DECAYS, dtype=torch.float64) if as_tensor else DECAYS,
            momentum=momentum,
            copies=copies,
        )
    for index, (weight, velocity, (wanted_w, wanted_v)) in enumerate(zip(weights, velocities, wanted, strict=True)):
        scale = 10 * TOLERANCES[dtype]
        torch.testing.assert_close(velocity.double(), wanted_v, rtol=TOLERANCES[dtype], atol=scale)
        torch.testing.assert_close(weight.double(), wanted_w, rtol=TOLERANCES[dtype], atol=scale)
        if copies is not None and copies[index] is not None:
            # A copy is rounded from the wide result, so it may differ from the rounded weight's rounding by one bit.
            torch.testing.assert_close(copies[index].double(), wanted_w, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_learning_rate_zero_freezes_weight_and_velocity(implementation: str) -> None:
    weights, gradients, velocities = ([random_tensor((9,), seed, torch.float32)] for seed in range(3))
    before = weights[0].clone(), velocities[0].clone()
    for rates in ([0.0], torch.zeros(1, device=DEVICE)):
        with kernels.using(implementation):
            kernels.sgd_update_(weights, gradients, velocities, learning_rates=rates, weight_decays=[0.1])
        assert torch.equal(weights[0], before[0])
        assert torch.equal(velocities[0], before[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tensors_with_gaps_are_updated_in_place(implementation: str) -> None:
    wide = torch.ones(4, 6, device=DEVICE)
    weight, velocity, gradient = wide[:, ::2], torch.zeros(4, 3, device=DEVICE), torch.ones(4, 3, device=DEVICE)
    with kernels.using(implementation):
        kernels.sgd_update_([weight], [gradient], [velocity], learning_rates=[0.5], weight_decays=[0.0])
    assert torch.equal(wide, torch.tensor([0.5, 1.0] * 3, device=DEVICE).expand(4, 6))


def test_compiles_into_one_graph() -> None:
    def run(update) -> list[torch.Tensor]:
        weights, gradients, velocities = ([random_tensor((33,), seed, torch.float32)] for seed in range(3))
        update(weights, gradients, velocities)
        return weights + velocities

    def update(weights, gradients, velocities) -> None:
        kernels.sgd_update_(weights, gradients, velocities, learning_rates=[0.1], weight_decays=[0.01])

    for implementation in IMPLEMENTATIONS:
        with kernels.using(implementation):
            torch.testing.assert_close(run(torch.compile(update, fullgraph=True)), run(update))


def test_registered_operator_keeps_pytorchs_rules() -> None:
    weights, gradients, velocities = (
        [random_tensor((9,), seed + i, torch.float32) for i in (0, 5)] for seed in (0, 1, 2)
    )
    numbers, copies = torch.ones(2, dtype=torch.float64, device=DEVICE), [weights[1].bfloat16()]
    for arguments in (([], []), (copies, [1])):
        torch.library.opcheck(
            torch.ops.fastalex.sgd_update, (weights, gradients, velocities, *arguments, numbers, numbers, 0.9)
        )


@pytest.mark.skipif(DEVICE == "cpu", reason="needs 20 GB of a GPU's memory")
def test_offsets_pass_32_bits() -> None:
    """The first and the last elements of a large tensor are updated as if alone."""

    def updated(given: list[torch.Tensor]) -> list[torch.Tensor]:
        weight, gradient, velocity = given
        copy = torch.empty_like(weight, dtype=torch.bfloat16)
        options = {"learning_rates": [0.1], "weight_decays": [0.01], "copies": [copy]}
        kernels.sgd_update_([weight], [gradient], [velocity], **options)
        return [weight, velocity, copy]

    # The last block is whole and ends the tensor, or holds but a few elements.
    for ends in (sgd._BLOCK, 100):
        small = list(random_tensor((3, ends), 0, torch.float16))
        large = [torch.zeros(2**31 + ends, dtype=torch.float16, device=DEVICE) for _ in range(3)]
        for values, tensor in zip(small, large, strict=True):
            tensor[:ends] = tensor[-ends:] = values
        for found, wanted in zip(updated(large), updated(small), strict=True):
            assert torch.equal(found[:ends], wanted)
            assert torch.equal(found[-ends:], wanted)


@pytest.mark.parametrize("with_copies", [(True,) * 6, (False, True) * 3, None])
def test_all_tensors_are_updated_in_one_launch(with_copies, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []

    class Counted:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    kernel = sgd.sgd_kernel
    monkeypatch.setattr(sgd, "sgd_kernel", Counted())
    weights, gradients, velocities = (tensors(seed, torch.float32) for seed in (0, 10, 20))
    copies = copies_of(weights, with_copies)
    with kernels.using("triton"):
        kernels.sgd_update_(
            weights, gradients, velocities, learning_rates=RATES, weight_decays=DECAYS, copies=copies
        )  # fmt: skip
    blocks = [-(-weight.numel() // sgd._BLOCK) for weight in weights]
    assert grids == [(sum(blocks),)]


def test_no_tensors_is_no_work() -> None:
    kernels.sgd_update_([], [], [], learning_rates=[], weight_decays=[])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gradients": []}, ValueError, "gradients must have 1 tensors, one per weight, not 0"),
        (
            {"velocities": [torch.ones(3)]},
            ValueError,
            r"velocities\[0\] must have the shape of .* \(4,\), not \(3,\)",
        ),
        (
            {"velocities": [torch.ones(4).half()]},
            TypeError,
            r"velocities\[0\] must be torch\.float32, not torch\.float16",
        ),
        ({"gradients": [torch.ones(4, dtype=torch.int32)]}, TypeError, r"gradients\[0\] must be float32"),
        (
            {"gradients": [torch.ones(4, device="meta")]},
            ValueError,
            r"gradients\[0\] must be on the device of its",
        ),
        (
            {"weights": [torch.ones(4, dtype=torch.int64)]},
            TypeError,
            r"weights\[0\] must be float32, float16, bfloat16",
        ),
        (
            {name: [torch.ones(4), torch.ones(4, device="meta")] for name in ("weights", "gradients", "velocities")}
            | {name: [0.1, 0.1] for name in ("learning_rates", "weight_decays")},
            ValueError,
            r"weights\[1\] must be on the device of weights\[0\], cpu, not meta: update each",
        ),
        ({"copies": [torch.ones(4)]}, TypeError, r"copies\[0\] must be torch\.bfloat16, not torch\.float32"),
        ({"learning_rates": [0.1, 0.2]}, ValueError, "learning_rates must have 1 values, one per weight, not 2"),
        ({"learning_rates": [-0.1]}, ValueError, r"learning_rates\[0\] must be at least 0, not -0.1"),
        ({"weight_decays": ["no"]}, TypeError, r"weight_decays\[0\] must be a number, not str: 'no'"),
        ({"weight_decays": torch.ones(1, 1)}, ValueError, "weight_decays must have 1 dimensions"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), not 1.0"),
    ],
)
def test_bad_arguments_are_named(changes: dict, error: type, message: str) -> None:
    arguments = {
        "weights": [torch.ones(4)],
        "gradients": [torch.ones(4)],
        "velocities": [torch.ones(4)],
        "learning_rates": [0.1],
        "weight_decays": [0.1],
    }
    with pytest.raises(error, match=message):
        kernels.sgd_update_(**(arguments | changes))
