"""Connection tracking by netlink: forgetting the ways of datagrams that lead nowhere any more.

A translation is chosen for a connection's first packet. A stream of datagrams has no end, so
one that began before a port was published, or towards a container that is gone, would go the old
way for ever.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from tare.kernel import netlink
from tare.kernel.netlink import Attributes, Message, attribute, parse

_SUBSYSTEM: Final = 1  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
_HEAD: Final = struct.Struct(">BBH")
_ORIGINAL, _REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_V4_SOURCE, _V6_SOURCE = 1, 3
_PROTOCOL, _TO_PORT = 1, 3
_NESTED: Final = 0x8000
_UDP: Final = 17
_FAMILIES: Final = (2, 10)


@dataclass(frozen=True, slots=True)
class _Flow:
    family: int
    original: bytes
    to_port: int
    answered_by: bytes


class Tracking(netlink.Connection):
    """Connection tracking of one network namespace."""

    def __init__(self, *, namespace: int | None = None) -> None:
        super().__init__(netlink.NETLINK_NETFILTER, namespace=namespace)

    def forget_datagrams(self, ports: Collection[int], answered_by: Collection[bytes]) -> int:
        """Forget UDP flows to one of *ports*, or answered by one of the addresses; how many."""
        found = [
            flow
            for flow in self._flows()
            if flow.to_port in ports or flow.answered_by in answered_by
        ]
        for flow in found:
            body = _HEAD.pack(flow.family, 0, 0) + attribute(_ORIGINAL | _NESTED, flow.original)
            message = Message(_SUBSYSTEM << 8 | _DELETE, 0, body, "a flow")
            self.request(message, ignore=(errno.ENOENT,))
        return len(found)

    def _flows(self) -> list[_Flow]:
        flows = []
        for family in _FAMILIES:
            body = _HEAD.pack(family, 0, 0)
            for _, answer in self.dump(_SUBSYSTEM << 8 | _GET, body, subject="flows"):
                values = parse(answer[_HEAD.size :])
                original, reply = values.get(_ORIGINAL, b""), values.get(_REPLY, b"")
                protocol = parse(parse(original).get(_TUPLE_PROTOCOL, b""))
                if protocol.get(_PROTOCOL) != bytes((_UDP,)):
                    continue
                port = int.from_bytes(protocol.get(_TO_PORT, b""), "big")
                flows.append(_Flow(family, original, port, _source(parse(reply))))
        return flows


def _source(values: Attributes) -> bytes:
    addresses = parse(values.get(_TUPLE_IP, b""))
    return addresses.get(_V4_SOURCE) or addresses.get(_V6_SOURCE, b"")
