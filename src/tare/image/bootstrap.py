"""Base images made from a distribution's signed packages, by mmdebstrap.

mmdebstrap resolves, downloads and verifies with the distribution's own apt; its tar goes straight
into the layer writer. What the image was made of is written into it: suite, variant, mirror, what
was asked for and every package with its version (labels ``io.tare.bootstrap.*``), and the command
in its history. With SOURCE_DATE_EPOCH in the environment the same packages give the same image.

Not for: other distributions' tools, or trusting a mirror: the keyring of the distribution decides,
and a source that asks to be trusted without one is refused.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from tare.errors import FailedError, InvalidError, MissingError, TareError
from tare.image import importing
from tare.image.moments import format_time
from tare.image.store import Image, ImageStore, source_date_epoch
from tare.model import oci
from tare.model.oci import History
from tare.model.reference import Reference

Progress = Callable[[str], None]

LABELS: Final = "io.tare.bootstrap."
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STATUS_MAX: Final = 64 << 20
_TAIL: Final = 60
_VARIANTS: Final = (
    "extract", "custom", "essential", "apt", "required", "minbase", "buildd", "important",
    "debootstrap", "standard",
)  # fmt: skip
# What Docker's slim images leave out, but for copyright files.
_SLIM: Final = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/linda/*",
    "path-exclude=/usr/share/locale/*/LC_MESSAGES/*.mo",
)
_SUITE: Final = re.compile("[a-z][a-z0-9-]{0,63}")
_PACKAGE: Final = re.compile(
    r"[a-z0-9][a-z0-9+.-]{0,127}(?::[a-z0-9-]{1,20})?(?:=[A-Za-z0-9.+:~-]{1,128})?"
)
_MIRROR: Final = re.compile(r"(?:https?|file)://[A-Za-z0-9._~:/%@+-]{1,500}")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Whose packages, and the keys that sign them."""

    name: str
    suites: tuple[str, ...]
    keyring: Path
    keyring_package: str


