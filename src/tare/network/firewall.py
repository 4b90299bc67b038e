"""The packet filter: all of it wanted at any time, loaded in one transaction, and kept so.

An engine has two nftables tables of its name and touches nothing else. `ruleset` is the whole as
text; its rules are always the same, and what differs is in sets (`elements`). `Firewall` loads
it with nft(8), changes elements by netlink when containers come and go, and notices when
somebody else changes its tables (a firewall's reload, ``nft flush ruleset``).

What the rules are for, and why at these hooks: docs/adr/0012. In short:

1. A frame from a container's link enters only with that container's MAC and IP addresses; no
   router advertisements, no answers for others' addresses (bridge table; attack A41, A42).
2. A published port is translated, for packets from outside and for the host's own, on
   127.0.0.1 and ::1 too; what comes from outside *to* a loopback address never is (A40).
3. Between networks, and from outside to what is not published, nothing passes (A40, A41).
4. A container reaches the host's name server, and nothing else that listens there, unless its
   network says so (A43).
5. What leaves a network is masqueraded.

Not for: bridges (`bridge`), or which ports are free (`ports`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tare.errors import FailedError, UnsupportedError
from tare.kernel import nfnetlink
from tare.kernel.conntrack import Tracking
from tare.kernel.nfnetlink import Element, PacketFilter, Watch
from tare.network import elements
from tare.network.elements import Entry
from tare.network.values import Endpoint, Network, Protocol, link_prefix, table_name

_TIMEOUT: Final = 30.0
_FLOOD: Final = 2000
"""Broadcast and multicast frames a second from one container; more are dropped."""

_SETS: Final = {
    "bridges": "type ifname;",
    "same": "type ifname . ifname;",
    "internal": "type ifname;",
    "hosts": "type ifname;",
    "gateways4": "type ifname . ipv4_addr;",
    "gateways6": "type ifname . ipv6_addr;",
    "nets4": "type ipv4_addr; flags interval;",
    "nets6": "type ipv6_addr; flags interval;",
    "leave4": "type ipv4_addr; flags interval;",
    "leave6": "type ipv6_addr; flags interval;",
    "at4": "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
    "at6": "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;",
    "any4": "type inet_proto . inet_service : ipv4_addr . inet_service;",
    "any6": "type inet_proto . inet_service : ipv6_addr . inet_service;",
    "speak4": "type ifname . ether_addr . ipv4_addr;",
    "speak6": "type ifname . ether_addr . ipv6_addr;",
    "advert6": "typeof iifname . @th,64,128;",
}

_INET_RULES: Final = """
  chain raw {
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
    iifname != "lo" ip6 daddr ::1 drop
  }
  chain arriving {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr != 127.0.0.0/8 dnat ip to ip daddr . meta l4proto . th dport map @at4
    ip6 daddr != ::1 dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6
    ip daddr != 127.0.0.0/8 fib daddr type local dnat ip to meta l4proto . th dport map @any4
    ip6 daddr != ::1 fib daddr type local dnat ip6 to meta l4proto . th dport map @any6
  }
  chain own {
    type nat hook output priority -100; policy accept;
    dnat ip to ip daddr . meta l4proto . th dport map @at4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @at6
    fib daddr type local dnat ip to meta l4proto . th dport map @any4
    fib daddr type local dnat ip6 to meta l4proto . th dport map @any6
  }
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    oifname @bridges goto inwards
    ip saddr @leave4 oifname != "lo" masquerade
    ip6 saddr @leave6 oifname != "lo" masquerade
  }
  chain inwards {
    ip saddr 127.0.0.0/8 masquerade
    ip6 saddr ::1 masquerade
    ct status dnat ip saddr @nets4 masquerade
    ct status dnat ip6 saddr @nets6 masquerade
  }
  chain passing {
    type filter hook forward priority filter; policy accept;
    iifname @bridges goto out
    oifname @bridges goto in
  }
  chain out {
    iifname . oifname @same accept
    iifname @internal drop
    oifname @internal drop
    ct state established,related accept
    oifname @bridges ct status dnat accept
    oifname @bridges drop
    accept
  }
  chain in {
    oifname @internal drop
    ct state established,related accept
    ct status dnat accept
    drop
  }
  chain host {
    type filter hook input priority filter; policy accept;
    iifname @bridges goto services
  }
  chain services {
    ct state established,related accept
    iifname @hosts accept
    iifname . ip daddr @gateways4 meta l4proto { tcp, udp } th dport 53 accept
    iifname . ip6 daddr @gateways6 meta l4proto { tcp, udp } th dport 53 accept
    icmp type echo-request accept
    icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept
    meta l4proto { tcp, udp } reject with icmpx admin-prohibited
    drop
  }
