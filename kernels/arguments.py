"""Argument checks, shared by all implementations of an operator. They run before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The Triton kernels' offsets are 32 bits wide, and masked elements may lie a little past the end.
MAX_ELEMENTS = 2**31 - 2**16


def check_tensor(name: str, x: Tensor, rank: int | None = None, meaning: str = "") -> None:
    """Check that `x` is a dense tensor of one of the four dtypes, with `rank` dimensions if given.

    Args:
        meaning: what the dimensions are, for the message: "N x C x H x W".
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {x.dtype}")
    check_dense(name, x)
    if rank is not None and x.dim() != rank:
        raise ValueError(f"{name} must have {count(rank, 'dimension')} ({meaning}), got shape {tuple(x.shape)}")


def check_dense(name: str, x: Tensor) -> None:
    """Check that `x` has an address and strides: it is not sparse, nested, or in a library's own layout."""
    if x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pad it with torch.nested.to_padded_tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}: call to_dense() first")


def count(number: int, noun: str) -> str:
    """`1 value`, `2 values`, `2 classes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def check_int(name: str, value: int, least: int, wanted: str = "an int") -> None:
    """Check that `value` is an int of at least `least`; `wanted` names the accepted types in the message."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}: {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_bool(name: str, value: bool) -> None:
    """Check that `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}: {value!r}")


def check_number(name: str, value: float) -> None:
    """Check that `value` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    # Not math.isfinite, which torch.compile cannot trace for a number that varies.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def check_normalisation(size: int, alpha: float, beta: float, k: float) -> None:
    """Check that the denominator (k + alpha / n * sum of squares)^beta is positive and never below k^beta."""
    check_int("size", size, 1)
    check_number("alpha", alpha)
    check_number("beta", beta)
    check_number("k", k)
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}: the denominator could become negative")
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if k <= 0:
        raise ValueError(f"k must be above 0, got {k}: the denominator would not be positive for an input of zeros")


# Side of the largest window whose sums the Triton kernels of normalisation unroll. Larger ones take long to compile.
MAX_UNROLLED_WINDOW = 16


def clamp_window(extent: int, size: int, alpha: float, dimensions: int) -> tuple[int, float]:
    """The size and alpha of the smallest window that normalises like this one over `extent` elements.

    A window of 2 * extent - 1 around any element covers all of them. Alpha is divided by the number of elements of a
    window, which has `dimensions` dimensions, so it shrinks with the window.
    """
    largest = max(1, 2 * extent - 1)
    if size <= MAX_UNROLLED_WINDOW or size <= largest:
        return size, alpha
    return largest, alpha * (largest / size) ** dimensions


def check_groups(channels: int, groups: int) -> None:
    """Check that the channels divide into equal groups."""
    check_int("groups", groups, 1)
    if channels % groups != 0:
        raise ValueError(f"groups must divide the {count(channels, 'channel')} of x, got {groups}")


def check_vector(name: str, vector: Tensor, length: int, x: Tensor, meaning: str) -> None:
    """Check that `vector` is a floating-point vector of `length` values on x's device."""
    check_tensor(name, vector, 1, meaning)
    if vector.shape[0] != length:
        raise ValueError(f"{name} must have {count(length, 'value')} ({meaning}), got {vector.shape[0]}")
    check_same_device(name, vector, x)


def check_same_device(name: str, other: Tensor, x: Tensor) -> None:
    """Check that `other` is on x's device."""
    if other.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {other.device}")


