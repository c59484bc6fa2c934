"""The 2012 update rule."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    check_close,
    dtype_for,
    dtypes,
    dtypes_of,
    ends_of_grids,
    examples,
    gradient_layouts,
    laid_out,
    random_tensor,
    seeds,
    uninitialised,
)
from hypothesis import given

import kernels
from kernels import sgd
from kernels.memory_format import is_dense

# Shape, layouts and dtypes of the weight and its gradient, learning rate, weight decay, whether there is a copy.
parameters = st.tuples(
    st.sampled_from([(), (7,), (0, 3), (sgd._BLOCK_SIZE,), (sgd._BLOCK_SIZE - 1,), (130, 31)])
    | st.tuples(*[st.integers(1, 5)] * 4),
    st.sampled_from(["nchw", "channels_last"]),
    gradient_layouts,
    dtypes,
    dtypes,
    st.sampled_from([0.0, 0.05, 0.3]),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.booleans(),
)
# Index of a parameter; weight, gradient or velocity; and the special value in it.
specials = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from([float("nan"), float("inf"), float("-inf")])),
    max_size=3,
)


def behind_an_element(x: torch.Tensor) -> torch.Tensor:
    """The same tensor at an address that is not a multiple of 16 bytes."""
    return torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].as_strided(x.shape, x.stride()).copy_(x)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@examples(25)
@given(
    st.lists(parameters, min_size=1, max_size=4), specials, st.booleans(), st.booleans(), st.sampled_from([0.0, 0.9]),
    seeds,
)  # fmt: skip
def test_update_is_the_papers(implementation, drawn, specials, aligned, as_tensor, momentum, seed):
    weights, gradients, velocities, copies, wanted = [], [], [], [], []
    rates, decays = ([parameter[field] for parameter in drawn] for field in (5, 6))
    for index, (shape, layout, gradient_layout, dtype, gradient_dtype, rate, _, copied) in enumerate(drawn):
        dtype, gradient_dtype = (dtype_for(implementation, one) for one in (dtype, gradient_dtype))
        tensors = [random_tensor(shape, seed + index + 9 * role, dtype) for role in range(3)]
        for parameter, role, value in specials:
            if parameter == index and tensors[role].numel():
                tensors[role].view(-1)[-1] = value
                # PyTorch's fused update skips a weight decay of 0, which would make NaN of an infinite weight.
                decays[index] = decays[index] or 0.01
        layouts = (layout, gradient_layout, layout)
        weight, gradient, velocity = (laid_out(tensor, one) for tensor, one in zip(tensors, layouts, strict=True))
        gradient = gradient.to(gradient_dtype)
        copy = torch.empty_like(weight, dtype=torch.bfloat16)
        if not aligned:
            weight, velocity, copy = (behind_an_element(tensor) for tensor in (weight, velocity, copy))
            gradient = behind_an_element(gradient) if is_dense(gradient) else gradient
        w, g, v = (tensor.to(torch.float64, copy=True) for tensor in (weight, gradient, velocity))
        wanted.append((w, [momentum * v, -decays[index] * rate * w, -rate * g] if rate else [v]))
        weights.append(weight)
        gradients.append(gradient)
        velocities.append(velocity)
        copies.append(copy if copied else None)
    with kernels.using(implementation):
        kernels.sgd_update_(
            weights,
            gradients,
            velocities,
            learning_rates=torch.tensor(rates, dtype=torch.float64, device=DEVICE) if as_tensor else rates,
            weight_decays=torch.tensor(decays, dtype=torch.float64) if as_tensor else decays,
            momentum=momentum,
            copies=copies if any(copy is not None for copy in copies) else None,
        )
    for weight, velocity, copy, rate, (before, terms) in zip(weights, velocities, copies, rates, wanted, strict=True):
        check_close(velocity, sum(terms), weight.dtype, "velocity", sum(term.abs() for term in terms))
        terms = [before, *terms] if rate else [before]
        magnitude = sum(term.abs() for term in terms)
        check_close(weight, sum(terms), weight.dtype, "weight", magnitude)
        if copy is not None:
            check_close(copy, sum(terms), torch.bfloat16, "copy", magnitude)
            # In half precision, weight and copy are both rounded from the fp32 result.
            if weight.dtype.itemsize > 2 and torch.bfloat16 in dtypes_of(implementation):
                torch.testing.assert_close(copy, weight.bfloat16(), rtol=0, atol=0, equal_nan=True)


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
@pytest.mark.parametrize("gaps_in", range(4))
def test_one_tensor_may_have_gaps(implementation: str, gaps_in: int) -> None:
    """Weight, gradient, velocity or copy; they are updated in place."""
    weight, gradient, velocity, copy = tensors = list(random_tensor((4, 3, 5), 0, torch.float32))
    terms = [0.9 * velocity.double(), -0.05 * weight.double(), -0.5 * gradient.double()]
    wanted, magnitude = weight.double() + sum(terms), weight.double().abs() + sum(term.abs() for term in terms)
    tensors[3] = copy.bfloat16()
    tensors[gaps_in] = laid_out(tensors[gaps_in], "sliced")
    weight, gradient, velocity, copy = tensors
    with kernels.using(implementation):
        kernels.sgd_update_(
            [weight], [gradient], [velocity], learning_rates=[0.5], weight_decays=[0.1], copies=[copy], momentum=0.9
        )
    check_close(velocity, sum(terms), torch.float32, "velocity", magnitude)
    check_close(weight, wanted, torch.float32, "weight", magnitude)
    check_close(copy, wanted, torch.bfloat16, "copy", magnitude)
    assert not tensors[gaps_in]._base[..., ::2].any()


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("layout", ["nchw", "sliced"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autograd_notices_the_update(implementation: str, layout: str, compiled: bool) -> None:
    """Backward with the new weights would give the gradient of a result that was never computed."""

    def update(weight, velocity, copy) -> None:
        gradients = [torch.ones_like(weight)]
        rates = {"learning_rates": [0.1], "weight_decays": [0.0]}
        kernels.sgd_update_([weight], gradients, [velocity], **rates, copies=[copy])

    written = [laid_out(random_tensor((3, 4), seed, torch.float32), layout) for seed in range(2)]
    written.append(laid_out(random_tensor((3, 4), 2, torch.bfloat16), layout))
    x = torch.ones(3, 4, device=DEVICE, requires_grad=True)
    results = [(x * tensor).sum() for tensor in written]
    with kernels.using(implementation):
        (torch.compile(update, fullgraph=True, backend="aot_eager") if compiled else update)(*written)
    for result in results:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


def test_registered_operator_keeps_pytorchs_rules() -> None:
    weights, gradients, velocities = (
        [random_tensor((9,), seed + i, torch.float32) for i in (0, 5)] for seed in (0, 1, 2)
    )
    numbers, copies = torch.ones(2, dtype=torch.float64, device=DEVICE), [weights[1].bfloat16()]
    for arguments in (([], []), (copies, [1])):
        torch.library.opcheck(
            torch.ops.fastalex.sgd_update, (weights, gradients, velocities, *arguments, numbers, numbers, 0.9)
        )


def test_offsets_pass_32_bits() -> None:
    """The first and the last elements of a large tensor are updated as alone."""

    def updated(given: list[torch.Tensor]) -> list[torch.Tensor]:
        weight, gradient, velocity = given
        copy = torch.empty_like(weight, dtype=torch.bfloat16)
        options = {"learning_rates": [0.1], "weight_decays": [0.01], "copies": [copy]}
        with kernels.using("triton"), ends_of_grids(1):  # `ends` elements are one program
            kernels.sgd_update_([weight], [gradient], [velocity], **options)
        return [weight, velocity, copy]

    # The last block is full, or has only a few elements.
    for ends in (sgd._BLOCK_SIZE, 100):
        small = list(random_tensor((3, ends), 0, torch.float16))
        large = [uninitialised([2**31 + ends], "nchw", torch.float16) for _ in range(3)]
        for values, tensor in zip(small, large, strict=True):
            tensor[:ends] = tensor[-ends:] = values
        for found, wanted in zip(updated(large), updated(small), strict=True):
            assert torch.equal(found[:ends], wanted)
            assert torch.equal(found[-ends:], wanted)


def test_meta_tensors_are_only_counted_as_changed() -> None:
    tensors = [[torch.ones(4, device="meta")] for _ in range(3)]
    for implementation in ("native", "reference"):
        before = [tensor._version for (tensor,) in tensors]
        with kernels.using(implementation):
            kernels.sgd_update_(*tensors, learning_rates=[0.1], weight_decays=[0.1])
        changes = [tensor._version - count for (tensor,), count in zip(tensors, before, strict=True)]
        assert changes == [1, 0, 1]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], dict]]:
    """The grid and the options of each launch."""
    made = []

    class Recorded:
        def __getitem__(self, grid):
            def launch(*arguments, **options) -> None:
                made.append((grid, options))
                kernel[grid](*arguments, **options)

            return launch

    kernel = sgd.sgd_kernel
    monkeypatch.setattr(sgd, "sgd_kernel", Recorded())
    return made


@pytest.mark.parametrize("with_copies", [(True,) * 3, (False, True, False), None])
def test_all_tensors_are_updated_in_one_launch(with_copies, launches) -> None:
    shapes = [(5, 3, 4, 2), (), (130, 31)]
    weights, gradients, velocities = (
        [random_tensor(shape, seed, torch.float32) for shape in shapes] for seed in range(3)
    )
    copies = with_copies and [
        weight.bfloat16() if copied else None for weight, copied in zip(weights, with_copies, strict=True)
    ]
    with kernels.using("triton"):
        kernels.sgd_update_(
            weights, gradients, velocities, learning_rates=[0.1] * 3, weight_decays=[0.0] * 3, copies=copies
        )
    blocks = [-(-weight.numel() // sgd._BLOCK_SIZE) for weight in weights]
    assert [grid for grid, _ in launches] == [(sum(blocks),)]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_gradient_laid_out_as_its_weight_is_not_copied(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(sgd, "_update", lambda weights, gradients, *rest: taken.extend(gradients))
    weight, gradient, velocity = (
        laid_out(random_tensor((2, 3, 2, 2), seed, torch.float32), layout) for seed in range(3)
    )
    other = laid_out(gradient, "nchw" if layout == "channels_last" else "channels_last")
    with kernels.using("triton"):
        for given_gradient in (gradient, other):
            kernels.sgd_update_([weight], [given_gradient], [velocity], learning_rates=[0.1], weight_decays=[0.1])
    assert taken[0] is gradient
    assert taken[1] is not other
    assert torch.equal(taken[1], other)


def test_the_same_input_gives_the_same_bits() -> None:
    # On a GPU, enough programs to run many at once, in an order that changes.
    given_tensors = random_tensor((3, *((4096, 4096) if DEVICE == "cuda" else (130, 31))), 0, torch.float32)
    results = []
    for _ in range(2):
        weight, gradient, velocity = given_tensors.clone()
        with kernels.using("triton"):
            kernels.sgd_update_([weight], [gradient], [velocity], learning_rates=[0.1], weight_decays=[0.1])
        results.append((weight, velocity))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("unaligned", [None, 0, 1, 2, 3])
def test_only_aligned_tensors_are_loaded_16_bytes_at_a_time(unaligned: int | None, launches) -> None:
    tensors = [random_tensor((40,), 0, torch.float32) for _ in range(3)] + [torch.zeros(40, device=DEVICE).bfloat16()]
    if unaligned is not None:
        tensors[unaligned] = behind_an_element(tensors[unaligned])
    weights, gradients, velocities, copies = ([tensor] for tensor in tensors)
    with kernels.using("triton"):
        kernels.sgd_update_(weights, gradients, velocities, learning_rates=[0.1], weight_decays=[0.1], copies=copies)
    assert [options["ALIGNED"] for _, options in launches] == [unaligned is None]


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@pytest.mark.parametrize("count", [0, 1])
def test_no_tensors_is_no_work(implementation: str, count: int, launches) -> None:
    """Nor are tensors without elements: a GPU refuses a launch without programs. Numbers are checked nevertheless."""
    tensors = [[torch.ones(0, device=DEVICE) for _ in range(count)] for _ in range(3)]
    for numbers in ([0.1] * count, torch.full((count,), 0.1, device=DEVICE)):
        with kernels.using(implementation):
            kernels.sgd_update_(*tensors, learning_rates=numbers, weight_decays=numbers)
            with pytest.raises(ValueError, match=f"learning_rates must have {count} values?, one per weight, got 2"):
                kernels.sgd_update_(*tensors, learning_rates=[0.1, 0.1], weight_decays=numbers)
    assert launches == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": torch.ones(1, 4)}, TypeError, "weights must be a sequence of tensors, got Tensor"),
        ({"gradients": None}, TypeError, "gradients must be a sequence of tensors, got NoneType"),
        ({"copies": {}}, TypeError, "copies must be a sequence of tensors, got dict"),
        ({"weights": [1.0]}, TypeError, r"weights\[0\] must be a tensor, got float"),
        ({"gradients": [None]}, TypeError, r"gradients\[0\] must be a tensor, got NoneType"),
        ({"velocities": ["v"]}, TypeError, r"velocities\[0\] must be a tensor, got str"),
        *(
            ({name: tensors}, ValueError, f"{name} must have 1 tensor, one per weight, got {len(tensors)}")
            for name in ("gradients", "velocities", "copies")
            for tensors in ([], [torch.ones(4)] * 2)
        ),
        *(
            ({name: [torch.ones(3)]}, ValueError, rf"{name}\[0\] must have the shape of .* \(4,\), got \(3,\)")
            for name in ("gradients", "velocities", "copies")
        ),
        *(
            (
                {name: [torch.ones(4, device="meta")]},
                ValueError,
                rf"{name}\[0\] must be on the device of its weight, cpu, got meta",
            )
            for name in ("gradients", "velocities", "copies")
        ),
        *(
            (
                {name: [torch.ones(1, dtype=dtype).expand(4)]},
                ValueError,
                rf"{name}\[0\] must have memory for each of its elements, got strides \(0,\): clone\(\) it",
            )
            for name, dtype in (
                ("weights", torch.float32),
                ("velocities", torch.float32),
                ("copies", torch.bfloat16),
            )
        ),
        (
            {"velocities": [torch.ones(4).half()]},
            TypeError,
            r"velocities\[0\] must be torch\.float32, got torch\.float16",
        ),
        *(
            ({name: [torch.ones(4).to_sparse()]}, TypeError, rf"{name}\[0\] must be a dense tensor, got layout")
            for name in ("weights", "gradients", "velocities")
        ),
        ({"gradients": [torch.ones(4, dtype=torch.int32)]}, TypeError, r"gradients\[0\] must be float32"),
        (
            {"weights": [torch.ones(4, dtype=torch.int64)]},
            TypeError,
            r"weights\[0\] must be float32, float16, bfloat16",
        ),
        (
            {name: [torch.ones(4), torch.ones(4, device="meta")] for name in ("weights", "gradients", "velocities")}
            | {name: [0.1, 0.1] for name in ("learning_rates", "weight_decays")},
            ValueError,
            r"weights\[1\] must be on the device of weights\[0\], cpu, got meta: update the weights of each",
        ),
        ({"copies": [torch.ones(4)]}, TypeError, r"copies\[0\] must be torch\.bfloat16, got torch\.float32"),
        ({"learning_rates": [0.1, 0.2]}, ValueError, "learning_rates must have 1 value, one per weight, got 2"),
        ({"weight_decays": []}, ValueError, "weight_decays must have 1 value, one per weight, got 0"),
        (
            {"learning_rates": 0.1},
            TypeError,
            "learning_rates must be a sequence of numbers or a tensor, got float: 0.1",
        ),
        ({"weight_decays": None}, TypeError, "weight_decays must be a sequence of numbers or a tensor, got NoneType"),
        ({"learning_rates": [-0.1]}, ValueError, r"learning_rates\[0\] must be at least 0, got -0.1"),
        ({"weight_decays": [-1]}, ValueError, r"weight_decays\[0\] must be at least 0, got -1"),
        ({"learning_rates": [float("nan")]}, ValueError, r"learning_rates\[0\] must be finite, got nan"),
        ({"weight_decays": ["no"]}, TypeError, r"weight_decays\[0\] must be a number, got str: 'no'"),
        ({"weight_decays": torch.ones(1, 1)}, ValueError, r"weight_decays must have 1 dimension \(one value"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, ValueError, r"momentum must be in \[0, 1\), got -0.1"),
        ({"momentum": None}, TypeError, "momentum must be a number, got NoneType: None"),
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


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_a_refused_call_changes_nothing(implementation: str) -> None:
    weights, others = [torch.ones(4, device=DEVICE) for _ in range(2)], [torch.ones(4, device=DEVICE)]
    with kernels.using(implementation), pytest.raises(TypeError, match=r"gradients\[1\] must be a tensor"):
        kernels.sgd_update_(weights, [*others, None], others * 2, learning_rates=[1, 1], weight_decays=[0, 0])
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in weights + others)


def test_a_table_is_not_built_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that an earlier update has built is used."""
    device = torch.device("cuda")
    build = sgd._address_table.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for table in (lambda: build(((1, 2, 3, 4),), device), lambda: sgd._block_table.__wrapped__((1,), device)):
        with pytest.raises(
            RuntimeError, match=r"sgd_update_ cannot build its table .* call it once with the same tensors"
        ):
            table()
    assert build(((1, 2, 3, 4),), torch.device("cpu")).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(("values", "got"), [([0.1, 0.2], "numbers"), (torch.ones(2), "a tensor on cpu")])
def test_rates_are_not_copied_while_a_graph_is_captured(
    values: list[float] | torch.Tensor, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    message = f"sgd_update_ cannot copy weight_decays to cuda while .*, got {got}: pass a tensor on cuda"
    with pytest.raises(RuntimeError, match=message):
        sgd._on_device("weight_decays", values, torch.device("cuda"))
    assert sgd._on_device("weight_decays", torch.ones(2), torch.device("cpu")).dtype == torch.float64
