"""Packages of the system: what dpkg, apk and rpm say is installed. Hostile files are survived.

Not for: packages of languages (``languages``).
"""

from __future__ import annotations

import shlex
import sqlite3
import struct
from collections.abc import Iterator
from typing import Final

from tare.build.sbom.inventory import FILE_MAX, Files, Inventory, Kind, Package, System, clean

_STATUS: Final = b"var/lib/dpkg/status"
_STATUS_D: Final = b"var/lib/dpkg/status.d"
_APK: Final = (b"lib/apk/db/installed", b"usr/lib/apk/db/installed")
_RPM: Final = (b"var/lib/rpm", b"usr/lib/sysimage/rpm")
_RPM_MAX: Final = 512 << 20
_HEADER_MAX: Final = 32 << 20
_STEPS: Final = 50_000  # thousands of SQLite's virtual machine's instructions
_TAGS: Final = {
    1000: "name", 1001: "version", 1002: "release", 1003: "epoch", 1011: "vendor",
    1014: "license", 1022: "arch", 1044: "source",
}  # fmt: skip
_STRINGS: Final = (6, 8, 9)
_INT32: Final = 4


def collect(files: Files, inventory: Inventory) -> None:
    """Add all packages of the system to *inventory*, and what the system is called."""
    inventory.system = _os_release(files)
    _dpkg(files, inventory)
    _apk(files, inventory)
    _rpm(files, inventory)


def _os_release(files: Files) -> System:
    text = files.text(b"etc/os-release") or files.text(b"usr/lib/os-release") or ""
    found: dict[str, str] = {}
    for line in text.splitlines()[:200]:
        name, equals, value = line.partition("=")
        if equals and name.isidentifier():
            try:
                found[name] = clean(" ".join(shlex.split(value)))
            except ValueError:
                continue
    return System(found.get("ID", ""), found.get("VERSION_ID", ""), found.get("PRETTY_NAME", ""))


# --- dpkg -----------------------------------------------------------------------------------------


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a file in Debian's control format: each name's first line of value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if found:
                yield found
            found = {}
        elif line[0] not in " \t":
            name, colon, value = line.partition(":")
            if colon:
                found[name] = value.strip()
    if found:
        yield found


def _dpkg(files: Files, inventory: Inventory) -> None:
    text = files.text(_STATUS, FILE_MAX)
    for fields in paragraphs(text) if text is not None else ():
        if fields.get("Status", "").endswith(" installed"):
            inventory.add(_deb(fields, "/" + _STATUS.decode()))
    # Images without dpkg (distroless) have a file for each package instead.
    for name, directory in files.names(_STATUS_D):
        if directory or name.endswith(b".md5sums"):
            continue
        path = _STATUS_D + b"/" + name
        text = files.text(path)
        for fields in paragraphs(text) if text is not None else ():
            inventory.add(_deb(fields, clean("/" + path.decode("utf-8", "replace"))))


def _deb(fields: dict[str, str], where: str) -> Package:
    name, version = clean(fields.get("Package", "")), clean(fields.get("Version", ""))
    source = clean(fields.get("Source", ""))
    if source:
        origin, _, own = source.partition(" ")
        source = f"{origin} {own.strip('()') or version}"
    return Package(
        kind=Kind.DEB,
        name=name,
        version=version,
        architecture=clean(fields.get("Architecture", "")),
        supplier=clean(fields.get("Maintainer", "")),
        source=source,
        where=where,
    )


# --- apk ------------------------------------------------------------------------------------------


def _apk(files: Files, inventory: Inventory) -> None:
    for path in _APK:
        text = files.text(path, FILE_MAX)
        if text is None:
            continue
        fields: dict[str, str] = {}
        for line in (*text.splitlines(), ""):
            if not line:
                if fields:
                    inventory.add(_apk_package(fields, "/" + path.decode()))
                fields = {}
            elif line[1:2] == ":" and line[0] in "PVALmo":
                fields[line[0]] = line[2:]
        return


