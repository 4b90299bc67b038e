"""The packet filter: the whole wanted state as one nftables transaction, and kept that way.

SIGNATURES FIRST, bodies follow within the hour.
"""
from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from tare.network.values import Endpoint, Network


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that the table is made from; `Endpoint.ports` are what is published."""

    networks: tuple[Network, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


def ruleset(tag: str, wanted: Wanted) -> dict[str, object]:
    """The transaction for ``nft -j -f -`` that replaces the engine's tables. Pure."""
    raise NotImplementedError


def unavailable() -> str:
    """Why there can be no packet filter here (no nft, no privilege), in one sentence; or ``""``."""
    raise NotImplementedError


class Firewall:
    """The tables of the engine *tag* in the calling process's network namespace.

    `replace` runs nft (tens of ms: call it in a thread); the others speak to the kernel directly
    and take well below a millisecond. Without nft `replace` of a state that needs no filter does
    nothing, and anything that needs one raises UnsupportedError.
    """

    def __init__(self, tag: str) -> None:
        raise NotImplementedError

    def replace(self, wanted: Wanted) -> None:
        """Make the tables be exactly *wanted*, in one transaction."""
        raise NotImplementedError

    def add_network(self, network: Network) -> None:
        """One more network (one small transaction)."""
        raise NotImplementedError

    def remove_network(self, network_id: str) -> None:
        """Forget a network and its endpoints."""
        raise NotImplementedError

    def add(self, endpoint: Endpoint) -> None:
        """Let a container's link speak, and publish its ports: before its program starts."""
        raise NotImplementedError

    def remove(self, endpoint: Endpoint) -> None:
        """Forget it again; nothing happens when it is not there."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor that is readable when somebody changed rulesets: then call `changed`."""
        raise NotImplementedError

    def changed(self) -> bool:
        """Read the notifications; whether our tables were touched by others and must be restored
        (`restore`, in a thread)."""
        raise NotImplementedError

    def restore(self) -> None:
        """Write the wanted state again."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop watching; the tables stay."""
        raise NotImplementedError

    def discard(self) -> None:
        """Delete the tables."""
        raise NotImplementedError
