"""Section 4 and T.4: one image, by its configuration, its history, its files and its packages.

Not for: collecting (`image_scan`), or reading advisories (`vulnerabilities`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tare.audit import finding, secrets
from tare.audit.finding import Evidence, Item
from tare.audit.history import Step, steps
from tare.audit.image_scan import ImageFacts
from tare.audit.vulnerabilities import Database
from tare.image.store import Image

_DAY: Final = 86400 * 10**9
_USUAL_SETUID: Final = frozenset((
    "at", "bsd-write", "chage", "chfn", "chsh", "crontab", "dbus-daemon-launch-helper", "expiry",
    "fusermount", "fusermount3", "gpasswd", "mount", "newgidmap", "newgrp", "newuidmap", "ntfs-3g",
    "passwd", "pam_timestamp_check", "ping", "ping6", "ssh-agent", "ssh-keysign", "su", "umount",
    "unix_chkpwd", "unix_update", "wall", "write",
))  # fmt: skip
_UNNEEDED: Final = frozenset((
    "gcc", "g++", "make", "cmake", "gdb", "strace", "tcpdump", "nmap", "netcat-openbsd",
    "netcat-traditional", "ncat", "telnet", "telnetd", "vim", "emacs", "nano", "openssh-server",
    "rsh-server", "sudo", "git", "build-essential", "ftp", "socat",
))  # fmt: skip
_SYSTEM: Final = frozenset((
    "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/sbin", "/sys",
    "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var/run",
))  # fmt: skip
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An image with all that an audit knows of it; what could not be read is None."""

    image: Image
    name: str
    facts: ImageFacts | None
    trouble: str  # why there are no facts
    advisories: Database | None
    trust_mode: str  # off, warn, on; "" where the engine has no trust
    verdict: str  # what trust says of it, in a sentence; "" nothing
    accepted: bool
    official: bool
    max_age_days: int

    @property
    def history(self) -> tuple[Step, ...]:
        """Its steps as they were written."""
        return steps(self.image.config.history)


def judge(subject: Subject, name: str) -> tuple[Item, ...]:
    """What the check *name* says of an image; () for one that is not of this part."""
    function = _JUDGES.get(name)
    if function is None:
        return ()
    found = function(subject)
    items = (found,) if isinstance(found, Item) else tuple(found)
    return finding.about(subject.name, items)


def _listed(words: Collection[str]) -> str:
    found = list(words)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


# --- the configuration --------------------------------------------------------------------------


def _user(subject: Subject) -> Item:
    user = subject.image.config.user
    at = Evidence("Config.User", user or "not set")
    if user.partition(":")[0] in ("", "0", "root"):
        return finding.warn("it runs as root", at)
    return finding.ok(f"it runs as {user}", at)


def _healthcheck(subject: Subject) -> Item:
    health = subject.image.config.health
    if health is None or not health.test or health.test[0] == "NONE":
        return finding.warn("it has no health check")
    return finding.ok("it has a health check", Evidence("test", " ".join(health.test)[:200]))


def _trusted(subject: Subject) -> Item:
    if subject.accepted and subject.verdict:
        return finding.ok(subject.verdict)
    if subject.official:
        return finding.note("it has the name of an official image; nothing verified that")
    return finding.warn(
        f"nothing vouches for it{': ' + subject.verdict if subject.verdict else ''}"
    )


def _content_trust(subject: Subject) -> Item:
    at = Evidence("trust", subject.trust_mode or "not there")
    match subject.trust_mode:
        case "on":
            return finding.ok("images that nothing verifies are refused", at)
        case "":
            return finding.note("this engine cannot tell", at)
    return finding.warn("images that nothing verifies are used", at)


def _signed(subject: Subject) -> Item:
    if subject.accepted:
        return finding.ok(subject.verdict or "it was verified")
    return finding.warn(subject.verdict or "nothing verified it")


def _volumes(subject: Subject) -> list[Item]:
    found = sorted(set(subject.image.config.volumes) & _SYSTEM)
    if found:
        return [finding.warn(f"it declares {path} as a volume") for path in found]
    return [finding.ok("no volume covers a directory of the system")]


