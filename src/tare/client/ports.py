"""``-p`` and ``--expose``: port specifications, by Docker's grammar.

Not for whether a port is free, nor for publishing it.
"""

from __future__ import annotations

from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

_PROTOCOLS = ("tcp", "udp", "sctp")


def parse(publish: list[str], expose: list[str]) -> tuple[dict[str, Json], dict[str, Json]]:
    """ExposedPorts and PortBindings of the create request; InvalidError for a bad word."""
    exposed: dict[str, Json] = {}
    bindings: dict[str, Json] = {}
    for word in publish:
        for port, address, host_port in published(word):
            exposed[port] = {}
            known = bindings.setdefault(port, [])
            assert isinstance(known, list)
            known.append({"HostIp": address, "HostPort": host_port})
    for word in expose:
        if ":" in word:
            raise InvalidError(f"invalid port format for --expose: {word}")
        ports, protocol = _protocol(word)
        first, last = _range(ports, word)
        exposed.update({f"{port}/{protocol}": {} for port in range(first, last + 1)})
    return exposed, bindings


def published(word: str) -> list[tuple[str, str, str]]:
    """(container port, host address, host port) for each port that *word* names."""
    rest, protocol = _protocol(word)
    head, _, inside = rest.rpartition(":")
    if head.endswith("]"):  # [::1]:80 has no host port
        address, outside = head, ""
    else:
        address, _, outside = head.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    if address and not _is_address(address):
        raise InvalidError(f"invalid IP address: {address}", exit_code=125)
    if not inside:
        raise InvalidError(f"no port specified: {word}<empty>", exit_code=125)
    first, last = _range(inside, word)
    if not outside:
        return [(f"{port}/{protocol}", address, "") for port in range(first, last + 1)]
    low, high = _range(outside, word)
    if high - low != last - first:
        if first != last:
            raise InvalidError(
                f"invalid ranges specified for container and host ports: {inside} and {outside}",
                exit_code=125,
            )
        # One container port, several host ports: any one of them may be taken.
        return [(f"{first}/{protocol}", address, f"{low}-{high}")]
    return [(f"{first + at}/{protocol}", address, str(low + at)) for at in range(high - low + 1)]


def _protocol(word: str) -> tuple[str, str]:
    ports, slash, protocol = word.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol not in _PROTOCOLS:
        raise InvalidError(f"invalid proto: {protocol}", exit_code=125)
    return ports, protocol


def _range(text: str, word: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        first, last = int(low), int(high) if dash else int(low)
        if not 0 <= first <= last <= 65535 or not (low + high).isdecimal():
            raise ValueError
    except ValueError:
        raise InvalidError(
            f"invalid port {text!r} in {word!r}",
            hint="Write [HOST_ADDRESS:][HOST_PORT:]CONTAINER_PORT[/udp].",
            exit_code=125,
        ) from None
    return first, last


def _is_address(text: str) -> bool:
    from _socket import AF_INET, AF_INET6, inet_pton

    for family in (AF_INET, AF_INET6):
        try:
            inet_pton(family, text.partition("%")[0])
        except OSError:
            continue
        return True
    return False
