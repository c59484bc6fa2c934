"""What is read from Triton's intermediate code."""

import pytest
from static_analysis.intermediate import read_and_written, trip_counts

TTGIR = """
    %c0_i32 = arith.constant 0 : i32
    %c1_i32 = arith.constant 1 : i32
    %c-4_i32 = arith.constant -4 : i32
    %c27_i32 = arith.constant 27 : i32
    %c64_i32 = arith.constant 64 : i32
    %a:4 = scf.for %i = %c-4_i32 to %c27_i32 step %c1_i32 iter_args(%x = %cst) -> (tensor<128x8xf32>)  : i32 {
    %b = scf.for %i_1 = %c0_i32 to %rows step %c64_i32 iter_args(%y = %cst) -> (tensor<128x8xf32>)  : i32 {
    %c = scf.for %i_2 = %c0_i32 to %computed step %c64_i32 : i32 {
    %d = scf.for %i_3 = %computed to %rows step %c64_i32 : i32 {
    %e = scf.for %i_4 = %c0_i32 to %rows step %computed : i32 {
"""
TTIR = """
  tt.func public @some_kernel(%x_ptr: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("x"), %n: i32, %unused_ptr: \
!tt.ptr<bf16>, %index_ptr: !tt.ptr<i32>, %y_ptr: !tt.ptr<f32>, %both_ptr: !tt.ptr<f32>) attributes {noinline = false} {
    %cst = arith.constant dense<0.000000e+00> : tensor<32x64xf32> loc(#loc)
    %range = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32> loc(#loc51)
    %i = tt.load %index_ptr : !tt.ptr<i32> loc(#loc)
    %x = tt.splat %x_ptr : !tt.ptr<bf16> -> tensor<64x!tt.ptr<bf16>> loc(#loc)
    %x_1 = tt.expand_dims %x {axis = 1 : i32} : tensor<64x!tt.ptr<bf16>> -> tensor<64x1x!tt.ptr<bf16>> loc(#loc)
    %total:2 = scf.for %step = %c0 to %n step %c1 iter_args(%sum = %cst, %moving = %x_1) -> (tensor<64xf32>)  : i32 {
      %value = tt.load %moving, %mask, %cst {cache = 1 : i32} : tensor<64x1x!tt.ptr<bf16>> loc(#loc)
      %next = tt.addptr %moving, %range : tensor<64x1x!tt.ptr<bf16>>, tensor<64xi32> loc(#loc)
      scf.yield %value, %next : tensor<64xf32>, tensor<64x!tt.ptr<bf16>> loc(#loc)
    } loc(#loc)
    %y = tt.addptr %y_ptr, %i : !tt.ptr<f32>, i32 loc(#loc)
    tt.store %y, %total#0 {cache = 1 : i32} : tensor<64x!tt.ptr<f32>> loc(#loc)
    %z = tt.load %both_ptr : !tt.ptr<f32> loc(#loc)
    tt.store %both_ptr, %z : !tt.ptr<f32> loc(#loc)
"""


def test_trip_counts_follow_from_constants_and_arguments() -> None:
    assert trip_counts(TTGIR, {"rows": 129, "x_ptr": object()}) == [31, 3, None, None, None]
    assert trip_counts(TTGIR, {"rows": 0}) == [31, 0, None, None, None]


def test_tensors_that_are_read_and_written() -> None:
    assert read_and_written(TTIR) == ({"x_ptr", "index_ptr", "both_ptr"}, {"y_ptr", "both_ptr"})


def test_an_offset_that_was_loaded_is_no_address() -> None:
    """`%i` comes from `index_ptr`, and y is stored at an address computed with it."""
    _, written = read_and_written(TTIR)
    assert "index_ptr" not in written


def test_code_without_a_function_is_refused() -> None:
    with pytest.raises(AssertionError):
        read_and_written("")
