"""Advisories in every form that is read, and which packages they are about."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tare.audit import vulnerabilities
from tare.audit.vulnerabilities import Database
from tare.build.sbom.inventory import Kind, Package, System
from tare.errors import InvalidError

BOOKWORM = System("debian", "12", "Debian 12")
SSL = Package(
    kind=Kind.DEB, name="libssl3", version="3.0.11-1~deb12u2",
    source="openssl 3.0.11-1~deb12u2",
)  # fmt: skip
WANTED = [(Kind.DEB, "openssl"), (Kind.PYPI, "flask-login"), (Kind.NPM, "left-pad")]
OSV = {
    "id": "DSA-5532-1",
    "aliases": ["CVE-2023-5363"],
    "summary": "openssl - security update",
    "affected": [
        {
            "package": {"ecosystem": "Debian:12", "name": "openssl"},
            "ranges": [
                {
                    "type": "ECOSYSTEM",
                    "events": [{"introduced": "0"}, {"fixed": "3.0.11-1~deb12u3"}],
                }
            ],
            "ecosystem_specific": {"urgency": "high"},
        }
    ],
}


def load(path: Path, content: object) -> Database:
    path.write_text(json.dumps(content))
    return vulnerabilities.load(str(path), WANTED)


def found(database: Database, package: Package, system: System = BOOKWORM) -> list[str]:
    return [advisory.id for advisory, _ in database.of(package, system)]


def test_a_package_is_judged_by_the_version_of_its_source(tmp_path: Path) -> None:
    database = load(tmp_path / "a.json", OSV)
    newer = Package(kind=Kind.DEB, name="libssl3", version="1", source="openssl 3.0.11-1~deb12u3")

    assert found(database, SSL) == ["DSA-5532-1"]
    assert found(database, newer) == []
    (one, version), *_ = database.of(SSL, BOOKWORM)
    assert (one.fixed, one.severity, version) == ("3.0.11-1~deb12u3", "high", "3.0.11-1~deb12u2")


@pytest.mark.parametrize(
    "system", [System("debian", "11", ""), System("ubuntu", "12", ""), System("alpine", "12.1", "")]
)
def test_an_advisory_of_another_release_is_not_about_it(tmp_path: Path, system: System) -> None:
    assert found(load(tmp_path / "a.json", OSV), SSL, system) == []


def test_zip_files_and_directories_of_advisories_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("DSA-1.json", json.dumps(OSV))
        archive.writestr("README", "not an advisory")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.json").write_text(json.dumps([{**OSV, "id": "DSA-2"}]))
    (tmp_path / "more/broken.json").write_text("{")

    database = vulnerabilities.load(str(tmp_path), WANTED)

    assert sorted(found(database, SSL)) == ["DSA-2", "DSA-5532-1"]
    assert (database.documents, database.unreadable) == (2, 1)


def test_what_was_withdrawn_does_not_count(tmp_path: Path) -> None:
    database = load(tmp_path / "a.json", {**OSV, "withdrawn": "2024-01-01T00:00:00Z"})

    assert found(database, SSL) == []


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("0.9", False), ("1.0", True), ("1.5", True), ("2.0", False), ("2.1", True), ("2.5", True),
        ("2.6", False),
    ],
)  # fmt: skip
def test_ranges_of_several_spans_and_both_kinds_of_end(
    tmp_path: Path, version: str, affected: bool
) -> None:
    events = [
        {"introduced": "1.0"}, {"fixed": "2.0"}, {"introduced": "2.1"}, {"last_affected": "2.5"},
    ]  # fmt: skip
    database = load(
        tmp_path / "a.json",
        {
            "id": "GHSA-1",
            "affected": [
                {
                    "package": {"ecosystem": "PyPI", "name": "Flask_Login"},
                    "ranges": [{"type": "ECOSYSTEM", "events": events}],
                }
            ],
        },
    )

    package = Package(kind=Kind.PYPI, name="flask.login", version=version)
    assert bool(found(database, package)) is affected


def test_versions_that_are_listed_one_by_one_are_affected(tmp_path: Path) -> None:
    database = load(
        tmp_path / "a.json",
        {
            "id": "MAL-1",
            "affected": [
                {"package": {"ecosystem": "npm", "name": "left-pad"}, "versions": ["1.3.1"]}
            ],
        },
    )

    assert found(database, Package(kind=Kind.NPM, name="left-pad", version="1.3.1")) == ["MAL-1"]
    assert found(database, Package(kind=Kind.NPM, name="left-pad", version="1.3.0")) == []


def test_ranges_of_commits_say_nothing_of_versions(tmp_path: Path) -> None:
    database = load(
        tmp_path / "a.json",
        {
            "id": "GHSA-2",
            "affected": [
                {
                    "package": {"ecosystem": "npm", "name": "left-pad"},
                    "ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}],
                }
            ],
        },
    )

    assert found(database, Package(kind=Kind.NPM, name="left-pad", version="1.3.1")) == []


TRACKER = {
    "openssl": {
        "CVE-2023-1": {
            "description": "resolved later",
            "releases": {
                "bookworm": {
                    "status": "resolved", "fixed_version": "3.0.11-1~deb12u3",
                    "urgency": "not yet assigned",
                },
                "bullseye": {"status": "open", "urgency": "low"},
            },
        },
        "CVE-2023-2": {"releases": {"bookworm": {"status": "resolved", "fixed_version": "0"}}},
        "CVE-2023-3": {"releases": {"bookworm": {"status": "open", "urgency": "medium"}}},
        "CVE-2023-4": {"releases": {"bookworm": {"status": "undetermined"}}},
    },
    "other": {"CVE-2023-5": {"releases": {"bookworm": {"status": "open"}}}},
}  # fmt: skip


def test_debians_tracker_says_what_is_open_and_what_was_never_there(tmp_path: Path) -> None:
    database = load(tmp_path / "tracker.json", TRACKER)

    assert sorted(found(database, SSL)) == ["CVE-2023-1", "CVE-2023-3"]
    assert found(database, SSL, System("debian", "11", "")) == ["CVE-2023-1"]
    assert set(database.advisories) == {(Kind.DEB, "openssl")}


@pytest.mark.parametrize("content", ["", "{}x", "[1]", '{"a": 1}', "\x00", "[" * 100_000])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)

    with pytest.raises(InvalidError, match="no advisories"):
        vulnerabilities.load(str(tmp_path / "a.json"), WANTED)


def test_a_place_that_is_not_there_or_not_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4broken")

    for path, said in (
        ("/nowhere", "no such file"),
        ("a.json", "from the root"),
        (str(tmp_path / "broken.zip"), "cannot be read"),
    ):
        with pytest.raises(InvalidError, match=said):
            vulnerabilities.load(path, WANTED)
