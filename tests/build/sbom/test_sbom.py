"""Bills of materials: what is found in an image's files, and what hostile ones cannot do."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tare.build.sbom import inventory as bounds
from tare.build.sbom.collecting import bill, inventory_of
from tare.build.sbom.documents import About, Format
from tare.build.sbom.inventory import Inventory, Kind, Package
from tare.errors import InvalidError
from tare.model.digest import Digest

ABOUT = About(Digest("a" * 64), "team/app:1", "2026-01-02T03:04:05.5Z")


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def look(root: Path) -> Inventory:
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return inventory_of(handle)
    finally:
        os.close(handle)


def made(root: Path, form: Format) -> dict[str, Any]:
    document = json.loads(bill(os.open(root, os.O_RDONLY | os.O_DIRECTORY), form, ABOUT))
    assert isinstance(document, dict)
    return document


def rpm_header(fields: dict[int, str | int]) -> bytes:
    index, data = b"", b""
    for tag, value in fields.items():
        if isinstance(value, int):
            data += b"\0" * (-len(data) % 4)
            index += struct.pack(">4I", tag, 4, len(data), 1)
            data += struct.pack(">I", value)
        else:
            index += struct.pack(">4I", tag, 6, len(data), 1)
            data += value.encode() + b"\0"
    return struct.pack(">2I", len(fields), len(data)) + index + data


def rpm_database(path: Path, blobs: list[bytes], *, table: str = "TABLE Packages") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    if table.startswith("VIEW"):
        database.execute(
            "CREATE VIEW Packages AS WITH RECURSIVE t(hnum) AS"
            " (SELECT 1 UNION ALL SELECT hnum + 1 FROM t) SELECT hnum, 'x' AS blob FROM t"
        )
    else:
        database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB)")
        database.executemany("INSERT INTO Packages(blob) VALUES (?)", [(blob,) for blob in blobs])
    database.commit()
    database.close()


FULL: dict[str, str | bytes] = {
    "usr/lib/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n',
    "var/lib/dpkg/status": (
        "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2.15-2+b7\n"
        "Source: bash (5.2.15-2)\nMaintainer: M <m@x>\nDescription: a\n shell\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n"
    ),
    "var/lib/dpkg/status.d/tzdata": "Package: tzdata\nVersion: 2024a\nArchitecture: all\n",
    "var/lib/dpkg/status.d/tzdata.md5sums": "abc  usr/share/x\n",
    "lib/apk/db/installed": "P:musl\nV:1.2.4-r2\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:x\n\n",
    "usr/lib/python3/dist-packages/Foo_Bar-1.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: Foo_Bar\nVersion: 1.0\nLicense: MIT\n\nName: not-this\n"
    ),
    "opt/x/old-2.egg-info": "Name: old\nVersion: 2\n",
    "app/node_modules/left-pad/package.json": '{"name":"left-pad","version":"1.3.0"}',
    "app/node_modules/@s/b/package.json": (
        '{"name":"@s/b","version":"2.0.0","license":{"type":"ISC"},"author":{"name":"A"}}'
    ),
    "app/node_modules/@s/b/node_modules/deep/package.json": '{"name":"deep","version":"0.1"}',
    "app/node_modules/.package-lock.json": (
        '{"packages":{"node_modules/left-pad":{"version":"1.3.0","integrity":"sha512-abc"}}}'
    ),
    "app/package.json": '{"name":"the-app","version":"9"}',
}


def test_packages_of_every_kind_are_found_where_they_were_installed(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    header = rpm_header({1000: "zlib", 1001: "1.3", 1002: "2.fc40", 1003: 1, 1022: "x86_64"})
    key = rpm_header({1000: "gpg-pubkey", 1001: "1", 1002: "1"})
    rpm_database(tmp_path / "usr/lib/sysimage/rpm/rpmdb.sqlite", [header, key])

    found = look(tmp_path)

    assert {(p.kind, p.name, p.version) for p in found.packages} == {
        (Kind.DEB, "bash", "5.2.15-2+b7"),
        (Kind.DEB, "tzdata", "2024a"),
        (Kind.APK, "musl", "1.2.4-r2"),
        (Kind.RPM, "zlib", "1:1.3-2.fc40"),
        (Kind.PYPI, "foo-bar", "1.0"),
        (Kind.PYPI, "old", "2"),
        (Kind.NPM, "left-pad", "1.3.0"),
        (Kind.NPM, "@s/b", "2.0.0"),
        (Kind.NPM, "deep", "0.1"),
    }
    assert found.notes == []
    by_name = {p.name: p for p in found.packages}
    assert by_name["bash"].source == "bash 5.2.15-2"
    assert by_name["left-pad"].integrity == "sha512-abc"
    assert (by_name["@s/b"].license, by_name["@s/b"].supplier) == ("ISC", "A")


def test_a_bill_names_packages_by_their_urls_and_is_the_same_each_time(tmp_path: Path) -> None:
    write(tmp_path, FULL)

    cyclone = made(tmp_path, Format.CYCLONEDX)
    spdx = made(tmp_path, Format.SPDX)

    urls = {one.get("purl") for one in cyclone["components"]}
    assert "pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=debian-12" in urls
    assert "pkg:npm/%40s/b@2.0.0" in urls
    assert "pkg:pypi/foo-bar@1.0" in urls
    assert (cyclone["bomFormat"], cyclone["specVersion"]) == ("CycloneDX", "1.6")
    references = [one["bom-ref"] for one in cyclone["components"]]
    assert len(set(references)) == len(references)
    assert cyclone["dependencies"][0]["dependsOn"] == references
    assert cyclone == made(tmp_path, Format.CYCLONEDX)
    assert spdx["spdxVersion"] == "SPDX-2.3"
    assert spdx["creationInfo"]["created"] == "2026-01-02T03:04:05Z"
    located = {
        reference["referenceLocator"]
        for one in spdx["packages"]
        for reference in one.get("externalRefs", ())
    }
    assert located == {url for url in urls if url}


@pytest.mark.attack("A38")
def test_no_link_leads_out_of_the_image_and_no_device_is_opened(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "image"
    write(outside, {"status": "Package: leaked\nStatus: install ok installed\nVersion: 1\n"})
    write(root, {"etc/x": "", "var/lib/dpkg/y": "", "real/os": "ID=inside\nVERSION_ID=3\n"})
    (root / "var/lib/dpkg/status").symlink_to(outside / "status")
    (root / "etc/os-release").symlink_to("/real/os")
    (root / "lib").symlink_to("../../../../../../" + str(outside).lstrip("/"))
    os.mkfifo(root / "fifo.egg-info")
    (root / "loop.egg-info").symlink_to("loop.egg-info")
    (root / "site-packages").symlink_to("/")

    found = look(root)

    assert found.packages == set()
    assert found.system.id == "inside"


def huge(root: Path) -> None:
    (root / "var/lib/dpkg").mkdir(parents=True)
    with open(root / "var/lib/dpkg/status", "wb") as file:
        file.truncate(bounds.FILE_MAX + 1)


def bomb(root: Path) -> None:
    rpm_database(root / "var/lib/rpm/rpmdb.sqlite", [], table="VIEW")


def torn(root: Path) -> None:
    rpm_database(root / "var/lib/rpm/rpmdb.sqlite", [struct.pack(">2I", 1 << 28, 1 << 28)])


def noise(root: Path) -> None:
    write(root, {"var/lib/rpm/rpmdb.sqlite": b"SQLite format 3\0" + os.urandom(4000)})


def berkeley(root: Path) -> None:
    write(root, {"var/lib/rpm/Packages": b"\0" * 100})


def deep(root: Path) -> None:
    (root / Path(*["d"] * 90)).mkdir(parents=True)


@pytest.mark.attack("A28")
@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (huge, "larger than 64 MiB"),
        (bomb, "no table Packages"),
        (torn, "cut short"),
        (noise, "cannot be read"),
        (berkeley, "Berkeley DB"),
        (deep, "64 deep"),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_else_is_lost(
    tmp_path: Path, prepare: Callable[[Path], None], told: str
) -> None:
    prepare(tmp_path)
    write(tmp_path, {"app/node_modules/a/package.json": '{"name":"a","version":"1"}'})

    found = look(tmp_path)
    cyclone = made(tmp_path, Format.CYCLONEDX)

    assert {p.name for p in found.packages} == {"a"}
    assert any(told in note for note in found.notes), found.notes
    assert cyclone["compositions"][0]["aggregate"] == "incomplete"


def test_words_of_an_image_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "node_modules/a/package.json": json.dumps({"name": "a\x1b[31m\n", "version": "1"}),
            "node_modules/b/package.json": "[" * 5000,
            "node_modules/c/package.json": '{"name": 5, "version": {}}',
            "x.egg-info": "Name: y\nVersion: " + "9" * 100_000 + "\n",
        },
    )

    found = look(tmp_path)

    assert all(p.name.isprintable() and len(p.version) <= 512 for p in found.packages)
    assert {p.name for p in found.packages} == {"a[31m", "y"}


def test_a_bill_has_one_of_two_forms() -> None:
    assert Format.called("SPDX-json") is Format.SPDX
    with pytest.raises(InvalidError, match="unknown format"):
        Format.called("syft")


def test_a_bill_has_a_bound_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PACKAGES_MAX", 1)
    found = Inventory()

    for name in ("a", "b"):
        found.add(Package(kind=Kind.NPM, name=name, version="1"))

    assert len(found.packages) == 1
    assert "more than 1 packages" in found.notes[0]
