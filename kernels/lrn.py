"""Normalisation by the responses of neighbours: across channels, and across the map of one channel.

    y[c] = x[c] / (k + alpha / n * sum of x[j]^2 over j = c - n // 2 ... c + (n - 1) // 2)^beta

Source: Krizhevsky, Sutskever and Hinton (2012), section 3.3, with alpha divided by the window's size as in the released
source of that network, in Caffe and in PyTorch; the paper's own formula does not divide.
"""

from __future__ import annotations

from torch import Tensor

from kernels import arguments, dispatch, native, reference


def local_response_norm(
    x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, *, groups: int = 1
) -> Tensor:
    """Divide each response by a power of the summed squares of its neighbours in the `size` nearest channels.

        y[n, c, h, w] = x[n, c, h, w] / (k + alpha / size * sum_j x[n, j, h, w]^2)^beta

    with j from c - size // 2 to c + (size - 1) // 2, cut off at the edges of c's group of channels.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size: channels in the window, at least 1; it may exceed the channels there are.
        alpha: at least 0; divided by `size`, as in PyTorch.
        beta: above 0.
        k: above 0.
        groups: towers of C / groups channels that are normalised apart.

    Returns:
        A tensor of x's shape, dtype and memory format. Backward keeps `x` alone.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is computed.

    Source: section 3.3 of the 2012 paper; `groups=2` is what its two GPUs computed.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    arguments.check_groups(x.shape[1], groups)
    if dispatch.implementation_for(x) == "reference":
        return reference.local_response_norm(x, size, alpha, beta, k, groups=groups)
    return native.local_response_norm(x, size, alpha, beta, k, groups=groups)


def same_map_norm(x: Tensor, size: int = 5, alpha: float = 1e-3, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Divide each response by a power of the summed squares of its neighbours in the same channel's map.

        y[n, c, h, w] = x[n, c, h, w] / (k + alpha / size^2 * sum_ij x[n, c, i, j]^2)^beta

    with i from h - size // 2 to h + (size - 1) // 2, j likewise, zero outside; the divisor is size^2 at the edges too.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64. Half precision is computed in fp32.
        size: side of the window, at least 1.
        alpha: at least 0; divided by `size` squared.
        beta: above 0.
        k: above 0.

    Returns:
        A tensor of x's shape, dtype and memory format. Backward keeps `x` alone.

    Raises:
        TypeError, ValueError: an argument is not as described; raised before anything is computed.

    Source: the response normalisation layer (same map) of cuda-convnet, which the 2012 network has in its second layer.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_normalisation(size, alpha, beta, k)
    if dispatch.implementation_for(x) == "reference":
        return reference.same_map_norm(x, size, alpha, beta, k)
    return native.same_map_norm(x, size, alpha, beta, k)
