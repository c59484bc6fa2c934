"""Reads machine code: which instructions a warp issues, and which unit of a multiprocessor executes each.

An instruction takes a slot of its warp's scheduler whether its predicate is true or not. What a warp issues is found by
walking through the code: forward branches fall through, as in a program that handles a full block, and the body of a
loop counts as often as the launch says. So the number is too large where iterations of a loop differ; how much of it
may be skipped is counted, too.

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
        sometimes: number of instructions within loops that a branch skips in some iterations; they are counted as if
            in all of them.
    """

    units: Counter[str]
    memory_bytes: int
    products: int
    loops_known: bool
    sometimes: int = 0

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
        trips: iterations of each loop, in the order in which they begin. If there are more or fewer than loops in the
            code, or a number is None, that loop's body counts once.
    """
    loops = loops_of(instructions)
    known = dict(zip(loops, trips, strict=False)) if len(loops) == len(trips) else {}
    weights = dict.fromkeys(straight_through(instructions, loops), 1)
    for loop in loops:
        for index in loop:
            if index in weights:
                weights[index] *= known.get(loop) or 1
    units: Counter[str] = Counter()
    optional = {index for loop in loops for index in _optional_in(loop, instructions)}
    memory_bytes = products = sometimes = 0
    for index, weight in weights.items():
        units[instructions[index].unit] += weight
        memory_bytes += weight * instructions[index].memory_bytes
        products += weight * instructions[index].products
        sometimes += weight * (index in optional)
    return Executed(units, memory_bytes, products, all(known.get(loop) is not None for loop in loops), sometimes)


def loops_of(instructions: Sequence[Instruction]) -> list[range]:
    """The bodies of the loops as ranges of indices, in the order in which they begin, outer ones first.

    A loop is what lies between a branch back and its target. The branch may be unconditional: then another one leaves
    the loop. Behind the end of every kernel there is a branch to itself, which is no loop.
    """
    position = {item.address: index for index, item in enumerate(instructions)}
    found = [
        range(position[item.target], index + 1)
        for index, item in enumerate(instructions)
        if item.target is not None and item.target < item.address
    ]
    return sorted(found, key=lambda loop: (loop.start, -loop.stop))


def straight_through(instructions: Sequence[Instruction], loops: Sequence[range]) -> list[int]:
    """The indices of the instructions on the way from the start to the end that takes no branch it need not take."""
    position = {item.address: index for index, item in enumerate(instructions)}
    way = []
    index = 0
    while index < len(instructions):
        item = instructions[index]
        way.append(index)
        if item.opcode == "EXIT" and not item.conditional:
            break
        index += 1
        if item.target is None or item.conditional:
            continue
        if item.target >= item.address + _BYTES:
            index = position[item.target]  # over code that is not for this warp
            continue
        # The end of a loop, which is left by a branch inside it, or by the end of the program.
        body = next(loop for loop in loops if loop.stop == index)
        ways_out = [position[target] for inside in body if (target := instructions[inside].target) is not None]
        index = max((place for place in ways_out if place >= index), default=len(instructions))
    return way


def _optional_in(loop: range, instructions: Sequence[Instruction]) -> set[int]:
    """What a branch within the body of a loop may skip, so that not every iteration may execute it."""
    position = {item.address: index for index, item in enumerate(instructions)}
    found: set[int] = set()
    for index in loop:
        item = instructions[index]
        if item.conditional and item.target is not None and index < position[item.target] < loop.stop:
            found.update(range(index + 1, position[item.target]))
    return found
