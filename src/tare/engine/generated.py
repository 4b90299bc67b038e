"""The files that an engine writes for a container: hosts, hostname, resolv.conf.

Values in, text out; `write` puts them into the workload's directory. They are bind-mounted by
run.plan.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Final

from tare.engine import name_table
from tare.errors import InvalidError
from tare.model.networking import BRIDGE, NetworkRecord
from tare.model.record import Record
from tare.model.spec import ContainerSpec

HOST_GATEWAY: Final = "host-gateway"
"""In --add-host: the host's address as the container sees it."""
_MOST_SERVERS: Final = 3  # resolv.conf(5), MAXNS
_HOSTS: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def hostname(spec: ContainerSpec, identity: str) -> str:
    """The container's host name: as asked, the host's own for ``--uts host``, else its id."""
    if spec.hostname:
        return spec.hostname
    if "host" in (spec.namespaces.uts, spec.namespaces.network):
        return os.uname().nodename
    return identity[:12]


def hosts(
    spec: ContainerSpec,
    *,
    base: str | None = None,
    name: str = "",
    addresses: Sequence[str] = (),
    gateway: str = "",
) -> str:
    """The text of /etc/hosts; *base* is the host's, for ``--network host``.

    With a network of its own a container finds its own *name* there: programs look it up. It is
    at its *addresses*, or without any on its loopback. *gateway* is what ``host-gateway`` means.
    """
    lines = [base if base is not None else _HOSTS]
    if base is None and name:
        full = f"{name}.{spec.domainname}\t{name}" if spec.domainname else name
        lines += [f"{address}\t{full}\n" for address in addresses or ("127.0.0.1",)]
    for entry in spec.extra_hosts:
        other, address = split_host(entry)
        if address == HOST_GATEWAY:
            address = gateway or ("127.0.0.1" if base is not None else "")
        if address:
            lines.append(f"{address}\t{other}\n")
    return "".join(lines)


def split_host(entry: str) -> tuple[str, str]:
    """``NAME:ADDRESS`` or ``NAME=ADDRESS`` of --add-host, checked; may be `HOST_GATEWAY`."""
    name, _, address = entry.partition("=") if "=" in entry else entry.partition(":")
    if not name or any(c.isspace() or c == "#" for c in name):
        raise InvalidError(f"bad format for add-host: {entry[:80]!r}")
    if address == HOST_GATEWAY:
        return name, HOST_GATEWAY
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise InvalidError(f"invalid IP address in add-host: {address[:80]!r}") from None
    return name, str(parsed)


def resolv_conf(spec: ContainerSpec, base: str) -> str:
    """The text of /etc/resolv.conf: the host's (*base*), with what was asked for instead."""
    if not (spec.dns or spec.dns_search or spec.dns_options):
        return base
    kept = {"nameserver": spec.dns, "search": spec.dns_search, "options": spec.dns_options}
    lines = []
    for line in base.splitlines():
        words = line.split()
        key = "search" if words[:1] == ["domain"] else (words[0] if words else "")
        if not kept.get(key):
            lines.append(line)
    lines += [f"nameserver {address}" for address in spec.dns]
    search = [domain for domain in spec.dns_search if domain != "."]
    if search:
        lines.append("search " + " ".join(search))
    if spec.dns_options:
        lines.append("options " + " ".join(spec.dns_options))
    return "\n".join(lines) + "\n"


def write(directory: str, spec: ContainerSpec, identity: str) -> None:
    """Write the three files below *directory*; an older container's are overwritten."""
    name = hostname(spec, identity)
    base = _read("/etc/hosts") if spec.namespaces.network == "host" else None
    _put(f"{directory}/hosts", hosts(spec, base=base, name=name))
    _put(f"{directory}/hostname", name + "\n")
    _put(f"{directory}/resolv.conf", resolv_conf(spec, _read("/etc/resolv.conf")))


def write_linked(directory: str, record: Record, networks: Mapping[str, NetworkRecord]) -> None:
    """Write them for a container in *networks* (by id), with its addresses of now."""
    spec, places = record.spec, record.networks
    gateway = next((p.gateway or p.ipv6_gateway for p in places if p.default_route), "")
    text = hosts(
        spec,
        name=hostname(spec, record.id),
        addresses=[address for place in places for address in place.addresses],
        gateway=gateway,
    )
    _put(f"{directory}/hosts", text)
    _put(f"{directory}/hostname", hostname(spec, record.id) + "\n")
    known = [networks[place.network_id] for place in places if place.network_id in networks]
    _put(f"{directory}/resolv.conf", linked_resolv_conf(spec, known, _read("/etc/resolv.conf")))


def linked_resolv_conf(spec: ContainerSpec, networks: Sequence[NetworkRecord], base: str) -> str:
    """The text of /etc/resolv.conf in *networks*, the preferred first; *base* is the host's.

    Where names are answered the engine's own server is asked, and it asks the others. In the
    default network they are asked directly, unless they are on the host's loopback.
    """
    named = [one for one in networks if name_table.serves(one) and one.name != BRIDGE]
    if named:
        # One address each: a server of the first network knows the names of all of them.
        servers = [found[0] for found in map(name_table.servers_of, named) if found]
    else:
        servers = list(spec.dns) or host_servers(base)
        if not servers:
            servers = [s for one in networks for s in name_table.servers_of(one)]
    search = spec.dns_search or tuple(_words(base, "search") or _words(base, "domain"))
    options = list(spec.dns_options or _words(base, "options"))
    if named and not any(option.startswith("ndots:") for option in options):
        # A container's name has no dot: it must be asked as it is, before any search domain.
        options.append("ndots:0")
    lines = [f"nameserver {server}" for server in servers[:_MOST_SERVERS]]
    domains = [domain for domain in search if domain != "."]
    if domains:
        lines.append("search " + " ".join(domains))
    if options:
        lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def host_servers(base: str | None = None) -> list[str]:
    """The host's name servers that a container can ask itself: those not on the loopback."""
    text = _read("/etc/resolv.conf") if base is None else base
    return [server for server in _words(text, "nameserver") if not _local(server)]


def copy(source: str, directory: str) -> None:
    """Give a container the names that another knows, whose network it is in."""
    for name in ("hosts", "resolv.conf"):
        _put(f"{directory}/{name}", _read(f"{source}/{name}"))


def _words(text: str, key: str) -> list[str]:
    """The words of all lines of a resolv.conf that begin with *key*."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == [key]:
            found += words[1:2] if key == "nameserver" else words[1:]
    return found


def _local(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return True  # no address at all: of no use to a container


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def remove(directory: str) -> None:
    """Remove the files of a container; none there is no error."""
    shutil.rmtree(directory, ignore_errors=True)


def _put(path: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, text.encode())
        os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fchmod(descriptor, 0o644)
    finally:
        os.close(descriptor)
