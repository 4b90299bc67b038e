"""Sections 2, 6 and 7 and T.2: the engine that answers, as it runs and not as it was configured.

Rules of the packet filter are asked of the kernel, listeners are the daemon's own sockets, and
what containers have is looked at in their processes.

Not for: its files (`files`), the host (`host`).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.audit import finding, procfs
from tare.audit.container import Workload
from tare.audit.files import Places, moded
from tare.audit.finding import Evidence, Item
from tare.audit.surroundings import Surroundings
from tare.audit.view import View
from tare.engine.config import Config
from tare.model.record import Info
from tare.network.values import engine_tag, table_name

_LOG: Final = "tare"
_PROXIES: Final = frozenset(("docker-proxy", "slirp4netns", "rootlesskit", "rootlessport"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The engine at the time of the audit."""

    info: Info
    config: Config
    places: Places
    view: View
    around: Surroundings
    workloads: Sequence[Workload]
    default_bridge: str  # its interface, "" where there is none
    default_icc: bool  # as it was asked for
    filter: Mapping[str, object]  # nft's JSON of the engine's table; empty: not there
    filter_trouble: str  # why it could not be read, or what the engine says is wrong with it
    listeners: Sequence[tuple[int, str]]  # TCP ports and addresses of this process
    keeper: int
    images: int
    images_used: int
    ledger: tuple[int, str]  # entries that hold, and the first fault ("" none)
    proc: Path = Path("/proc")


