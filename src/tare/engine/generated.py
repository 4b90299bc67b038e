"""The files that an engine writes for a container: hosts, hostname, resolv.conf.

Values in, text out; `write` puts them into the workload's directory. They are bind-mounted by
run.plan.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.model.spec import ContainerSpec

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


def hosts(spec: ContainerSpec, *, base: str | None = None, name: str = "") -> str:
    """The text of /etc/hosts; *base* is the host's, for ``--network host``.

    With a network of its own a container finds its own *name* there: programs look it up.
    """
    lines = [base if base is not None else _HOSTS]
    if base is None and name:
        full = f"{name}.{spec.domainname}\t{name}" if spec.domainname else name
        lines.append(f"127.0.0.1\t{full}\n")
    for entry in spec.extra_hosts:
        other, address = split_host(entry)
        lines.append(f"{address}\t{other}\n")
    return "".join(lines)


def split_host(entry: str) -> tuple[str, str]:
    """``NAME:ADDRESS`` or ``NAME=ADDRESS`` of --add-host, checked."""
    name, _, address = entry.partition("=") if "=" in entry else entry.partition(":")
    if address == "host-gateway":
        raise UnsupportedError(
            "host-gateway needs a bridge network, which this engine does not have yet"
        )
    try:
        parsed = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise InvalidError(f"invalid IP address in add-host: {address[:80]!r}") from None
    if not name or any(c.isspace() or c == "#" for c in name):
        raise InvalidError(f"bad format for add-host: {entry[:80]!r}")
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


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _put(path: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, text.encode())
        os.fchown(descriptor, os.geteuid(), os.getegid())  # of a directory used again
        os.fchmod(descriptor, 0o644)
    finally:
        os.close(descriptor)
