"""Bias, ReLU, response normalisation and max-pooling behind a convolution, in one pass over its raw output.

    relu="before": pool(norm(relu(x + bias)))         the paper and Caffe
    relu="after":  relu(pool(norm(x + bias)))         the first layer of the 2012 source

The formulas are those of `kernels.lrn` and `kernels.max_pool`.
"""

from __future__ import annotations

from torch import Tensor

from kernels import arguments, dispatch, native, reference


def lrn_max_pool2d(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    groups: int = 1,
    kernel_size: int = 3,
    stride: int = 2,
    bias: Tensor | None = None,
    relu: str | None = None,
) -> Tensor:
    """`max_pool2d(local_response_norm(x + bias))` with a ReLU before, after or not at all.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size, alpha, beta, k, groups: as in `local_response_norm`.
        kernel_size, stride: as in `max_pool2d`, without padding.
        bias: C values that are added to x first, in any floating dtype.
        relu: None; "before" the normalisation; "after" the pooling.

    Returns:
        N x C x OH x OW in x's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before anything is computed.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    arguments.check_groups(x.shape[1], groups)
    arguments.check_pool(x, kernel_size, stride, 0, False)
    if bias is not None:
        arguments.check_vector("bias", bias, x.shape[1], x, "one per channel of x")
    if relu not in (None, "before", "after"):
        raise ValueError(f'relu must be None, "before" or "after", not {relu!r}')
    chosen = reference if dispatch.implementation_for(x) == "reference" else native
    return chosen.lrn_max_pool2d(
        x, size, alpha, beta, k, groups=groups, kernel_size=kernel_size, stride=stride, bias=bias, relu=relu
    )