# --- the history --------------------------------------------------------------------------------


def _update_alone(subject: Subject) -> list[Item]:
    found = [
        finding.warn("lists of packages are fetched in a step of their own", _step(step))
        for step in subject.history
        if step.updates and not step.installs
    ]
    return found or [finding.ok("no step only fetches lists of packages")]


def _add(subject: Subject) -> list[Item]:
    found = [
        finding.warn("ADD where COPY would do", _step(step))
        for at, step in enumerate(subject.history)
        if step.instruction == "ADD" and at > 0 and "--checksum" not in step.text
    ]
    return found or [finding.ok("COPY is used, not ADD")]


def _verified_packages(subject: Subject) -> list[Item]:
    found = [
        finding.warn(f"it switches verification off: {step.unverified}", _step(step))
        for step in subject.history
        if step.unverified
    ]
    return found or [finding.ok("no step switches the verification of packages off")]


def _step(step: Step) -> Evidence:
    return Evidence(f"history {step.number}", " ".join(step.text.split())[:160])


def _secrets(subject: Subject) -> list[Item]:
    found: dict[str, Item] = {}
    config = subject.image.config
    for entry in config.env:
        name, _, value = entry.partition("=")
        if one := secrets.in_variable(name, value):
            found[one.what] = _secret(one, "Config.Env")
    for label, value in config.labels.items():
        for one in secrets.in_content(value.encode("utf-8", "replace")):
            found.setdefault(f"{label}{one.what}", _secret(one, f"label {label}"))
    for step in subject.history:
        for name, value in step.assignments:
            one_ = secrets.in_variable(name, value)
            if one_ and one_.what not in found:
                found[one_.what] = _secret(one_, f"history {step.number}")
        for one in secrets.in_content(step.text.encode("utf-8", "replace")):
            found.setdefault(f"{one.what} {one.shown}", _secret(one, f"history {step.number}"))
    return list(found.values()) or [finding.ok("no secret in its variables, labels and history")]


def _secret(one: secrets.Secret, where: str) -> Item:
    at = Evidence(where, one.shown)
    return finding.fail(one.what, at) if one.sure else finding.warn(one.what, at)


# --- files and packages -------------------------------------------------------------------------

_FilesJudge = Callable[[Subject, ImageFacts], Iterable[Item]]


def _with_files(judge_: _FilesJudge) -> Callable[[Subject], Iterable[Item]]:
    def judged(subject: Subject) -> Iterable[Item]:
        if subject.facts is None:
            return [finding.note(f"its files could not be read: {subject.trouble}")]
        return judge_(subject, subject.facts)

    return judged


def _setuid(_: Subject, facts: ImageFacts) -> list[Item]:
    there = {
        path: mode
        for _, layer in facts.layers
        for path, mode in layer.setuid
        if path in facts.visible
    }
    capable = sorted({p for _, layer in facts.layers for p in layer.capable if p in facts.visible})
    strange = [p for p in sorted(there) if p.rpartition("/")[2] not in _USUAL_SETUID]
    found = [
        finding.warn(f"/{path} is setuid or setgid", Evidence(f"/{path}", f"{there[path]:04o}"))
        for path in strange[:_SHOWN]
    ]
    found += [finding.warn(f"/{path} has capabilities") for path in capable[:_SHOWN]]
    usual = [f"/{p}" for p in sorted(there) if p not in strange]
    if usual:
        found.append(
            finding.info(
                f"{len(usual)} usual setuid programs, without effect while no-new-privileges is on",
                Evidence("files", _listed(usual)),
            )
        )
    return found or [finding.ok("no setuid or setgid file")]


def _secret_files(_: Subject, facts: ImageFacts) -> list[Item]:
    found: dict[tuple[str, str], Item] = {}
    for diff_id, layer in facts.layers:
        for path, one in layer.secrets:
            gone = "" if path in facts.visible else ", deleted by a later layer"
            at = Evidence(f"layer {diff_id[7:19]}{gone}", one.shown or "by its name")
            seen = f"/{path}: {one.what}"
            item = finding.fail(seen, at) if one.sure else finding.warn(seen, at)
            found.setdefault((path, one.what), item)
    return list(found.values())[:50] or [finding.ok("no file looks like a secret")]


