"""Attacks A08 to A11: what a container's programs are given: groups, sockets, capabilities, ids.

What can be tried on a runtime without walls (`security.naive`) is tried so too: a payload that
does not win there would prove nothing.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from run.conftest import Bench, Body
from security import naive
from security.conftest import SPEC, entry, layer, run_on, start_on
from tare.errors import InvalidError, TareError
from tare.kernel import confine
from tare.model.spec import Namespaces, ProcessSpec, Security, SecurityProfile

Run = Callable[[Body], None]


# --- A08: control groups ----------------------------------------------------------------------

CGROUP_ESCAPE = (
    "mkdir -p /tmp/c;"
    " for k in memory pids cpu devices freezer blkio cpuset; do"
    " mount -t cgroup -o $k none /tmp/c 2>/dev/null || continue;"
    # Written is what was there: where that succeeds, the host is none the worse.
    " cat /tmp/c/release_agent > /tmp/was 2>/dev/null &&"
    " (tr -d '\\n' < /tmp/was > /tmp/c/release_agent) 2>/dev/null && echo writable $k;"
    " umount /tmp/c; done; echo end"
)
CGROUP_WRITES = (
    "cd /sys/fs/cgroup || exit; for f in release_agent */release_agent */notify_on_release"
    " */cgroup.procs */tasks */devices.allow */memory.limit_in_bytes */cgroup.clone_children"
    " cgroup.procs cgroup.subtree_control memory.max; do"
    " [ -e $f ] || continue; (echo 1 > $f) 2>/dev/null && echo wrote $f; done;"
    " for d in */ .; do mkdir $d/x 2>/dev/null && echo made $d; done; echo end"
)


@pytest.mark.attack("A08")
def test_control_a_naive_runtime_lets_release_agents_be_written(tmp_path: Path) -> None:
    if not Path("/sys/fs/cgroup/memory/release_agent").exists():
        pytest.skip("not applicable: no version 1 hierarchy has a release agent on this host")

    _, output, _ = naive.run(naive.lay(tmp_path / "root", {}), "sh", "-c", CGROUP_ESCAPE)

    assert "writable memory" in output


@pytest.mark.attack("A08")
@pytest.mark.parametrize("name", ["standard", "compat", "sys-admin", "user"])
def test_a08_control_groups_of_the_host_are_not_to_be_had(bench: Run, name: str) -> None:
    security = {
        "standard": Security(),
        "user": Security(),
        "compat": Security(profile=SecurityProfile.DOCKER_COMPAT),
        "sys-admin": Security(cap_add=("SYS_ADMIN", "DAC_OVERRIDE"), seccomp="unconfined"),
    }[name]

    async def body(b: Bench) -> None:
        user = "1000" if name == "user" else ""
        wanted = replace(SPEC, security=security, process=ProcessSpec(args=("x",), user=user))
        for script in (CGROUP_ESCAPE, CGROUP_WRITES):
            _, output = await run_on(b, None, wanted, "sh", "-c", script)
            assert output == "end\n"
        if name != "sys-admin":
            script = "for f in -UrmC -Ur -m -C; do unshare $f true 2>/dev/null && echo $f; done"
            _, output = await run_on(b, None, wanted, "sh", "-c", f"{script}; echo end")
            assert output == "end\n"
        _, output = await run_on(b, None, wanted, "cat", "/proc/self/cgroup")
        own = [line for line in output.splitlines() if not line.endswith(":/")]
        assert not [line for line in own if "tare" in line], own

    bench(body)


# --- A09: control sockets ---------------------------------------------------------------------


@pytest.mark.attack("A09")
def test_a09_the_engines_sockets_have_paths_that_only_it_reaches(bench: Run) -> None:
    async def body(b: Bench) -> None:
        shared = replace(SPEC, namespaces=Namespaces(network="host"))
        _, table = await run_on(b, None, shared, "cat", "/proc/net/unix")
        names = [line.split()[7] for line in table.splitlines()[1:] if len(line.split()) > 7]
        ours = [name for name in names if str(b.run_dir) in name]

        assert ours, "the host's table is not the one that was read"
        assert not [name for name in names if name.startswith("@") and "tare" in name]
        for name in ours:
            assert stat.S_IMODE(os.stat(name).st_mode) & 0o077 == 0, name
            assert stat.S_IMODE(os.stat(Path(name).parent).st_mode) == 0o700, name
            # The container's root, as the host sees it, and anybody else.
            for uid in ("1610612736", "65534"):
                code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
                done = subprocess.run(
                    ["setpriv", "--reuid", uid, "--clear-groups", sys.executable, "-c", code, name],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode != 0 and "PermissionError" in done.stderr

    bench(body)


# --- A10: capabilities ------------------------------------------------------------------------

STANDARD = 0x800405FB
CAPS = "grep -E '^Cap' /proc/self/status"


def sets(output: str) -> dict[str, int]:
    """The five sets of a status file."""
    pairs = (line.split() for line in output.splitlines() if line.startswith("Cap"))
    return {name[3:6]: int(value, 16) for name, value in pairs}


@pytest.mark.attack("A10")
def test_control_a_naive_runtime_gives_every_capability(tmp_path: Path) -> None:
    root = naive.lay(tmp_path / "root", {})

    _, output, _ = naive.run(root, "sh", "-c", CAPS, proc=True)

    assert sets(output)["Eff"] & confine.mask(frozenset({"SYS_ADMIN", "NET_RAW", "MKNOD"}))


@pytest.mark.attack("A10")
@pytest.mark.parametrize(
    ("security", "bounding"),
    [
        (Security(), STANDARD),
        (Security(cap_add=("NET_ADMIN",)), STANDARD | 1 << 12),
        (Security(cap_drop=("CHOWN",)), STANDARD & ~1),
        (Security(cap_drop=("ALL",)), 0),
        (Security(cap_drop=("ALL",), cap_add=("KILL",)), 1 << 5),
        (Security(no_new_privileges=False), STANDARD),
        (Security(privileged=True), -1),
    ],
)
def test_a10_every_program_has_what_was_given_and_no_user_has_any(
    bench: Run, security: Security, bounding: int
) -> None:
    async def body(b: Bench) -> None:
        wanted = replace(SPEC, security=security)
        # Nobody gives what the engine itself was not given.
        full = sets(Path("/proc/self/status").read_text())["Bnd"]
        bound = full if bounding < 0 else bounding
        identity = await start_on(b, None, wanted, "sleep", "1000")
        for user in ("", "1000", "0:1000", "1000:0", "nobody"):
            program_ = ProcessSpec(args=("x",), user=user)
            first = await run_on(b, None, replace(wanted, process=program_), "sh", "-c", CAPS)
            second = await b.execute(identity, "sh", "-c", CAPS, user=user)
            own = bound if user in ("", "0:1000") else 0
            expected = {"Inh": 0, "Prm": own, "Eff": own, "Bnd": bound, "Amb": 0}
            assert sets(first[1]) == expected, user
            assert sets(second[1]) == expected, user

    bench(body)


@pytest.mark.attack("A10")
@pytest.mark.parametrize("nnp", [True, False])
def test_a10_capabilities_of_a_file_give_nothing_that_is_not_bounded(
    bench: Run, tmp_path: Path, busybox_layer: Path, nnp: bool
) -> None:
    del busybox_layer
    # linux/capability.h: revision 2, effective; CAP_NET_RAW permitted.
    value = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    headers = {"SCHILY.xattr.security.capability": value.decode("latin-1")}
    program_ = Path(shutil.which("busybox") or "").read_bytes()

    async def body(b: Bench) -> None:
        above = layer(tmp_path / "layers", (entry("grep", pax_headers=headers), program_))
        process = ProcessSpec(args=("x",), user="1000")
        wanted = replace(SPEC, security=Security(no_new_privileges=nnp), process=process)
        try:
            _, output = await run_on(b, above, wanted, "/grep", "^Cap", "/proc/self/status")
        except TareError as error:
            assert error.exit_code == 126
            return
        assert sets(output)["Eff"] == sets(output)["Prm"] == 0

    bench(body)


# --- A11: who it runs as ----------------------------------------------------------------------

PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:trap:/root:/bin/sh\n"
    "app:x:1000:1001::/home:/bin/sh\nbig:x:4294967296:0::/:\nbad:x:1001:4294967295::/:\n"
    "hex:x:0x0:0::/:\n٣:x:٠:0::/:\n"
    f"long:x:1002:1002:{'x' * 300_000}:/:\nlast:x:1003:1003::/:/bin/sh\n"
)
GROUP = "root:x:0:\nmore:x:1005:app,long\nshut:x:1006:app\nroot2:x:0:1000\nbig:x:4294967296:app\n"


def accounts(directory: Path) -> Path:
    """An image with hostile account files, and a file closed to one group."""
    return layer(
        directory,
        (entry("etc/passwd", mode=0o644), PASSWD.encode()),
        (entry("etc/group", mode=0o644), GROUP.encode()),
        (entry("closed", mode=0o604, gid=1006), b"secret\n"),
    )


@pytest.mark.attack("A11")
def test_a11_what_is_no_user_is_refused_by_run_and_exec(bench: Run, tmp_path: Path) -> None:
    bad = ["4294967295", "4294967296", "-1:0", "2147483648", "0x0", " 1000", "1000 ", "+1", "1e3"]
    bad += ["١", "big", "bad", "hex", "ghost", "0:ghost", "0:4294967295", "0:-1", "1000:", "65536"]
    bad += ["0:65536", "00000000000", "0:0:0", "1000:big"]

    async def body(b: Bench) -> None:
        above = accounts(tmp_path / "layers")
        identity = await start_on(b, above, SPEC, "sleep", "1000")
        for user in bad:
            wanted = replace(SPEC, process=ProcessSpec(args=("x",), user=user))
            with pytest.raises(InvalidError):
                print(user, await run_on(b, above, wanted, "id"))
            with pytest.raises(InvalidError):
                print(user, await b.execute(identity, "id", user=user))

    bench(body)


@pytest.mark.attack("A11")
def test_a11_ids_and_groups_are_those_of_the_image_and_no_others(
    bench: Run, tmp_path: Path
) -> None:
    expected = {
        "app": "1000 1001 1001 1005 1006",
        "1000": "1000 1001 1001 1005 1006",  # a number is never the name that is mapped to root
        "1000:1001": "1000 1001 1001",
        "long": "1002 1002 1002 1005",
        "last": "1003 1003 1003",
        "1000:more": "1000 1005 1005",
        "4242": "4242 0 0",  # as Docker: without an entry the group is 0
        "": "0 0 0",
    }
    script = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -nu)"

    async def body(b: Bench) -> None:
        above = accounts(tmp_path / "layers")
        identity = await start_on(b, above, SPEC, "sleep", "1000")
        for user, ids in expected.items():
            wanted = replace(SPEC, process=ProcessSpec(args=("x",), user=user))
            assert await run_on(b, above, wanted, "sh", "-c", script) == (0, f"{ids}\n"), user
            assert await b.execute(identity, "sh", "-c", script, user=user) == (0, f"{ids}\n"), user

        # Closed to a group is closed to its members: no dropping of the group helps.
        inside = "cat /closed 2>/dev/null; unshare -Ur cat /closed 2>/dev/null; echo end"
        wanted = replace(SPEC, process=ProcessSpec(args=("x",), user="app"))
        assert await run_on(b, above, wanted, "sh", "-c", inside) == (0, "end\n")
        wanted = replace(SPEC, process=ProcessSpec(args=("x",), user="last"))
        assert await run_on(b, above, wanted, "sh", "-c", inside) == (0, "secret\nend\n")

    bench(body)
