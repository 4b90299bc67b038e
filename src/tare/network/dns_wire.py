"""DNS messages as far as an embedded server must understand them: one question, short answers.

A query comes from inside a container, so it is hostile until read: `read` accepts exactly one
question with an uncompressed name and an optional EDNS record, in a bounded number of steps, and
refuses all else with `MalformedError`. Answers of other servers are never parsed, only compared
(`belongs`) and passed on.

RFC 1035, section 4; RFC 6891 for EDNS. Not for: sockets, and who may know which name.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

A: Final = 1
PTR: Final = 12
AAAA: Final = 28
ANY: Final = 255
_OPT: Final = 41
_INTERNET: Final = (1, 255)

NO_ERROR: Final = 0
FORMAT_ERROR: Final = 1
SERVER_FAILURE: Final = 2
NO_SUCH_NAME: Final = 3
NOT_IMPLEMENTED: Final = 4
REFUSED: Final = 5

MAXIMUM: Final = 65_535
PLAIN: Final = 512
"""What a client without EDNS takes over UDP (RFC 1035, section 2.3.4)."""
OURS: Final = 1232
"""What we take over UDP: fits every path without fragments."""
TTL: Final = 5
"""Seconds. Short, because a container that is started again may have another address."""

_HEADER: Final = struct.Struct("!HHHHHH")
_HEADER_LENGTH: Final = 12
_TYPE_CLASS: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHHIH")  # a pointer to the question's name, then the rest
_POINTER: Final = 0xC000 | _HEADER_LENGTH
_RESPONSE: Final = 0x8000
_AUTHORITATIVE: Final = 0x0400
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_RECURSION_AVAILABLE: Final = 0x0080
_OPCODE: Final = 0x7800
_NAME_LENGTH: Final = 255
_LABEL_LENGTH: Final = 63


class MalformedError(ValueError):
    """Not a query that can be answered; ``code`` is the response code, -1 for no response."""

    def __init__(self, code: int) -> None:
        super().__init__(f"not a query: response code {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Query:
    """One question; ``name`` in lower case, without the last dot. A dot in a label is ``\\.``."""

    id: int
    flags: int
    name: str
    type: int
    question: bytes
    size: int = PLAIN  # what the client takes over UDP
    edns: bool = False


def read(message: bytes) -> Query:
    """The one question of *message*; MalformedError otherwise."""
    if len(message) < _HEADER_LENGTH:
        raise MalformedError(-1)
    identity, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if flags & _RESPONSE:
        raise MalformedError(-1)  # answering answers makes loops
    if flags & _OPCODE:
        raise MalformedError(NOT_IMPLEMENTED)
    if questions != 1 or answers or authorities:
        raise MalformedError(FORMAT_ERROR)
    name, at = _name(message)
    if at + 4 > len(message):
        raise MalformedError(FORMAT_ERROR)
    kind, klass = _TYPE_CLASS.unpack_from(message, at)
    at += 4
    if klass not in _INTERNET:
        raise MalformedError(REFUSED)
    size = _edns(message, at) if additional else None
    return Query(
        identity,
        flags,
        name,
        kind,
        message[_HEADER_LENGTH:at],
        PLAIN if size is None else max(size, PLAIN),
        size is not None,
    )


def _name(message: bytes) -> tuple[str, int]:
    """The name of the question, and where it ends. Compression there makes no sense: refused."""
    labels = []
    at, length = _HEADER_LENGTH, len(message)
    while True:
        if at >= length:
            raise MalformedError(FORMAT_ERROR)
        count = message[at]
        at += 1
        if count == 0:
            break
        if count > _LABEL_LENGTH or at + count > length:
            raise MalformedError(FORMAT_ERROR)
        label = message[at : at + count]
        labels.append(label.replace(b".", b"\\.") if b"." in label else label)
        at += count
        if at - _HEADER_LENGTH >= _NAME_LENGTH:
            raise MalformedError(FORMAT_ERROR)
    return b".".join(labels).lower().decode("latin-1"), at


def _edns(message: bytes, at: int) -> int | None:
    """The UDP size that an OPT record right after the question says; None without one."""
    # The root's name (one byte 0), type, class, four bytes, length: RFC 6891, section 6.1.2.
    if at + 11 > len(message) or message[at]:
        return None
    kind, size = _TYPE_CLASS.unpack_from(message, at + 1)
    return int(size) if kind == _OPT else None


def answer(
    query: Query, records: Sequence[tuple[int, bytes]], *, limit: int, code: int = NO_ERROR
) -> bytes:
    """A response of *records* (type, data), cut to *limit* bytes and marked so if need be."""
    opt = b"\0" + struct.pack("!HHIH", _OPT, OURS, 0, 0) if query.edns else b""
    flags = _RESPONSE | _RECURSION_AVAILABLE | (query.flags & _RECURSION_DESIRED) | code
    if code in (NO_ERROR, NO_SUCH_NAME):
        flags |= _AUTHORITATIVE
    room = limit - _HEADER_LENGTH - len(query.question) - len(opt)
    parts = []
    for kind, data in records:
        room -= _RECORD.size + len(data)
        if room < 0:
            flags |= _TRUNCATED
            break
        parts.append(_RECORD.pack(_POINTER, kind, 1, TTL, len(data)) + data)
    head = _HEADER.pack(query.id, flags, 1, len(parts), 0, 1 if opt else 0)
    return head + query.question + b"".join(parts) + opt


def refusal(message: bytes, code: int) -> bytes:
    """A response to what could not be read: the header alone, with *code*."""
    identity, flags = _TYPE_CLASS.unpack_from(message)
    kept = flags & (_OPCODE | _RECURSION_DESIRED)
    return _HEADER.pack(identity, _RESPONSE | _RECURSION_AVAILABLE | kept | code, 0, 0, 0, 0)


def renumbered(message: bytes, identity: int) -> bytes:
    """*message* with another id."""
    return identity.to_bytes(2, "big") + message[2:]


def belongs(response: bytes, identity: int, question: bytes) -> bool:
    """Whether *response* answers *question* as it was asked under *identity* (RFC 5452, 9.1)."""
    if len(response) < _HEADER_LENGTH:
        return False
    found, flags, questions = struct.unpack_from("!HHH", response)
    if found != identity or not flags & _RESPONSE:
        return False
    if questions == 0:  # some servers leave the question out of an error
        return bool(flags & 0xF)
    end = _HEADER_LENGTH + len(question)
    return response[_HEADER_LENGTH:end].lower() == question.lower()


def name_data(name: str) -> bytes:
    """*name* as the data of a PTR record; a label that cannot be one is MalformedError."""
    found = bytearray()
    for label in name.split("."):
        encoded = label.encode("latin-1", "replace")
        if not 0 < len(encoded) <= _LABEL_LENGTH:
            raise MalformedError(SERVER_FAILURE)
        found += bytes((len(encoded),)) + encoded
    return bytes(found) + b"\0"


def reversed_address(name: str) -> str | None:
    """The address that ``4.3.2.1.in-addr.arpa`` or ``....ip6.arpa`` asks for, in short form."""
    if name.endswith(".in-addr.arpa"):
        parts = name[:-13].split(".")
        family, text = socket.AF_INET, ".".join(reversed(parts))
    elif name.endswith(".ip6.arpa"):
        digits = name[:-9].split(".")
        if len(digits) != 32 or any(len(digit) != 1 for digit in digits):
            return None
        joined = "".join(reversed(digits))
        family, text = socket.AF_INET6, ":".join(joined[at : at + 4] for at in range(0, 32, 4))
    else:
        return None
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):  # ValueError: a NUL or what is not ASCII
        return None
