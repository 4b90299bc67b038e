"""Section 4 and T.4 on real images: one that was made well, one badly; and the whole audit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from harness.engines import Engine
from harness.needs import needs
from tare.audit import catalogue
from tare.audit.finding import Level, Report, Scope, from_plain

pytestmark = pytest.mark.system

STATUS: Final = """Package: libssl3
Status: install ok installed
Version: 3.0.11-1~deb12u2
Source: openssl
Architecture: amd64

Package: gcc
Status: install ok installed
Version: 4:12.2.0-3
Architecture: amd64

Package: sudo
Status: install ok installed
Version: 1.9.13p3-1
Architecture: amd64

"""
RELEASE: Final = 'ID=debian\nVERSION_ID="12"\n'
ADVISORY: Final = {
    "id": "DSA-5532-1",
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
        }
    ],
}
KEY: Final = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n-----END OPENSSH PRIVATE KEY-----\n"
# In pieces, so that no scanner takes the test for a leak.
TOKEN: Final = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8"
GOOD_FILE: Final = """FROM busybox:latest
COPY etc /etc
USER 1000
HEALTHCHECK CMD true
"""
BAD_FILE: Final = f"""FROM busybox:latest
ENV GITHUB_TOKEN={TOKEN} DATABASE_PASSWORD=letmein
COPY files /
RUN chmod 4755 /bin/tool && chmod 777 /srv/open && rm /root/.ssh/id_ed25519
RUN apt-get update || true
RUN apk add --allow-untrusted x || true
ADD late /late
VOLUME /etc
"""
BAD: Final = {
    "image-user": "WARN",
    "image-trusted-base": "WARN",
    "image-packages": "INFO",
    "image-age": "WARN",
    "image-content-trust": "WARN",
    "image-healthcheck": "WARN",
    "image-update-alone": "WARN",
    "image-setuid": "WARN",
    "image-add": "WARN",
    "image-secrets": "FAIL",
    "image-verified-packages": "WARN",
    "image-vulnerabilities": "WARN",
    "image-accounts": "FAIL",
    "image-world-writable": "WARN",
    "image-sudo": "WARN",
    "image-volumes": "WARN",
    "image-secret-files": "FAIL",
}


@pytest.fixture(scope="module")
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    needs("root", "cgroup", "overlay")
    found = Engine(session_directory / "audit-images", more={"SOURCE_DATE_EPOCH": ""})
    try:
        found.out("load", "-i", str(busybox_archive))
        yield found
        assert found.end() == []
    finally:
        found.stop()


@pytest.fixture(scope="module")
def images(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    good = tmp_path_factory.mktemp("good")
    (good / "Dockerfile").write_text(GOOD_FILE)
    (good / "etc").mkdir()
    (good / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (good / "etc/shadow").write_text("root:*:1::::::\n")
    engine.out("build", "-t", "good:1", str(good))
    bad = tmp_path_factory.mktemp("bad")
    (bad / "Dockerfile").write_text(BAD_FILE)
    (bad / "late").write_text("late")
    for name, text in {
        "bin/tool": "#!/bin/sh\n",
        "srv/open": "open",
        "srv/app.env": f"API_TOKEN={TOKEN}\n",
        "root/.ssh/id_ed25519": KEY,
        "etc/passwd": "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n",
        "etc/shadow": "root:*:1::::::\nguest::1::::::\n",
        "etc/os-release": RELEASE,
        "var/lib/dpkg/status": STATUS,
    }.items():
        path = bad / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    engine.out("build", "-t", "registry.example/bad:1", str(bad))
    return engine


def report(engine: Engine, *words: str) -> Report:
    return from_plain(json.loads(engine.out("audit", *words, "--format", "json")))


def levels(found: Report) -> dict[str, str]:
    return {
        result.check: str(max((i.level for i in result.items), key=lambda level: level.rank))
        for result in found.results
        if result.items
    }


@pytest.fixture(scope="module")
def advisories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("advisories") / "DSA-5532-1.json"
    path.write_text(json.dumps(ADVISORY))
    return path


def test_an_image_that_was_made_badly_is_found_out(images: Engine, advisories: Path) -> None:
    found = report(
        images, "image", "registry.example/bad:1", "--vulnerabilities", str(advisories),
        "--benchmark", "1.6",
    )  # fmt: skip
    shown = levels(found)

    # Its age is today's: what is old is another test's.
    assert {n: shown[n] for n in BAD if n != "image-age"} == {
        n: level for n, level in BAD.items() if n != "image-age"
    }
    assert shown["image-signed"] == "WARN"


def test_every_check_of_images_has_a_bad_state_here() -> None:
    assert set(BAD) == {check.name for check in catalogue.ordered("1.2", [Scope.IMAGE])}


def test_an_image_that_was_made_well_passes(images: Engine, advisories: Path) -> None:
    found = levels(report(images, "image", "good:1", "--vulnerabilities", str(advisories)))
    # Who vouches for an image is trust's: tests/trust has the state in which these pass.
    told = {"image-content-trust": "WARN", "image-trusted-base": "NOTE"}

    assert {name: level for name, level in found.items() if level != "PASS"} == told


def test_an_old_image_is_told_by_its_date(images: Engine) -> None:
    # The busybox of the tests is of 1970, which is the date of images that are made reproducibly.
    found = report(images, "image", "busybox:latest", "--check", "4.4")

    assert levels(found) == {"image-age": "NOTE"}
    bad = images.tare("audit", "image", "good:1", "--max-age", "0")
    assert bad.returncode == 1
    assert "days from 1 on" in bad.stderr


def test_a_secret_that_a_later_layer_deletes_is_found_and_never_shown(images: Engine) -> None:
    text = images.out("audit", "image", "registry.example/bad:1", "--check", "4.10,T.4.6")

    assert "/root/.ssh/id_ed25519: a private key" in text
    assert "deleted by a later layer" in text
    assert "/srv/app.env: a token of GitHub" in text
    assert TOKEN not in text
    assert "letmein" not in text


def test_advisories_beside_the_configuration_are_used(images: Engine, advisories: Path) -> None:
    mirrored = images.directory / "c/vulnerabilities"
    mirrored.mkdir()
    try:
        (mirrored / "a.json").write_text(advisories.read_text())
        found = report(images, "image", "registry.example/bad:1", "--check", "T.4.1")
    finally:
        (mirrored / "a.json").unlink()
        mirrored.rmdir()

    (item,) = found.results[0].items
    assert item.seen == ("libssl3 3.0.11-1~deb12u2: DSA-5532-1, corrected in 3.0.11-1~deb12u3")


def test_the_whole_audit_says_something_of_every_check(images: Engine) -> None:
    found = report(images, "all", "--benchmark", "1.8")

    silent = [result.check for result in found.results if not result.items]
    assert silent == []
    assert {catalogue.checks()[r.check].scope for r in found.results} == set(Scope) - {
        Scope.DOCKERFILE
    }


def test_a_pipeline_fails_on_what_is_new_and_not_on_what_was_waived(
    images: Engine, tmp_path: Path
) -> None:
    (tmp_path / "waivers.toml").write_text(
        '[[waiver]]\ncheck = "image-secret-files"\nreason = "a test"\nexpires = 2999-01-01\n'
        '[[waiver]]\ncheck = "4.10"\nreason = "was one"\nexpires = 2020-01-01\n'
    )
    what = ("audit", "image", "registry.example/bad:1", "--check", "4.10,T.4.6")

    plain = images.tare(*what, "--fail-on", "fail")
    waived = images.tare(*what, "--fail-on", "fail", "--waivers", str(tmp_path / "waivers.toml"))
    images.out(*what, "--format", "json", "-o", str(tmp_path / "baseline.json"))
    known = images.tare(*what, "--fail-on", "note", "--baseline", str(tmp_path / "baseline.json"))

    assert (plain.returncode, waived.returncode, known.returncode) == (2, 2, 0)
    assert "the waiver of 4.10 for * (was one) expired on 2020-01-01" in waived.stdout
    assert "[waived: a test, until 2999-01-01]" in waived.stdout


def _pipeline() -> list[str]:
    """The script of the pipeline that docs/audit.md shows."""
    text = (Path(__file__).resolve().parents[2] / "docs/audit.md").read_text()
    block = text.partition("```yaml")[2].partition("```")[0]
    return [line.strip(" -") for line in block.splitlines() if line.startswith("    - tare ")]


@pytest.mark.parametrize(("content", "passes"), [(GOOD_FILE, True), (BAD_FILE, False)])
def test_the_documented_pipeline_fails_on_a_finding(
    images: Engine, tmp_path: Path, content: str, passes: bool
) -> None:
    content = content.replace("busybox:latest", "busybox:1").replace("COPY files /\n", "")
    (tmp_path / "Dockerfile").write_text(content)
    (tmp_path / "late").write_text("late")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/motd").write_text("hello")
    (tmp_path / "waivers.toml").write_text(
        '[[waiver]]\ncheck = "image-world-writable"\nreason = "busybox"\nexpires = 2999-01-01\n'
    )
    images.out("tag", "busybox:latest", "busybox:1")

    codes = []
    for line in _pipeline():
        done = subprocess.run(
            images.command(*line.split()[1:]),
            env=images.environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        codes.append(done.returncode)
        if done.returncode:
            break

    assert codes == ([0, 0, 0] if passes else [2]), done.stdout + done.stderr
    assert json.loads((tmp_path / "dockerfile.sarif").read_text())["version"] == "2.1.0"
    assert (tmp_path / "audit.xml").exists() is passes


def test_the_engines_own_files_are_shown_and_then_fixed(images: Engine) -> None:
    config = images.directory / "c/config.toml"
    config.chmod(0o646)

    planned = images.tare("audit", "engine", "--check", "3.18", "--fix")
    left = config.stat().st_mode & 0o777
    done = images.tare("audit", "engine", "--check", "3.18", "--fix", "--yes")

    assert f"chmod 644 {config}" in planned.stderr
    assert left == 0o646
    assert config.stat().st_mode & 0o777 == 0o644
    assert f"done: chmod 644 {config}" in done.stdout
    assert "[PASS] 3.18" in done.stdout


def test_many_containers_are_audited_and_each_is_named(images: Engine) -> None:
    """The promise of 100 containers in 5 s is measured by bench; a test knows no clock."""
    for number in range(12):
        images.out("run", "-d", "--name", f"many{number}", "busybox", "sleep", "1000")
    try:
        found = report(images)
    finally:
        images.out("rm", "-f", *(f"many{number}" for number in range(12)))

    (pids,) = (r for r in found.results if r.check == "workload-pids")
    assert [item.subject for item in pids.items] == sorted(f"many{n}" for n in range(12))


def test_the_body_of_the_request_is_read_strictly(images: Engine) -> None:
    import http.client
    import socket

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(images.run_dir / "tare.sock"))

    said = {}
    for body in ('{"Chek": ["5.4"]}', '{"Level": 3}', '{"What": ["moon"]}', "[1]", "{"):
        connection = Unix("localhost")
        connection.request("POST", "/tare/audit", body)
        answer = connection.getresponse()
        said[body] = answer.status
        answer.read()
        connection.close()

    assert set(said.values()) == {400}


def test_a_report_is_looked_at_again_without_an_engine(images: Engine, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    images.out("audit", "image", "good:1", "--format", "json", "-o", str(path))
    alone = Engine(tmp_path / "none")

    for form in ("text", "json", "bench-json", "sarif", "junit", "html"):
        assert alone.out("audit", "--input", str(path), "--format", form)

    assert not alone.run_dir.exists()
    assert os.path.getsize(path) > 1000
    assert Level.WARN in {r.level for r in from_plain(json.loads(path.read_text())).results}
