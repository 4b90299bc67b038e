"""Whether KVM works is found out by booting, within a limit, and remembered."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tare.vm import probe
from tare.vm.kernels import Kernels
from tare.vm.machine import Boot


@pytest.fixture
def boot(kernels: Kernels) -> Boot:
    ready = kernels.prepare()
    return Boot(
        kernel=os.fspath(ready.vmlinux),
        initramfs=os.fspath(ready.initramfs),
        tsc_khz=kernels.tsc_khz(),
    )


def test_a_guest_that_says_hello_works(boot: Boot) -> None:
    assert probe.try_boot(boot, "tcg", limit=60.0) == probe.Answer(True)


def test_a_guest_that_does_not_boot_in_time_does_not_work_and_is_ended(boot: Boot) -> None:
    before = _children()

    found = probe.try_boot(boot, "tcg", limit=0.05)

    assert not found.works
    assert found.why
    assert _children() <= before  # other tests' may be there, and end


def _children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_the_answer_is_remembered_for_these_circumstances_only(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(_: Boot, accelerator: str) -> probe.Answer:
        asked.append(accelerator)
        return probe.Answer(False, "it hangs")

    monkeypatch.setattr(probe, "try_boot", answer)
    monkeypatch.setattr(probe, "DEVICE", os.devnull)
    first, second = probe.kvm(tmp_path, boot), probe.kvm(tmp_path, boot)
    probe.kvm(tmp_path, Boot(kernel="/another", initramfs="/i", tsc_khz=1))

    assert first == second == probe.Answer(False, "it hangs")
    assert asked == ["kvm", "kvm"]


def test_without_a_device_nothing_is_tried(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "DEVICE", str(tmp_path / "none"))

    assert not probe.kvm(tmp_path, boot).works
    assert list(tmp_path.iterdir()) == []