def _apk_package(fields: dict[str, str], where: str) -> Package:
    version, origin = clean(fields.get("V", "")), clean(fields.get("o", ""))
    name = clean(fields.get("P", ""))
    return Package(
        kind=Kind.APK,
        name=name,
        version=version,
        architecture=clean(fields.get("A", "")),
        license=clean(fields.get("L", "")),
        supplier=clean(fields.get("m", "")),
        source=f"{origin} {version}" if origin and origin != name else "",
        where=where,
    )


# --- rpm ------------------------------------------------------------------------------------------


def _rpm(files: Files, inventory: Inventory) -> None:
    for directory in _RPM:
        path = directory + b"/rpmdb.sqlite"
        where = "/" + path.decode()
        content = files.read(path, _RPM_MAX)
        if content is not None:
            if files.read(path + b"-wal"):
                inventory.note(f"{where} has changes in a journal beside it: not read")
            try:
                for blob in _headers(content):
                    inventory.add(_rpm_package(blob, where))
            except (sqlite3.Error, ValueError, struct.error) as error:
                inventory.note(f"{where} cannot be read: {clean(str(error))}")
            return
        for name, form in ((b"Packages.db", "ndb"), (b"Packages", "Berkeley DB")):
            if any(found == name for found, _ in files.names(directory)):
                inventory.note(
                    f"/{directory.decode()}/{name.decode()}: rpm's database in {form} form is not"
                    " read, so its packages are missing here"
                )
                return


def _headers(content: bytes) -> Iterator[bytes]:
    """The headers in rpm's table ``Packages``; ValueError for a database that is not rpm's."""
    if len(content) < 100 or not content.startswith(b"SQLite format 3\0"):
        raise ValueError("no SQLite database")
    # In memory there is no journal: bytes 18 and 19 would ask for one (fileformat2, 1.3).
    plain = content[:18] + b"\1\1" + content[20:]
    database = sqlite3.connect(":memory:")
    try:
        database.deserialize(plain)
        database.execute("PRAGMA trusted_schema=OFF")
        steps = [0]

        def stop() -> bool:
            steps[0] += 1
            return steps[0] > _STEPS

        database.set_progress_handler(stop, 1000)
        kind = database.execute(
            "SELECT type FROM sqlite_master WHERE name = 'Packages' LIMIT 1"
        ).fetchone()
        if kind != ("table",):
            raise ValueError("it has no table Packages")
        rows = database.execute("SELECT blob FROM Packages WHERE length(blob) < ?", (_HEADER_MAX,))
        for (blob,) in rows:
            if isinstance(blob, bytes):
                yield blob
    finally:
        database.close()


def _rpm_package(blob: bytes, where: str) -> Package:
    """A package by its header: counts, an index of 16-byte entries, the data they point into."""
    entries, size = struct.unpack_from(">2I", blob)
    start = 8 + 16 * entries
    if start + size > len(blob):
        raise ValueError("the header of a package is cut short")
    found: dict[str, str] = {}
    for at in range(8, start, 16):
        tag, kind, offset, _ = struct.unpack_from(">4I", blob, at)
        name = _TAGS.get(tag)
        if name is None or offset >= size:
            continue
        begin = start + offset
        if kind in _STRINGS:
            end = blob.find(b"\0", begin, start + size)
            found[name] = clean(blob[begin : max(end, begin)].decode("utf-8", "replace"))
        elif kind == _INT32 and begin + 4 <= len(blob):
            found[name] = str(struct.unpack_from(">I", blob, begin)[0])
    version = found.get("version", "")
    if version and (release := found.get("release")):
        version += f"-{release}"
    if version and found.get("epoch", "0") != "0":
        version = f"{found['epoch']}:{version}"
    # gpg-pubkey is a key, not a package.
    name = found.get("name", "")
    return Package(
        kind=Kind.RPM,
        name="" if name == "gpg-pubkey" else name,
        version=version,
        architecture=found.get("arch", ""),
        license=found.get("license", ""),
        supplier=found.get("vendor", ""),
        source=found.get("source", ""),
        where=where,
    )