"""

_BRIDGE_RULES: Final = """
  chain entering {
    type filter hook prerouting priority -300; policy accept;
    iifname "LINKS*" goto link
  }
  chain link {
    meta pkttype { broadcast, multicast } add @flood { iifname limit rate over FLOOD/second } drop
    ether type ip goto four
    ether type ip6 goto six
    ether type arp iifname . ether saddr . arp saddr ip @speak4 iifname . arp saddr ether . arp saddr ip @speak4 accept
    ether type arp arp operation request arp saddr ip 0.0.0.0 accept
    drop
  }
  chain four {
    udp sport 67 udp dport 68 drop
    iifname . ether saddr . ip saddr @speak4 accept
    drop
  }
  chain six {
    icmpv6 type { nd-router-advert, nd-redirect } drop
    udp sport 547 udp dport 546 drop
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @advert6 drop
    iifname . ether saddr . ip6 saddr @speak6 accept
    ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld-listener-report, mld2-listener-report } accept
    drop
  }
"""  # noqa: E501  # nft's statements


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that the tables are made from; `Endpoint.ports` are what is published."""

    networks: tuple[Network, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()

    def entries(self) -> list[Entry]:
        """Every element of every set."""
        found = []
        for network in self.networks:
            found += elements.of_network(network)
        for endpoint in self.endpoints:
            found += elements.of_endpoint(endpoint)
        return found


def ruleset(tag: str, wanted: Wanted) -> str:
    """The transaction for ``nft -f -`` that replaces the tables of the engine *tag*. Pure."""
    return _ruleset(tag, wanted.entries())


def _ruleset(tag: str, entries: list[Entry]) -> str:
    table = table_name(tag)
    texts = elements.sets(entries)
    lines = []
    for family, names, rules in (
        ("inet", elements.INET_SETS, _INET_RULES),
        ("bridge", elements.BRIDGE_SETS, _BRIDGE_RULES),
    ):
        # Deleting what is not there fails, so it is made first.
        lines += [f"add table {family} {table}", f"delete table {family} {table}"]
        lines.append(f"table {family} {table} {{")
        for name in names:
            kind = "map" if " : " in _SETS[name] else "set"
            members = ", ".join(texts.get((family, name), ()))
            filled = f" elements = {{ {members} }}" if members else ""
            lines.append(f"  {kind} {name} {{ {_SETS[name]}{filled} }}")
        if family == "bridge":
            lines.append("  set flood { type ifname; size 8192; flags dynamic; timeout 1m; }")
            rules = rules.replace("LINKS", link_prefix(tag)).replace("FLOOD", str(_FLOOD))
        lines += [rules, "}"]
    return "\n".join(lines) + "\n"


def foreign_walls(hook: str) -> list[str]:
    """Tables of others that keep out what they do not know at *hook*, ``input`` or ``forward``.

    By the policy of a chain, or because it is firewalld, whose last rule refuses. What the old
    iptables (legacy) holds is not seen here.
    """
    program = shutil.which("nft", path=_PATH)
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "-j", "list", "chains"], capture_output=True, check=False, timeout=_TIMEOUT
        )
        chains = [one["chain"] for one in json.loads(done.stdout)["nftables"] if "chain" in one]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    found = {
        f"{chain['family']} {chain['table']}"
        for chain in chains
        if chain.get("hook") == hook
        and chain["family"] in ("ip", "ip6", "inet")
        and not chain["table"].startswith("tare_")
        and (chain.get("policy") == "drop" or chain["table"] == "firewalld")
    }
    return sorted(found)


