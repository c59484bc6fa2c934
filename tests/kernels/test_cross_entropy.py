"""Cross-entropy and error counts, against the definition and against PyTorch."""

from __future__ import annotations

import importlib
import inspect

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from comparing import (
    DEVICE,
    IMPLEMENTATIONS,
    TOLERANCES,
    check_close,
    dtype_for,
    dtypes,
    ends_of_grids,
    examples,
    guarded,
    laid_out,
    random_tensor,
    saved_bytes,
    seeds,
    uninitialised,
)
from hypothesis import given

import kernels

# Rows shorter and longer than a block, and more rows than it, of 1024 or of 16.
shapes = st.tuples(st.integers(0, 5), st.sampled_from([1, 2, 5, 6, 10, 1000, 1024, 1030, 2500])) | st.tuples(
    st.sampled_from([16, 17, 40]), st.sampled_from([3, 16, 17, 33])
)


def random_labels(rows: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def counted(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Top-1 and top-5 errors by ranking. Among equal scores, the label's is ranked last."""
    errors = [0, 0]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        rank = sum(score >= row[label] for score in row) - 1
        errors[0] += rank > 0
        errors[1] += rank > 4
    return [*map(float, errors), float(len(labels))]


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@examples(25)
@given(shapes, st.sampled_from([1.0, 1 / 6, 3.5]), dtypes, st.sampled_from(["nchw", "sliced"]), st.booleans(), seeds)
def test_it_is_the_definition(implementation, shape, scale, dtype, layout, ties, seed):
    with pytest.MonkeyPatch.context() as patched:
        if shape[0] > 5:
            patched.setattr(importlib.import_module("kernels.cross_entropy"), "_BLOCK_SIZE", 16)
        check_the_definition(implementation, shape, scale, dtype, layout, ties, seed)


def check_the_definition(implementation, shape, scale, dtype, layout, ties, seed):
    dtype = dtype_for(implementation, dtype)
    logits = random_tensor(shape, seed, dtype)
    if ties:
        logits = logits.round()
    labels, upstream = random_labels(*shape, seed), torch.tensor(0.75, device=DEVICE, dtype=torch.float64)
    ours = guarded(laid_out(logits, layout).detach()).requires_grad_()
    theirs = logits.double().requires_grad_()
    with kernels.using(implementation):
        loss, counts = kernels.cross_entropy(ours, laid_out(labels, layout), scale=scale)
        loss.backward(upstream.to(loss.dtype))
    losses = theirs.logsumexp(1) - theirs.gather(1, labels[:, None]).squeeze(1)
    (scale * losses.sum()).backward(upstream)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    assert (loss.dtype, loss.shape, counts.dtype) == (work, (), torch.float64)
    check_close(loss.detach(), scale * losses.detach().sum(), work, "loss", scale * losses.detach().sum())
    check_close(counts[0], losses.detach().sum(), work, "sum of losses")
    assert counts[1:].tolist() == counted(logits, labels)
    assert not counts.requires_grad
    assert ours.grad.dtype == dtype
    check_close(ours.grad, theirs.grad, dtype, "gradient", torch.full_like(theirs.grad, scale))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_ties_and_nan_are_errors(implementation: str) -> None:
    nan = float("nan")
    logits = torch.zeros(6, 10, device=DEVICE)
    logits[1, 3] = 1  # the only row without an error
    logits[2, :] = nan
    logits[3, 3] = nan
    logits[4, 5], logits[4, 3] = nan, 1  # the label's score is not above a NaN
    logits[5, 3] = -1
    labels = torch.full((6,), 3, device=DEVICE)
    with kernels.using(implementation):
        errors = [kernels.cross_entropy(row[None], labels[:1])[1][1:3].tolist() for row in logits]
        few = kernels.cross_entropy(logits[2:4, :4], labels[:2])[1].tolist()
    assert errors == [[1, 1], [0, 0], [1, 1], [1, 1], [1, 0], [1, 1]]
    assert few[1:] == [2, 2, 2]


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
def test_with_five_classes_or_fewer_top5_is_always_right(implementation: str) -> None:
    logits = random_tensor((8, 4), 0, torch.float32)
    with kernels.using(implementation):
        assert kernels.cross_entropy(logits, torch.arange(8, device=DEVICE) % 4)[1][2] == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("classes", [[0], [3], [0, 3], list(range(10))])
def test_special_scores_give_what_pytorch_gives(implementation: str, special: float, classes: list[int]) -> None:
    logits = random_tensor((3, 10), 0, torch.float32)
    logits[1, classes] = special
    labels = torch.full((3,), 3, device=DEVICE)
    results = []
    for chosen, dtype in ((implementation, torch.float32), ("reference", torch.float64)):
        x = logits.to(dtype, copy=True).requires_grad_()
        with kernels.using(chosen):
            loss, counts = kernels.cross_entropy(x, labels)
        loss.backward()
        results.append((loss.detach(), counts, x.grad))
    for found, wanted, what in zip(*results, ("loss", "counts", "gradient"), strict=True):
        check_close(found, wanted.double(), torch.float32, what)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts_of_parts_add_up(implementation: str) -> None:
    logits, labels = random_tensor((12, 9), 0, torch.float32), random_labels(12, 9, 1)
    with kernels.using(implementation):
        whole = kernels.cross_entropy(logits, labels)[1]
        parts = [kernels.cross_entropy(a, b)[1] for a, b in zip(logits.split(5), labels.split(5), strict=True)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("label", [-1, 4, 2**40, -101])
def test_a_label_out_of_range_is_an_error(label: int) -> None:
    logits, labels = random_tensor((3, 4), 0, torch.float32), torch.tensor([1, label, 2], device=DEVICE)
    with kernels.using("triton"):
        x = logits.clone().requires_grad_()
        loss, counts = kernels.cross_entropy(x, labels)
        loss.backward()
        assert loss.isnan()
        right = kernels.cross_entropy(logits[::2], labels[::2])[1]
    assert counts[1:].tolist() == [right[1] + 1, 1, 3]
    assert x.grad.isnan().any(1).tolist() == [False, True, False]
    if DEVICE == "cpu":
        for plain in ("native", "reference"):
            with (
                kernels.using(plain),
                pytest.raises(ValueError, match=rf"labels must be from 0 to 3 \(4 classes\), got {label}$"),
            ):
                kernels.cross_entropy(logits, labels)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients(implementation: str) -> None:
    x, labels = random_tensor((3, 7), 0).requires_grad_(), random_labels(3, 7, 1)
    with kernels.using(implementation):
        assert torch.autograd.gradcheck(lambda x: kernels.cross_entropy(x, labels, scale=0.3)[0], x, fast_mode=True)


def test_inputs_and_a_number_per_row_are_saved() -> None:
    x, labels = random_tensor((8, 64), 0, torch.float16).requires_grad_(), random_labels(8, 64, 1)
    with kernels.using("triton"):
        assert saved_bytes(lambda: kernels.cross_entropy(x, labels)[0]) == x.nbytes + 8 * 8 + 4 * 8


def test_registered_operators_keep_pytorchs_rules() -> None:
    x, labels = random_tensor((3, 20), 0, torch.float32), random_labels(3, 20, 1)
    torch.library.opcheck(torch.ops.fastalex.cross_entropy_forward, (x, labels, 0.5, -100))
    rest = torch.ones((), device=DEVICE), x, labels, x.logsumexp(1), 0.5, -100
    torch.library.opcheck(torch.ops.fastalex.cross_entropy_backward, rest)


def test_the_same_input_gives_the_same_bits() -> None:
    x, labels = random_tensor((1500, 1100), 0, torch.float32 if DEVICE == "cuda" else torch.float64), None
    x = x if DEVICE == "cuda" else x[:40, :30].contiguous()
    labels = random_labels(*x.shape, 1)
    with kernels.using("triton"):
        first, second = (kernels.cross_entropy(x, labels) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_offsets_pass_32_bits() -> None:
    """The gradients of the first and the last row of many are the same as alone."""
    rows, classes = 2**21 + 2, 2**10
    row = random_tensor((1, classes), 0, torch.float16)
    x = uninitialised((rows, classes), "nchw", torch.float16)
    x[0] = x[-1] = row
    labels = torch.zeros(rows, dtype=torch.int64, device=DEVICE)

    def gradient(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x.requires_grad_()
        with kernels.using("triton"), ends_of_grids(1):  # a row is one program
            return torch.autograd.grad(kernels.cross_entropy(x, labels)[0], x)[0]

    whole, alone = gradient(x, labels), gradient(row.clone(), labels[:1])
    assert whole.numel() > 2**31
    assert alone.abs().max() > TOLERANCES[torch.float16]
    assert torch.equal(whole[0], alone[0])
    assert torch.equal(whole[-1], alone[0])


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ([1.0], torch.zeros(1), TypeError, "logits must be a tensor, got list"),
        (torch.zeros(2, 3, 1), torch.zeros(2), ValueError, r"logits must have 2 dimensions \(N x classes\), got shape"),
        (torch.zeros(2, 3).long(), torch.zeros(2), TypeError, r"logits must be float32, .* got torch\.int64"),
        (
            torch.zeros(2, 0),
            torch.zeros(2).long(),
            ValueError,
            r"logits must have at least one class, got shape \(2, 0",
        ),
        (torch.zeros(2, 3), [0, 1], TypeError, "labels must be a tensor, got list"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, r"labels must be int64, got torch\.float32"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 1).long(),
            ValueError,
            r"labels must have 2 values \(one per row of logits\), got shape \(2, 1\)",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, device="meta").long(),
            ValueError,
            "labels must be on the device of logits, cpu, got meta",
        ),
    ],
)
def test_bad_inputs_are_named(logits, labels, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (float("inf"), ValueError, "scale must be finite, got inf"),
        (None, TypeError, "scale must be a number, got NoneType: None"),
    ],
)
def test_bad_scales_are_named(scale, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), scale=scale)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "reference"])
@examples(12)
@given(st.integers(0, 6), dtypes, st.sampled_from([-100, 3, 0]), st.sampled_from([0.0, 0.1, 1.0]), seeds)
def test_ignored_labels_and_smoothing_are_pytorchs(implementation, rows, dtype, ignored, smoothing, seed):
    dtype = dtype_for(implementation, dtype)
    logits, labels = random_tensor((rows, 7), seed, dtype), random_labels(rows, 7, seed)
    labels[::2] = ignored
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    options = {"ignore_index": ignored, "label_smoothing": smoothing}
    with kernels.using(implementation):
        loss, counts = kernels.cross_entropy(ours, labels, scale=0.3, **options)
    wanted = 0.3 * F.cross_entropy(theirs, labels, reduction="sum", **options)
    loss.backward()
    wanted.backward()
    check_close(loss.detach(), wanted.detach(), torch.float32, "loss")
    check_close(ours.grad, theirs.grad, dtype, "gradient", torch.ones_like(theirs.grad))
    kept = labels != ignored
    assert counts[1:].tolist() == counted(logits[kept], labels[kept])
    check_close(counts[0], wanted.detach() / 0.3, torch.float32, "sum of losses")


