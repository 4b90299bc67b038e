"""Section 5 on real containers: each check on one that was prepared well and one prepared badly.

The engine has a network namespace of its own; what is called its host's network is that one.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from harness.needs import needs
from harness.sites import Site, eventually
from tare.audit import catalogue
from tare.audit.finding import Level, Scope, from_plain

pytestmark = pytest.mark.system

GOOD: Final = (
    "--read-only", "--memory", "64m", "--cpus", "1", "--pids-limit", "64", "--user", "1000",
    "--restart", "on-failure:3", "--health-cmd", "true", "--health-interval", "1s",
    "-p", "127.0.0.1:18080:80",
    "--cap-drop", "ALL", "--network", "own",
)  # fmt: skip
BAD: Final = {
    "workload-capabilities": "FAIL",
    "workload-privileged": "FAIL",
    "workload-sensitive-mounts": "FAIL",
    "workload-sshd": "WARN",
    "workload-host-network": "WARN",
    "workload-memory": "WARN",
    "workload-cpu": "WARN",
    "workload-read-only": "WARN",
    "workload-restart": "WARN",
    "workload-host-pid": "WARN",
    "workload-host-ipc": "WARN",
    "workload-devices": "WARN",
    "workload-host-uts": "WARN",
    "workload-seccomp": "WARN",
    "workload-new-privileges": "WARN",
    "workload-health": "WARN",
    "workload-latest-image": "WARN",
    "workload-pids": "WARN",
    "workload-user-namespace": "WARN",
    "workload-engine-socket": "FAIL",
    "workload-host-root": "WARN",
    "workload-masked-paths": "WARN",
    "workload-pinned-image": "WARN",
}
PORTS: Final = {
    "workload-privileged-ports": "WARN",
    "workload-bound-address": "WARN",
    "workload-default-bridge": "INFO",
    "workload-devices": "WARN",
    "workload-exec-privileged": "WARN",
    "workload-exec-root": "WARN",
    "workload-needed-ports": "WARN",
    "workload-cgroup": "PASS",
}
SSHD: Final = r"printf '#!/bin/sh\nsleep 1000\n' >/tmp/sshd; chmod +x /tmp/sshd"
NOT_HERE: Final = ("workload-apparmor", "workload-selinux")
JUDGEMENT: Final = {"workload-latest-image": "NOTE", "workload-needed-ports": "NOTE"}


@pytest.fixture(scope="module")
def site(session_directory: Path, busybox_archive: Path) -> Iterator[Site]:
    needs("root", "cgroup", "overlay", "ip", "nft")
    found = Site(session_directory / "audit")
    try:
        found.out("load", "-i", str(busybox_archive))
        yield found
        assert found.end() == []
    finally:
        found.stop()
        found.host.close()


@pytest.fixture(scope="module")
def engine_socket(session_directory: Path) -> Iterator[Path]:
    """Another engine's socket, as it lies on many hosts."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(session_directory / "docker.sock"))
    yield session_directory / "docker.sock"
    listening.close()


