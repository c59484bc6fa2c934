"""Reads machine code: which instructions a warp issues, and which unit of a multiprocessor executes each.

An instruction takes a slot of its warp's scheduler whether its predicate is true or not. What a warp issues is found by
walking through the code: forward branches fall through, as in a program that handles a full block, and the body of a
loop counts as often as the launch says.

The units are those of Nsight Compute's documentation ("Pipelines").
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import triton

_LINE = re.compile(r"/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_BYTES = 16  # of an instruction
UNITS = ("alu", "fma", "mufu", "lsu", "tensor", "other")
# By the first part of an opcode; all that is not listed and does not begin with U is integer or logical: alu.
_UNITS = {
    "fma": "FFMA FMUL FADD IMAD IMUL HFMA2 HADD2 HMUL2 HSETP2 HSET2",
    "mufu": "MUFU F2F F2I I2F FRND POPC BREV FLO",
    "lsu": "LD LDG LDS LDL LDSM LDGSTS ST STG STS STL STSM ATOM ATOMG ATOMS RED REDUX SHFL S2R S2UR",
    "tensor": "HMMA HGMMA IMMA IGMMA QGMMA",
    "other": "DADD DMUL DFMA DSETP BRA EXIT BSSY BSYNC BREAK BAR CALL RET NOP DEPBAR LDGDEPBAR WARPSYNC WARPGROUP "
    "WARPGROUPSET FENCE MEMBAR ERRBAR CCTL NANOSLEEP YIELD LDC CS2R R2UR ELECT",
}
_UNIT_OF = {opcode: unit for unit, opcodes in _UNITS.items() for opcode in opcodes.split()}


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel that begins at address 0."""

    address: int
    conditional: bool
    opcode: str
    operands: str

    @property
    def target(self) -> int | None:
        """The address that a branch goes to."""
        address = re.search(r"0x[0-9a-f]+", self.operands)
        return int(address[0], 16) if self.opcode.startswith("BRA") and address else None

    @property
    def unit(self) -> str:
        """The unit that executes it."""
        name = self.opcode.split(".")[0]
        return _UNIT_OF.get(name, "other" if name.startswith("U") else "alu")

    @property
    def memory_bytes(self) -> int:
        """Bytes per thread that it moves between registers, shared memory and the level-1 cache."""
        if self.unit != "lsu" or self.opcode.startswith(("S2", "SHFL", "REDUX")):
            return 0
        if self.opcode.startswith(("LDSM", "STSM")):
            matrices = re.search(r"\.(\d)$", self.opcode)  # of 8 rows of 16 bytes, for the 32 threads of a warp
            return 4 * int(matrices[1] if matrices else 1)
        bits = re.search(r"\.[US]?(8|16|32|64|128)\b", self.opcode)
        return int(bits[1]) // 8 if bits else 4

    @property
    def products(self) -> int:
        """Multiplications and additions that a matrix instruction computes, per warp."""
        shape = re.search(r"GMMA\.(\d+)x(\d+)x(\d+)", self.opcode)
        # Four warps issue it together.
        return int(shape[1]) * int(shape[2]) * int(shape[3]) // 4 if shape else 0


@dataclass(frozen=True)
class Executed:
    """What one warp issues from start to end.

    Attributes:
        units: number of instructions by unit.
        memory_bytes: bytes per thread that loads and stores ask for.
        products: multiplications and additions of matrix instructions.
        loops_known: False if the code has a loop that is counted once, because its number of iterations is not known.
    """

    units: Counter[str]
    memory_bytes: int
    products: int
    loops_known: bool

    @property
    def slots(self) -> int:
        """Issue slots: all instructions."""
        return self.units.total()


def disassemble(cubins: Sequence[bytes], architecture: int) -> list[list[Instruction]]:
    """The instructions of each kernel, by one run of nvdisasm, whose start takes longer than its work."""
    codes = [code_of(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "--binary", f"SM{architecture}", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = parse(text)
    assert len(found) * _BYTES == sum(map(len, codes)), "nvdisasm prints one instruction a line"
    kernels, begin = [], 0
    for code in codes:
        end = begin + len(code) // _BYTES
        kernels.append(_from_zero(found[begin:end]))
        begin = end
    return kernels


def parse(text: str) -> list[Instruction]:
    """The instructions of a disassembly."""
    return [
        Instruction(int(match[1], 16), "@" in match[0], match[2], match[3].strip()) for match in _LINE.finditer(text)
    ]


def _from_zero(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The same instructions with addresses from 0 on."""
    first = instructions[0].address
    moved = []
    for item in instructions:
        operands = item.operands if item.target is None else hex(item.target - first)
        moved.append(Instruction(item.address - first, item.conditional, item.opcode, operands))
    return moved


def code_of(cubin: bytes) -> bytes:
    """The machine code in an ELF file with one kernel: its section .text.NAME."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + index * size) for index in range(count)]
    start = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if cubin.startswith(b".text.", start + name):
            return cubin[offset : offset + length]
    raise ValueError("the compiled kernel has no section .text.NAME")


def executed(instructions: Sequence[Instruction], trips: Sequence[int | None]) -> Executed:
    """What a warp issues.

    Args:
        trips: iterations of each loop, in order. If there are more or fewer than loops in the code, or a number is
            None, that loop's body counts once.
    """
    position = {item.address: index for index, item in enumerate(instructions)}
    loops = [
        item for item in instructions if item.conditional and item.target is not None and item.target < item.address
    ]
    known = dict(zip((loop.address for loop in loops), trips, strict=False)) if len(loops) == len(trips) else {}
    weights: Counter[int] = Counter()
    index = 0
    while index < len(instructions):
        item = instructions[index]
        weights[index] += 1
        if item.opcode == "EXIT" and not item.conditional:
            break
        if item.target is not None and item.target < item.address:
            for inside in range(position[item.target], index + 1):
                weights[inside] *= known.get(item.address) or 1
        # An unconditional branch leads to the code that it skips to.
        jumps = item.target is not None and not item.conditional and item.target > item.address
        index = position[item.target] if jumps else index + 1  # type: ignore[index]
    units: Counter[str] = Counter()
    memory_bytes = products = 0
    for index, weight in weights.items():
        units[instructions[index].unit] += weight
        memory_bytes += weight * instructions[index].memory_bytes
        products += weight * instructions[index].products
    return Executed(units, memory_bytes, products, all(known.get(loop.address) is not None for loop in loops))
