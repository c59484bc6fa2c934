"""The operators on a CPU, optimised for speed and for little memory between forward and backward.

Most of fp32 and bf16 runs in `native.c`, which `build` compiles on first use. Other dtypes, and machines without a C
compiler, use PyTorch, in chunks that stay in the caches. Convolutions use Winograd's algorithm where it is faster. All
functions take the arguments of the public functions of the same names in :mod:`kernels`, which check them.
"""

from kernels.native.convolution import conv2d_relu
from kernels.native.dropout import bias_relu_dropout, dropout
from kernels.native.normalisation import local_response_norm, same_map_norm
from kernels.native.pooling import lrn_max_pool2d, max_pool2d, same_map_norm_max_pool2d
from kernels.native.update import sgd_update_

# PyTorch's cross-entropy is fast enough on a CPU, because the logits are small.
from kernels.reference import cross_entropy

__all__ = [
    "bias_relu_dropout",
    "conv2d_relu",
    "cross_entropy",
    "dropout",
    "local_response_norm",
    "lrn_max_pool2d",
    "max_pool2d",
    "same_map_norm",
    "same_map_norm_max_pool2d",
    "sgd_update_",
]
