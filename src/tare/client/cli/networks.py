"""network: create, ls, inspect, rm, connect, disconnect, prune."""

from __future__ import annotations

from tare.client import document
from tare.client.cli.each import confirmed, for_each
from tare.client.cli.inspect import print_each
from tare.client.cli.ps import filters
from tare.client.document import text
from tare.client.options import Command, Flags
from tare.client.runspec import endpoint, pairs
from tare.client.tables import render, say, warn, write_out
from tare.client.transport import Daemon, segment, target
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

HEADERS = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
    "Subnets": "SUBNETS",
}


def _create(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    body: dict[str, Json] = {
        "Name": arguments[0],
        "Driver": flags.text("driver", "bridge"),
        "Internal": flags.flag("internal"),
        "Attachable": flags.flag("attachable"),
        "Options": dict(pairs(flags.list("opt"))),
        "Labels": dict(pairs(flags.list("label"))),
        "IPAM": {
            "Driver": flags.text("ipam-driver", "default"),
            "Options": dict(pairs(flags.list("ipam-opt"))),
            "Config": _pools(flags),
        },
    }
    for name, key in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if flags.given(name):
            body[key] = flags.flag(name)
    answer = daemon.call("POST", "/networks/create", body)
    if text(answer, "Warning"):
        warn(f"WARNING: {text(answer, 'Warning')}")
    say(text(answer, "Id"))
    return 0


def _pools(flags: Flags) -> list[Json]:
    """Subnets, each with the gateway, range and addresses in it; the daemon checks the rest."""
    from ipaddress import ip_address, ip_network

    pools: list[dict[str, Json]] = [{"Subnet": word} for word in flags.list("subnet")]

    def of(what: str, word: str) -> dict[str, Json]:
        try:
            wanted = ip_address(word.partition("/")[0])
            for pool in pools:
                subnet = ip_network(str(pool["Subnet"]), strict=False)
                if subnet.version == wanted.version and wanted in subnet:
                    return pool
        except ValueError as error:
            raise InvalidError(f"invalid {what} {word!r}: {error}") from None
        raise InvalidError(
            f"no matching subnet for {what} {word}", hint="Name its subnet with --subnet."
        )

    for option, key in (("gateway", "Gateway"), ("ip-range", "IPRange")):
        for word in flags.list(option):
            pool = of(option, word)
            if key in pool:
                raise InvalidError(f"there are two of --{option} in the subnet {pool['Subnet']}")
            pool[key] = word
    for word in flags.list("aux-address"):
        name, equals, address = word.partition("=")
        if not equals:
            raise InvalidError(f"invalid --aux-address: {word!r}", hint="Write NAME=ADDRESS.")
        known = of("auxiliary address", address).setdefault("AuxiliaryAddresses", {})
        assert isinstance(known, dict)
        known[name] = address
    return [*pools]


def _row(each: Json, *, whole: bool) -> dict[str, str]:
    labels = document.mapping(each, "Labels")
    identity = text(each, "Id")
    subnets = [text(pool, "Subnet") for pool in document.items(each, "IPAM", "Config")]

    def truth(key: str) -> str:
        return "true" if document.field(each, key) is True else "false"

    return {
        "ID": identity if whole else identity[:12],
        "Name": text(each, "Name"),
        "Driver": text(each, "Driver"),
        "Scope": text(each, "Scope"),
        "IPv4": truth("EnableIPv4"),
        "IPv6": truth("EnableIPv6"),
        "Internal": truth("Internal"),
        "Labels": ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
        "CreatedAt": text(each, "Created"),
        "Subnets": ",".join(subnets),
    }


def _ls(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    query = {"filters": filters(flags.list("filter"))}
    found = document.items(daemon.call("GET", target("/networks", query)))
    whole = flags.flag("no-trunc")
    rows = [_row(each, whole=whole) for each in found]
    if flags.flag("quiet") and not flags.text("format"):
        write_out("".join(f"{row['ID']}\n" for row in rows).encode())
        return 0
    columns = ("ID", "Name", "Driver", "Scope", "Subnets")
    write_out(render(flags.text("format"), columns, HEADERS, rows).encode("utf-8", "replace"))
    return 0


def _inspect(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    return print_each(flags, names, lambda name: daemon.call("GET", f"/networks/{segment(name)}"))


def _rm(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    force = flags.flag("force")

    def deed(name: str) -> str | None:
        from tare.errors import MissingError

        try:
            daemon.call("DELETE", f"/networks/{segment(name)}")
        except MissingError:
            if force:
                return None
            raise
        return name

    return for_each(names, deed)


def _connect(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    network, container = arguments
    wanted = endpoint(
        aliases=flags.list("alias"),
        links=flags.list("link"),
        addresses={"IPv4Address": flags.text("ip"), "IPv6Address": flags.text("ip6")},
        link_local=flags.list("link-local-ip"),
        priority=flags.number("gw-priority"),
        options=dict(pairs(flags.list("driver-opt"))),
    )
    body: dict[str, Json] = {"Container": container, "EndpointConfig": wanted}
    daemon.call("POST", f"/networks/{segment(network)}/connect", body)
    return 0


def _disconnect(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    network, container = arguments
    body: dict[str, Json] = {"Container": container, "Force": flags.flag("force")}
    daemon.call("POST", f"/networks/{segment(network)}/disconnect", body)
    return 0


def prune(daemon: Daemon, words: list[str], *, dry: bool = False) -> None:
    """Remove networks that no container is to be in, and say which; *dry* only says it."""
    query: dict[str, str | int | bool] = {"filters": filters(words), "dry-run": dry}
    answer = daemon.call("POST", target("/networks/prune", query))
    deleted = document.strings(answer, "NetworksDeleted")
    if deleted:
        say(
            ("Networks that would go:\n" if dry else "Deleted Networks:\n")
            + "\n".join(deleted)
            + "\n"
        )


def _prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    dry = flags.flag("dry-run")
    if not (dry or flags.flag("force")) and not confirmed(
        "WARNING! This will remove all custom networks not used by at least one container."
    ):
        say("Nothing was removed.")
        return 1
    prune(daemon, flags.list("filter"), dry=dry)
    return 0


COMMANDS = {
    "network create": Command(
        "[OPTIONS] NETWORK",
        "Make a network",
        _create,
        {
            "attachable": ("", "bool", "Accepted for Docker's sake; every network is"),
            "aux-address": ("", "list", "NAME=ADDRESS that no container gets (repeated)"),
            "driver": ("d", "string", "bridge (default) or macvlan"),
            "gateway": ("", "list", "The host's address in a subnet (repeated)"),
            "internal": ("", "bool", "No way out of it, and no ports into it"),
            "ip-range": ("", "list", "Addresses are given out from this part of a subnet"),
            "ipam-driver": ("", "string", 'Accepted for Docker\'s sake: "default"'),
            "ipam-opt": ("", "map", "Option of the address management"),
            "ipv4": ("", "bool", "Give IPv4 addresses (default true)"),
            "ipv6": ("", "bool", "Give IPv6 addresses, too"),
            "label": ("", "list", "A label of it: NAME=VALUE (repeated)"),
            "opt": ("o", "map", "Option of the driver (repeated)"),
            "subnet": ("", "list", "A subnet such as 10.77.0.0/24 (repeated)"),
        },
        least=1,
        most=1,
        notes=(
            "Options of the driver bridge:\n"
            "  com.docker.network.bridge.name=NAME       name of the interface on the host\n"
            "  com.docker.network.bridge.enable_icc=false\n"
            "                                            its containers do not reach each other\n"
            "  com.docker.network.bridge.enable_ip_masquerade=false\n"
            "                                            they go out with their own addresses\n"
            "  com.docker.network.bridge.host_binding_ipv4=ADDRESS\n"
            "                                            where ports without an address go\n"
            "  com.docker.network.driver.mtu=1400\n"
            "  tare.host-access=true                     they reach services of this host\n"
            "Options of the driver macvlan: parent=INTERFACE, macvlan_mode=bridge"
        ),
    ),
    "network ls": Command(
        "[OPTIONS]",
        "List networks",
        _ls,
        {
            "filter": ("f", "filter", "Only those for which NAME=VALUE (driver=bridge, label=a)"),
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template"),
            "no-trunc": ("", "bool", "Do not shorten"),
            "quiet": ("q", "bool", "Ids only"),
        },
        most=0,
    ),
    "network inspect": Command(
        "[OPTIONS] NETWORK [NETWORK...]",
        "Show all details of networks",
        _inspect,
        {
            "format": ("f", "string", "Print by 'json' or a Go template"),
            "verbose": ("v", "bool", "Accepted for Docker's sake"),
        },
        least=1,
    ),
    "network rm": Command(
        "NETWORK [NETWORK...]",
        "Remove networks",
        _rm,
        {"force": ("f", "bool", "One that is not there is no error")},
        least=1,
    ),
    "network connect": Command(
        "[OPTIONS] NETWORK CONTAINER",
        "Put a container into a network",
        _connect,
        {
            "alias": ("", "list", "Further name in the network (repeated)"),
            "driver-opt": ("", "map", "Option of the driver"),
            "gw-priority": ("", "int", "The network with the highest is the way out"),
            "ip": ("", "string", "IPv4 address"),
            "ip6": ("", "string", "IPv6 address"),
            "link": ("", "list", "Another container by a name of its own: NAME:ALIAS"),
            "link-local-ip": ("", "list", "Link-local address"),
        },
        least=2,
        most=2,
    ),
    "network disconnect": Command(
        "[OPTIONS] NETWORK CONTAINER",
        "Take a container out of a network",
        _disconnect,
        {"force": ("f", "bool", "Also when its ports are published there")},
        least=2,
        most=2,
    ),
    "network prune": Command(
        "[OPTIONS]",
        "Remove all networks that no container is to be in",
        _prune,
        {
            "dry-run": ("n", "bool", "Only say what would go"),
            "filter": ("", "filter", "Only those for which NAME=VALUE (label=a=b, until=24h)"),
            "force": ("f", "bool", "Do not ask"),
        },
        most=0,
    ),
}
