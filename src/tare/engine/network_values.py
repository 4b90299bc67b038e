"""Records of networks to what `tare.network` works with, and driver options to what they mean.

Pure. Not for: which networks there are (engine.networks), or who is in them
(engine.attachments).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

from tare.errors import InvalidError
from tare.model.networking import Joined, NetworkRecord, NetworkSpec, SubnetWish
from tare.network.values import (
    LONGEST_INTERFACE_NAME,
    Address,
    Driver,
    Endpoint,
    Network,
    Port,
    Prefix,
    Protocol,
    Subnet,
    link_name,
)

_BRIDGE: Final = "com.docker.network.bridge."
NAME_OPTION: Final = _BRIDGE + "name"
ICC_OPTION: Final = _BRIDGE + "enable_icc"
MASQUERADE_OPTION: Final = _BRIDGE + "enable_ip_masquerade"
BINDING_OPTION: Final = _BRIDGE + "host_binding_ipv4"
MTU_OPTION: Final = "com.docker.network.driver.mtu"
PARENT_OPTION: Final = "parent"
MACVLAN_MODE_OPTION: Final = "macvlan_mode"
PREFIX_OPTION: Final = "com.docker.network.container_iface_prefix"
HOST_ACCESS_OPTION: Final = "tare.host-access"
_DEFAULT_OPTION: Final = _BRIDGE + "default_bridge"
_GATEWAY_MODES: Final = tuple(f"{_BRIDGE}gateway_mode_ipv{n}" for n in (4, 6))
KNOWN_OPTIONS: Final = frozenset(
    (
        NAME_OPTION, ICC_OPTION, MASQUERADE_OPTION, BINDING_OPTION, MTU_OPTION, PARENT_OPTION,
        MACVLAN_MODE_OPTION, PREFIX_OPTION, HOST_ACCESS_OPTION, _DEFAULT_OPTION, *_GATEWAY_MODES,
    )
)  # fmt: skip
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PREFIX_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,8}")
_TRUE: Final = frozenset(("1", "t", "true", "yes", "on"))
_FALSE: Final = frozenset(("0", "f", "false", "no", "off"))
_MTU_LEAST, _MTU_LEAST_IPV6, _MTU_MOST = 68, 1280, 65_535
DEFAULT_MTU: Final = 1500


def flag(options: Mapping[str, str], name: str, default: bool) -> bool:
    """A driver option that is true or false, as Go reads it; InvalidError for another word."""
    text = options.get(name, "").lower()
    if not text:
        return default
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise InvalidError(f"invalid value {text[:40]!r} of {name}: it is true or false")


def mtu(spec: NetworkSpec) -> int:
    """The network's MTU; InvalidError when it cannot be one."""
    text = spec.options.get(MTU_OPTION, "")
    if not text:
        return DEFAULT_MTU
    least = _MTU_LEAST_IPV6 if spec.ipv6 else _MTU_LEAST
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1
    if value == 0:
        return DEFAULT_MTU
    if not least <= value <= _MTU_MOST:
        raise InvalidError(f"invalid MTU {text[:20]!r}: it is {least} to {_MTU_MOST}")
    return value


def interface_name(text: str) -> str:
    """*text* if an interface may be called so; InvalidError otherwise."""
    if len(text) > LONGEST_INTERFACE_NAME or not _INTERFACE.fullmatch(text):
        raise InvalidError(
            f"invalid interface name {text[:40]!r}",
            hint=f"at most {LONGEST_INTERFACE_NAME} letters, digits, '-', '_' and '.'",
        )
    return text


def inner_prefix(options: Mapping[str, str]) -> str:
    """What the names of interfaces inside begin with: ``eth``."""
    text = options.get(PREFIX_OPTION, "") or "eth"
    if not _PREFIX_NAME.fullmatch(text):
        raise InvalidError(f"invalid interface prefix {text[:40]!r}: letters and digits only")
    return text


def parsed(what: str, text: str) -> Address:
    """The address *text* says; InvalidError with *what* it was to be."""
    try:
        return ip_address(text)
    except ValueError:
        raise InvalidError(f"invalid {what}: {text[:60]!r} is not an IP address") from None


