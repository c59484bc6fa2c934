"""Dropout whose mask is a function of (seed, row, feature), alone and behind a bias and a ReLU.

    training, inverted:       y = x * kept / (1 - p)          evaluation: y = x
    training, not inverted:   y = x * kept                    evaluation: y = x * (1 - p)

`kept` comes from Philox counters (see `kernels.philox.keep_mask`), so nothing is kept for backward, and the mask is the
same on every device and for every way to cut a batch.

Source: section 4.2 of Krizhevsky, Sutskever and Hinton (2012), which is the form that is not inverted.
"""

from __future__ import annotations

from torch import Tensor

from kernels import arguments, dispatch, native, reference


def dropout(
    x: Tensor,
    p: float = 0.5,
    *,
    seed: int | Tensor,
    first_row: int | Tensor = 0,
    training: bool = True,
    inverted: bool = True,
) -> Tensor:
    """Set features to zero with probability `p`, each by its own random number.

    Args:
        x: N x F; float32, float16, bfloat16 or float64.
        p: probability that a feature is dropped, in [0, 1).
        seed: int in [0, 2^63), or an int64 tensor of one element on x's device or the CPU. Use a tensor where a
            recorded CUDA graph is to draw new masks.
        first_row: number of x's first row within the whole batch; same types.
        training: False computes the evaluation form, which needs no random numbers.
        inverted: True scales by 1 / (1 - p) in training; False, the 2012 form, by 1 - p in evaluation.

    Returns:
        N x F in x's dtype.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is computed.
    """
    arguments.check_tensor("x", x, 2, "N x F")
    arguments.check_probability(p)
    seed = arguments.counter_tensor("seed", seed, x)
    first_row = arguments.counter_tensor("first_row", first_row, x)
    chosen = reference if dispatch.implementation_for(x) == "reference" else native
    return chosen.dropout(x, p, seed=seed, first_row=first_row, training=training, inverted=inverted)


def bias_relu_dropout(
    x: Tensor,
    bias: Tensor,
    p: float = 0.5,
    *,
    seed: int | Tensor,
    first_row: int | Tensor = 0,
    training: bool = True,
    inverted: bool = True,
) -> Tensor:
    """`dropout(relu(x + bias))`, for the raw product of a fully connected layer.

    Args:
        x: N x F; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        bias: F values in any floating dtype.
        p, seed, first_row, training, inverted: as in `dropout`.

    Returns:
        N x F in x's dtype.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is computed.
    """
    arguments.check_tensor("x", x, 2, "N x F")
    arguments.check_vector("bias", bias, x.shape[1], x, "one per feature of x")
    arguments.check_probability(p)
    seed = arguments.counter_tensor("seed", seed, x)
    first_row = arguments.counter_tensor("first_row", first_row, x)
    chosen = reference if dispatch.implementation_for(x) == "reference" else native
    return chosen.bias_relu_dropout(x, bias, p, seed=seed, first_row=first_row, training=training, inverted=inverted)
