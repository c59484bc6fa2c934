"""Results and bytes of a launch."""

from types import SimpleNamespace

import torch
from static_analysis.rows import results_and_bytes

TTIR = """
  tt.func public @some_kernel(%x_ptr: !tt.ptr<f32>, %again_ptr: !tt.ptr<f32>, %y_ptr: !tt.ptr<bf16>, \
%sum_ptr: !tt.ptr<f32>, %unused_ptr: !tt.ptr<f32>) attributes {noinline = false} {
    %x = tt.load %x_ptr : !tt.ptr<f32>
    %again = tt.load %again_ptr : !tt.ptr<f32>
    %sum = tt.load %sum_ptr : !tt.ptr<f32>
    tt.store %y_ptr, %x : !tt.ptr<bf16>
    tt.store %sum_ptr, %sum : !tt.ptr<f32>
"""


def launch(**hidden: int | None) -> SimpleNamespace:
    x = torch.empty(100)
    tensors = {"x_ptr": x, "again_ptr": x, "y_ptr": torch.empty(50, dtype=torch.bfloat16), "sum_ptr": torch.empty(7)}
    case = SimpleNamespace(**({"elements": None, "moved": None} | hidden))
    return SimpleNamespace(case=case, tensors=tensors | {"unused_ptr": torch.empty(1000)})


def test_each_tensor_counts_once_for_each_way() -> None:
    """x is passed twice, and the sum is read and written; the results are those of the largest tensor."""
    assert results_and_bytes(launch(), TTIR) == (50, 400 + 28 + 100 + 28)


def test_an_operator_may_state_its_own() -> None:
    assert results_and_bytes(launch(elements=3, moved=5), TTIR) == (3, 5)
