"""The kernel's classic BPF for seccomp, in Python: checks a program and runs it on one call.

Not for: speed. It follows Documentation/networking/filter.rst and seccomp_check_filter, and
refuses what they refuse.
"""

from __future__ import annotations

import struct
from typing import Final

_INSTRUCTION: Final = struct.Struct("<HBBI")
_WORD: Final = 0xFFFF_FFFF
_RET: Final = 0x06

Code = list[tuple[int, int, int, int]]
_CONDITIONAL: Final = {0x15, 0x25, 0x35, 0x45}
_AND: Final = 0x54


def load(program: bytes) -> Code:
    """The instructions, checked as bpf_check_classic and seccomp_check_filter do."""
    code = list(_INSTRUCTION.iter_unpack(program))
    assert 0 < len(code) <= 4096
    for position, (op, true, false, k) in enumerate(code):
        left = len(code) - position - 1
        match op:
            case 0x20:
                assert k % 4 == 0 and k < 64, "load outside seccomp_data"
            case 0x05:
                assert k < left, "jump out of the program"
            case _ if op in _CONDITIONAL:
                assert max(true, false) < left, "jump out of the program"
            case _:
                assert op in (_AND, _RET), f"operation {op:#x}"
    assert code[-1][0] == _RET
    return code


def run(code: Code, arch: int, nr: int, args: tuple[int, ...] = ()) -> int:
    """What the program answers for one call."""
    full = [arg & 0xFFFF_FFFF_FFFF_FFFF for arg in (*args, *[0] * (6 - len(args)))]
    data = struct.unpack("<16I", struct.pack("<IIQ6Q", nr & _WORD, arch, 0, *full))
    accumulator, position = 0, 0
    while True:
        op, true, false, k = code[position]
        position += 1
        match op:
            case 0x20:
                accumulator = data[k // 4]
            case 0x54:
                accumulator &= k
            case 0x05:
                position += k
            case 0x15:
                position += true if accumulator == k else false
            case 0x25:
                position += true if accumulator > k else false
            case 0x35:
                position += true if accumulator >= k else false
            case 0x45:
                position += true if accumulator & k else false
            case 0x06:
                return k
