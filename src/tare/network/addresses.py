"""Which prefix a network gets, and which address a container. Pure, but for `host_prefixes`.

Pools are Docker's: 172.17.0.0/16 to 172.31.0.0/16, then 192.168.0.0/16 in pieces of /20; when
those are used up 10.192.0.0/10 in pieces of /24; for IPv6 a /64 of an unique local prefix
(RFC 4193) of the engine's own. A prefix that meets a route of the host (its LAN, a VPN) is passed
over.

Not for: remembering what is given out. The caller says what is in use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from tare.errors import ConflictError, InvalidError
from tare.kernel import rtnetlink
from tare.network.values import Address, Prefix, Subnet


@dataclass(frozen=True, slots=True)
class Pool:
    """A prefix that networks are cut from, each *size* bits long."""

    base: Prefix
    size: int


DEFAULT_POOLS: Final = (
    *(Pool(IPv4Network(f"172.{n}.0.0/16"), 16) for n in range(17, 32)),
    Pool(IPv4Network("192.168.0.0/16"), 20),
    # Docker's end here, with 31 networks.
    Pool(IPv4Network("10.192.0.0/10"), 24),
)
_LEAST_BITS: Final = 2
"""A network has room for a gateway and a container."""


def local_pool(tag: str) -> Pool:
    """The IPv6 pool of the engine *tag*: /64s of a /48 of its own (RFC 4193, section 3.2.2)."""
    digest = hashlib.sha256(f"tare {tag}".encode()).digest()
    return Pool(IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48)), 64)


def host_prefixes(except_interfaces: Container[str] = ()) -> tuple[Prefix, ...]:
    """The prefixes that the host has routes to, default routes left out.

    Those of *except_interfaces* (the engine's own bridges) are left out too.
    """
    with rtnetlink.Routing() as kernel:
        ours = {link.index for link in kernel.links() if link.name in except_interfaces}
        found = {
            route.destination
            for route in kernel.routes()
            if route.destination.prefixlen
            and route.interface not in ours
            and not route.destination.is_loopback
            and not route.destination.is_multicast
            and not route.destination.is_link_local
        }
    return tuple(sorted(found, key=lambda p: (p.version, p)))


def next_subnet(taken: Iterable[Prefix], pools: Iterable[Pool] = DEFAULT_POOLS) -> Subnet:
    """The first prefix of *pools* that meets none of *taken*, its gateway the first address.

    ConflictError when there is none.
    """
    occupied = sorted_prefixes(taken)
    for pool in pools:
        for prefix in _pieces(pool, occupied):
            return Subnet(prefix=prefix, gateway=prefix[1])
    raise ConflictError(
        "no address range is left for another network: all pools are in use",
        hint="remove networks (tare network prune), or name one with --subnet",
    )


def sorted_prefixes(prefixes: Iterable[Prefix]) -> list[tuple[int, int, int]]:
    """Version, first and last address of each, in order."""
    return sorted((p.version, int(p[0]), int(p[-1])) for p in set(prefixes))


def _pieces(pool: Pool, occupied: list[tuple[int, int, int]]) -> Iterator[Prefix]:
    """The free pieces of a pool; jumps over what is occupied instead of trying each piece."""
    version = pool.base.version
    step = 1 << (pool.base.max_prefixlen - pool.size)
    last = int(pool.base[-1])
    start = int(pool.base[0])
    while start + step - 1 <= last:
        hit = [
            high for v, low, high in occupied
            if v == version and low <= start + step - 1 and high >= start
        ]  # fmt: skip
        if not hit:
            yield type(pool.base)((start, pool.size))
            start += step
            continue
        start = (max(hit) // step + 1) * step


def check_subnet(subnet: Subnet, taken: Mapping[Prefix, str]) -> Subnet:
    """*subnet* as asked for, its gateway filled in; InvalidError or ConflictError says why not.

    *taken* maps prefixes to who has them (``network web``, ``the host``).
    """
    prefix = subnet.prefix
    bits = prefix.max_prefixlen - prefix.prefixlen
    if bits < _LEAST_BITS or prefix.is_multicast or prefix.is_loopback or not prefix.prefixlen:
        raise InvalidError(
            f"{prefix} cannot be the subnet of a network",
            hint="use a private one with at least 4 addresses, such as 10.77.0.0/24",
        )
    for other, holder in taken.items():
        if other.version == prefix.version and other.overlaps(prefix):
            raise ConflictError(
                f"the subnet {prefix} overlaps with {other} of {holder}",
                hint="choose another --subnet, or leave it out and one is found",
            )
    inside = [("gateway", subnet.gateway), *((f"address {n}", a) for n, a in subnet.reserved)]
    for what, address in inside:
        if address is not None and address not in prefix:
            raise InvalidError(f"the {what} {address} is not in the subnet {prefix}")
    if subnet.range is not None and not (
        subnet.range.version == prefix.version
        and subnet.range[0] in prefix
        and subnet.range[-1] in prefix
    ):
        raise InvalidError(f"the range {subnet.range} is not in the subnet {prefix}")
    gateway = subnet.gateway if subnet.gateway is not None else prefix[1]
    return Subnet(prefix=prefix, gateway=gateway, range=subnet.range, reserved=subnet.reserved)


def next_address(subnet: Subnet, used: Container[Address], after: Address | None = None) -> Address:
    """A free address of *subnet*: the first after *after*, then from the beginning again.

    Going on after the last one given out leaves an address alone for a while when its holder is
    gone, so that nobody talks to the wrong one. ConflictError when all are in use.
    """
    first, last = _bounds(subnet)
    reserved = {address for _, address in subnet.reserved}
    make = IPv4Address if subnet.prefix.version == 4 else IPv6Address
    start = first
    if after is not None and first <= int(after) < last:
        start = int(after) + 1
    for numbers in (range(start, last + 1), range(first, start)):
        for number in numbers:
            address = make(number)
            if address != subnet.gateway and address not in reserved and address not in used:
                return address
    raise ConflictError(
        f"no address is left in {subnet.range or subnet.prefix}",
        hint="remove containers that are not needed, or make a network with a larger --subnet",
    )


def _bounds(subnet: Subnet) -> tuple[int, int]:
    """The first and last number that may be given out: not the network's and the broadcast's."""
    prefix = subnet.prefix
    first, last = int(prefix[0]) + 1, int(prefix[-1]) - (prefix.version == 4)
    if subnet.range is not None:
        first, last = max(first, int(subnet.range[0])), min(last, int(subnet.range[-1]))
    return first, last


def check_address(subnet: Subnet, wanted: Address, used: Mapping[Address, str]) -> Address:
    """*wanted* if a container may have it; *used* maps addresses to their holders."""
    prefix = subnet.prefix
    if wanted not in prefix:
        raise InvalidError(f"the address {wanted} is not in the subnet {prefix}")
    first, last = int(prefix[0]) + 1, int(prefix[-1]) - (prefix.version == 4)
    if wanted == subnet.gateway or not first <= int(wanted) <= last:
        raise InvalidError(f"the address {wanted} of {prefix} is not for containers")
    if wanted in used:
        raise ConflictError(
            f"the address {wanted} is in use by {used[wanted]}", hint="choose another one"
        )
    return wanted
