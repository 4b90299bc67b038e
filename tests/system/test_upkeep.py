"""Bills, provenance, what is behind, building again, pins: the real client and a registry."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.engines import Engine

pytestmark = [pytest.mark.system, pytest.mark.needs("root", "overlay", "cgroup", "busybox")]

DOCKERFILE = """\
ARG BASE
FROM $BASE
ARG API_TOKEN
ARG V=1
RUN mkdir -p /app/node_modules/x && echo "$V" > /v && \
    echo '{"name":"x","version":"1.0"}' > /app/node_modules/x/package.json
"""


@pytest.fixture(scope="module")
def engine(session_directory: Path, busybox_archive: Path) -> Iterator[Engine]:
    made = Engine(session_directory / "up")
    path = made.directory / "c/config.toml"
    path.write_text("[registry]\nenabled = true\nlisten = '127.0.0.1:0'\n" + path.read_text())
    made.out("load", "-q", "-i", str(busybox_archive))
    yield made
    made.stop()


@pytest.fixture
def host(engine: Engine) -> str:
    """Where the engine's own registry listens now."""
    engine.out("version")
    log = (engine.run_dir / "daemon.log").read_text()
    return str(log.rpartition("the registry listens on http://")[2].split()[0])


def get(host: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{host}{path}", timeout=60) as answer:
        content = answer.read()
    assert isinstance(content, bytes)
    return content


def base(engine: Engine, name: str, line: str, directory: Path) -> str:
    """Push a base called *name* that has *line* in it; its digest in the registry."""
    directory.mkdir(exist_ok=True)
    (directory / "Dockerfile").write_text(f"FROM busybox\nRUN echo {line} > /line\n")
    engine.out("build", "-q", "-t", name, str(directory))
    engine.out("push", "-q", name)
    [digest] = [
        one.rpartition("@")[2]
        for one in json.loads(engine.out("image", "inspect", name))[0]["RepoDigests"]
        if one.startswith(name.rpartition(":")[0])
    ]
    return str(digest)


def standing(engine: Engine, *names: str) -> dict[str, Any]:
    done = engine.tare("image", "outdated", "--format", "json", *names)
    found = {one["Name"]: one for one in json.loads(done.stdout)}
    return {"code": done.returncode, **found}


def test_what_an_image_is_made_of_follows_it_to_a_registry(
    engine: Engine, host: str, tmp_path: Path
) -> None:
    digest = base(engine, f"{host}/base:1", "one", tmp_path / "b")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    app = f"{host}/app:1"
    engine.out(
        "build", "-q", "--sbom", "--provenance", "-t", app, "--build-arg", f"BASE={host}/base:1",
        "--build-arg", "API_TOKEN=hunter2", str(tmp_path),
    )  # fmt: skip

    engine.out("push", "-q", app)
    manifest = get(host, "/v2/app/manifests/1")
    own = hashlib.sha256(manifest).hexdigest()
    listed = json.loads(get(host, f"/v2/app/referrers/sha256:{own}"))["manifests"]
    referrers = {}
    for one in listed:
        artifact = json.loads(get(host, f"/v2/app/manifests/{one['digest']}"))
        blob = artifact["layers"][0]["digest"]
        referrers[one["artifactType"]] = json.loads(get(host, f"/v2/app/blobs/{blob}"))

    notes = json.loads(manifest)["annotations"]
    assert notes["org.opencontainers.image.base.name"] == f"{host}/base:1"
    assert notes["org.opencontainers.image.base.digest"] == digest
    assert set(referrers) == {"application/vnd.cyclonedx+json", "application/vnd.in-toto+json"}
    bill = referrers["application/vnd.cyclonedx+json"]
    assert "pkg:npm/x@1.0" in {one.get("purl") for one in bill["components"]}
    statement = referrers["application/vnd.in-toto+json"]
    assert statement["subject"][0]["digest"]["sha256"] == own
    assert "hunter2" not in json.dumps(statement)
    wanted = statement["predicate"]["buildDefinition"]
    assert wanted["externalParameters"]["buildArgs"]["API_TOKEN"] == "[withheld]"
    by_name = {one["name"]: one["digest"] for one in wanted["resolvedDependencies"]}
    assert by_name["base"] == {"sha256": digest.removeprefix("sha256:")}
    assert by_name["dockerfile"] == {
        "sha256": hashlib.sha256((tmp_path / "Dockerfile").read_bytes()).hexdigest()
    }
    kept = [path.read_bytes() for path in (engine.state / "blobs/sha256").iterdir()]
    recipes = [raw for raw in kept if raw.startswith(b'{"client"')]
    assert recipes and not any(b"hunter2" in raw for raw in recipes)


def test_a_bill_can_be_had_of_any_image_and_provenance_only_where_it_was_noted(
    engine: Engine, host: str
) -> None:
    spdx = json.loads(engine.out("image", "sbom", "--format", "spdx", "busybox"))
    none = engine.tare("image", "provenance", "busybox")
    wrong = engine.tare("image", "sbom", "--format", "syft", "busybox")

    assert (spdx["spdxVersion"], spdx["name"]) == ("SPDX-2.3", "busybox:latest")
    assert none.returncode == 1
    assert "--provenance" in none.stderr
    assert "cyclonedx and spdx" in wrong.stderr


def test_only_what_is_behind_is_built_again_bases_first(
    engine: Engine, host: str, tmp_path: Path
) -> None:
    moving, middle, top = f"{host}/moving:1", "middle:1", "top:1"
    base(engine, moving, "old", tmp_path / "b")
    for name, below in ((middle, moving), (top, middle)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Dockerfile").write_text(DOCKERFILE)
        engine.out(
            "build", "-q", "-t", name, "--build-arg", f"BASE={below}", "--build-arg", "V=7",
            str(tmp_path / name),
        )  # fmt: skip
    before = standing(engine, middle, top)
    # Somebody else moves the tag: the registry has another image than we do.
    base(engine, f"{host}/moving:2", "new", tmp_path / "b")
    put(host, "moving", "1", get(host, "/v2/moving/manifests/2"))

    after = standing(engine, middle, top)
    quiet = engine.tare("image", "outdated", "-q", middle, top, "busybox")
    dry = engine.out("image", "rebuild", "--dry-run", middle, top)
    untouched = engine.out("run", "--rm", top, "cat", "/line")
    done = engine.out("image", "rebuild", top, middle, "busybox")
    now = standing(engine, middle, top)

    assert (before["code"], before[middle]["Status"], before[top]["Status"]) == (
        0, "current", "current",
    )  # fmt: skip
    assert (after["code"], after[middle]["Status"], after[top]["Status"]) == (
        2, "behind", "behind",
    )  # fmt: skip
    assert quiet.stdout.split() == [middle, top]
    assert "would be" in dry and untouched == "old"
    assert done.index(f"{middle}: done in") < done.index(f"{top}: done in")
    assert engine.out("run", "--rm", top, "cat", "/line", "/v").split() == ["new", "7"]
    assert now["code"] == 0, now


def put(host: str, repository: str, tag: str, manifest: bytes) -> None:
    kind = json.loads(manifest)["mediaType"]
    request = urllib.request.Request(
        f"http://{host}/v2/{repository}/manifests/{tag}",
        manifest,
        {"Content-Type": kind},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 201


def test_what_cannot_be_built_again_is_told_and_keeps_its_name(
    engine: Engine, host: str, tmp_path: Path
) -> None:
    below = f"{host}/below:1"
    base(engine, below, "old", tmp_path / "b")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/Dockerfile").write_text(DOCKERFILE)
    engine.out(
        "build", "-q", "-t", "gone:1", "--build-arg", f"BASE={below}", "--build-arg",
        "API_TOKEN=x", str(tmp_path / "gone"),
    )  # fmt: skip
    identity = engine.out("images", "-q", "--no-trunc", "gone:1")
    base(engine, f"{host}/below:2", "new", tmp_path / "b")
    put(host, "below", "1", get(host, "/v2/below/manifests/2"))

    secret = engine.tare("image", "rebuild", "gone:1")
    engine.environment["API_TOKEN"] = "x"
    os.rename(tmp_path / "gone", tmp_path / "moved")
    missing = engine.tare("image", "rebuild", "gone:1")
    del engine.environment["API_TOKEN"]

    assert secret.returncode == 1
    assert "secret argument that was not kept: API_TOKEN" in secret.stderr
    assert missing.returncode == 1
    assert "gone" in missing.stderr
    assert engine.out("images", "-q", "--no-trunc", "gone:1") == identity


def test_a_pinned_name_is_kept_from_prune_and_from_rmi(engine: Engine, host: str) -> None:
    engine.out("tag", "busybox", "kept:1")
    engine.out("image", "pin", "kept:1")

    refused = engine.tare("rmi", "kept:1")
    engine.out("image", "prune", "-af")

    assert refused.returncode == 1
    assert "it is pinned" in refused.stderr
    assert engine.out("image", "pin") == "kept:1"
    assert engine.out("run", "--rm", "kept:1", "echo", "there") == "there"
    engine.out("image", "unpin", "kept:1")
    engine.out("tag", "kept:1", "busybox")
    engine.out("rmi", "kept:1")
    assert engine.out("image", "pin") == ""


def test_a_dry_run_says_what_would_go_and_takes_nothing(
    engine: Engine, host: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN dd if=/dev/zero of=/x bs=1M count=2\n")
    engine.out("build", "-q", "-t", "dry:1", str(tmp_path))
    engine.out("run", "--name", "stopped", "dry:1", "true")
    engine.out("volume", "create", "named")
    before = engine.out("system", "df", "--format", "json")

    said = [
        engine.out("container", "prune", "--dry-run"),
        engine.out("image", "prune", "-a", "--dry-run"),
        engine.out("volume", "prune", "-a", "--dry-run"),
        engine.out("builder", "prune", "-a", "--dry-run"),
        engine.out("network", "prune", "--dry-run"),
    ]
    whole = engine.out("system", "prune", "-a", "--dry-run", "--volumes")
    after = engine.out("system", "df", "--format", "json")

    identity = engine.out("ps", "-aq", "--no-trunc", "-f", "name=stopped")
    assert after == before
    assert identity in said[0] and "named" in said[2]
    assert "dry:1" not in said[1], "a container has it"
    assert "untagged: dry:1" in whole, "and would not have it any more"
    assert all("that would be reclaimed" in words for words in said[:4])
    engine.out("container", "prune", "-f")
    engine.out("volume", "prune", "-af")


def test_the_tables_of_df_count_what_is_shared_once(
    engine: Engine, host: str, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN dd if=/dev/zero of=/x bs=1M count=3\n")
    engine.out("build", "-q", "-t", "shared:1", str(tmp_path))

    verbose = engine.out("system", "df", "-v")
    usage = json.loads(engine.out("system", "df", "-v", "--format", "json"))

    row = next(line.split() for line in verbose.splitlines() if line.startswith("shared "))
    assert row[1] == "1" and row[-2] == "3.15MB"
    assert "Local Volumes space usage:" in verbose and "Build cache usage:" in verbose
    sizes = [one["Size"] for one in usage["Images"]]
    assert usage["LayersSize"] < sum(sizes)
    engine.out("rmi", "shared:1")
