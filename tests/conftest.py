"""What every test may use, and what surrounds all of them.

- Canaries of the host (`harness.canaries`) around each system and attack test and the session.
- ``@pytest.mark.needs(...)`` and `harness.needs`: ask for a capability by trying it;
  ``TARE_TEST_REQUIRE=userns,cgroup`` makes the lack of it a failure, ``alone`` makes differences
  that others on the host could have caused failures too.
- ``@pytest.mark.attack("A14")``: counted in the closing line "attacks survived N/50".
- An engine of this session's own: ``TARE_STATE_DIR``, ``TARE_RUN_DIR``, ``TARE_CONFIG_DIR`` and
  ``TARE_CGROUP_PARENT`` point away from the host's engine from the first import on.
- ``TARE_TEST_KEEP=1`` leaves the temporary directory of the session for a look at it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from harness import attacks, canaries, engines, images
from harness.needs import needs, required

SESSION: Final = f"{os.getpid()}-{os.urandom(3).hex()}"
CGROUP_PARENT: Final = f"tare-test-{SESSION}"

_tally = pytest.StashKey[attacks.Tally]()
_left = pytest.StashKey[list[canaries.Finding]]()
_watch = pytest.StashKey["Watch"]()

Isolated = Callable[[Callable[[], None]], None]


class Watch:
    """The session's own directory, the canary file, and the state of the host at the start."""

    def __init__(self) -> None:
        # Short: the path of a unix socket has 107 bytes.  0755: an engine without root enters it.
        _sweep()
        self.directory = Path(tempfile.mkdtemp(prefix=f"tt-{os.getpid()}-", dir="/var/tmp"))
        self.directory.chmod(0o755)
        self.canary = canaries.plant(Path("/run") if os.access("/run", os.W_OK) else self.directory)
        self._host = canaries.Canaries(self.canary, self.directory)
        self._leftovers = canaries.Leftovers(SESSION, CGROUP_PARENT)
        self.ended = False

    def around(self) -> canaries.Canaries:
        """The host as it is now, to be compared with later."""
        return canaries.Canaries(self.canary, self.directory)

    def end(self) -> list[canaries.Finding]:
        """Everything that the session left or changed; removes what is its own."""
        self.ended = True
        self.stop_engines()
        found = self._host.findings()
        self.canary.unlink(missing_ok=True)
        self.remove()
        found += self._leftovers.findings()
        if self.directory.exists() and not os.environ.get("TARE_TEST_KEEP"):
            found.append(canaries.Finding(f"{self.directory} cannot be removed", ours=True))
        return found

    def remove(self) -> None:
        """Delete the directory, unless a mount still stands in it: that may be the host's."""
        for point in reversed(canaries.mounts_below(self.directory)):
            subprocess.run(["umount", "--lazy", point], check=False)
        if not canaries.mounts_below(self.directory) and not os.environ.get("TARE_TEST_KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)

    def stop_engines(self) -> None:
        """Stop the daemon and keeper that clients of this session started and nobody stopped."""
        # The daemon first, and to its end: it would start another keeper for one that is killed.
        for name, number in (("daemon.pid", signal.SIGTERM), ("keeper.lock", signal.SIGKILL)):
            # Not rglob: it follows links, and tests lay down hostile ones.
            for directory, _, names in os.walk(self.directory):
                if name in names:
                    with contextlib.suppress(OSError, ValueError, IndexError):
                        pid = int(Path(directory, name).read_text().split()[0])
                        _end_marked(pid, number)


def _end_marked(pid: int, number: int) -> None:
    """Signal a process of this session and wait until it is gone."""
    with_mark = f"{canaries.MARK}={SESSION}".encode()
    if with_mark not in Path(f"/proc/{pid}/environ").read_bytes():
        return
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
        select.select([pidfd], [], [], 10)
    finally:
        os.close(pidfd)


def _sweep() -> None:
    # What sessions that were killed could not remove: theirs by name, and nobody has that pid.
    for path in [*Path("/run").glob("tare-canary-*"), *Path("/var/tmp").glob("tt-*-*")]:
        pid = path.name.removeprefix("tare-canary-").removeprefix("tt-").partition("-")[0]
        if not pid.isdigit() or Path(f"/proc/{pid}").exists() or canaries.mounts_below(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Mark all that we start, and keep away from the engine of this host."""
    config.addinivalue_line("markers", "needs(name, ...): skips where the host lacks one of them")
    os.environ[canaries.MARK] = SESSION
    watch = Watch()
    config.stash[_watch] = watch
    config.stash[_tally] = attacks.Tally()
    os.environ["TARE_STATE_DIR"] = str(watch.directory / "state")
    os.environ["TARE_RUN_DIR"] = str(watch.directory / "run")
    os.environ["TARE_CONFIG_DIR"] = str(engines.without_networks(watch.directory / "config"))
    os.environ["TARE_CGROUP_PARENT"] = CGROUP_PARENT
    # Before pytest makes its own: what tests lay down is then known as ours, and removed.
    if not config.option.basetemp:
        config.option.basetemp = str(watch.directory / "t")
    for name in ("TARE_HOST", "DOCKER_HOST", "DOCKER_CONTEXT"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """After --help and the like, where no session was."""
    watch = config.stash[_watch]
    if not watch.ended:
        watch.canary.unlink(missing_ok=True)
        watch.remove()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker that names no attack: it would never be counted."""
    for item in items:
        for attack in _attacks(item):
            if not attacks.valid(attack):
                raise pytest.UsageError(f"{item.nodeid}: there is no attack {attack!r}")


def _attacks(item: pytest.Item) -> tuple[str, ...]:
    return tuple(str(a) for marker in item.iter_markers("attack") for a in marker.args)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the host cannot do."""
    for marker in item.iter_markers("needs"):
        needs(*marker.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a required need into a failure, and count attacks."""
    report = yield
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        need = reason.partition(":")[0]
        if need in required() and need != "alone":
            report.outcome = "failed"
            report.longrepr = f"TARE_TEST_REQUIRE says this host has {need}: {reason}"
    # A test that failed in its teardown (a canary died) did not survive either.
    if report.when == "call" or not report.passed:
        item.config.stash[_tally].record(_attacks(item), report.outcome, reason)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """See what is left; anything that is surely ours fails the session."""
    found = session.config.stash[_watch].end()
    session.config.stash[_left] = found
    if any(_counts(finding) for finding in found) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _counts(finding: canaries.Finding) -> bool:
    return finding.ours or "alone" in required()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The closing lines: what was left behind, and how many attacks were survived."""
    for finding in config.stash.get(_left, []):
        word = "LEFT BEHIND" if _counts(finding) else "changed meanwhile, by us or by others"
        terminalreporter.write_line(f"{word}: {finding.text}", red=_counts(finding))
    for line in config.stash[_tally].lines():
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def host_unchanged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around each system and attack test: the host is afterwards what it was before.

    Set up before the test's own fixtures and checked after they are gone; what a fixture of the
    module or the session holds was there before and may stay.
    """
    node = request.node
    if not any(node.get_closest_marker(name) for name in ("system", "attack")):
        yield
        return
    before = request.config.stash[_watch].around()
    yield
    found = [finding.text for finding in before.findings() if _counts(finding)]
    if found:
        pytest.fail("the host is not what it was before: " + "; ".join(found))


@pytest.fixture(scope="session")
def session_directory(request: pytest.FixtureRequest) -> Path:
    """A short path of this session's own, removed at its end."""
    return request.config.stash[_watch].directory


@pytest.fixture(scope="session")
def host_canary(request: pytest.FixtureRequest) -> Path:
    """A file of the host that no container may read or change."""
    return request.config.stash[_watch].canary


@pytest.fixture
def busybox_rootfs(tmp_path: Path) -> Path:
    """A fresh busybox root file system, to be changed at will."""
    needs("busybox")
    return images.lay_busybox(tmp_path / "busybox")


@pytest.fixture(scope="session")
def busybox_archive(session_directory: Path) -> Path:
    """`busybox:latest` as `docker save` would write it."""
    needs("busybox")
    root = images.lay_busybox(session_directory / "busybox-root")
    config: dict[str, object] = {"Cmd": ["sh"], "Env": ["PATH=/bin"]}
    out = session_directory / "busybox.tar"
    return images.docker_archive(root, out, "busybox:latest", config)


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """The tar of a minimal Debian bookworm; made once, then kept in the cache."""
    needs("debian")
    try:
        return images.debian_tar()
    except OSError as error:
        pytest.skip(f"debian: {error}")


@pytest.fixture
def isolated() -> Isolated:
    """Runs a function in a child with user and mount namespaces of its own; its failure is ours."""
    needs("userns")
    return _run_isolated


def _run_isolated(work: Callable[[], None]) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            _enter_namespaces()
            work()
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[:60000])
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        pytest.fail(told or f"the isolated child ended with {status:#x}", pytrace=False)


def _enter_namespaces() -> None:
    # os.unshare exists from Python 3.12 on.
    import ctypes

    from tare.kernel.libc import Libc  # late: collection must not depend on what is under test

    clone_newns, clone_newuser = 0x00020000, 0x10000000
    uid, gid = os.geteuid(), os.getegid()
    Libc("unshare", ctypes.c_int)(clone_newuser | clone_newns)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
