"""What a warp issues, read from machine code."""

import struct

import pytest
from static_analysis.sass import Instruction, code_of, disassemble, executed, parse

# A loop between a guard that skips it and the end; behind the end, what every kernel has.
LOOP = """
        /*0000*/                   S2R R0, SR_CTAID.X ;
        /*0010*/                   ISETP.GE.AND P0, PT, R0, c[0x0][0x228], PT ;
        /*0020*/              @!P0 BRA 0x70 ;
        /*0030*/                   LDG.E.128 R12, desc[UR4][R6.64] ;
        /*0040*/              @!P6 FFMA R1, R2, R3, R1 ;
        /*0050*/                   MUFU.RSQ R2, R3 ;
        /*0060*/               @P1 BRA 0x30 ;
        /*0070*/               @P0 EXIT ;
        /*0080*/              @!P2 STG.E.64 desc[UR4][R2.64], R4 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
        /*00b0*/                   NOP;
"""
# Two ways to the same end, of which the first is taken.
BRANCHES = """
        /*0000*/               @P0 BRA 0x40 ;
        /*0010*/                   STG.E.128 desc[UR4][R2.64], R36 ;
        /*0020*/                   BRA 0x60 ;
        /*0040*/                   STG.E desc[UR4][R2.64], R36 ;
        /*0050*/                   STG.E desc[UR4][R2.64+0x4], R36 ;
        /*0060*/                   EXIT ;
"""
NESTED = """
        /*0000*/                   FADD R0, R0, R1 ;
        /*0010*/                   FMUL R0, R0, R1 ;
        /*0020*/               @P0 BRA 0x10 ;
        /*0030*/               @P1 BRA 0x0 ;
        /*0040*/                   EXIT ;
"""
# A loop whose end leads back in any case: it is left in the middle, to the code behind it.
LEFT_IN_THE_MIDDLE = """
        /*0000*/                   FADD R0, R0, R1 ;
        /*0010*/                   FMUL R0, R0, R1 ;
        /*0020*/               @P1 BRA 0x50 ;
        /*0030*/                   STG.E.128 desc[UR4][R2.64], R36 ;
        /*0040*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0050*/               @P0 BRA 0x80 ;
        /*0060*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0070*/                   BRA 0x10 ;
        /*0080*/                   FADD R0, R0, R1 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
"""


def one(text: str) -> Instruction:
    (found,) = parse(f"        /*0000*/                   {text} ;")
    return found


def test_a_loop_counts_as_often_as_it_runs_and_the_code_behind_the_end_never() -> None:
    found = executed(parse(LOOP), [10])
    assert found.slots == 3 + 10 * 4 + 3
    assert dict(found.units) == {"lsu": 1 + 10 + 1, "alu": 1, "fma": 10, "mufu": 10, "other": 1 + 10 + 2}
    assert found.memory_bytes == 10 * 16 + 8
    assert found.loops_known


@pytest.mark.parametrize("trips", [[], [None], [3, 4]])
def test_a_loop_of_unknown_length_counts_once_and_is_reported(trips: list[int | None]) -> None:
    found = executed(parse(LOOP), trips)
    assert (found.slots, found.loops_known) == (10, False)


def test_nested_loops_multiply() -> None:
    found = executed(parse(NESTED), [3, 5])
    assert dict(found.units) == {"fma": 3 * (1 + 5), "other": 3 * (5 + 1) + 1}


def test_a_loop_may_be_left_in_the_middle_and_its_iterations_may_differ() -> None:
    found = executed(parse(LEFT_IN_THE_MIDDLE), [7])
    assert dict(found.units) == {"fma": 1 + 7 + 1, "alu": 2 * 7, "lsu": 7, "other": 3 * 7 + 1}
    assert (found.loops_known, found.sometimes) == (True, 2 * 7)
    assert not executed(parse(LEFT_IN_THE_MIDDLE), []).loops_known
    ends = LEFT_IN_THE_MIDDLE.replace("BRA 0x80", "EXIT")
    assert dict(executed(parse(ends), [7]).units) == {"fma": 1 + 7, "alu": 2 * 7, "lsu": 7, "other": 3 * 7}