def test_an_ignored_row_is_ignored_whatever_its_scores() -> None:
    logits = torch.tensor([[float("nan"), 1.0], [1.0, 2.0]], device=DEVICE)
    for implementation in (*IMPLEMENTATIONS, "reference"):
        with kernels.using(implementation):
            loss, counts = kernels.cross_entropy(logits, torch.tensor([-100, 1], device=DEVICE))
        assert loss.isfinite()
        assert counts[1:].tolist() == [0, 0, 1]


def test_a_new_number_is_not_a_new_kernel() -> None:
    module = importlib.import_module("kernels.cross_entropy")
    for kernel in (module.cross_entropy_fwd_kernel, module.cross_entropy_sum_kernel, module.cross_entropy_bwd_kernel):
        types = inspect.get_annotations(kernel.fn)
        # A Python float would reach the kernel as fp32.
        assert types.get("scale", "tl.float64") == "tl.float64"
        assert types.get("ignore_index", "tl.int64") == "tl.int64"
        assert not any(name in ("rows", "SCALE") for name in types)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label_smoothing": 1.1}, ValueError, r"label_smoothing must be in \[0, 1\], got 1\.1"),
        ({"label_smoothing": None}, TypeError, "label_smoothing must be a number, got NoneType"),
        ({"ignore_index": 1.0}, TypeError, r"ignore_index must be an int, got float: 1\.0"),
    ],
)
def test_bad_options_are_named(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        kernels.cross_entropy(torch.zeros(2, 3), torch.zeros(2).long(), **options)