def prefix(what: str, text: str) -> Prefix:
    """The network *text* says, its host bits empty; InvalidError with *what* it was to be."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        proper = ip_network(text, strict=False)
    except ValueError:
        raise InvalidError(f"invalid {what}: {text[:60]!r} is not like 10.77.0.0/24") from None
    raise InvalidError(f"invalid {what} {text[:60]}: it should be {proper}")


def subnet(wish: SubnetWish) -> Subnet:
    """A subnet as asked for, its parts of one family; InvalidError."""
    base = prefix("subnet", wish.subnet)
    narrower = prefix("range", wish.range) if wish.range else None
    gateway = parsed("gateway", wish.gateway.partition("/")[0]) if wish.gateway else None
    reserved = tuple((n, parsed("auxiliary address", a)) for n, a in wish.auxiliary.items())
    for one in (narrower, gateway, *(address for _, address in reserved)):
        if one is not None and one.version != base.version:
            raise InvalidError(f"{one} does not belong to the subnet {base}")
    return Subnet(prefix=base, gateway=gateway, range=narrower, reserved=reserved)


def recorded(found: Subnet, wish: SubnetWish) -> SubnetWish:
    """*found* as it is kept: *wish* with what was chosen."""
    return SubnetWish(
        subnet=str(found.prefix),
        range=wish.range,
        gateway=str(found.gateway) if found.gateway is not None else "",
        auxiliary=wish.auxiliary,
    )


def network(record: NetworkRecord) -> Network:
    """What `tare.network` makes of a record; only of bridges and macvlans."""
    spec = record.spec
    return Network(
        id=record.id,
        name=spec.name,
        interface=record.interface,
        driver=Driver(spec.driver),
        subnets=tuple(subnet(wish) for wish in spec.subnets),
        ipv6=spec.ipv6,
        internal=spec.internal,
        isolated=not flag(spec.options, ICC_OPTION, True),
        masquerade=flag(spec.options, MASQUERADE_OPTION, True),
        host_access=flag(spec.options, HOST_ACCESS_OPTION, False),
        attachable=spec.attachable,
        mtu=mtu(spec),
        options=dict(spec.options),
        labels=dict(spec.labels),
        created_ns=record.created_ns,
    )


def endpoint(tag: str, container: str, joined: Joined, rate: int | None) -> Endpoint:
    """What `tare.network` makes of one container's place in one network."""
    pairs = ((joined.ipv4, joined.ipv4_length), (joined.ipv6, joined.ipv6_length))
    return Endpoint(
        network_id=joined.network_id,
        container_id=container,
        host_interface=link_name(tag, container, joined.network_id),
        mac=joined.mac,
        addresses=tuple(
            ip_interface(f"{address}/{length}") for address, length in pairs if address
        ),
        interface=joined.interface,
        aliases=joined.wish.aliases,
        default_route=joined.default_route,
        rate=rate,
        ports=tuple(
            Port(
                host_address=ip_address(port.host_address),
                host_port=port.host_port,
                container_port=port.container_port,
                protocol=Protocol(port.protocol),
            )
            for port in joined.ports
        ),
    )


def mac(text: str) -> str:
    """A MAC address in the usual form; InvalidError for one that no interface may have."""
    parts = re.split("[:-]", text)
    try:
        octets = [int(part, 16) for part in parts if re.fullmatch("[0-9A-Fa-f]{2}", part)]
    except ValueError:  # pragma: no cover - the pattern lets only hexadecimal digits through
        octets = []
    if len(octets) != 6 or len(parts) != 6:
        raise InvalidError(f"invalid MAC address {text[:40]!r}", hint="like 02:42:ac:11:00:05")
    if octets[0] & 1 or not any(octets):
        raise InvalidError(f"invalid MAC address {text[:40]}: it is not one of a single interface")
    return ":".join(f"{octet:02x}" for octet in octets)


def is_ipv6(text: str) -> bool:
    """Whether an address or prefix is of IPv6."""
    return ":" in text


def loopback(text: str) -> bool:
    """Whether an address means the host it is used on."""
    return ipaddress.ip_address(text).is_loopback