def _writable(_: Subject, facts: ImageFacts) -> list[Item]:
    there = sorted({p for _, layer in facts.layers for p in layer.writable if p in facts.visible})
    if there:
        shown = _listed([f"/{p}" for p in there])
        return [finding.warn(f"{len(there)} files or directories that all may write: {shown}")]
    return [finding.ok("nothing that all may write")]


def _accounts(_: Subject, facts: ImageFacts) -> list[Item]:
    found = [finding.fail(f"{name} has no password") for name in facts.empty_passwords]
    found += [finding.warn(text) for text in facts.duplicate_ids]
    return found or [finding.ok("every account has a password or is locked, and an id of its own")]


def _packages(_: Subject, facts: ImageFacts) -> Item:
    packages = facts.inventory.packages
    found = sorted({p.name for p in packages if p.name in _UNNEEDED})
    if found:
        return finding.info(f"of {len(packages)} packages, not needed to run: {_listed(found)}")
    if not packages:
        return finding.ok("no packages are recorded in it")
    return finding.ok(f"none of the usual tools among {len(packages)} packages")


def _sudo(_: Subject, facts: ImageFacts) -> list[Item]:
    if any(p.name == "sudo" for p in facts.inventory.packages):
        return [finding.warn("sudo is installed")]
    return [finding.ok("sudo is not installed")]


def _age(subject: Subject) -> list[Item]:
    created = subject.image.created_ns
    if created <= 0:
        return [finding.note("when it was made is not known (its date is 1970, or none)")]
    days = (time.time_ns() - created) // _DAY
    at = Evidence("created", f"{days} days ago")
    if days > subject.max_age_days:
        return [finding.warn(f"it was made {days} days ago: corrections are likely missing", at)]
    return [finding.ok(f"it was made {days} days ago", at)]


def _vulnerable(subject: Subject, facts: ImageFacts) -> list[Item]:
    database = subject.advisories
    if database is None:
        return [finding.note("no file of advisories was given (--vulnerabilities)")]
    found: dict[tuple[str, str], Item] = {}
    packages = sorted(facts.inventory.packages)
    for package in packages:
        for one, version in database.of(package, facts.inventory.system):
            also = f" ({', '.join(one.aliases[:3])})" if one.aliases else ""
            severity = f", {one.severity}" if one.severity else ""
            remedy = f"corrected in {one.fixed}" if one.fixed else "not corrected yet"
            seen = f"{package.name} {version}: {one.id}{also}{severity}, {remedy}"
            at = Evidence(package.where or "packages", one.summary or one.id)
            bad = one.severity in ("critical", "high")
            found.setdefault(
                (package.name, one.id), finding.fail(seen, at) if bad else finding.warn(seen, at)
            )
    if found:
        return list(found.values())
    return [
        finding.ok(
            f"none of {len(packages)} packages is in the {database.documents} advisories given"
        )
    ]


_JUDGES: Final[Mapping[str, Callable[[Subject], Item | Iterable[Item]]]] = {
    "image-user": _user,
    "image-trusted-base": _trusted,
    "image-packages": _with_files(lambda s, f: [_packages(s, f)]),
    "image-age": _age,
    "image-content-trust": _content_trust,
    "image-healthcheck": _healthcheck,
    "image-update-alone": _update_alone,
    "image-setuid": _with_files(_setuid),
    "image-add": _add,
    "image-secrets": _secrets,
    "image-verified-packages": _verified_packages,
    "image-signed": _signed,
    "image-vulnerabilities": _with_files(_vulnerable),
    "image-accounts": _with_files(_accounts),
    "image-world-writable": _with_files(_writable),
    "image-sudo": _with_files(_sudo),
    "image-volumes": _volumes,
    "image-secret-files": _with_files(_secret_files),
}
