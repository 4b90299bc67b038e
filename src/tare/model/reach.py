"""Which system calls a seccomp filter leaves reachable, found by following its program.

Pure. A filter sees a call's number, its ABI and its arguments; number and ABI are given here and
the arguments are not, so both ways of every test of an argument are followed.

Not for: installing filters (kernel.seccomp), or compiling them (model.seccomp_filter).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tare.errors import InvalidError

_INSTRUCTION: Final = struct.Struct("=HBBI")
_NUMBER_AT, _ABI_AT = 0, 4  # struct seccomp_data
_ACTION: Final = 0xFFFF_0000
_PASSES: Final = frozenset((0x7FFF_0000, 0x7FFC_0000))  # RET_ALLOW, RET_LOG

Code = Sequence[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Reach:
    """How many calls there are, get through, and get through with some arguments only."""

    known: int
    allowed: int
    checked: int


def load(program: bytes) -> Code:
    """The instructions of an array of ``struct sock_filter``; InvalidError if it is none."""
    if not program or len(program) % _INSTRUCTION.size:
        raise InvalidError(f"not a filter: {len(program)} bytes")
    return tuple(_INSTRUCTION.iter_unpack(program))


def reach(programs: Sequence[Code], abi: int, numbers: Sequence[int]) -> Reach:
    """What all *programs* together leave of the calls *numbers* of *abi* (AUDIT_ARCH_*)."""
    allowed = checked = 0
    for number in numbers:
        answers = [_answers(code, abi, number) for code in programs]
        if all(True in found for found in answers):
            allowed += 1
            checked += any(False in found for found in answers)
    return Reach(len(numbers), allowed, checked)


def _answers(code: Code, abi: int, number: int) -> set[bool]:
    """Whether a call may pass (True) and may be refused (False)."""
    found: set[bool] = set()
    seen: set[tuple[int, int | None]] = set()
    ahead: list[tuple[int, int | None]] = [(0, 0)]
    while ahead:
        state = ahead.pop()
        if state in seen:
            continue
        seen.add(state)
        at, value = state
        if at >= len(code):
            raise InvalidError("a filter that ends without an answer")
        operation, true, false, k = code[at]
        match operation:
            case 0x20:
                known = {_NUMBER_AT: number, _ABI_AT: abi}.get(k)
                ahead.append((at + 1, known))
            case 0x54:
                ahead.append((at + 1, None if value is None else value & k))
            case 0x05:
                ahead.append((at + 1 + k, value))
            case 0x06:
                found.add(k & _ACTION in _PASSES)
            case 0x15 | 0x25 | 0x35 | 0x45:
                holds = None if value is None else _holds(operation, value, k)
                ahead += [(at + 1 + true, value)] if holds is not False else []
                ahead += [(at + 1 + false, value)] if holds is not True else []
            case _:
                raise InvalidError(f"a filter with the operation {operation:#x}")
    return found


def _holds(operation: int, value: int, k: int) -> bool:
    match operation:
        case 0x15:
            return value == k
        case 0x25:
            return value > k
        case 0x35:
            return value >= k
        case _:
            return bool(value & k)
