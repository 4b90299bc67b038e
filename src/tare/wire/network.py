"""Networks and containers' places in them, between Docker's JSON and our values. Pure.

Requests become wishes (`model.networking`), records become what inspect, list and the container's
``NetworkSettings`` show. Not for: whether a network is there, or an address free (the engine).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import Struct, field

from tare.errors import InvalidError, UnsupportedError
from tare.model.networking import (
    HOST,
    NONE,
    Joined,
    NetworkRecord,
    NetworkSpec,
    NetworkWish,
    PortWish,
    SubnetWish,
)
from tare.model.record import Record
from tare.model.spec import ContainerSpec
from tare.model.state import State
from tare.wire import values
from tare.wire.body import CreateBody, EndpointBody, HostConfig

Json = dict[str, object]

DEFAULT: Final = "default"
_ALONE: Final = (HOST, NONE)
_MOST_PORTS: Final = 4096
_LIMIT: Final = 255


# --- what is asked for ------------------------------------------------------------------------


class IpamPool(Struct, rename="pascal"):
    """One of ``IPAM.Config``."""

    subnet: str | None = None
    ip_range: str | None = field(default=None, name="IPRange")
    gateway: str | None = None
    auxiliary_addresses: dict[str, str] | None = None
    aux_address: dict[str, str] | None = None  # Docker's older name


class Ipam(Struct, rename="pascal"):
    """``IPAM``."""

    driver: str | None = None
    config: list[IpamPool] | None = None
    options: dict[str, str] | None = None


class NetworkBody(Struct, rename="pascal"):
    """``POST /networks/create``."""

    name: str | None = None
    driver: str | None = None
    scope: str | None = None
    internal: bool | None = None
    attachable: bool | None = None
    ingress: bool | None = None
    config_only: bool | None = None
    config_from: dict[str, str] | None = None
    ipam: Ipam | None = field(default=None, name="IPAM")
    enable_ipv4: bool | None = field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = field(default=None, name="EnableIPv6")
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class ConnectBody(Struct, rename="pascal"):
    """``POST /networks/ID/connect``."""

    container: str | None = None
    endpoint_config: EndpointBody | None = None


class DisconnectBody(Struct, rename="pascal"):
    """``POST /networks/ID/disconnect``."""

    container: str | None = None
    force: bool | None = None


NETWORK: Final = msgspec.json.Decoder(NetworkBody)
CONNECT: Final = msgspec.json.Decoder(ConnectBody)
DISCONNECT: Final = msgspec.json.Decoder(DisconnectBody)


def network_spec(body: NetworkBody) -> NetworkSpec:
    """The network that *body* describes; what tare has not is UnsupportedError."""
    if not body.name:
        raise InvalidError("invalid network name: it is empty")
    if body.scope not in (None, "", "local"):
        raise UnsupportedError(
            f"networks of scope {body.scope!r} are not supported: there is no swarm"
        )
    if body.ingress or body.config_only or any((body.config_from or {}).values()):
        raise UnsupportedError("ingress and configuration-only networks are not supported")
    ipam = body.ipam or Ipam()
    if ipam.driver not in (None, "", "default"):
        raise UnsupportedError(f"the IPAM driver {str(ipam.driver)[:40]!r} is not supported")
    for pairs in (body.options, body.labels, ipam.options):
        for name, value in (pairs or {}).items():
            values.one_line("option or label", name, limit=4096)
            values.checked_text("option or label", value, limit=65_536)
    return NetworkSpec(
        name=values.one_line("network name", body.name, limit=_LIMIT),
        driver=values.one_line("driver", body.driver or "bridge", limit=_LIMIT),
        subnets=tuple(_subnet(pool) for pool in ipam.config or ()),
        ipv4=body.enable_ipv4 is not False,
        ipv6=bool(body.enable_ipv6),
        internal=bool(body.internal),
        attachable=bool(body.attachable),
        options=dict(body.options or {}),
        ipam_options=dict(ipam.options or {}),
        labels=dict(body.labels or {}),
    )


def _subnet(pool: IpamPool) -> SubnetWish:
    auxiliary = {**(pool.aux_address or {}), **(pool.auxiliary_addresses or {})}
    for name, address in auxiliary.items():
        values.one_line("auxiliary address", name, limit=_LIMIT)
        _address("auxiliary address", address)
    if pool.gateway:
        _address("gateway", pool.gateway.partition("/")[0])
    return SubnetWish(
        subnet=values.one_line("subnet", pool.subnet or "", limit=64),
        range=values.one_line("IP range", pool.ip_range or "", limit=64),
        gateway=(pool.gateway or "").partition("/")[0],
        auxiliary=auxiliary,
    )


def wish(name: str, body: EndpointBody | None) -> NetworkWish:
    """One container's wish for its place in the network *name*."""
    body = body or EndpointBody()
    ipam = body.ipam_config
    for alias in body.aliases or ():
        if (
            not alias
            or len(alias) > _LIMIT
            or any(c.isspace() or not c.isprintable() for c in alias)
        ):
            raise InvalidError(f"invalid network alias: {alias[:80]!r}")
    for link in body.links or ():
        values.one_line("link", link, limit=512)
    found = NetworkWish(
        network=values.one_line("network", name, limit=_LIMIT),
        aliases=tuple(dict.fromkeys(body.aliases or ())),
        links=tuple(body.links or ()),
        ipv4=(ipam.ipv4_address or "") if ipam else "",
        ipv6=(ipam.ipv6_address or "") if ipam else "",
        link_local=tuple(ipam.link_local_ips or ()) if ipam else (),
        mac=body.mac_address or "",
        priority=body.gw_priority or 0,
        options=dict(body.driver_opts or {}),
        configured=ipam is not None,
    )
    for what, address in (("IPv4", found.ipv4), ("IPv6", found.ipv6)):
        if address and _address(f"{what} address", address).version != int(what[3]):
            raise InvalidError(f"invalid {what} address: {address[:60]}")
    return found


