"""AlexNet's operators, each in three implementations: Triton kernels, C and PyTorch for CPUs, and a plain definition.

The package depends on torch and triton only (without Triton, on torch alone), and knows nothing of models, data or
training. CUDA tensors use the Triton kernels and CPU tensors the native implementation; `kernels.using(...)` or the
environment variable `FASTALEX_KERNELS` chooses another one (`kernels.dispatch`). `kernels.nn` has them as modules.
The operators are differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap)
works, except under `kernels.using("reference")`.
"""

from kernels import nn, philox
from kernels.conv_relu import conv2d_relu
from kernels.cross_entropy import cross_entropy
from kernels.dispatch import using
from kernels.dropout import bias_relu_dropout, dropout
from kernels.gradient_sink import GradientSink
from kernels.lrn import local_response_norm
from kernels.lrn_max_pool import lrn_max_pool2d
from kernels.max_pool import max_pool2d
from kernels.nn import replace_modules
from kernels.same_map_norm import same_map_norm
from kernels.same_map_norm_max_pool import same_map_norm_max_pool2d
from kernels.sgd import sgd_update_

__all__ = [
    "GradientSink",
    "bias_relu_dropout",
    "conv2d_relu",
    "cross_entropy",
    "dropout",
    "local_response_norm",
    "lrn_max_pool2d",
    "max_pool2d",
    "nn",
    "philox",
    "replace_modules",
    "same_map_norm",
    "same_map_norm_max_pool2d",
    "sgd_update_",
    "using",
]
