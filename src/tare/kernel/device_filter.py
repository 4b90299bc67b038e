"""Device rules of a control group: one meaning for both versions, and version 2's eBPF program.

Rules are reduced to a `Table` with the meaning that version 1 gives them (kernel
admin-guide/cgroup-v1/devices.rst): a default, and exceptions to it. Version 1 writes the table to
``devices.allow`` and ``devices.deny``; for version 2 it becomes a BPF_PROG_TYPE_CGROUP_DEVICE
program, which the kernel asks at every open and mknod, attached to the group's directory with
bpf(2). Unlike version 1, a rule that would be ignored without a word is refused.

Not for: device nodes themselves.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from ctypes import c_int, c_uint, c_void_p
from dataclasses import dataclass
from typing import Final

from tare.kernel.cgroup_limits import ANY, DeviceRule, RefusedLimitError
from tare.kernel.libc import Syscall, number

_MKNOD, _READ, _WRITE = 1, 2, 4  # BPF_DEVCG_ACC_*
_BITS: Final = {"m": _MKNOD, "r": _READ, "w": _WRITE}
_ALL: Final = _MKNOD | _READ | _WRITE
_TYPES: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE: Final = 15
_ATTACH_CGROUP_DEVICE: Final = 6
_F_ALLOW_MULTI: Final = 2

# The verifier's work grows with the square of the rules: 250 take it 0.2 s, and it gives up
# (E2BIG) somewhere below 1000.
_MOST_EXCEPTIONS: Final = 256

_bpf = Syscall("bpf", number(x86_64=321, aarch64=280), c_int, c_void_p, c_uint)


# --- rules to a table -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exempt:
    """One exception: the accesses (bits) of these devices are not treated by the default."""

    type: str
    major: int
    minor: int
    access: int

    def covers(self, other: Exempt) -> bool:
        """Whether every device that *other* names is named here too."""
        return (
            self.type == other.type
            and self.major in (ANY, other.major)
            and self.minor in (ANY, other.minor)
        )

    def overlaps(self, other: Exempt) -> bool:
        """Whether some device is named by both."""
        return (
            self.type == other.type
            and (self.major == other.major or ANY in (self.major, other.major))
            and (self.minor == other.minor or ANY in (self.minor, other.minor))
        )

    def __str__(self) -> str:
        letters = "".join(letter for letter in "rwm" if _BITS[letter] & self.access)
        return str(DeviceRule(True, self.type, self.major, self.minor, letters))


@dataclass(frozen=True, slots=True)
class Table:
    """What a list of rules comes to."""

    default_allow: bool
    exceptions: tuple[Exempt, ...]

    def permits(self, type: str, major: int, minor: int, access: str) -> bool:
        """Whether the accesses (letters), all of them, are allowed: the specification."""
        wanted = sum(_BITS[letter] for letter in access)
        asked = Exempt(type, major, minor, wanted)
        matching = [e for e in self.exceptions if e.covers(asked)]
        if self.default_allow:
            return not any(e.access & wanted for e in matching)
        return any(not wanted & ~e.access for e in matching)


def _ignored(rule: DeviceRule) -> RefusedLimitError:
    word = "allow" if rule.allow else "deny"
    return RefusedLimitError(
        errno.EINVAL,
        f"the device rule '{word} {rule}' is part of a wider rule before it and would be ignored",
        limit="devices",
        controller="devices",
        hint="narrow the wider rule",
    )


@functools.lru_cache(maxsize=64)
def reduce(rules: tuple[DeviceRule, ...]) -> Table:
    """What *rules*, in order, come to; a group without rules allows everything."""
    default_allow = True
    kept: dict[tuple[str, int, int], int] = {}
    for rule in rules:
        bits = sum(_BITS[letter] for letter in set(rule.access))
        if rule.type == "a" and (rule.major, rule.minor, bits) == (ANY, ANY, _ALL):
            default_allow, kept = rule.allow, {}
            continue
        for type in "bc" if rule.type == "a" else rule.type:
            key = (type, rule.major, rule.minor)
            if rule.allow is not default_allow:
                kept[key] = kept.get(key, 0) | bits
                continue
            # Version 1 takes accesses back only from exactly the same devices.
            asked = Exempt(*key, bits)
            for other, access in kept.items():
                entry = Exempt(*other, access)
                if other == key or not access & bits or not entry.overlaps(asked):
                    continue
                if not asked.covers(entry):
                    raise _ignored(rule)
                kept[other] = access & ~bits
            kept[key] = kept.get(key, 0) & ~bits
    return Table(default_allow, tuple(Exempt(*key, bits) for key, bits in kept.items() if bits))


# --- a table to a program ---------------------------------------------------------------------

# struct bpf_insn: opcode, destination and source registers, jump offset, immediate.
_INSN: Final = struct.Struct("<BBhi")
_LDX_W, _MOV64_X, _MOV64_K, _AND64_K, _RSH64_K = 0x61, 0xBF, 0xB7, 0x57, 0x77
_JEQ_K, _JNE_K, _EXIT = 0x15, 0x55, 0x95


@dataclass(frozen=True, slots=True)
class _Insn:
    opcode: int
    destination: int = 0
    source: int = 0
    offset: int = 0
    immediate: int = 0

    def encode(self) -> bytes:
        registers = self.destination | self.source << 4
        return _INSN.pack(self.opcode, registers, self.offset, self.immediate)


def _block(entry: Exempt, *, default_allow: bool) -> list[_Insn]:
    """Answer the opposite of the default if *entry* matches, else fall through."""
    # r2 type, r3 access, r4 major, r5 minor. A test that fails jumps behind the block.
    tests = [_Insn(_JNE_K, 2, immediate=_TYPES[entry.type])]
    if entry.major != ANY:
        tests.append(_Insn(_JNE_K, 4, immediate=entry.major))
    if entry.minor != ANY:
        tests.append(_Insn(_JNE_K, 5, immediate=entry.minor))
    if default_allow:
        # denied if any wanted access is listed
        tests += [_Insn(_MOV64_X, 1, 3), _Insn(_AND64_K, 1, immediate=entry.access)]
        tests.append(_Insn(_JEQ_K, 1, immediate=0))
    elif entry.access != _ALL:
        # allowed only if every wanted access is listed
        tests += [_Insn(_MOV64_X, 1, 3), _Insn(_AND64_K, 1, immediate=~entry.access & _ALL)]
        tests.append(_Insn(_JNE_K, 1, immediate=0))
    body = [*tests, _Insn(_MOV64_K, 0, immediate=int(not default_allow)), _Insn(_EXIT)]
    return [
        _Insn(i.opcode, i.destination, i.source, len(body) - at - 1, i.immediate)
        if i.opcode in (_JEQ_K, _JNE_K)
        else i
        for at, i in enumerate(body)
    ]


@functools.lru_cache(maxsize=64)
def assemble(table: Table) -> bytes:
    """The program of *table*: its context is struct bpf_cgroup_dev_ctx, its answer 1 or 0."""
    program = [
        _Insn(_LDX_W, 2, 1, 0),  # access_type: access << 16 | type
        _Insn(_MOV64_X, 3, 2),
        _Insn(_RSH64_K, 3, immediate=16),
        _Insn(_AND64_K, 2, immediate=0xFFFF),
        _Insn(_LDX_W, 4, 1, 4),  # major
        _Insn(_LDX_W, 5, 1, 8),  # minor
    ]
    for entry in table.exceptions:
        program += _block(entry, default_allow=table.default_allow)
    program += [_Insn(_MOV64_K, 0, immediate=int(table.default_allow)), _Insn(_EXIT)]
    return b"".join(insn.encode() for insn in program)


# --- the program in the kernel ----------------------------------------------------------------


def _call(command: int, attributes: bytes, subject: str) -> tuple[int, bytes]:
    """bpf(2); the answer and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    # SAFETY: buffer, and what attributes point to in the callers, live until the call returns.
    answer = _bpf(command, buffer, len(attributes), subject=subject)
    return answer, buffer.raw


