"""Max-pooling with windows that may overlap: y[i, j] = max of x[i * stride + a, j * stride + b], a and b < kernel_size.

Source: section 3.4 of Krizhevsky, Sutskever and Hinton (2012), which pools 3 x 3 windows two apart.
"""

from __future__ import annotations

from torch import Tensor

from kernels import arguments, dispatch, native, reference


def max_pool2d(
    x: Tensor, kernel_size: int = 3, stride: int = 2, padding: int = 0, *, ceil_mode: bool = False
) -> Tensor:
    """The largest value of each window.

        y[n, c, i, j] = max of x[n, c, i * stride - padding + a, j * stride - padding + b], a and b from 0 to
        kernel_size - 1, positions outside x left out

    A NaN in a window wins. The gradient goes to the window's first maximum in reading order, or its last NaN.

    Args:
        x: N x C x H x W; float32, float16, bfloat16 or float64.
        kernel_size: side of the window, at least 1.
        stride: distance between windows, at least 1.
        padding: at most half of kernel_size, on all sides.
        ceil_mode: also take windows that overhang right and bottom, as long as they start inside.

    Returns:
        N x C x OH x OW in x's dtype and memory format.

    Raises:
        TypeError, ValueError: an argument is not as described, or no window fits; raised before anything is computed.
    """
    arguments.check_tensor("x", x, 4, "N x C x H x W")
    arguments.check_pool(x, kernel_size, stride, padding, ceil_mode)
    if dispatch.implementation_for(x) == "reference":
        return reference.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)
    return native.max_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)