def test_a_guard_around_a_loop_skips_nothing_within_it() -> None:
    assert executed(parse(LOOP), [10]).sometimes == 0


def test_forward_branches_fall_through_and_jumps_skip() -> None:
    found = executed(parse(BRANCHES), [])
    assert (found.slots, found.memory_bytes) == (4, 16)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("IMAD.WIDE.U32 R4, R3, 0x8dcc0, RZ", "fma"), ("HFMA2.MMA R1, -RZ, RZ, 0, 0", "fma"),
        ("F2FP.BF16.F32.PACK_AB R4, R5, R6", "alu"), ("FMNMX.NAN R1, R2, R3, !PT", "alu"),
        ("FSETP.GT.AND P0, PT, R1, R2, PT", "alu"), ("LOP3.LUT R5, R5, 0x7f, RZ, 0xc0, !PT", "alu"),
        ("MUFU.SQRT R1, R2", "mufu"), ("F2F.F64.F32 R2, R4", "mufu"),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "lsu"), ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", "lsu"),
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24", "tensor"), ("UIADD3 UR4, UR5, UR6, URZ", "other"),
        ("DADD R2, R4, R6", "other"), ("BAR.SYNC.DEFER_BLOCKING 0x0", "other"),
    ],
)  # fmt: skip
def test_units(text: str, unit: str) -> None:
    assert one(text).unit == unit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("LDG.E R1, desc[UR4][R2.64]", 4), ("LDG.E.U16 R1, desc[UR4][R2.64]", 2), ("LDG.E.U8 R1, [R2.64]", 1),
        ("LDG.E.64 R1, desc[UR4][R2.64]", 8), ("STS.128 [R1], R4", 16), ("LDSM.16.M88.4 R4, [R1]", 16),
        ("LDSM.16.M88 R4, [R1]", 4), ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", 16), ("LDS R1, [R2]", 4),
        ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", 0), ("S2R R0, SR_TID.X", 0), ("FADD R0, R1, R2", 0),
    ],
)  # fmt: skip
def test_bytes_per_thread(text: str, size: int) -> None:
    assert one(text).memory_bytes == size


def test_a_matrix_instruction_is_shared_by_four_warps() -> None:
    assert one("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24").products == 64 * 128 * 16 // 4
    assert one("FFMA R1, R2, R3, R1").products == 0


def elf(code: bytes) -> bytes:
    """A compiled file with the two sections that matter: the names, and the code after them."""
    names = b"\0.shstrtab\0.text.some_kernel\0"
    header = 64
    table = header + len(names) + len(code)
    file = bytearray(header) + names + code
    struct.pack_into("<Q", file, 40, table)
    struct.pack_into("<HHH", file, 58, 64, 2, 0)
    for name, offset, length in ((1, header, len(names)), (11, header + len(names), len(code))):
        file += struct.pack("<IIQQQQ", name, 0, 0, 0, offset, length).ljust(64, b"\0")
    return bytes(file)


def test_the_code_is_found_in_a_compiled_file() -> None:
    code = bytes(range(32))
    assert code_of(elf(code)) == code
    with pytest.raises(ValueError, match="no section"):
        code_of(elf(code).replace(b".text.", b".data."))


def test_several_kernels_are_disassembled_at_once_and_each_begins_at_0() -> None:
    nop, leave = "18790000000000000000000000c00f00", "4d790000000000000000800300ea0f00"
    stay = "4779fc00fcffffffffff830300c00f00"  # a branch to itself
    short, long = (elf(bytes.fromhex("".join(codes))) for codes in ((leave, stay), (nop, nop, leave, stay)))
    for first, second, lengths in ((short, long, [2, 4]), (long, short, [4, 2])):
        kernels = disassemble([first, second], 90)
        assert [len(kernel) for kernel in kernels] == lengths
        for kernel in kernels:
            assert [item.address for item in kernel] == list(range(0, 16 * len(kernel), 16))
            assert [item.opcode for item in kernel[-2:]] == ["EXIT", "BRA"]
            assert kernel[-1].target == kernel[-1].address