def load(program: bytes) -> int:
    """Have the kernel verify and load *program*; the descriptor is close-on-exec."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        _PROG_TYPE_CGROUP_DEVICE,
        len(program) // _INSN.size,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        0,
        b"device_filter",
    )
    return _call(_PROG_LOAD, attributes, "device filter")[0]


def attached(directory: int) -> list[int]:
    """Ids of the device programs attached to the group whose directory is open."""
    room = 64
    ids = (c_uint * room)()
    attributes = struct.pack(
        "=IIIIQII", directory, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), room, 0
    )
    _, answer = _call(_PROG_QUERY, attributes, "device filter")
    return list(ids[: struct.unpack_from("=I", answer, 24)[0]])


def _link(command: int, directory: int, program: int, flags: int) -> None:
    attributes = struct.pack("=IIIII", directory, program, _ATTACH_CGROUP_DEVICE, flags, 0)
    _call(command, attributes, "device filter")


def _loaded(rules: tuple[DeviceRule, ...]) -> int:
    table = reduce(rules)
    if len(table.exceptions) > _MOST_EXCEPTIONS:
        raise RefusedLimitError(
            errno.E2BIG,
            f"too many device rules: {len(table.exceptions)}, at most {_MOST_EXCEPTIONS}",
            limit="devices",
            controller="devices",
            hint="name ranges with a wildcard instead of single devices",
        )
    return load(assemble(table))


def install(directory: int, rules: tuple[DeviceRule, ...]) -> None:
    """Make *rules* the ones in force in the version 2 group whose directory is open.

    The new program is attached before the former ones are taken away: in between both must
    agree, so there is no moment without a filter. It needs CAP_BPF and CAP_NET_ADMIN, or
    CAP_SYS_ADMIN, and stays until the group is removed.
    """
    former = attached(directory)
    program = _loaded(rules)
    try:
        _link(_PROG_ATTACH, directory, program, _F_ALLOW_MULTI)
    finally:
        os.close(program)
    for identity in former:
        old, _ = _call(_PROG_GET_FD_BY_ID, struct.pack("=III", identity, 0, 0), "device filter")
        try:
            _link(_PROG_DETACH, directory, old, 0)
        finally:
            os.close(old)
