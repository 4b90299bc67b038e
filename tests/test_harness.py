"""The harness itself: a canary that cannot die and a skip that cannot fail prove nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import attacks, canaries
from harness.needs import lacks

TESTS = Path(__file__).parent


def test_an_attack_counts_only_when_every_test_of_it_passed() -> None:
    tally = attacks.Tally()

    tally.record(("A01", "A02"), "passed")
    tally.record(("A02",), "failed")
    tally.record(("A03",), "passed")
    tally.record(("A03",), "skipped", "userns: no")
    tally.record(("A04",), "skipped", "not applicable: no console here")

    assert tally.lines() == [
        "attacks that won or whose test is broken: A02",
        "attacks not proven, tests skipped: A03 (userns: no)",
        "attacks survived 1/50, not-applicable 1 (A04: no console here)",
    ]


@pytest.mark.parametrize("identifier", ["A00", "A51", "a01", "A1", "A001", ""])
def test_only_the_fifty_attacks_have_a_number(identifier: str) -> None:
    assert not attacks.valid(identifier)


def test_a_changed_canary_is_found(tmp_path: Path) -> None:
    canary = canaries.plant(tmp_path)
    watch = canaries.Canaries(canary, tmp_path)
    assert not [finding for finding in watch.findings() if finding.ours]

    canary.write_bytes(b"someone was here")

    assert any("content changed" in finding.text for finding in watch.findings())


@pytest.mark.needs("root")
def test_a_mount_left_below_our_directory_is_found(tmp_path: Path) -> None:
    watch = canaries.Canaries(canaries.plant(tmp_path), tmp_path)
    target = tmp_path / "mounted"
    target.mkdir()

    subprocess.run(["mount", "-t", "tmpfs", "tare-test", str(target)], check=True)
    try:
        found = [finding.text for finding in watch.findings() if finding.ours]
        below = canaries.mounts_below(tmp_path)
    finally:
        subprocess.run(["umount", str(target)], check=True)

    assert len(found) == 1
    assert "mount left" in found[0]
    assert below == [str(target)]


def test_a_process_left_behind_is_found_until_it_is_gone() -> None:
    leftovers = canaries.Leftovers("a-mark", "no-such-parent")
    environment = {**os.environ, canaries.MARK: "a-mark"}
    process = subprocess.Popen(["sleep", "60"], env=environment)

    found = [finding.text for finding in leftovers.findings(patience=0.0) if finding.ours]
    process.kill()
    process.wait()

    assert [f"process left: {process.pid} sleep 60"] == [text.strip() for text in found]
    assert not [finding for finding in leftovers.findings(patience=0.0) if finding.ours]


@pytest.mark.parametrize(("required", "outcome"), [("", "1 skipped"), ("kvm", "1 failed")])
def test_a_skip_fails_where_the_host_must_have_it(
    tmp_path: Path, required: str, outcome: str
) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_it():\n    pytest.skip('kvm: it is not here')\n"
    )
    environment = {**os.environ, "TARE_TEST_REQUIRE": required}
    environment.pop("CI", None)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o",
         f"pythonpath={TESTS} {TESTS.parent / 'src'}", "--rootdir", str(tmp_path), str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip

    assert outcome in done.stdout, done.stdout + done.stderr
    assert (done.returncode != 0) == bool(required)


def test_an_unknown_need_is_a_mistake_of_the_test() -> None:
    with pytest.raises(LookupError, match="no probe for the need 'usrens'"):
        lacks("usrens")


def test_the_busybox_archive_says_what_its_layer_is(busybox_archive: Path) -> None:
    with tarfile.open(busybox_archive) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        [entry] = json.load(manifest)
        names = archive.getnames()

    assert entry["RepoTags"] == ["busybox:latest"]
    assert {entry["Config"], *entry["Layers"]} < set(names)


def test_busybox_runs_in_its_root(busybox_rootfs: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "chroot", str(busybox_rootfs), "/bin/id"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("uid=0(root)")


def test_what_runs_isolated_has_its_own_mounts(
    isolated: Callable[[Callable[[], None]], None],
) -> None:
    before = os.readlink("/proc/self/ns/mnt")

    def work() -> None:
        assert os.readlink("/proc/self/ns/mnt") != before
        assert os.geteuid() == 0

    isolated(work)
