"""The same profile files under runc: its containers get the answers that our filters give.

Known differences, each looked at here: a number that is no call at all, below the highest that
the profile names (runc: the default; ours: ENOSYS), and what libseccomp opens of socketcall and
ipc on i386 along with the calls that they stand for.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.seccomp_oracle import ENOSYS, evaluate
from security.sysrun import Call, program, results
from tare.model import syscalls
from tare.model.seccomp import Profile, Ret, parse_profile, render_profile
from tare.model.seccomp_profiles import standard_profile

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="sysrun: x86_64 machine code only"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc: not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="root: runc is used with root here"),
]

UNTRIED = """
exit exit_group pause fork vfork clone rt_sigreturn sigreturn rt_sigsuspend uretprobe uprobe sync
restart_syscall
"""
KNOWN_TO_RUNC = 450  # the highest number of the libseccomp in Debian 12
ERRNO = int(Ret.ERRNO)


def docker_default() -> str:
    file = Path(__file__).parent.parent / "data" / "seccomp-default.jsonl.gz"
    first = gzip.decompress(file.read_bytes()).splitlines()[0]
    return json.dumps(json.loads(first)["want"]["ok"])


def as_oci(profile: Profile) -> dict[str, object]:
    """What an engine hands to runc for a container without capabilities: conditions resolved."""
    document = json.loads(render_profile(profile))
    present = [
        rule
        for rule in document["syscalls"]
        if not rule.get("includes", {}).get("caps")
        and "amd64" in rule.get("includes", {}).get("arches", ["amd64"])
    ]
    keys = {"names", "action", "errnoRet", "args"}
    rules = [{key: rule[key] for key in rule.keys() & keys} for rule in present]
    return {
        "defaultAction": document["defaultAction"],
        "defaultErrnoRet": document.get("defaultErrnoRet", 1),
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": rules,
    }


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A bundle whose program is ``/sysrun``, without capabilities and cgroup limits."""
    root = tmp_path / "rootfs"
    (root / "proc").mkdir(parents=True)
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/sysrun"], "capabilities": {}}
    config["process"].pop("rlimits", None)
    config["mounts"] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    config["linux"] |= {"maskedPaths": [], "readonlyPaths": []}
    config["linux"].pop("resources", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "state")], check=True)


def run(bundle: Path, seccomp: object, calls: list[Call]) -> list[int]:
    config = json.loads((bundle / "config.json").read_text())
    config["linux"]["seccomp"] = seccomp
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "rootfs" / "sysrun").write_bytes(program(calls))
    (bundle / "rootfs" / "sysrun").chmod(0o755)
    name = f"tare-test-{uuid.uuid4().hex[:12]}"
    done = subprocess.run(
        ["runc", "--root", str(bundle / "state"), "run", name],
        cwd=bundle,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "cgroup" in done.stderr:
        pytest.skip(f"runc: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return results(done.stdout)


@pytest.mark.parametrize("which", ["docker's default", "our standard"])
def test_runc_answers_as_our_filter_does(bundle: Path, which: str) -> None:
    if which == "our standard":
        profile, document = standard_profile(), as_oci(standard_profile())
    else:
        document = json.loads(docker_default())
        profile = parse_profile(docker_default())
    untried = UNTRIED.split()
    calls, expected = [], []
    for abi in ("x86_64", "i386"):
        names = {number: name for name, number in syscalls.numbers(abi).items()}
        for number in range(601):
            name = names.get(number)
            verdict = evaluate(profile, abi, number, (-1,) * 6)
            multiplexed = name in ("socketcall", "ipc")
            unknown = name is None or number > KNOWN_TO_RUNC
            if name not in untried and not multiplexed and not (unknown and number < 470):
                calls.append(Call(abi, number, (-1,) * 6))
                expected.append(verdict)
    assert expected.count(ENOSYS) > 200

    answers = run(bundle, document, calls)

    for call, verdict, answer in zip(calls, expected, answers, strict=True):
        if verdict & ~0xFFFF == ERRNO:
            assert answer == -(verdict & 0xFFFF), call
