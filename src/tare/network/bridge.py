"""Networks in the kernel: bridges and macvlans, and containers' links to them.

Not for: the packet filter (`firewall`), or who has which address (`addresses`).
"""
from __future__ import annotations

from collections.abc import Collection

from tare.kernel.interfaces import Interface
from tare.network.values import Endpoint, Network


# SIGNATURES FIRST (bodies follow within the hour). All block for about a millisecond.


def settle(network: Network) -> None:
    """Make the bridge of *network* be there as described: made, or corrected. Idempotent."""
    raise NotImplementedError


def remove(network: Network) -> None:
    """Remove the bridge; nothing happens when it is gone. A macvlan's parent stays."""
    raise NotImplementedError


def interface(network: Network, endpoint: Endpoint) -> Interface:
    """What a container's start makes of *endpoint*: pure; goes into `run.plan.Place.interfaces`."""
    raise NotImplementedError


def connect(network: Network, endpoint: Endpoint, namespace: int) -> None:
    """Link a running container: *namespace* is a descriptor of its network namespace."""
    raise NotImplementedError


def disconnect(endpoint: Endpoint, namespace: int) -> None:
    """Take the link of *endpoint* away again; nothing happens when it is gone."""
    raise NotImplementedError


def sweep(tag: str, links: Collection[str], bridges: Collection[str]) -> list[str]:
    """Remove links and bridges of the engine *tag* that are not among the expected ones."""
    raise NotImplementedError