@pytest.fixture(scope="module")
def containers(site: Site, engine_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    site.out("tag", "busybox:latest", "busybox:1.36")
    site.out("network", "create", "own")
    sleeping = ("busybox:1.36", "sleep", "1000")
    site.out("run", "-d", "--name", "good", *GOOD, *sleeping)
    site.out(
        "run", "-d", "--name", "bad", "--privileged", "--network", "host", "--pid", "host",
        "--ipc", "host", "--uts", "host", "--pids-limit", "-1", "--restart", "always",
        "--security-opt", "seccomp=unconfined", "-v", "/etc:/host-etc",
        "-v", f"{engine_socket}:/var/run/docker.sock", "-v", f"{site.run_dir}:/engine",
        "-e", "DOCKER_HOST=unix:///engine/tare.sock",
        "busybox", "sh", "-c", f"{SSHD}; /tmp/sshd & wait",
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("exposing")
    (directory / "Dockerfile").write_text("FROM busybox:1.36\nEXPOSE 8000\nUSER 1000\n")
    site.out("build", "-t", "exposing:1", str(directory))
    site.out(
        "run", "-d", "--name", "ports", "-p", "0.0.0.0:80:80", "--device", "/dev/fuse",
        "exposing:1", "sleep", "1000",
    )  # fmt: skip
    site.out("exec", "-d", "--privileged", "--user", "root", "ports", "sleep", "1000")
    # The name of its image goes to another one.
    (directory / "Dockerfile").write_text("FROM busybox:1.36\nLABEL new=yes\n")
    site.out("build", "-t", "busybox:latest", str(directory))
    return site


def levels(site: Site, *words: str) -> dict[str, dict[str, str]]:
    """The worst level of each check for each container: container to check to level."""
    report = from_plain(json.loads(site.out("audit", "workload", *words, "--format", "json")))
    found: dict[str, dict[str, str]] = {}
    for result in report.results:
        for item in result.items:
            mine = found.setdefault(item.subject, {})
            before = Level(mine.get(result.check, "PASS"))
            mine[result.check] = str(max(before, item.level, key=lambda level: level.rank))
    return found


def test_a_container_that_was_prepared_well_passes_every_check(containers: Site) -> None:
    eventually(lambda: _healthy(containers))

    found = levels(containers)["good"]

    expected = {
        check.name: JUDGEMENT.get(check.name, "INFO" if check.name in NOT_HERE else "PASS")
        for check in catalogue.ordered("1.2", [Scope.WORKLOAD])
    }
    assert found == expected


def test_every_way_of_taking_walls_down_is_found(containers: Site) -> None:
    found = levels(containers)["bad"]

    assert {name: found[name] for name in BAD} == BAD


def test_ports_devices_and_programs_that_exec_started_are_found(containers: Site) -> None:
    found = levels(containers)["ports"]

    assert {name: found[name] for name in PORTS} == PORTS


def test_the_checks_of_the_two_states_are_all_there_are() -> None:
    every = {check.name for check in catalogue.ordered("1.2", [Scope.WORKLOAD])}
    unit = {"workload-propagation", "workload-ulimits", *NOT_HERE}

    assert every == set(BAD) | set(PORTS) | unit


def test_a_port_that_is_allowed_is_told_and_not_warned_of(containers: Site) -> None:
    found = levels(containers, "ports", "--allow-ports", "80,443")

    assert found["ports"]["workload-privileged-ports"] == "INFO"
    assert set(found) == {"ports"}


def test_what_is_asked_for_by_the_numbers_of_another_edition_is_the_same(containers: Site) -> None:
    text = containers.out("audit", "workload", "bad", "--benchmark", "1.6", "--check", "5.32")

    assert "[FAIL] 5.32 - Ensure that the Docker socket is not mounted" in text
    assert text.count("] 5.") == 1
    assert f"{containers.run_dir}/tare.sock is reachable on /engine" in text


def test_the_threshold_decides_the_exit_code(containers: Site) -> None:
    codes = {
        words: containers.tare("audit", "workload", words[0], "--fail-on", words[1]).returncode
        for words in (("bad", "fail"), ("good", "warn"), ("good", "note"), ("bad", "5.4"))
    }

    assert codes == {
        ("bad", "fail"): 2,
        ("good", "warn"): 0,
        ("good", "note"): 2,
        ("bad", "5.4"): 2,
    }


def test_a_container_that_does_not_run_is_said_to_be_left_out(containers: Site) -> None:
    containers.out("create", "--name", "idle", "busybox", "true")
    try:
        text = containers.out("audit", "workload")
    finally:
        containers.out("rm", "idle")

    assert "1 containers do not run and were not looked at" in text


def test_a_container_and_a_check_that_are_not_there_are_named(containers: Site) -> None:
    nobody = containers.tare("audit", "workload", "nobody")
    nothing = containers.tare("audit", "--check", "5.99")
    word = containers.tare("audit", "everything")

    assert (nobody.returncode, nothing.returncode, word.returncode) == (1, 1, 1)
    assert "nobody" in nobody.stderr
    assert "5.99" in nothing.stderr
    assert "everything" in word.stderr


@pytest.mark.attack("A19")
def test_what_a_container_is_called_cannot_steer_the_terminal(containers: Site) -> None:
    # Names are checked; an image's reference and variables are not the user's own words.
    hostile = "unix:///\x1b]0;owned\x07\x1b[2J"
    containers.out(
        "run", "-d", "--name", "hostile", "-e", f"DOCKER_HOST={hostile}", "busybox", "sleep", "1000"
    )
    try:
        text = containers.out("audit", "workload", "hostile")
    finally:
        containers.out("rm", "-f", "hostile")

    assert "owned" in text
    assert "\x1b" not in text
    assert "\x07" not in text


# --- docker-bench-security ------------------------------------------------------------------------

INSPECTED: Final = {
    "AppArmorProfile={{ .AppArmorProfile }}": "AppArmorProfile=",
    "CapAdd={{ .HostConfig.CapAdd }}": "CapAdd=[]",
    "{{ .HostConfig.Privileged }}": "false",
    "NetworkMode={{ .HostConfig.NetworkMode }}": "NetworkMode=own",
    "{{ .HostConfig.Memory }}": str(64 << 20),
    "{{ .HostConfig.CpuShares }}": "0",
    "{{ .HostConfig.NanoCpus }}": str(10**9),
    "{{ .HostConfig.ReadonlyRootfs }}": "true",
    "{{ .HostConfig.RestartPolicy.MaximumRetryCount }}": "3",
    "PidMode={{.HostConfig.PidMode }}": "PidMode=",
    "IpcMode={{.HostConfig.IpcMode }}": "IpcMode=private",
    "Devices={{ .HostConfig.Devices }}": "Devices=[]",
    "Ulimits={{ .HostConfig.Ulimits }}": "Ulimits=[]",
    "UTSMode={{.HostConfig.UTSMode }}": "UTSMode=",
    "CgroupParent={{.HostConfig.CgroupParent }}x": "CgroupParent=x",
    "{{ .Id }}: Health={{ .State.Health.Status }}": "Health=healthy",
    "{{.HostConfig.PidsLimit }}": "64",
    "{{ .HostConfig.UsernsMode }}": "",
    "User={{.Config.User}}": "User=1000",
    "{{.Name}}": "/good",
    "Propagation={{range $mnt := .Mounts}} {{json $mnt.Propagation}} {{end}}": "Propagation=",
    "{{ .Mounts }}": "[]",
    "SecurityOpt={{ .HostConfig.SecurityOpt }}": "SecurityOpt=[]",
    "{{ .Config.Labels }}": "map[]",
}
"""The formats that the script asks for, and what docker's client makes of our answer."""


@pytest.fixture(scope="module")
def docker(containers: Site) -> Iterator[Site]:
    needs("docker")
    yield containers


def _docker(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    client = shutil.which("docker") or "docker"
    return subprocess.run(
        [client, "-H", f"unix://{site.run_dir}/tare.sock", *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("form", INSPECTED)
def test_the_script_of_docker_bench_gets_the_values_it_judges(docker: Site, form: str) -> None:
    eventually(lambda: _healthy(docker))

    done = _docker(docker, "inspect", "--format", form, "good")

    assert done.returncode == 0, done.stderr
    assert INSPECTED[form] in done.stdout.strip()
    assert "<no value>" not in done.stdout


def _healthy(site: Site) -> str:
    status = site.out("inspect", "-f", "{{.State.Health.Status}}", "good")
    if status != "healthy":
        raise BlockingIOError(status)  # not yet
    return status


def test_the_other_calls_of_docker_bench_answer(docker: Site) -> None:
    assert _docker(docker, "ps", "-q").returncode == 0
    names = [line.split()[-1] for line in _docker(docker, "ps").stdout.splitlines()[1:]]
    assert {"good", "bad", "ports"} <= set(names)
    images = _docker(docker, "images", "-q").stdout.split()
    info = _docker(docker, "info").stdout
    assert "Swarm: inactive" in info
    assert "Live Restore Enabled: true" in info
    assert "Logging Driver:" in info
    assert "seccomp" in info
    root = _docker(docker, "info", "-f", "{{ .DockerRootDir }}").stdout.strip()
    assert root == str(docker.state)
    experimental = _docker(docker, "version", "-f", "{{.Server.Experimental}}").stdout.strip()
    assert experimental == "false"
    for image in images:
        for form in ("{{.RepoTags}}", "{{.Config.Healthcheck}}"):
            assert _docker(docker, "inspect", f"--format={form}", image).returncode == 0
        assert _docker(docker, "history", image).returncode == 0
    networks = _docker(docker, "network", "ls", "-q").stdout.split()
    for network in networks:
        for form in ("{{ .Options }}", "{{ range $k, $v := .Containers }} {{ $k }} {{ end }}"):
            assert _docker(docker, "network", "inspect", "--format", form, network).returncode == 0
    assert _docker(docker, "port", "ports").stdout.strip() == "80/tcp -> 0.0.0.0:80"
    assert _docker(docker, "exec", "good", "ps").returncode == 0
    # What tare does not have fails as the script expects of a host that has no swarm.
    for words in (("node", "ls"), ("secret", "ls", "-q"), ("swarm", "unlock-key")):
        assert _docker(docker, *words).returncode != 0
