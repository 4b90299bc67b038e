"""Base images from signed packages: what is asked of mmdebstrap, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.errors import FailedError, InvalidError, MissingError
from tare.image import bootstrap as module
from tare.image.bootstrap import LABELS, Recipe, bootstrap, installed
from tare.image.store import ImageStore

real = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    made = ImageStore(tmp_path / "state", extract=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("suite", "variant", "reference", "chosen"),
    [
        ("bookworm", "", "debian:bookworm", "minbase"),
        ("debian:bookworm-slim", "", "debian:bookworm-slim", "minbase"),
        ("trixie", "slim", "debian:trixie-slim", "minbase"),
        ("ubuntu:noble", "essential", "ubuntu:noble", "essential"),
        ("jammy", "", "ubuntu:jammy", "minbase"),
    ],
)
def test_a_suite_is_understood(suite: str, variant: str, reference: str, chosen: str) -> None:
    recipe = Recipe.parse(suite, variant=variant)

    assert (recipe.reference, recipe.variant) == (reference, chosen)
    keyring = f"--keyring={recipe.distribution.keyring}"
    assert keyring in recipe.command(Path("/s")), "nothing but the distribution's keys is trusted"


@pytest.mark.parametrize(
    "wishes",
    [
        {"suite": "--help"},
        {"suite": "book worm"},
        {"suite": "nosuch"},
        {"suite": "fedora:40"},
        {"suite": "debian:noble"},
        {"suite": "bookworm", "variant": "huge"},
        {"suite": ""},
        {"suite": "bookworm", "packages": ["-oDebug=1"]},
        {"suite": "bookworm", "packages": ["a,b"]},
        {"suite": "bookworm", "packages": [""]},
        {"suite": "bookworm", "packages": ["a b"]},
        {"suite": "bookworm", "packages": ["?essential"]},
        {"suite": "bookworm", "mirror": "deb [trusted=yes] http://x y main"},
        {"suite": "bookworm", "mirror": "--setup-hook=x"},
        {"suite": "bookworm", "mirror": "ftp://x"},
        {"suite": "bookworm", "mirror": "http://x/[trusted=yes]"},
        {"suite": "bookworm", "mirror": "http://x\nfile:///"},
    ],
    ids=str,
)
def test_what_would_be_an_option_or_untrusted_is_refused(wishes: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        Recipe.parse(**wishes)


def test_the_installed_packages_are_read_from_dpkgs_status(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(
        "Package: b\nStatus: install ok installed\nVersion: 1:2-3\nDescription: x\n Status: no\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: a\nStatus: hold ok installed\nVersion: 4~5\n"
    )

    assert installed(status) == [("a", "4~5"), ("b", "1:2-3")]
    assert installed(tmp_path / "none") == []


def test_a_host_without_mmdebstrap_is_told_what_to_install(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingError, match="mmdebstrap is not installed") as caught:
        bootstrap(store, "bookworm")

    assert "apt-get install mmdebstrap" in caught.value.hint


@real
def test_a_missing_keyring_is_named(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ubuntu = next(d for d in module.DISTRIBUTIONS if d.name == "ubuntu")
    if ubuntu.keyring.exists():
        pytest.skip("the keyring of Ubuntu is installed here")

    with pytest.raises(MissingError, match="keyring of ubuntu") as caught:
        bootstrap(store, "noble")

    assert "ubuntu-keyring" in caught.value.hint


def unsigned_mirror(directory: Path) -> str:
    """A whole mirror of one empty suite, but for the signature."""
    packages = directory / "dists/bookworm/main/binary-amd64/Packages"
    packages.parent.mkdir(parents=True)
    packages.write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    (directory / "dists/bookworm/Release").write_text(
        "Suite: bookworm\nCodename: bookworm\nComponents: main\nArchitectures: amd64\n"
        "Date: Sat, 01 Jan 2022 00:00:00 UTC\nSHA256:\n"
        f" {digest} 0 main/binary-amd64/Packages\n"
    )
    return f"file://{directory}"


@real
@pytest.mark.attack("A33")
def test_a_mirror_that_is_not_signed_gives_no_image(
    store: ImageStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("mirror")
    for path in (directory, directory.parent):
        path.chmod(0o755)
    words: list[str] = []

    with pytest.raises(FailedError, match="mmdebstrap failed") as caught:
        bootstrap(
            store,
            "bookworm",
            variant="extract",
            mirror=unsigned_mirror(directory),
            progress=words.append,
        )

    assert "not signed" in str(caught.value) + caught.value.hint, words
    assert words
    assert store.list() == []
    assert os.listdir(store._layers._directory) == []


def network() -> bool:
    try:
        done = subprocess.run(
            ["apt-get", "--print-uris", "download", "busybox-static"],
            capture_output=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@real
def test_an_image_is_made_of_signed_packages_and_says_of_which(
    store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked only, not configured: the quickest that is real. The demo makes a whole one."""
    if not network():
        pytest.skip("no Debian mirror is configured")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    words: list[str] = []

    try:
        image = bootstrap(
            store,
            "debian:bookworm",
            variant="extract",
            packages=["busybox-static"],
            reference="mini:1",
            progress=words.append,
        )
    except FailedError as error:
        if "network" in error.hint:
            pytest.skip(str(error))
        raise

    assert image.tags == ("mini:1",)
    assert image.config.created == "2023-11-14T22:13:20Z"
    assert image.config.labels[LABELS + "suite"] == "bookworm"
    assert image.config.labels[LABELS + "requested"] == "busybox-static"
    assert "--include=busybox-static" in image.config.history[0].created_by
    assert any("busybox-static" in word for word in words)
    assert image.size > 1 << 20


@real
def test_a_package_that_does_not_exist_is_named(store: ImageStore) -> None:
    if not network():
        pytest.skip("no Debian mirror is configured")

    with pytest.raises((InvalidError, FailedError), match=r"no-such-package|mmdebstrap") as caught:
        bootstrap(store, "bookworm", variant="extract", packages=["no-such-package"])

    if "network" not in caught.value.hint:
        assert isinstance(caught.value, InvalidError)
        assert "no-such-package" in str(caught.value)
    assert store.list() == []
