"""The check of a provider against the definition."""

import torch
import torch.nn.functional as F
from harness.cases import Case, definition_results, find_error, in_memory_format, random_inputs
from torch import Tensor

import kernels
from kernels import reference


def test_maxima_chosen_by_rounding_are_accepted_and_wrong_gradients_are_not() -> None:
    def definition(x: Tensor) -> Tensor:
        return reference.lrn_max_pool2d(x, 5, 1e-4, 0.75, 2.0, groups=1, kernel_size=3, stride=2, bias=None, relu=None)

    def rounded_before_pooling(x: Tensor) -> Tensor:
        return kernels.max_pool2d(kernels.local_response_norm(x, 5, 1e-4, 0.75, 2.0), 3, 2)

    def spread_over_windows(x: Tensor) -> Tensor:
        normalised = kernels.local_response_norm(x, 5, 1e-4, 0.75, 2.0)
        mean = F.avg_pool2d(normalised, 3, 2)
        return kernels.max_pool2d(normalised, 3, 2).detach() - mean.detach() + mean

    verdicts = []
    for by_norm in (False, True):
        case = Case("pool", (4, 16, 27, 27), torch.float16, definition, {}, std=10.0, gradients_by_norm=by_norm)
        inputs, grad = in_memory_format(case, *random_inputs(case), "nchw")
        wanted = definition_results(case, inputs, grad)
        for operator in (rounded_before_pooling, spread_over_windows):
            verdicts.append(find_error(operator, case, inputs, grad, wanted))
    assert verdicts[0].startswith("gradient 0 is off by")
    assert verdicts[2] is None
    assert verdicts[1].startswith("gradient 0 is off by")
    assert verdicts[3].startswith("gradient 0 is off by")