def _address(what: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise InvalidError(f"invalid {what}: {text[:60]!r} is not an IP address") from None


def mode(body: CreateBody, host: HostConfig) -> str:
    """The network namespace asked for: ``""`` own, ``none``, ``host`` or ``container:REF``."""
    word = host.network_mode or ""
    if body.network_disabled:
        return NONE
    if word in _ALONE:
        return word
    if word.startswith("container:"):
        if len(word) == len("container:"):
            raise InvalidError("invalid container format container:<name|id>")
        _no_network_of_its_own(body, host)
        return "container:" + values.one_line("network", word[10:], limit=_LIMIT)
    return ""


def _no_network_of_its_own(body: CreateBody, host: HostConfig) -> None:
    """What makes no sense in another's network, in Docker's words."""
    for given, what in (
        (body.hostname, "hostname and the network mode"),
        (host.links, "container type network can't be used with links"),
        (host.dns, "dns and the network mode"),
        (host.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (body.mac_address, "mac-address and the network mode"),
        (
            any(host.port_bindings or {}) or host.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (body.exposed_ports, "port exposing and the container type network mode"),
    ):
        if given:
            raise InvalidError(f"conflicting options: {what}")


def wishes(body: CreateBody, host: HostConfig) -> tuple[NetworkWish, ...]:
    """The networks of a container with a network namespace of its own, the main one first."""
    word = host.network_mode or DEFAULT
    given: Mapping[str, EndpointBody | None] = (
        body.networking_config and body.networking_config.endpoints_config
    ) or {}
    if word in (DEFAULT, "bridge"):  # two names for one network
        given = {word if name in (DEFAULT, "bridge") else name: one for name, one in given.items()}
    if mode(body, host):
        others = [name for name in given if name != word]
        if others:
            raise InvalidError(
                "conflicting options: cannot attach both user-defined and non-user-defined"
                f" network-modes: {word} and {others[0][:80]}"
            )
        return ()
    main = wish(word, given.get(word))
    for link in host.links or ():
        values.one_line("link", link, limit=512)
    main = replace(
        main, mac=main.mac or body.mac_address or "", links=(*main.links, *(host.links or ()))
    )
    return main, *(wish(name, one) for name, one in given.items() if name != word)


def ports(
    bindings: Mapping[str, Sequence[Mapping[str, str | None]] | None] | None,
) -> tuple[PortWish, ...]:
    """``PortBindings``; InvalidError for what is no port, address or range."""
    found = []
    for name, entries in (bindings or {}).items():
        number, _, protocol = name.partition("/")
        protocol = (protocol or "tcp").lower()
        if protocol not in ("tcp", "udp", "sctp"):
            raise InvalidError(f"invalid port specification: {name[:40]!r}")
        port = _port(number, f"invalid port specification: {name[:40]!r}")
        for entry in entries or ({},):
            address = (entry.get("HostIp") or "").strip("[]")
            if address:
                address = str(_address("host address", address))
            found.append(
                PortWish(
                    container_port=port,
                    protocol=protocol,
                    host_address=address,
                    host_port=_host_port(entry.get("HostPort") or ""),
                )
            )
    if len(found) > _MOST_PORTS:
        raise InvalidError(f"{len(found)} ports are more than the {_MOST_PORTS} a container gets")
    return tuple(found)


def _host_port(text: str) -> str:
    if not text:
        return ""
    why = f"invalid port specification: {text[:40]!r}"
    low, dash, high = text.partition("-")
    first = _port(low, why, least=0)
    if not dash:
        return str(first)
    last = _port(high, why)
    if not 0 < first <= last:
        raise InvalidError(why)
    return f"{first}-{last}" if last != first else str(first)


def _port(text: str, why: str, *, least: int = 1) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 8 else -1
    if not least <= number <= 65_535:
        raise InvalidError(why)
    return number


# --- what is shown ----------------------------------------------------------------------------


def network(record: NetworkRecord, inhabitants: Iterable[tuple[Record, Joined]] = ()) -> Json:
    """A network as inspect and list show it."""
    spec = record.spec
    return {
        "Name": record.name,
        "Id": record.id,
        "Created": values.rfc3339(record.created_ns),
        "Scope": "local",
        "Driver": spec.driver,
        "EnableIPv4": spec.ipv4,
        "EnableIPv6": spec.ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": dict(spec.ipam_options) or None,
            "Config": [_pool(one) for one in spec.subnets],
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {
            container.id: {
                "Name": container.name,
                "EndpointID": joined.endpoint_id,
                "MacAddress": joined.mac,
                "IPv4Address": f"{joined.ipv4}/{joined.ipv4_length}" if joined.ipv4 else "",
                "IPv6Address": f"{joined.ipv6}/{joined.ipv6_length}" if joined.ipv6 else "",
            }
            for container, joined in inhabitants
        },
        "Options": dict(spec.options),
        "Labels": dict(spec.labels),
    }


def _pool(wish: SubnetWish) -> Json:
    found: Json = {"Subnet": wish.subnet}
    for key, value in (
        ("IPRange", wish.range),
        ("Gateway", wish.gateway),
        ("AuxiliaryAddresses", dict(wish.auxiliary)),
    ):
        if value:
            found[key] = value
    return found


def network_mode(spec: ContainerSpec) -> str:
    """``HostConfig.NetworkMode``: as asked for; the default network is ``bridge``."""
    if spec.namespaces.network:
        return spec.namespaces.network
    return spec.network_mode or ("bridge" if spec.networks else NONE)


def _linked(record: Record) -> bool:
    return record.alive or record.state is State.STARTING


def endpoint(joined: Joined, *, linked: bool) -> Json:
    """One of ``NetworkSettings.Networks``; *linked*: its addresses are in force."""
    wish = joined.wish
    ipam: Json | None = None
    if wish.configured or wish.ipv4 or wish.ipv6 or wish.link_local:
        pairs = (
            ("IPv4Address", wish.ipv4),
            ("IPv6Address", wish.ipv6),
            ("LinkLocalIPs", list(wish.link_local)),
        )
        ipam = {key: value for key, value in pairs if value}
    return {
        "IPAMConfig": ipam,
        "Links": list(wish.links) or None,
        "Aliases": list(wish.aliases) or None,
        "MacAddress": joined.mac if linked else "",
        "DriverOpts": dict(wish.options) or None,
        "GwPriority": wish.priority,
        "NetworkID": joined.network_id,
        "EndpointID": joined.endpoint_id if linked else "",
        "Gateway": joined.gateway if linked else "",
        "IPAddress": joined.ipv4 if linked else "",
        "IPPrefixLen": joined.ipv4_length if linked else 0,
        "IPv6Gateway": joined.ipv6_gateway if linked else "",
        "GlobalIPv6Address": joined.ipv6 if linked else "",
        "GlobalIPv6PrefixLen": joined.ipv6_length if linked else 0,
        "DNSNames": list(joined.names) or None,
    }


_NOWHERE: Final = NetworkWish(network="")


def networks(record: Record) -> Json:
    """``NetworkSettings.Networks``."""
    word = record.spec.namespaces.network
    if word in _ALONE or not (word or record.networks):
        empty = Joined(network_id="", network=word, wish=_NOWHERE)
        return {word or NONE: endpoint(empty, linked=False)}
    linked = _linked(record)
    return {joined.network: endpoint(joined, linked=linked) for joined in record.networks}


def port_map(record: Record) -> Json:
    """``NetworkSettings.Ports``: empty unless it runs; what is only exposed is ``null``."""
    if not _linked(record) or record.spec.namespaces.network:
        return {}
    found: dict[str, list[Json] | None] = dict.fromkeys(record.spec.exposed_ports)
    for joined in record.networks:
        for port in joined.ports:
            name = f"{port.container_port}/{port.protocol}"
            entries = found.get(name) or []
            entries.append({"HostIp": port.host_address, "HostPort": str(port.host_port)})
            found[name] = entries
    return dict(found)


def port_list(record: Record) -> list[Json]:
    """``Ports`` of the list of containers."""
    if not _linked(record) or record.spec.namespaces.network:
        return []
    found: list[Json] = []
    published = set()
    for joined in record.networks:
        for port in joined.ports:
            published.add(f"{port.container_port}/{port.protocol}")
            found.append(
                {
                    "IP": port.host_address,
                    "PrivatePort": port.container_port,
                    "PublicPort": port.host_port,
                    "Type": port.protocol,
                }
            )
    for name in record.spec.exposed_ports:
        if name not in published:
            number, _, protocol = name.partition("/")
            found.append({"PrivatePort": int(number), "Type": protocol})
    return found


def port_bindings(spec: ContainerSpec) -> Json:
    """``HostConfig.PortBindings``, as asked for."""
    found: dict[str, list[Json]] = {}
    for wish in spec.ports:
        entry: Json = {"HostIp": wish.host_address, "HostPort": wish.host_port}
        found.setdefault(f"{wish.container_port}/{wish.protocol}", []).append(entry)
    return dict(found)


def settings(record: Record) -> Json:
    """``NetworkSettings``."""
    linked = _linked(record)
    # The fields beside Networks are those of the default network, as Docker keeps them.
    default = next((j for j in record.networks if j.network == "bridge" and linked), None)
    return {
        "Bridge": "",
        "SandboxID": record.id if linked and not record.spec.namespaces.network else "",
        "SandboxKey": f"/proc/{record.pid}/ns/net" if record.alive and record.pid else "",
        "Ports": port_map(record),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": default.endpoint_id if default else "",
        "Gateway": default.gateway if default else "",
        "GlobalIPv6Address": default.ipv6 if default else "",
        "GlobalIPv6PrefixLen": default.ipv6_length if default else 0,
        "IPAddress": default.ipv4 if default else "",
        "IPPrefixLen": default.ipv4_length if default else 0,
        "IPv6Gateway": default.ipv6_gateway if default else "",
        "MacAddress": default.mac if default else "",
        "Networks": networks(record),
    }