_KEYRINGS: Final = Path("/usr/share/keyrings")
DISTRIBUTIONS: Final = (
    Distribution(
        "debian",
        (
            "buster", "bullseye", "bookworm", "trixie", "forky", "sid",
            "oldoldstable", "oldstable", "stable", "testing", "unstable",
        ),
        _KEYRINGS / "debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    Distribution(
        "ubuntu",
        ("bionic", "focal", "jammy", "noble", "oracular", "plucky", "questing", "resolute"),
        _KEYRINGS / "ubuntu-archive-keyring.gpg",
        "ubuntu-keyring",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make: everything is checked, nothing in it is an option in disguise."""

    distribution: Distribution
    suite: str
    variant: str
    slim: bool
    packages: tuple[str, ...]
    mirror: str

    @classmethod
    def parse(
        cls, suite: str, *, variant: str = "", packages: Iterable[str] = (), mirror: str = ""
    ) -> Recipe:
        """From what people type: ``bookworm``, ``debian:bookworm`` or ``debian:bookworm-slim``.

        *variant* is one of mmdebstrap's, or ``slim``; by default ``minbase``.
        """
        distribution_name, colon, name = suite.rpartition(":")
        slim = variant == "slim" or name.endswith("-slim")
        name = name.removesuffix("-slim")
        if not _SUITE.fullmatch(name):
            raise InvalidError(f"invalid suite {suite[:80]!r}", hint="for example debian:bookworm")
        distribution = _distribution(distribution_name if colon else "", name, mirror)
        chosen = "minbase" if variant in ("", "slim") else variant
        if chosen not in _VARIANTS:
            raise InvalidError(
                f"invalid variant {variant[:80]!r}",
                hint="one of: slim, " + ", ".join(_VARIANTS),
            )
        wanted = tuple(packages)
        for package in wanted:
            if not _PACKAGE.fullmatch(package):
                raise InvalidError(f"invalid package name {package[:80]!r}")
        if mirror and not _MIRROR.fullmatch(mirror):
            raise InvalidError(
                f"invalid mirror {mirror[:120]!r}",
                hint="an http://, https:// or file:// address; signatures are always checked",
            )
        return cls(distribution, name, chosen, slim, wanted, mirror)

    def asked(self) -> tuple[tuple[str, str], ...]:
        """What to ask for, to make it again: the arguments of `bootstrap` as text."""
        return (
            ("suite", f"{self.distribution.name}:{self.suite}"),
            ("variant", "slim" if self.slim else self.variant),
            ("packages", ",".join(self.packages)),
            ("mirror", self.mirror),
        )

    @property
    def reference(self) -> str:
        """The name that such an image has if no other is asked for."""
        tag = self.suite + ("-slim" if self.slim else "")
        return f"{self.distribution.name}:{tag}"

    def command(self, status: Path) -> list[str]:
        """The command that writes the tar to its output, and dpkg's status to *status*."""
        command = [
            "mmdebstrap",
            "--verbose",
            "--format=tar",
            f"--variant={self.variant}",
            f"--keyring={self.distribution.keyring}",
            f"--customize-hook=download /var/lib/dpkg/status {shlex.quote(str(status))}",
        ]
        if self.slim:
            command += [f"--dpkgopt={option}" for option in _SLIM]
        if self.packages:
            command.append("--include=" + ",".join(self.packages))
        command += [self.suite, "-"]
        if self.mirror:
            command.append(self.mirror)
        return command


def _distribution(name: str, suite: str, mirror: str) -> Distribution:
    for distribution in DISTRIBUTIONS:
        if name == distribution.name or (not name and suite in distribution.suites):
            if suite not in distribution.suites and not mirror:
                raise InvalidError(
                    f"{distribution.name} has no suite {suite!r} that is known here",
                    hint="known: " + ", ".join(distribution.suites) + "; others need a mirror",
                )
            return distribution
    if name:
        names = ", ".join(d.name for d in DISTRIBUTIONS)
        raise InvalidError(f"cannot bootstrap {name[:80]!r}", hint=f"possible: {names}")
    if mirror:
        return DISTRIBUTIONS[0]
    raise InvalidError(
        f"unknown suite {suite[:80]!r}",
        hint="known: " + ", ".join(s for d in DISTRIBUTIONS for s in d.suites),
    )


def bootstrap(
    store: ImageStore,
    suite: str,
    *,
    variant: str = "",
    packages: Iterable[str] = (),
    mirror: str = "",
    reference: str = "",
    progress: Progress = lambda _: None,
) -> Image:
    """Make an image from signed packages and name it *reference*; nothing is left if it fails.

    MissingError when mmdebstrap or the keyring is not installed, FailedError with what mmdebstrap
    said when it fails.
    """
    recipe = Recipe.parse(suite, variant=variant, packages=packages, mirror=mirror)
    name = Reference.parse(reference or recipe.reference).with_default_tag()
    if name.digest is not None:
        raise InvalidError(f"an image cannot be named by digest: {reference}")
    version = _require(recipe)
    work = Path(tempfile.mkdtemp(prefix="tare-bootstrap-"))
    try:
        status = work / "status"
        with store.lease() as lease:
            command = recipe.command(status)
            progress(shlex.join(command))
            with _Running(command, progress) as running:
                try:
                    layer = store.add_layer(running.output, lease=lease)
                except InvalidError:
                    running.check()  # its own words are better than "not a tar archive"
                    raise
                running.check()
            progress(f"layer {layer.diff_id} ({layer.size} bytes)")
            config = _config(recipe, version, installed(status))
            config = replace(config, diff_ids=(layer.diff_id,))
            return store.add_image(oci.encode(config), names=[name])
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _require(recipe: Recipe) -> str:
    """What must be installed; answers mmdebstrap's version."""
    if shutil.which("mmdebstrap") is None:
        raise MissingError(
            "mmdebstrap is not installed", hint="install it: apt-get install mmdebstrap"
        )
    distribution = recipe.distribution
    if not distribution.keyring.exists():
        raise MissingError(
            f"the keyring of {distribution.name} is not installed ({distribution.keyring})",
            hint=f"install it: apt-get install {distribution.keyring_package}",
        )
    done = subprocess.run(
        ["mmdebstrap", "--version"], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip()


def child_environment() -> dict[str, str]:
    """The environment of the distribution's tools: little of ours."""
    keep = ("PATH", "HOME", "TMPDIR", "SOURCE_DATE_EPOCH", "http_proxy", "https_proxy", "no_proxy")
    found = {key: os.environ[key] for key in keep if key in os.environ}
    found.setdefault("PATH", _PATH)
    return {**found, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


class _Running:
    """mmdebstrap at work: its tar to read, its words passed on, ended however we leave."""

    def __init__(self, command: list[str], progress: Progress) -> None:
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._progress = progress
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            cwd="/",
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.output: IO[bytes] = self._process.stdout
        self._listener = threading.Thread(
            target=self._listen, args=(self._process.stderr,), name="mmdebstrap", daemon=True
        )
        self._listener.start()

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.output.close()
        if self._process.poll() is None:
            self._process.terminate()  # it then removes its own temporary directory
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._listener.join(timeout=30)

    def _listen(self, words: IO[bytes]) -> None:
        for raw in words:
            for line in raw.decode("utf-8", "replace").replace("\r", "\n").splitlines():
                text = "".join(c for c in line if c.isprintable()).strip()
                if text:
                    self._tail.append(text)
                    self._progress(text)
        words.close()

    def check(self) -> None:
        """It has ended: FailedError with its words unless all went well."""
        while self.output.read(1 << 16):
            pass
        code = self._process.wait()
        self._listener.join(timeout=30)
        if code != 0:
            raise _failure(code, list(self._tail))


def _failure(code: int, tail: list[str]) -> TareError:
    """The sentence for a failed run, by what it said."""
    errors = [line for line in tail if line.startswith("E: ")]
    # mmdebstrap's own last word is only that apt failed.
    told = [line for line in errors if "mmdebstrap" not in line and "failed:" not in line] or errors
    reason = "; ".join(dict.fromkeys(line[3:] for line in told[:3])) or f"exit status {code}"
    text = "\n".join(tail)
    if "Unable to locate package" in text or "has no installation candidate" in text:
        return InvalidError(f"bootstrap: {reason}", hint="check the names of the packages")
    hint = "what it said before is above"
    if re.search("NO_PUBKEY|is not signed|signatures were invalid|couldn't be verified", text):
        hint = "the mirror is not signed by the distribution's keys: nothing of it was used"
    elif re.search("Could not resolve|Could not connect|Temporary failure|Connection", text):
        hint = "check the network, or name a mirror that this host reaches with --mirror"
    elif "does not have a Release file" in text:
        hint = "the mirror does not have this suite"
    elif "No space left" in text:
        hint = "free some space: mmdebstrap works in TMPDIR (by default /tmp)"
    return FailedError(f"bootstrap: mmdebstrap failed: {reason}", hint=hint)


def installed(status: Path) -> list[tuple[str, str]]:
    """The packages that dpkg's status file says are installed, with their versions, sorted."""
    try:
        with open(status, "rb") as file:
            text = file.read(_STATUS_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    found = []
    for paragraph in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status", "").endswith(" installed"):
            found.append((fields.get("Package", ""), fields.get("Version", "")))
    return sorted(found)


def _config(recipe: Recipe, version: str, packages: list[tuple[str, str]]) -> oci.ImageConfig:
    epoch = source_date_epoch()
    created = format_time(time.time_ns() if epoch is None else epoch * 10**9)
    command = recipe.command(Path("STATUS"))
    labels = {
        "org.opencontainers.image.title": recipe.reference,
        "org.opencontainers.image.created": created,
        LABELS + "tool": version,
        LABELS + "suite": recipe.suite,
        LABELS + "variant": "slim" if recipe.slim else recipe.variant,
        LABELS + "mirror": recipe.mirror or "default",
        LABELS + "keyring": str(recipe.distribution.keyring),
        LABELS + "requested": " ".join(recipe.packages),
        LABELS + "installed": " ".join(f"{name}={version}" for name, version in packages),
    }
    step = History(
        created=created,
        created_by=shlex.join(part for part in command if not part.startswith("--customize-hook")),
        comment=f"bootstrapped from {recipe.distribution.name}'s signed packages by tare",
    )
    return replace(
        importing.blank_config(),
        created=created,
        cmd=("bash",) if recipe.variant not in ("extract", "custom") else None,
        env=(f"PATH={_PATH}",),
        labels={name: value for name, value in labels.items() if value},
        history=(step,),
    )
