"""nf_tables by netlink: elements of sets and maps in transactions, notifications, a look at both.

Tables, chains and rules are made by nft(8). What changes with every container (elements) would
cost a process each time; here it is one small transaction of a tenth of a millisecond.

Not for: what the sets mean (tare.network.firewall).
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tare.kernel import netlink
from tare.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    Message,
    attribute,
    nested,
    parse,
    parse_all,
    text,
)

INET: Final = 1
BRIDGE: Final = 7
FAMILIES: Final = {"inet": INET, "bridge": BRIDGE}

_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GETCHAIN, _GETRULE, _NEWSETELEM, _GETSETELEM, _DELSETELEM, _NEWGEN = 4, 7, 12, 13, 14, 15
_GROUP_NFTABLES: Final = 7
_HEAD: Final = struct.Struct(">BBH")
_TABLE, _SET, _ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_; the table is number 1 in all of them
_LIST_ELEM: Final = 1
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS = 1, 2, 3
_DATA_VALUE: Final = 1
_INTERVAL_END: Final = 1
_GEN_PID: Final = 2


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set or map as bytes: fields of a concatenation padded to four bytes each.

    In a set of intervals *last* marks the first value after an interval.
    """

    family: int
    table: str
    set: str
    key: bytes
    data: bytes | None = None
    last: bool = False


def _message(kind: int, flags: int, family: int, table: str, *parts: bytes) -> Message:
    body = _HEAD.pack(family, 0, 0) + text(_TABLE, table) + b"".join(parts)
    return Message(_SUBSYSTEM << 8 | kind, flags, body, table)


def _change(kind: int, elements: Sequence[Element]) -> list[Message]:
    """A message for each run of elements of one set."""
    messages = []
    start = 0
    while start < len(elements):
        first = elements[start]
        end = start
        packed = b""
        while end < len(elements) and len(packed) < 32_000:  # a nested attribute ends at 64 KiB
            one = elements[end]
            if (one.family, one.set) != (first.family, first.set):
                break
            packed += _pack(one, with_data=kind == _NEWSETELEM)
            end += 1
        flags = NLM_F_CREATE if kind == _NEWSETELEM else 0
        lists = (text(_SET, first.set), nested(_ELEMENTS, packed))
        messages.append(_message(kind, flags, first.family, first.table, *lists))
        messages[-1].subject = f"{first.table} {first.set}"
        start = end
    return messages


def _pack(element: Element, *, with_data: bool) -> bytes:
    parts = [nested(_ELEM_KEY, attribute(_DATA_VALUE, element.key))]
    if element.data is not None and with_data:
        parts.append(nested(_ELEM_DATA, attribute(_DATA_VALUE, element.data)))
    if element.last:
        parts.append(netlink.be32(_ELEM_FLAGS, _INTERVAL_END))
    return nested(_LIST_ELEM, *parts)


