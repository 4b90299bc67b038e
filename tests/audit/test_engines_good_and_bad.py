"""Sections 2, 6 and 7 and T.2: one engine as it comes, one that was set up badly; rules flushed."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.needs import needs
from harness.sites import Site
from tare.audit import container, engine, image, workload, workload_process
from tare.audit.container import Limits, Workload
from tare.audit.engine import Facts
from tare.audit.files import Places
from tare.audit.finding import Item, Level, Standing, from_plain
from tare.audit.image import Subject
from tare.audit.procfs import MountLine, Process, mounts, place
from tare.audit.surroundings import Surroundings, look
from tare.audit.view import View
from tare.audit.workload import MACHINE, Context
from tare.engine.config import Config, load
from tare.engine.paths import Paths
from tare.image.store import Image
from tare.model.digest import Digest
from tare.model.oci import ImageConfig
from tare.model.record import Info, Record
from tare.model.spec import (
    ContainerSpec,
    Isolation,
    LogConfig,
    Mount,
    MountKind,
    ProcessSpec,
)

CONFIG = """
[registries."plain.example"]
insecure = true
mirrors = ["http://mirror.example"]
[registry]
enabled = true
listen = ":5000"
[network]
publish = "0.0.0.0"
icc = true
[metrics]
listen = "0.0.0.0:9323"
"""
INFO = Info(
    id="i", name="n", containers=3, running=1, paused=0, stopped=2, images=2, cpus=1,
    memory_total=1, kernel="6", operating_system="o", os_version="1", architecture="x",
    state_dir="/s", version="1", cgroup_version="2", cgroup_driver="cgroupfs",
    storage_driver="overlay-erofs", rootless=False, memory_limit=True, swap_limit=True,
    cpu_limit=True, cpuset=True, pids_limit=True, oom_kill_disable=True,
    security_options=("name=seccomp,profile=tare-standard",),
)  # fmt: skip


def process(pid: int = 100, **changes: object) -> Process:
    made = Process(
        pid=pid, name="app", parent=1, uids=(100000,) * 4, effective=0, bounding=0,
        no_new_privileges=True, seccomp=2,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # of the test's own choice


def made(spec: ContainerSpec | None = None, **changes: object) -> Workload:
    wanted = spec or ContainerSpec(
        image="app:1", image_id=f"sha256:{'a' * 64}", process=ProcessSpec(args=("app",))
    )
    found = Workload(
        record=Record(id="b" * 64, name="web", spec=wanted, created_ns=0, pid=100, cgroup="tare/b"),
        processes=(process(),),
        shared=frozenset(),
        own_ids=True,
        mounts=(),
        limits=Limits(memory=1 << 20, pids=10, cpu_quota="1", directory="/g"),
        groups={"": "/tare/b"},
        label="",
        rlimits={"Max open files": ("1024", "524288"), "Max core file size": ("0", "0")},
        listening=(),
        execs=(),
        newer_image="",
        image_ports=(),
    )
    return replace(found, **changes)  # type: ignore[arg-type]  # of the test's own choice


def around(**changes: object) -> Surroundings:
    found = Surroundings(
        namespaces={}, mounts=[], shared_groups=frozenset({7}), sockets={}, sensitive={},
        state=None, run=None, apparmor=True, selinux=True, own_root=True, cgroup_parent="tare",
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]  # of the test's own choice


def facts(tmp_path: Path, config: Config, **changes: object) -> Facts:
    (tmp_path / "run/tare").mkdir(parents=True, exist_ok=True)
    (tmp_path / "var/lib/tare").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run/tare").chmod(0o711)
    (tmp_path / "var/lib/tare").chmod(0o700)
    (tmp_path / "run/tare/tare.sock").touch(mode=0o600)
    found = Facts(
        info=INFO, config=config, places=Places(), view=View(tmp_path), around=around(),
        workloads=(), default_bridge="", default_icc=False, filter={}, filter_trouble="",
        listeners=(), keeper=0, images=2, images_used=1, ledger=(7, ""),
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]  # of the test's own choice


def worst(items: tuple[Item, ...]) -> Level:
    return max((item.level for item in items), key=lambda level: level.rank)


def configured(tmp_path: Path, text: str) -> Config:
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "config.toml").chmod(0o644)
    return load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["engine-insecure-registries", "engine-publish-address", "engine-listeners"],
)
def test_a_configuration_is_judged_in_both_states(tmp_path: Path, name: str) -> None:
    good, bad = Config(), configured(tmp_path, CONFIG)

    assert worst(engine.judge(name, facts(tmp_path, good))) is Level.PASS
    assert worst(engine.judge(name, facts(tmp_path, bad))) is Level.WARN


def test_a_listener_that_nobody_configured_is_found(tmp_path: Path) -> None:
    own, other = [(5000, "0.0.0.0"), (9323, "0.0.0.0")], [(2375, "0.0.0.0")]
    config = configured(tmp_path, CONFIG)

    assert worst(engine.judge("engine-tls", facts(tmp_path, config, listeners=own))) is Level.PASS
    assert worst(engine.judge("engine-tls", facts(tmp_path, config, listeners=other))) is Level.WARN


def test_the_listeners_are_this_processs_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        held = engine.listeners()

    assert (port, "127.0.0.1") in held
    assert (port, "127.0.0.1") not in engine.listeners()


def test_what_containers_have_is_what_the_engine_is_judged_by(tmp_path: Path) -> None:
    bad = made(own_ids=False, processes=(process(no_new_privileges=False, parent=os.getpid()),))
    good = made()

    for name in ("engine-user-namespaces", "engine-new-privileges", "engine-live-restore"):
        assert worst(engine.judge(name, facts(tmp_path, Config(), workloads=[good]))) is Level.PASS
        assert worst(engine.judge(name, facts(tmp_path, Config(), workloads=[bad]))) is Level.WARN


def test_directories_and_the_socket_that_others_may_enter_are_found(tmp_path: Path) -> None:
    needs("root")
    found = facts(tmp_path, Config())
    names = ("engine-private-directories", "engine-authorization")
    assert {worst(engine.judge(name, found)) for name in names} == {Level.PASS}
    (tmp_path / "var/lib/tare").chmod(0o755)
    (tmp_path / "run/tare/tare.sock").chmod(0o666)

    assert {worst(engine.judge(name, found)) for name in names} == {Level.WARN}


def test_swarm_and_enterprise_have_no_object(tmp_path: Path) -> None:
    found = facts(tmp_path, Config())

    assert worst(engine.judge("swarm-enabled", found)) is Level.PASS
    for name in ("swarm-managers", "enterprise-ldap"):
        (item,) = engine.judge(name, found)
        assert item.standing is Standing.INAPPLICABLE


def test_a_ledger_whose_chain_is_broken_is_told(tmp_path: Path) -> None:
    whole = facts(tmp_path, Config())
    broken = facts(tmp_path, Config(), ledger=(3, "entries 4 to 5 are missing"))

    assert worst(engine.judge("engine-ledger", whole)) is Level.PASS
    assert worst(engine.judge("engine-ledger", broken)) is Level.FAIL


# --- the packet filter, as the kernel has it ------------------------------------------------------


@pytest.fixture(scope="module")
def site(session_directory: Path, busybox_archive: Path) -> Iterator[Site]:
    needs("root", "cgroup", "overlay", "ip", "nft")
    found = Site(session_directory / "audit-filter")
    try:
        found.out("load", "-i", str(busybox_archive))
        found.out("run", "-d", "--name", "one", "busybox", "sleep", "1000")
        yield found
        assert found.end() == []
    finally:
        found.stop()
        found.host.close()


def _levels(site: Site) -> dict[str, str]:
    report = from_plain(
        json.loads(site.out("audit", "engine", "--check", "2.1,2.3", "--format", "json"))
    )
    return {result.check: str(result.level) for result in report.results}


@pytest.mark.system
def test_the_filter_is_asked_of_the_kernel(site: Site) -> None:
    assert _levels(site) == {"engine-icc": "PASS", "engine-firewall": "PASS"}

    # A pair of the default bridge with itself: containers on it reach each other from now on.
    listed = subprocess.run(
        [*site.prefix, "nft", "-j", "list", "tables"], capture_output=True, text=True, check=True
    )
    (name,) = (
        one["table"]["name"]
        for one in json.loads(listed.stdout)["nftables"]
        if "table" in one and one["table"]["family"] == "inet"
    )
    links = subprocess.run(
        [*site.prefix, "ip", "-j", "link", "show", "type", "bridge"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (bridge,) = (link["ifname"] for link in json.loads(links.stdout))
    # The engine puts its rules back at once; stopped, it cannot, and the next one has to look.
    os.kill(site.daemon(), signal.SIGSTOP)
    daemon = site.daemon()
    try:
        subprocess.run(
            [*site.prefix, "nft", "add", "element", "inet", name, "same",
             f"{{ {bridge} . {bridge} }}"],
            check=True,
        )  # fmt: skip
        table, trouble = _listed(site, name)
    finally:
        os.kill(daemon, signal.SIGCONT)

    assert trouble == ""
    found = replace(_base(), filter=table, default_bridge=bridge)
    assert worst(engine.judge("engine-icc", found)) is Level.WARN
    assert worst(engine.judge("engine-firewall", found)) is Level.PASS
    cut = {"nftables": [e for e in table["nftables"] if "rule" not in e]}  # type: ignore[attr-defined]
    assert worst(engine.judge("engine-firewall", replace(found, filter=cut))) is Level.WARN
    gone = replace(found, filter={}, filter_trouble="the table is not there")
    assert worst(engine.judge("engine-firewall", gone)) is Level.WARN


def _listed(site: Site, name: str) -> tuple[dict[str, object], str]:
    done = subprocess.run(
        [*site.prefix, "nft", "-j", "list", "table", "inet", name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout), ""


def _base() -> Facts:
    return Facts(
        info=INFO, config=Config(), places=Places(), view=View(), around=around(), workloads=(),
        default_bridge="", default_icc=False, filter={}, filter_trouble="", listeners=(),
        keeper=0, images=0, images_used=0, ledger=(0, ""),
    )  # fmt: skip


# --- what this kernel cannot show -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label", "level"),
    [
        ("workload-apparmor", "tare-default (enforce)", Level.PASS),
        ("workload-apparmor", "unconfined", Level.WARN),
        ("workload-apparmor", "", Level.WARN),
        ("workload-selinux", "system_u:system_r:container_t:s0:c1,c2", Level.PASS),
        ("workload-selinux", "system_u:system_r:spc_t:s0", Level.WARN),
    ],
)
def test_labels_of_security_modules_are_judged(name: str, label: str, level: Level) -> None:
    (item,) = workload.judge(made(label=label), name, Context(around=around()))

    assert item.level is level


@pytest.mark.parametrize(("group", "level"), [(7, Level.WARN), (8, Level.PASS), (0, Level.PASS)])
def test_a_mount_that_propagates_is_one_of_the_hosts_peer_groups(group: int, level: Level) -> None:
    shared = f" shared:{group}" if group else ""
    line = mounts(f"30 20 8:1 /srv /data rw{shared} - ext4 /dev/sda1 rw\n")

    items = workload.judge(
        made(mounts=tuple(line)), "workload-propagation", Context(around=around())
    )

    assert worst(items) is level


@pytest.mark.parametrize(("hard", "level"), [("524288", Level.PASS), ("unlimited", Level.INFO)])
def test_open_files_without_a_bound_are_told(hard: str, level: Level) -> None:
    limits = {"Max open files": (hard, hard), "Max core file size": ("0", "0")}

    items = workload.judge(made(rlimits=limits), "workload-ulimits", Context(around=around()))

    assert worst(items) is level


def test_a_machine_says_what_it_satisfies_by_being_one() -> None:
    spec = ContainerSpec(
        image="app:1", image_id=f"sha256:{'a' * 64}", process=ProcessSpec(args=("app",)),
        isolation=Isolation.VM, mounts=(Mount(kind=MountKind.BIND, source="/etc", target="/e"),),
        log=LogConfig(),
    )  # fmt: skip
    machine = made(spec, shared=frozenset(("net", "pid", "user")), own_ids=False)
    context = Context(around=look(Paths(Path("/var/lib/x"), Path("/run/x"), Path("/etc/x"))))

    for name, why in MACHINE.items():
        (item,) = workload.judge(machine, name, context)
        assert (item.level, item.seen) == (Level.PASS, why)
    # What is shared with it and what it may use is probed as of any workload.
    assert worst(workload.judge(machine, "workload-sensitive-mounts", context)) is Level.FAIL
    unlimited = replace(machine, limits=Limits())
    assert worst(workload.judge(unlimited, "workload-pids", context)) is Level.WARN
    assert worst(workload.judge(unlimited, "workload-memory", context)) is Level.PASS


def test_processes_that_are_gone_are_no_verdict() -> None:
    gone = made(processes=(), mounts=())
    context = Context(around=around())

    for name in ("workload-capabilities", "workload-seccomp", "workload-new-privileges"):
        assert worst(workload.judge(gone, name, context)) is Level.NOTE
    assert worst(workload.judge(gone, "workload-read-only", context)) is Level.NOTE


def test_a_group_that_is_not_the_workloads_own_is_not_about_it() -> None:
    # As in an engine without control groups: the process is in a group with many others.
    record = replace(made().record, pid=os.getpid())

    found = container.look(record, look(Paths(Path("/s"), Path("/r"), Path("/c"))))

    assert [process.pid for process in found.processes] == [os.getpid()]
    assert found.limits == Limits()
    assert worst(workload.judge(found, "workload-pids", Context(around=around()))) is Level.WARN


def test_what_an_ordinary_user_may_not_look_at_is_not_there(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    view = View(tmp_path)

    assert view.text("/closed/x") == ""
    assert view.status("/closed/x") is None
    assert view.listed("/missing") == []
    assert view.files_below("/closed") == []


def test_one_process_without_a_filter_is_enough() -> None:
    found = made(processes=(process(), process(101, seccomp=0)))

    (item,) = workload.judge(found, "workload-seccomp", Context(around=around()))

    assert item.level is Level.WARN
    assert "app (101)" in item.seen


def test_capabilities_have_their_names() -> None:
    assert workload_process.names(1 << 21 | 1) == ["CHOWN", "SYS_ADMIN"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/etc/x", ("8:1", "/root/etc/x")), ("/var/a", ("8:2", "/a")), ("/", ("8:1", "/root"))],
)
def test_a_path_is_placed_by_the_mounts(path: str, expected: tuple[str, str]) -> None:
    table: list[MountLine] = mounts(
        "20 1 8:1 /root / rw - ext4 /dev/a rw\n21 20 8:2 / /var rw - ext4 /dev/b rw\n"
    )

    found = place(path, table)

    assert found is not None
    assert (found.device, found.path) == expected


def test_names_in_mountinfo_are_unescaped() -> None:
    (line,) = mounts(r"20 1 8:1 /a\040b /c\011d\134 rw - ext4 /dev/a rw")

    assert (line.root, line.point) == ("/a b", "/c\td\\")


def test_an_old_image_is_warned_of() -> None:
    config = ImageConfig(architecture="amd64", os="linux")
    one = Image(
        id=Digest("a" * 64), config=config, layers=(), tags=("a:1",), digests=(), size=0,
        created_ns=1_500_000_000 * 10**9,
    )  # fmt: skip
    subject = Subject(
        image=one, name="a:1", facts=None, trouble="gone", advisories=None, trust_mode="on",
        verdict="verified: signed", accepted=True, official=False, max_age_days=90,
    )  # fmt: skip

    assert worst(image.judge(subject, "image-age")) is Level.WARN
    assert worst(image.judge(subject, "image-setuid")) is Level.NOTE
    for name in ("image-content-trust", "image-trusted-base", "image-signed"):
        assert worst(image.judge(subject, name)) is Level.PASS


def test_the_socket_of_the_test_is_one(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "tare.sock"))
    paths = Paths(tmp_path / "s", tmp_path, tmp_path / "c")

    found = look(paths)

    listening.close()
    assert stat.S_ISSOCK((tmp_path / "tare.sock").stat().st_mode)
    assert str(tmp_path / "tare.sock") in found.sockets