def check_labels(name: str, labels: Tensor, logits: Tensor) -> None:
    """Check that `labels` is an int64 vector with one value per row of `logits`, which has at least one column."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {labels.dtype}")
    check_dense(name, labels)
    if labels.shape != logits.shape[:1]:
        wanted = count(logits.shape[0], "value")
        raise ValueError(f"{name} must have {wanted} (one per row of logits), got shape {tuple(labels.shape)}")
    if labels.device != logits.device:
        raise ValueError(f"{name} must be on the device of logits, {logits.device}, got {labels.device}")
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have at least one class, got shape {tuple(logits.shape)}")


def check_label_values(name: str, labels: Tensor, classes: int, ignored: int) -> None:
    """Check that every label is a class or the ignored one. Reads the labels, so it synchronises with a GPU."""
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignored)]
    if len(wrong):
        raise ValueError(f"{name} must be from 0 to {classes - 1} ({count(classes, 'class')}), got {int(wrong[0])}")


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """`value` as (vertical, horizontal), from one int or a pair, each at least `least`."""
    wanted = "an int or a pair of ints"
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    for one in values:
        check_int(name, one, least, wanted)
    return values[0], values[-1]


def check_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    ceil_mode: bool = False,
) -> None:
    """Check that the window and its padding fit the input, by the rules of `torch.nn.functional.max_pool2d`."""
    check_bool("ceil_mode", ceil_mode)
    if x.shape[1] == 0:
        raise ValueError(f"x must have at least one channel, got shape {tuple(x.shape)}")
    sides = zip(("height", "width"), x.shape[2:], kernel, stride, padding, dilation, strict=True)
    for name, length, size, step, pad, spread in sides:
        window = f"kernel_size {size}" + (f" and dilation {spread}" if spread > 1 else "")
        extent = (size - 1) * spread + 1
        if pad > extent // 2:
            raise ValueError(f"padding must be at most half of {window}, got {pad}")
        # A window must contain an element of x. In ceil mode the first window, too, may overhang by less than a stride.
        least = max(1, extent - 2 * pad - (step - 1 if ceil_mode else 0))
        mode = f" in ceil mode with stride {step}" if ceil_mode else ""
        if length < least:
            raise ValueError(f"x's {name} must be at least {least} for {window} and padding {pad}{mode}, got {length}")


def pooled_length(length: int, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Number of windows along one side. In ceil mode the last window may overhang if it starts inside."""
    reach = length + 2 * padding - kernel_size
    windows = (reach + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (windows - 1) * stride >= length + padding:
        windows -= 1
    return windows


def check_probability(p: float) -> None:
    """Check that `p` is in [0, 1)."""
    check_number("p", p)
    if not 0 <= p < 1:
        raise ValueError(f"p must be in [0, 1), got {p}")


def counter_tensor(name: str, value: int | Tensor, x: Tensor) -> Tensor:
    """A seed or row number as an int64 tensor without dimensions on x's device. Does not synchronise.

    It is a tensor because a compiled graph or a CUDA graph would freeze a Python int.
    """
    if isinstance(value, Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be an int or an int64 tensor, got a tensor of {value.dtype}")
        check_dense(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} must have one element, got shape {tuple(value.shape)}")
        if value.device != x.device and value.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU or on the device of x, {x.device}, got {value.device}")
        return value.detach().reshape(()).to(x.device, non_blocking=True)
    check_int(name, value, 0, "an int or an int64 tensor")
    if value >= 1 << 63:
        raise ValueError(f"{name} must be below 2^63, got {value}")
    return torch.full((), value, dtype=torch.int64, device=x.device)


_PADDING = 'an int, (h, w), (top, bottom, left, right), "valid" or "same"'


def four_sided(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Padding as (top, bottom, left, right), from one int, (height, width) or all four."""
    if isinstance(padding, Sequence) and not isinstance(padding, str):
        sides = tuple(padding)
    else:
        sides = (padding,)
    if len(sides) not in (1, 2, 4):
        raise ValueError(f"padding must be {_PADDING}, got {padding!r}")
    for side in sides:
        check_int("padding", side, 0, _PADDING)
    if len(sides) == 1:
        return (sides[0],) * 4
    if len(sides) == 2:
        return sides[0], sides[0], sides[1], sides[1]
    return sides[0], sides[1], sides[2], sides[3]


def sides_of(
    padding: int | Sequence[int] | str, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A convolution's padding as (top, bottom, left, right), also from PyTorch's "valid" and "same"."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f'stride must be 1 with padding "same", got {stride}')
        height, width = (spread * (size - 1) for size, spread in zip(kernel, dilation, strict=True))
        return height // 2, height - height // 2, width // 2, width - width // 2
    if isinstance(padding, str):
        raise ValueError(f"padding must be {_PADDING}, got {padding!r}")
    return four_sided(padding)


def check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> None:
    """Check that shapes, dtypes and devices agree."""
    check_tensor("x", x, 4, "N x C x H x W")
    check_tensor("weight", weight, 4, "K x C/groups x KH x KW")
    check_groups(x.shape[1], groups)
    check_same_device("weight", weight, x)
    if weight.shape[1] != x.shape[1] // groups:
        raise ValueError(
            f"weight must have {count(x.shape[1] // groups, 'input channel')} for x {tuple(x.shape)} in "
            f"{count(groups, 'group')}, got shape {tuple(weight.shape)}"
        )
    if weight.shape[0] % groups != 0:
        raise ValueError(f"groups must divide the {count(weight.shape[0], 'filter')} of weight, got {groups}")
    _check_same_dtype("weight", weight, x)
    if bias is not None:
        check_vector("bias", bias, weight.shape[0], x, "one per filter")
        _check_same_dtype("bias", bias, x)


def _check_same_dtype(name: str, other: Tensor, x: Tensor) -> None:
    """Check that `other` has x's dtype, or that autocast gives both the same one: it leaves fp64 alone."""
    device = x.device.type
    if other.dtype == x.dtype:
        return
    # Some devices, such as meta, have no autocast.
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {other.dtype}")
    if torch.float64 in (x.dtype, other.dtype):
        raise TypeError(
            f"{name} must have the dtype of x, {x.dtype}, got {other.dtype}: autocast does not convert float64"
        )


def check_convolution_fits(
    x: Tensor,
    weight: Tensor,
    sides: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> None:
    """Check that at least one window fits."""
    top, bottom, left, right = sides
    for name, length, size, spread in (
        ("height", x.shape[2] + top + bottom, weight.shape[2], dilation[0]),
        ("width", x.shape[3] + left + right, weight.shape[3], dilation[1]),
    ):
        extent = (size - 1) * spread + 1
        if size < 1 or length < extent:
            raise ValueError(
                f"x's padded {name} must be at least the kernel's, {extent}, got {length} (x {tuple(x.shape)}, weight "
                f"{tuple(weight.shape)}, padding {sides})"
            )


def check_image(x: Tensor) -> None:
    """Check that offsets within one image fit 32 bits; a batch may have any size."""
    check_elements("x", math.prod(x.shape[1:]), " per image")


def check_elements(name: str, elements: int, where: str = "") -> None:
    """Check that offsets among `elements` elements fit 32 bits."""
    if elements > MAX_ELEMENTS:
        raise ValueError(f"{name} must have at most {MAX_ELEMENTS} elements{where}, got {elements}")