def packet_filter(state: str) -> tuple[dict[str, object], str]:
    """The engine's own table as ``nft -j`` lists it, and why not if it does not."""
    program = shutil.which("nft")
    if program is None:
        return {}, "nft is not installed"
    name = table_name(engine_tag(state))
    done = subprocess.run(
        [program, "-j", "list", "table", "inet", name],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    if done.returncode != 0:
        return {}, f"the table inet {name} is not there"
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return {}, "nft's answer could not be read"
    return (found, "") if isinstance(found, dict) else ({}, "nft's answer could not be read")


def listeners(proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """The TCP sockets on which this process listens."""
    heard = procfs.listening_inodes(proc / "self")
    own = set(procfs.socket_inodes(proc / "self"))
    return sorted(heard[inode] for inode in own & heard.keys())


def judge(name: str, facts: Facts) -> tuple[Item, ...]:
    """What the check *name* says; () for one that is not of this part."""
    if name.startswith("swarm-"):
        if name == "swarm-enabled":
            return (finding.ok("tare has no swarm"),)
        return (finding.inapplicable("tare has no swarm"),)
    if name.startswith("enterprise-"):
        return (finding.inapplicable("a setting of Docker Enterprise"),)
    function = _JUDGES.get(name)
    if function is None:
        return ()
    found = function(facts)
    return (found,) if isinstance(found, Item) else tuple(found)


def _entries(facts: Facts, kind: str) -> list[Mapping[str, object]]:
    listed = facts.filter.get("nftables")
    found: list[Mapping[str, object]] = []
    for entry in listed if isinstance(listed, list) else []:
        value = entry.get(kind) if isinstance(entry, dict) else None
        if isinstance(value, dict):
            found.append(value)
    return found


# --- section 2 --------------------------------------------------------------------------------


def _rootless(facts: Facts) -> Item:
    at = Evidence("effective user id", str(os.geteuid()))
    if facts.info.rootless or not facts.around.own_root:
        return finding.ok("the engine runs without root", at)
    return finding.info("the engine runs as root", at)


def _icc(facts: Facts) -> Item:
    if not facts.default_bridge:
        return finding.ok("there is no default bridge")
    if facts.filter_trouble:
        return finding.warn(f"nothing keeps containers apart: {facts.filter_trouble}")
    joined: list[object] = []
    for entry in _entries(facts, "set"):
        if entry.get("name") == "same":
            elements = entry.get("elem")
            joined = elements if isinstance(elements, list) else []
    at = Evidence("nft set same", f"{len(joined)} pairs of bridges")
    if any(facts.default_bridge in str(element) for element in joined):
        return finding.warn("containers of the default network reach each other", at)
    return finding.ok("the filter keeps containers of the default network apart", at)


def _log_level(_: Facts) -> Item:
    level = logging.getLogger(_LOG).getEffectiveLevel()
    at = Evidence("log level", logging.getLevelName(level))
    if level == logging.INFO:
        return finding.ok("the daemon logs at info", at)
    return finding.warn(f"the daemon logs at {logging.getLevelName(level).lower()}", at)


def _firewall(facts: Facts) -> Item:
    if not facts.default_bridge and not facts.filter:
        return finding.info(f"the engine has no bridges to guard ({facts.filter_trouble})")
    if facts.filter_trouble:
        return finding.warn(f"the engine's rules do not hold: {facts.filter_trouble}")
    chains = {str(c.get("name")): c for c in _entries(facts, "chain")}
    missing = {"raw", "arriving", "passing", "out", "in", "host"} - chains.keys()
    drops = {str(r.get("chain")) for r in _entries(facts, "rule") if "drop" in str(r.get("expr"))}
    missing |= {"out", "in"} - drops
    if missing or chains["passing"].get("hook") != "forward":
        lacking = ", ".join(sorted(missing)) or "passing"
        return finding.warn(f"rules of the engine are gone from: {lacking}")
    rules = len(_entries(facts, "rule"))
    return finding.ok("the engine's rules are in force", Evidence("nft rules", str(rules)))


def _registries(facts: Facts) -> list[Item]:
    found = []
    for host, settings in facts.config.registries.hosts.items():
        if settings.insecure:
            found.append(finding.warn(f"{host} may be reached without verification", subject=host))
        found += [
            finding.warn(f"the mirror {mirror.host} is reached by plain HTTP", subject=host)
            for mirror in settings.mirrors
            if mirror.scheme == "http"
        ]
    return found or [finding.ok("every registry but those on loopback is reached by verified TLS")]


def _tls(facts: Facts) -> list[Item]:
    expected = set()
    if facts.config.metrics is not None:
        expected.add(facts.config.metrics[1])
    if facts.config.registry is not None:
        expected.add(facts.config.registry.port)
    strange = [(port, address) for port, address in facts.listeners if port not in expected]
    found = [
        finding.warn(f"the daemon listens on {address}:{port}", Evidence("TCP", address))
        for port, address in strange
    ]
    return found or [finding.ok("the API is on its unix socket only", Evidence("TCP", "none"))]


def _ulimits(facts: Facts) -> Item:
    seen = {w.rlimits.get("Max open files", ("?", "?")) for w in facts.workloads}
    shown = ", ".join(f"{soft}:{hard}" for soft, hard in sorted(seen)[:5])
    if any(hard == "unlimited" for _, hard in seen):
        return finding.info("containers have no limit on open files", Evidence("nofile", shown))
    return finding.ok(
        "open files are limited, core files are off by default", Evidence("nofile", shown or "1024")
    )


def _user_namespaces(facts: Facts) -> Item:
    if not facts.around.own_root:
        return finding.ok("the engine is in a user namespace of its own")
    text = procfs.text(facts.proc / "sys/user/max_user_namespaces").strip()
    if not (facts.proc / "self/ns/user").exists() or text == "0":
        return finding.warn("user namespaces are switched off", Evidence("max", text))
    shared = [w.record.name for w in facts.workloads if not w.own_ids and not w.machine]
    if shared:
        at = Evidence("uid_map is the identity", ", ".join(shared[:10]))
        return finding.warn(f"{len(shared)} containers have the host's user ids", at)
    return finding.ok("every container gets user ids of its own", Evidence("max", text))


def _cgroup(facts: Facts) -> Item:
    at = Evidence("parent", facts.around.cgroup_parent)
    if facts.around.cgroup_parent.strip("/") == "tare":
        return finding.ok("the default parent group is in use", at)
    return finding.info("another parent group was set", at)


def _authorization(facts: Facts) -> Item:
    status = facts.view.status(facts.places.socket)
    if status is None:
        return finding.note("the engine's socket could not be looked at")
    mode = f"{status.st_mode & 0o777:04o}"
    at = Evidence(facts.places.socket, f"{mode} {status.st_uid}:{status.st_gid}")
    if status.st_mode & 0o006:
        return finding.warn("every user may do everything that root may", at)
    if not status.st_mode & 0o060:
        return finding.ok("nobody but the engine's own user may connect", at)
    group = facts.view.group_name(status.st_gid)
    _, members = facts.view.groups().get(group, (0, ()))
    if not members and not any(gid == status.st_gid for _, _, gid in facts.view.accounts()):
        return finding.ok(f"the group {group} has no members: only root may connect", at)
    return finding.warn(f"members of {group} may do everything that root may", at)


def _logging(facts: Facts) -> Item:
    drivers = sorted({w.record.spec.log.driver for w in facts.workloads}) or ["json-file"]
    return finding.info(
        "containers' logs are kept on this host, rotated; whether they are forwarded is not known",
        Evidence("log drivers", ", ".join(drivers)),
    )


def _live_restore(facts: Facts) -> Item:
    daemon = os.getpid()
    orphaned = [w.record.name for w in facts.workloads if w.first and w.first.parent == daemon]
    if orphaned:
        return finding.warn(f"children of the daemon: {', '.join(orphaned[:10])}")
    keeper = procfs.process(facts.proc / str(facts.keeper)) if facts.keeper else None
    at = Evidence("keeper", str(facts.keeper or "not running"))
    if keeper is not None and keeper.parent == daemon and facts.workloads:
        group = procfs.text(facts.proc / f"{facts.keeper}/stat").rpartition(")")[2].split()
        if len(group) > 3 and int(group[3]) == os.getsid(0):
            return finding.warn("the keeper is in the daemon's session", at)
    return finding.ok("containers are the keeper's children: they go on without the daemon", at)


def _proxy(facts: Facts) -> Item:
    published = {p.host_port for w in facts.workloads for j in w.record.networks for p in j.ports}
    taken = sorted(port for port, _ in facts.listeners if port in published)
    if taken:
        return finding.warn(f"the daemon listens on published ports: {taken[:10]}")
    for directory in facts.proc.iterdir():
        if directory.name.isdigit():
            name = procfs.text(directory / "comm").strip()
            if name in _PROXIES:
                at = Evidence(f"/proc/{directory.name}/comm", name)
                return finding.info("a proxy runs, which may be another engine's", at)
    return finding.ok(f"no proxy for {len(published)} published ports: the filter translates them")


def _seccomp(facts: Facts) -> Item:
    option = next((o for o in facts.info.security_options if o.startswith("name=seccomp")), "")
    if not option:
        return finding.warn("the engine says of no profile")
    custom = [w.record.name for w in facts.workloads if w.record.spec.security.seccomp]
    if custom:
        at = Evidence("own profiles", ", ".join(custom[:10]))
        return finding.info(f"{len(custom)} containers have another profile", at)
    return finding.ok("tare's own profile is in force", Evidence("security option", option))


def _new_privileges(facts: Facts) -> Item:
    may = [
        w.record.name
        for w in facts.workloads
        if not w.machine and w.first and not w.first.no_new_privileges
    ]
    if may:
        at = Evidence("NoNewPrivs 0", ", ".join(may[:10]))
        return finding.warn(f"{len(may)} containers may gain privileges", at)
    return finding.ok("the flag is on by default, and in every container")


# --- section 6, T.2 ---------------------------------------------------------------------------


def _image_sprawl(facts: Facts) -> Item:
    seen = f"{facts.images} images, {facts.images_used} of them in use"
    return finding.info(seen, Evidence("images", str(facts.images)))


def _container_sprawl(facts: Facts) -> Item:
    info = facts.info
    seen = f"{info.containers} containers, {info.running} of them running"
    return finding.info(seen, Evidence("containers", str(info.containers)))


def _private(facts: Facts) -> Iterable[Item]:
    state = moded(facts.view, (facts.places.state,), 0o700)
    run = moded(facts.view, (facts.places.run,), 0o711 if facts.places.owner == 0 else 0o700)
    return [*state, *run]


def _publish(facts: Facts) -> Item:
    address = facts.config.network.publish
    at = Evidence("publish", address or "127.0.0.1 (the default)")
    try:
        wide = bool(address) and not ipaddress.ip_address(address).is_loopback
    except ValueError:
        wide = True
    if wide:
        return finding.warn(f"-p without an address publishes on {address}", at)
    return finding.ok("-p without an address publishes on loopback", at)


def _served(facts: Facts) -> list[Item]:
    found = []
    if facts.config.metrics is not None:
        host, port = facts.config.metrics
        if not (host in ("localhost", "::1") or host.startswith("127.")):
            found.append(finding.warn(f"figures are served to everybody on {host or '*'}:{port}"))
    if facts.config.registry is not None:
        found += [
            finding.warn(f"the registry: {said}") for said in facts.config.registry.warnings()
        ]
    return found or [finding.ok("nothing is served to others without TLS and passwords")]


def _ledger(facts: Facts) -> Item:
    entries, fault = facts.ledger
    at = Evidence("entries that hold", str(entries))
    if fault:
        return finding.fail(f"the ledger's chain is broken: {fault}", at)
    return finding.ok("every entry of the ledger holds", at)


def _always(seen: str) -> Callable[[Facts], Item]:
    return lambda _: finding.ok(seen)


def _storage(facts: Facts) -> Item:
    at = Evidence("storage driver", facts.info.storage_driver)
    return finding.ok(f"the storage driver is {facts.info.storage_driver}", at)


_JUDGES: Final[Mapping[str, Callable[[Facts], Item | Iterable[Item]]]] = {
    "engine-rootless": _rootless,
    "engine-icc": _icc,
    "engine-log-level": _log_level,
    "engine-firewall": _firewall,
    "engine-insecure-registries": _registries,
    "engine-aufs": _storage,
    "engine-devicemapper": _storage,
    "engine-tls": _tls,
    "engine-ulimits": _ulimits,
    "engine-user-namespaces": _user_namespaces,
    "engine-cgroup": _cgroup,
    "engine-base-size": _storage,
    "engine-authorization": _authorization,
    "engine-logging": _logging,
    "engine-live-restore": _live_restore,
    "engine-userland-proxy": _proxy,
    "engine-seccomp": _seccomp,
    "engine-experimental": _always("there is no switch for features that are not finished"),
    "engine-new-privileges": _new_privileges,
    "engine-image-sprawl": _image_sprawl,
    "engine-container-sprawl": _container_sprawl,
    "engine-private-directories": _private,
    "engine-publish-address": _publish,
    "engine-listeners": _served,
    "engine-ledger": _ledger,
}
