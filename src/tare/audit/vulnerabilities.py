"""Known vulnerabilities of packages, from files that somebody gave: nothing is fetched.

Three forms are read: OSV documents (a file, a directory, or the zip files that osv.dev offers for
an ecosystem), and the JSON of Debian's security tracker. Only advisories on packages that are
asked about are kept, so that a database of gigabytes costs its reading and nothing more.

What is in them is of strangers: every document is decoded strictly and bounded, one that cannot
be read is counted and told, and a version is compared by the rules of its ecosystem.

Not for: which packages an image has (tare.build.sbom).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tare.audit import versions
from tare.build.sbom.inventory import Kind, Package, System
from tare.errors import InvalidError

_DOCUMENT_MAX: Final = 4 << 20
_TRACKER_MAX: Final = 512 << 20
_FILES_MAX: Final = 1_000_000
_RELEASES: Final = {
    "buster": "10", "bullseye": "11", "bookworm": "12", "trixie": "13", "forky": "14",
}  # fmt: skip
_ECOSYSTEMS: Final = {
    "debian": Kind.DEB, "ubuntu": Kind.DEB, "pypi": Kind.PYPI, "npm": Kind.NPM,
    "alpine": Kind.APK, "wolfi": Kind.APK, "chainguard": Kind.APK, "red hat": Kind.RPM,
    "rocky linux": Kind.RPM, "almalinux": Kind.RPM, "opensuse": Kind.RPM, "suse": Kind.RPM,
}  # fmt: skip
_IDS: Final = {
    "debian": ("debian",), "ubuntu": ("ubuntu",), "alpine": ("alpine",), "wolfi": ("wolfi",),
    "chainguard": ("chainguard",), "red hat": ("rhel", "redhat"), "rocky linux": ("rocky",),
    "almalinux": ("almalinux",), "opensuse": ("opensuse-leap", "opensuse-tumbleweed"),
    "suse": ("sles",),
}  # fmt: skip


class _Event(Struct):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(Struct):
    type: str = ""
    events: list[_Event] = []


class _Named(Struct):
    ecosystem: str = ""
    name: str = ""


class _Severe(Struct):
    severity: str | None = None
    urgency: str | None = None


class _Affected(Struct):
    package: _Named | None = None
    ranges: list[_Range] = []
    versions: list[str] = []
    ecosystem_specific: _Severe | None = None
    database_specific: _Severe | None = None


class _Osv(Struct):
    id: str
    aliases: list[str] = []
    summary: str = ""
    withdrawn: str | None = None
    affected: list[_Affected] = []
    database_specific: _Severe | None = None


class _TrackerRelease(Struct):
    status: str = ""
    fixed_version: str | None = None
    urgency: str = ""


class _TrackerEntry(Struct):
    description: str = ""
    releases: dict[str, _TrackerRelease] = {}


_OSV: Final = msgspec.json.Decoder(_Osv)
_OSV_LIST: Final = msgspec.json.Decoder(list[_Osv])
_TRACKER: Final = msgspec.json.Decoder(dict[str, dict[str, _TrackerEntry]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Advisory:
    """One vulnerability of one package in one ecosystem."""

    id: str
    aliases: tuple[str, ...]
    summary: str
    severity: str  # as the database says it, lower case; "" unknown
    kind: Kind
    name: str
    ecosystem: str  # the distribution's, lower case ("" for languages)
    release: str  # of the distribution, "" all
    spans: tuple[tuple[str, str, bool], ...]  # from, to, whether the end is affected; "" open
    listed: frozenset[str] = frozenset()

    def affects(self, version: str) -> bool:
        """Whether *version* of its package is vulnerable."""
        if version in self.listed:
            return True
        return any(self._within(version, span) for span in self.spans)

    def _within(self, version: str, span: tuple[str, str, bool]) -> bool:
        start, end, closed = span
        if start not in ("", "0") and versions.compare(self.kind, version, start) < 0:
            return False
        if not end:
            return True
        order = versions.compare(self.kind, version, end)
        return order < 0 or (closed and order == 0)

    @property
    def fixed(self) -> str:
        """The lowest version that is said to be corrected, "" if none is."""
        return next((end for _, end, closed in self.spans if end and not closed), "")


@dataclass(slots=True)
class Database:
    """Advisories by kind and name of their package, and what could not be read."""

    advisories: dict[tuple[Kind, str], list[Advisory]] = field(default_factory=dict)
    documents: int = 0
    unreadable: int = 0

    def add(self, advisory: Advisory) -> None:
        """Keep one."""
        self.advisories.setdefault((advisory.kind, advisory.name), []).append(advisory)

    def of(self, package: Package, system: System) -> list[tuple[Advisory, str]]:
        """The advisories that affect *package* on *system*, and the version they judged."""
        found = []
        for name, version in names_of(package):
            for one in self.advisories.get((package.kind, name), ()):
                if _on(one, system) and one.affects(version):
                    found.append((one, version))
        return found


def names_of(package: Package) -> list[tuple[str, str]]:
    """The names and versions by which databases know a package: its source, else its own."""
    if package.kind in (Kind.DEB, Kind.APK) and package.source:
        name, _, version = package.source.partition(" ")
        return [(name, version or package.version)]
    if package.kind is Kind.PYPI:
        return [(_python_name(package.name), package.version)]
    return [(package.name, package.version)]


def _python_name(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _on(advisory: Advisory, system: System) -> bool:
    if not advisory.ecosystem:
        return True
    if system.id not in _IDS.get(advisory.ecosystem, ()):
        return False
    release = advisory.release.removeprefix("v")
    return not release or system.version == release or system.version.startswith(release + ".")


def load(path: str, wanted: Collection[tuple[Kind, str]]) -> Database:
    """Read the file or directory *path* for the packages *wanted*; InvalidError if it is none."""
    place = Path(path)
    if not place.is_absolute():
        raise InvalidError(f"{path}: name the vulnerabilities' file or directory from the root on")
    database = Database()
    names = frozenset(wanted)
    if place.is_dir():
        count = 0
        for directory, _, files in os.walk(place):
            for name in sorted(files):
                count += 1
                if count > _FILES_MAX:
                    raise InvalidError(f"{path} holds more than {_FILES_MAX} files")
                if name.endswith((".json", ".zip")):
                    _file(Path(directory) / name, names, database)
    elif place.is_file():
        _file(place, names, database)
    else:
        raise InvalidError(f"{path}: no such file or directory")
    if not database.documents:
        raise InvalidError(
            f"{path} holds no advisories that can be read",
            hint="give OSV documents (.json, or .zip of them) or the JSON of Debian's tracker",
        )
    return database


def _file(path: Path, wanted: frozenset[tuple[Kind, str]], database: Database) -> None:
    try:
        if path.suffix == ".zip":
            for content in _zipped(path):
                _document(content, wanted, database)
            return
        if path.stat().st_size > _TRACKER_MAX:
            raise InvalidError(f"{path} is larger than {_TRACKER_MAX >> 20} MiB")
        _document(path.read_bytes(), wanted, database)
    except (OSError, zipfile.BadZipFile) as error:
        raise InvalidError(f"{path} cannot be read: {error}") from None


def _zipped(path: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist()[:_FILES_MAX]:
            if entry.filename.endswith(".json") and entry.file_size <= _DOCUMENT_MAX:
                with archive.open(entry) as file:
                    yield file.read(_DOCUMENT_MAX)


def _document(content: bytes, wanted: frozenset[tuple[Kind, str]], database: Database) -> None:
    """One file's content, of whichever form it is."""
    try:
        if content.lstrip()[:1] == b"[":
            found: Iterable[_Osv] = _OSV_LIST.decode(content)
        elif len(content) <= _DOCUMENT_MAX and b'"affected"' in content:
            found = [_OSV.decode(content)]
        else:
            _tracker(_TRACKER.decode(content), wanted, database)
            database.documents += 1
            return
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        database.unreadable += 1
        return
    for one in found:
        database.documents += 1
        if one.withdrawn is None:
            for advisory in _osv(one, wanted):
                database.add(advisory)


