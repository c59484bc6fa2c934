"""AlexNet's operators, each as Triton kernels, as C and PyTorch for CPUs, and as a plain definition.

Knows torch and triton, and nothing of models, data or training. `kernels.using("native")` or the environment variable
`FASTALEX_KERNELS` chooses an implementation; see `kernels.dispatch`.

The operators are differentiable once: there is no double backward, and no transform of `torch.func` (grad, jvp, vmap)
takes them, but under `kernels.using("reference")`.
"""

from kernels import philox
from kernels.conv_relu import conv2d_relu
from kernels.cross_entropy import cross_entropy
from kernels.dispatch import using
from kernels.dropout import bias_relu_dropout, dropout
from kernels.gradient_sink import GradientSink
from kernels.lrn import local_response_norm
from kernels.lrn_max_pool import lrn_max_pool2d
from kernels.max_pool import max_pool2d
from kernels.same_map_norm import same_map_norm
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
    "philox",
    "same_map_norm",
    "sgd_update_",
    "using",
]
