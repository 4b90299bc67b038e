"""A tiny static program that makes the system calls it is told, and prints what each answers.

Written as machine code, since neither the host nor an image need have a compiler. The x86_64
program makes calls by the 64-bit ``syscall`` instruction (with x32's bit or without) and by
``int 0x80``; each result is a line of 16 hex digits on its standard output. Not for: calls that
end or double the program.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

BASE: Final = 0x400000
DATA: Final = BASE + 0x400  # where `program` puts its data, for pointers that fit 32 bits
_CODE: Final = BASE + 0x100
_TABLE: Final = BASE + 0x1000
_DATA_SIZE: Final = 0xC00
X32_BIT: Final = 0x4000_0000


@dataclass(frozen=True, slots=True)
class Call:
    """One call of *abi* (x86_64, i386 or x32); missing arguments are 0."""

    abi: str
    number: int
    args: tuple[int, ...] = ()

    def row(self) -> bytes:
        """The eight words that the program reads."""
        mask = 0xFFFF_FFFF_FFFF_FFFF
        number = self.number | (X32_BIT if self.abi == "x32" else 0)
        args = [arg & mask for arg in (*self.args, *[0] * (6 - len(self.args)))]
        return struct.pack("<8Q", self.abi == "i386", number, *args)


def _code(count: int) -> bytes:
    """The program: for each row of the table make its call and print RAX."""
    loads64 = bytes.fromhex(
        "498b442408"  # mov rax, [r12+8]
        "498b7c2410 498b742418 498b542420"  # rdi, rsi, rdx
        "4d8b542428 4d8b442430 4d8b4c2438"  # r10, r8, r9
        "0f05"  # syscall
    )
    loads32 = bytes.fromhex(
        "498b442408"  # mov rax, [r12+8]
        "498b5c2410 498b4c2418 498b542420"  # rbx, rcx, rdx
        "498b742428 498b7c2430 498b6c2438"  # rsi, rdi, rbp
        "cd80 4898"  # int 0x80; cdqe
    )
    show = bytes.fromhex(
        "488d7c24c0"  # lea rdi, [rsp-64]
        "b910000000"  # mov ecx, 16
        "48c1c004 89c2 83e20f"  # again: rol rax, 4; mov edx, eax; and edx, 15
        "80c230 80fa39 7603 80c227"  # add dl, '0'; cmp dl, '9'; jbe +3; add dl, 39
        "8817 48ffc7 ffc9 75e3"  # mov [rdi], dl; inc rdi; dec ecx; jnz again
        "c6070a"  # mov byte [rdi], 10
        "b801000000 bf01000000 488d7424c0 ba11000000 0f05"  # write(1, rsp-64, 17)
    )
    choose = bytes.fromhex("49833c2400 75")  # cmp qword [r12], 0; jne
    body = choose + bytes([len(loads64) + 2]) + loads64 + b"\xeb" + bytes([len(loads32)]) + loads32
    body += show + bytes.fromhex("4983c440 49ffcd")  # add r12, 64; dec r13
    test = bytes.fromhex("4d85ed 0f84")  # test r13, r13; jz near
    loop = test + struct.pack("<i", len(body) + 5) + body
    loop += b"\xe9" + struct.pack("<i", -(len(loop) + 5))  # jmp near
    start = b"\x49\xbc" + struct.pack("<Q", _TABLE) + b"\x49\xbd" + struct.pack("<Q", count)
    return start + loop + bytes.fromhex("31ff b8e7000000 0f05")  # exit_group(0)


def program(calls: Iterable[Call], data: bytes = b"") -> bytes:
    """The ELF file that makes *calls* in order; *data* is at `DATA`, for them to point at."""
    rows = [call.row() for call in calls]
    code = _code(len(rows))
    assert len(code) <= 0x300 and len(data) <= _DATA_SIZE
    size = 0x1000 + 64 * len(rows)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _CODE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 0x1000)
    start = (header + segment).ljust(0x100, b"\0") + code
    return (start.ljust(0x400, b"\0") + data).ljust(0x1000, b"\0") + b"".join(rows)


def results(output: bytes | str) -> list[int]:
    """What the calls answered, as the kernel gives it: -errno where one failed."""
    values = [int(line, 16) for line in output.split()]
    return [value - 2**64 if value >= 2**63 else value for value in values]


def hello_i386(text: bytes = b"hello from i386\n") -> bytes:
    """A static 32-bit program that prints *text*."""
    base = 0x08048000
    code = bytes.fromhex("b804000000 bb01000000 b9") + struct.pack("<I", base + 0x100)
    code += b"\xba" + struct.pack("<I", len(text)) + bytes.fromhex("cd80 b801000000 31db cd80")
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = 0x100 + len(text)
    segment = struct.pack("<8I", 1, 0, base, base, size, size, 5, 0x1000)
    return (header + segment + code).ljust(0x100, b"\0") + text