def _osv(one: _Osv, wanted: frozenset[tuple[Kind, str]]) -> Iterator[Advisory]:
    for affected in one.affected:
        if affected.package is None:
            continue
        ecosystem, _, release = affected.package.ecosystem.partition(":")
        kind = _ECOSYSTEMS.get(ecosystem.lower())
        if kind is None:
            continue
        name = affected.package.name
        name = _python_name(name) if kind is Kind.PYPI else name
        if (kind, name) not in wanted:
            continue
        severe = (affected.ecosystem_specific, affected.database_specific, one.database_specific)
        words = [word for s in severe if s for word in (s.severity, s.urgency) if word]
        yield Advisory(
            id=one.id,
            aliases=tuple(one.aliases),
            summary=one.summary[:200],
            severity=words[0].lower() if words else "",
            kind=kind,
            name=name,
            ecosystem=ecosystem.lower() if kind not in (Kind.PYPI, Kind.NPM) else "",
            release=release.partition(":")[0],
            spans=tuple(
                span for r in affected.ranges if r.type != "GIT" for span in _spans(r, kind)
            ),
            listed=frozenset(affected.versions),
        )


def _spans(range_: _Range, kind: Kind) -> list[tuple[str, str, bool]]:
    """The events of a range as spans; they come in order, or are brought into it."""
    found: list[tuple[str, str, bool]] = []
    start: str | None = None
    for event in range_.events:
        if event.introduced is not None:
            if start is not None:
                found.append((start, "", False))
            start = event.introduced
        elif start is not None and (end := event.fixed or event.limit):
            found.append((start, end, False))
            start = None
        elif start is not None and event.last_affected:
            found.append((start, event.last_affected, True))
            start = None
        elif event.fixed and found and versions.compare(kind, event.fixed, found[-1][1]) < 0:
            found[-1] = (found[-1][0], event.fixed, False)
    if start is not None:
        found.append((start, "", False))
    return found


def _tracker(
    content: dict[str, dict[str, _TrackerEntry]],
    wanted: frozenset[tuple[Kind, str]],
    database: Database,
) -> None:
    for name, entries in content.items():
        if (Kind.DEB, name) not in wanted:
            continue
        for identity, entry in entries.items():
            for codename, release in entry.releases.items():
                number = _RELEASES.get(codename)
                fixed = release.fixed_version or ""
                # "0" says that this release never had it.
                if number is None or fixed == "0" or release.status not in ("open", "resolved"):
                    continue
                if release.status == "resolved" and not fixed:
                    continue
                database.add(
                    Advisory(
                        id=identity,
                        aliases=(),
                        summary=entry.description[:200],
                        severity=release.urgency.lower(),
                        kind=Kind.DEB,
                        name=name,
                        ecosystem="debian",
                        release=number,
                        spans=(("0", fixed if release.status == "resolved" else "", False),),
                    )
                )
