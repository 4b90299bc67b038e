"""Ports of the host: which are free, and holding them for what is published.

SIGNATURES FIRST.
"""
from __future__ import annotations

import socket
from collections.abc import Collection

from tare.network.values import Address, Port, Protocol


def reserve(port: Port) -> socket.socket:
    """A socket bound to the host's side of *port*, so that nobody else takes it; close it to let
    go. ConflictError names the process that has it already, as far as can be seen."""
    raise NotImplementedError


def choose(
    host_address: Address, protocol: Protocol, wanted: range | None, taken: Collection[int]
) -> socket.socket:
    """Reserve the first free port of *wanted*, or of the ephemeral ports (49153 to 65535)."""
    raise NotImplementedError