def unavailable() -> str:
    """Why there can be no packet filter here, in one sentence; or ``""``."""
    if shutil.which("nft", path=_PATH) is None:
        return "nft(8) is not installed, which networks, their way out and published ports need"
    if os.geteuid() != 0:
        return "the packet filter needs an engine that runs as root"
    return ""


_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin"


def sweep(tag: str) -> None:
    """Delete what is left of the tables of the engine *tag*; no nft runs when there are none."""
    table = table_name(tag)
    try:
        kernel = PacketFilter()
    except OSError:
        return  # a host without nftables has no tables
    with contextlib.closing(kernel):
        families = [f for f in ("inet", "bridge") if kernel.shape(nfnetlink.FAMILIES[f], table)]
    if families:
        _load("".join(f"delete table {family} {table}\n" for family in families))


class Firewall:
    """The tables of the engine *tag* in the calling process's network namespace.

    `replace` and `restore` run nft (tens of ms: call them in a thread); the others speak to the
    kernel directly and take well below a millisecond. UnsupportedError says what is missing.
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._table = table_name(tag)
        self._entries: dict[str, list[Entry]] = {}  # by network id or host interface
        self._owner: dict[str, str] = {}  # host interface -> network id
        self._holder: dict[tuple[str, str, str], str] = {}  # who an element is there for
        self._lock = threading.RLock()
        self._ours: deque[int] = deque(maxlen=64)
        self._shape: tuple[bytes, ...] | None = None
        try:
            self._filter = PacketFilter()
            self._watch = Watch()
        except OSError as error:
            raise UnsupportedError(f"this host has no nftables: {error.strerror}") from error

    # --- the whole ----------------------------------------------------------------------------

    def replace(self, wanted: Wanted) -> None:
        """Make the tables be exactly *wanted*, in one transaction."""
        with self._lock:
            self._entries = {n.id: elements.of_network(n) for n in wanted.networks}
            self._owner = {e.host_interface: e.network_id for e in wanted.endpoints}
            for endpoint in wanted.endpoints:
                self._entries[endpoint.host_interface] = elements.of_endpoint(endpoint)
            self._holder = {e.identity: k for k, found in self._entries.items() for e in found}
            self.restore()

    def restore(self) -> None:
        """Write the wanted state again, whatever is there."""
        with self._lock:
            self._ours.append(_load(_ruleset(self._tag, self._all())))
            self._shape = self._look()

    def _all(self) -> list[Entry]:
        return [
            entry
            for key, entries in self._entries.items()
            for entry in entries
            if self._holder.get(entry.identity) == key
        ]

    # --- one change ---------------------------------------------------------------------------

    def add_network(self, network: Network) -> None:
        """One more network, or one that has changed."""
        with self._lock:
            self._exchange(network.id, elements.of_network(network))

    def remove_network(self, network_id: str) -> None:
        """Forget a network and the endpoints in it; nothing happens when it is not there."""
        with self._lock:
            for link in [link for link, owner in self._owner.items() if owner == network_id]:
                del self._owner[link]
                self._exchange(link, [])
            self._exchange(network_id, [])

    def add(self, endpoint: Endpoint) -> None:
        """Let a container's link speak, and publish its ports: before its program starts."""
        with self._lock:
            entries = elements.of_endpoint(endpoint)
            self._owner[endpoint.host_interface] = endpoint.network_id
            self._exchange(endpoint.host_interface, entries)
            _redirect_datagrams(endpoint)

    def remove(self, endpoint: Endpoint) -> None:
        """Forget it again; nothing happens when it is not there."""
        with self._lock:
            self._owner.pop(endpoint.host_interface, None)
            self._exchange(endpoint.host_interface, [])
            _redirect_datagrams(endpoint)

    def _exchange(self, key: str, entries: list[Entry]) -> None:
        """What *key* stands for becomes *entries*; written whole if the tables are not there.

        What somebody else holds by now (the port of one that has ended) is not taken from him.
        """
        new = {entry.identity: entry for entry in entries}
        old = {entry.identity: entry for entry in self._entries.pop(key, [])}
        gone = [e for i, e in old.items() if i not in new and self._holder.get(i) == key]
        added = [e for i, e in new.items() if old.get(i) != e or self._holder.get(i) != key]
        for entry in gone:
            del self._holder[entry.identity]
        for identity in new:
            self._holder[identity] = key
        if entries:
            self._entries[key] = entries
        self._ours.append(nfnetlink.own_id())
        try:
            self._filter.remove(self._packed(gone))
            self._filter.add(self._packed(added))
        except FileNotFoundError:
            self.restore()
        except OSError as error:
            raise FailedError(f"the packet filter cannot be changed: {error.strerror}") from error

    def _packed(self, entries: list[Entry]) -> list[Element]:
        ordered = sorted(entries, key=lambda entry: (entry.family, entry.name))
        return [element for entry in ordered for element in entry.packed(self._table)]

    # --- kept so ------------------------------------------------------------------------------

    def fileno(self) -> int:
        """A descriptor that is readable when somebody changed rulesets: then call `changed`."""
        return self._watch.fileno()

    def changed(self) -> bool:
        """Read the notifications: whether others touched our tables and they must be restored."""
        try:
            changes = self._watch.changes()
        except OSError:  # more than the kernel could tell
            return not self.intact()
        foreign = any(self._table in tables and who not in self._ours for who, tables in changes)
        return foreign and not self.intact()

    def intact(self) -> bool:
        """Whether the tables are exactly as wanted."""
        with self._lock:
            if self._shape is None or self._look() != self._shape:
                return False
            wanted: dict[tuple[str, str], set[Element]] = {}
            for entry in self._all():
                wanted.setdefault((entry.family, entry.name), set()).update(
                    entry.packed(self._table)
                )
            try:
                return all(
                    self._present(family, name) == wanted.get((family, name), set())
                    for family, names in (
                        ("inet", elements.INET_SETS),
                        ("bridge", elements.BRIDGE_SETS),
                    )
                    for name in names
                )
            except OSError:
                return False

    def _present(self, family: str, name: str) -> set[Element]:
        found = self._filter.elements(nfnetlink.FAMILIES[family], self._table, name)
        # nft begins a set of intervals with the end of the gap before them.
        return {one for one in found if not (one.last and not any(one.key))}

    def _look(self) -> tuple[bytes, ...]:
        return tuple(
            one
            for family in (nfnetlink.INET, nfnetlink.BRIDGE)
            for one in self._filter.shape(family, self._table)
        )

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop watching; the tables stay."""
        self._watch.close()
        self._filter.close()

    def discard(self) -> None:
        """Delete the tables."""
        with self._lock:
            self._entries.clear()
            self._owner.clear()
            self._holder.clear()
            self._shape = None
            for family in ("inet", "bridge"):
                both = f"add table {family} {self._table}\ndelete table {family} {self._table}\n"
                self._ours.append(_load(both))


def _redirect_datagrams(endpoint: Endpoint) -> None:
    """Streams of datagrams that are under way take the way that there is now."""
    ports = {p.host_port for p in endpoint.ports if p.protocol is Protocol.UDP}
    if ports:
        with contextlib.suppress(OSError), Tracking() as tracking:  # not every kernel shows them
            tracking.forget_datagrams(ports, {a.ip.packed for a in endpoint.addresses})


def _load(transaction: str) -> int:
    """Give *transaction* to nft; the pid that it had."""
    program = shutil.which("nft", path=_PATH)
    if program is None:
        raise UnsupportedError(unavailable(), hint="apt-get install nftables")
    with _spawned([program, "-f", "-"]) as process:
        try:
            _, said = process.communicate(transaction, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise FailedError(f"nft did not answer within {_TIMEOUT:.0f} seconds") from None
    if process.returncode:
        first = next((line for line in said.splitlines() if line.strip()), "no reason given")
        raise FailedError(f"nft refused the engine's packet filter: {first}")
    return process.pid


@contextlib.contextmanager
def _spawned(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": _PATH, "LC_ALL": "C"},
    ) as process:
        yield process