class PacketFilter(netlink.Connection):
    """nf_tables of one network namespace; not to be used by two threads at once."""

    def __init__(self, *, namespace: int | None = None) -> None:
        super().__init__(netlink.NETLINK_NETFILTER, namespace=namespace)

    def add(self, elements: Sequence[Element]) -> None:
        """Add all of them in one transaction; those that are there already with other data change.

        OSError ENOENT when a set is not there.
        """
        if not elements:
            return
        try:
            self.transact(_change(_NEWSETELEM, elements))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EBUSY):
                raise
            self.remove(elements)
            self.transact(_change(_NEWSETELEM, elements))

    def remove(self, elements: Sequence[Element]) -> None:
        """Remove all of them; what is not there is no error."""
        if not elements:
            return
        try:
            self.transact(_change(_DELSETELEM, elements))
        except FileNotFoundError:
            for group in _pairs(elements):
                try:
                    self.transact(_change(_DELSETELEM, group))
                except FileNotFoundError:
                    continue

    def transact(self, messages: Sequence[Message]) -> None:
        """All of *messages* or none; the first failure is raised."""
        first = self._sequence + 1
        self._sequence += len(messages) + 2
        border = _HEAD.pack(0, 0, _SUBSYSTEM)
        begin = Message(_BATCH_BEGIN, 0, border, "batch").pack(first, 0)
        end = Message(_BATCH_END, 0, border, "batch").pack(self._sequence, 0)
        packed = [m.pack(first + 1 + n, NLM_F_ACK) for n, m in enumerate(messages)]
        self._socket.send(begin + b"".join(packed) + end)
        left = set(range(first + 1, self._sequence))
        failure: OSError | None = None
        while left:
            for sequence, body, flags in self._acknowledgements():
                if sequence == first:  # the batch as a whole was refused
                    left.clear()
                    failure = failure or netlink.failure(body, flags, messages[0])
                elif sequence in left:
                    left.discard(sequence)
                    said = netlink.failure(body, flags, messages[sequence - first - 1])
                    failure = failure or said
        if failure is not None:
            raise failure

    def _acknowledgements(self) -> Iterator[tuple[int, bytes, int]]:
        for kind, flags, sequence, body in self._receive():
            if kind == netlink.NLMSG_ERROR:
                yield sequence, body, flags

    def elements(self, family: int, table: str, name: str) -> set[Element]:
        """All elements of a set; OSError ENOENT when it is not there."""
        request = _message(_GETSETELEM, 0, family, table, text(_SET, name))
        found = set()
        for _, body in self.dump(request.kind, request.body, subject=f"{table} {name}"):
            listed = parse(body[_HEAD.size :]).get(_ELEMENTS, b"")
            for _, one in parse_all(listed):
                values = parse(one)
                key = parse(values.get(_ELEM_KEY, b"")).get(_DATA_VALUE, b"")
                data = parse(values.get(_ELEM_DATA, b"")).get(_DATA_VALUE)
                last = bool(values.get(_ELEM_FLAGS, bytes(4))[3] & _INTERVAL_END)
                found.add(Element(family, table, name, key, data, last))
        return found

    def shape(self, family: int, table: str) -> tuple[bytes, ...]:
        """Chains and rules of a table as opaque bytes: equal as long as nobody changed them."""
        found = []
        for kind in (_GETCHAIN, _GETRULE):
            request = _message(kind, 0, family, table)
            name = table.encode() + b"\0"
            for _, body in self.dump(request.kind, request.body, subject=table):
                if parse(body[_HEAD.size :]).get(_TABLE) == name:
                    found.append(body[_HEAD.size :])
        return tuple(found)


def _pairs(elements: Sequence[Element]) -> Iterator[list[Element]]:
    """Each element by itself, the two ends of an interval together."""
    group: list[Element] = []
    for one in elements:
        if group and not one.last:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


class Watch(netlink.Connection):
    """Notifications of changes to nf_tables, by anybody, in one network namespace."""

    def __init__(self, *, namespace: int | None = None) -> None:
        super().__init__(netlink.NETLINK_NETFILTER, namespace=namespace)
        self.join(_GROUP_NFTABLES)
        self._touched: set[str] = set()

    def changes(self) -> list[tuple[int, set[str]]]:
        """Finished transactions since the last call: who (a thread's id), and the tables touched.

        OSError ENOBUFS when there were more than the kernel could tell.
        """
        found = []
        for kind, body in self.notifications():
            if kind >> 8 != _SUBSYSTEM:
                continue
            values = parse(body[_HEAD.size :])
            if kind & 0xFF == _NEWGEN:
                (pid,) = struct.unpack(">I", values.get(_GEN_PID, bytes(4)))
                found.append((pid, self._touched))
                self._touched = set()
            else:
                name = values.get(_TABLE, b"").rstrip(b"\0").decode("utf-8", "replace")
                self._touched.add(name)
        return found


def own_id() -> int:
    """What `Watch.changes` calls the calling thread; not in a pid namespace, where it errs."""
    return threading.get_native_id()
