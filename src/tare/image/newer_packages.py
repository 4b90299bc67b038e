"""What of a bootstrapped image has newer signed packages: its distribution's own apt is asked.

apt works in a directory of its own, on a copy of the image's list of installed packages; nothing
of the image is run, and of its files only that list is read. The sources are made anew of the
recipe that the image's labels tell, checked as any recipe is; what an image says of its own
sources is not used. Indexes are verified with the distribution's keyring, as by `bootstrap`.

Not for: installing anything, or images of other distributions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final

from tare.errors import FailedError, InvalidError, MissingError
from tare.image.bootstrap import LABELS, Recipe
from tare.image.store import Image
from tare.model import oci

Newer = tuple[str, str, str]
"""A package: its name, the version in the image, the newest."""

_INST: Final = re.compile(r"Inst ([a-z0-9][a-z0-9+.:-]*) (?:\[([^\]\s]+)\] )?\(([^\s)]+)", re.ASCII)
_SECONDS: Final = 300
_MOST: Final = 10_000
_ROLLING: Final = ("sid", "unstable", "testing", "forky")
_COMMENT: Final = "bootstrapped from "


def recipe_of(image: Image) -> Recipe | None:
    """How an image was bootstrapped, if it was, and nothing was built on it since."""
    labels, history = image.config.labels, image.config.history
    if len(image.layers) != 1 or len(history) != 1 or not history[0].comment.startswith(_COMMENT):
        return None  # what is built on such an image inherits its labels
    suite = labels.get(LABELS + "suite", "")
    mirror = labels.get(LABELS + "mirror", "")
    distribution = history[0].comment.removeprefix(_COMMENT).partition("'")[0]
    try:
        return Recipe.parse(
            f"{distribution}:{suite}",
            variant=labels.get(LABELS + "variant", ""),
            packages=labels.get(LABELS + "requested", "").split(),
            mirror="" if mirror == "default" else mirror,
        )
    except InvalidError:
        return None


def sources(recipe: Recipe) -> str:
    """The sources of a recipe, in apt's one-line form: those that mmdebstrap uses."""
    suite = recipe.suite
    option = f"[signed-by={recipe.distribution.keyring}]"
    if recipe.mirror:
        return f"deb {option} {recipe.mirror} {suite} main\n"
    if recipe.distribution.name == "ubuntu":
        main, security = "http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu"
    else:
        main = "http://deb.debian.org/debian"
        security = "http://security.debian.org/debian-security"
    lines = [f"deb {option} {main} {suite} main"]
    if suite not in _ROLLING:
        lines.append(f"deb {option} {main} {suite}-updates main")
        lines.append(f"deb {option} {security} {suite}-security main")
    return "\n".join(lines) + "\n"


class PackageLists:
    """The package lists of one round of questions: each distribution's are fetched once."""

    def __init__(self) -> None:
        self._work = Path(tempfile.mkdtemp(prefix="tare-updates-"))
        self._work.chmod(0o755)  # apt reads its own files as a user who may do nothing else
        self._lock = threading.Lock()
        self._fetched: dict[str, Path] = {}

    def close(self) -> None:
        """Delete them."""
        shutil.rmtree(self._work, ignore_errors=True)

    def newer(self, recipe: Recipe, status: bytes, platform: oci.Platform) -> list[Newer]:
        """What is newer than *status*, dpkg's list of what is installed; may take a minute.

        MissingError without apt or keyring, FailedError with what apt said.
        """
        if shutil.which("apt-get") is None:
            raise MissingError("apt-get is not installed", hint="it is Debian's package manager")
        keyring = recipe.distribution.keyring
        if not keyring.exists():
            raise MissingError(
                f"the keyring of {recipe.distribution.name} is not installed ({keyring})",
                hint=f"install it: apt-get install {recipe.distribution.keyring_package}",
            )
        with self._lock:
            place = self._lists(recipe, platform)
            (place / "var/lib/dpkg/status").write_bytes(status)
            said = _apt(place, "--simulate", "dist-upgrade")
        found = [
            (match[1], match[2], match[3])
            for match in (_INST.match(line) for line in said.splitlines())
            if match is not None
        ]
        return sorted((name, old, new) for name, old, new in found[:_MOST] if old)

    def _lists(self, recipe: Recipe, platform: oci.Platform) -> Path:
        lines = sources(recipe)
        key = f"{platform.architecture}\n{lines}"
        place = self._fetched.get(key)
        if place is not None:
            return place
        place = self._work / str(len(self._fetched))
        for name in (
            "etc/apt/sources.list.d", "etc/apt/apt.conf.d", "etc/apt/preferences.d",
            "etc/apt/trusted.gpg.d", "var/lib/apt/lists/partial", "var/lib/dpkg",
            "var/cache/apt/archives/partial", "var/log/apt",
        ):  # fmt: skip
            (place / name).mkdir(parents=True)
        (place / "etc/apt/sources.list").write_text(lines)
        (place / "var/lib/dpkg/status").write_bytes(b"")
        architecture = {"386": "i386", "arm": "armhf", "ppc64le": "ppc64el"}.get(
            platform.architecture, platform.architecture
        )
        (place / "apt.conf").write_text(
            f'Dir "{place}";\nDir::State::status "{place}/var/lib/dpkg/status";\n'
            f'APT::Architecture "{architecture}";\nAPT::Architectures {{ "{architecture}"; }};\n'
            'Acquire::Languages "none";\nAPT::Update::Error-Mode "any";\n'
            'Debug::NoLocking "true";\nAPT::Get::AllowUnauthenticated "false";\n'
        )
        _apt(place, "update")
        self._fetched[key] = place
        return place


def _apt(place: Path, *words: str) -> str:
    """What apt-get says of *words* with *place* as its root; FailedError with its errors."""
    from tare.image.bootstrap import child_environment

    try:
        done = subprocess.run(
            ["apt-get", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
            cwd="/",
            env={**child_environment(), "APT_CONFIG": str(place / "apt.conf")},
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"apt-get {words[-1]} took longer than {_SECONDS} seconds") from None
    if done.returncode != 0:
        errors = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
        reason = "; ".join(errors[:3])[:600] or f"exit status {done.returncode}"
        raise FailedError(
            f"apt-get {words[-1]}: {reason}",
            hint="the package lists must be reachable and signed by the distribution",
        )
    return done.stdout
