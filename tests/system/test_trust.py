"""Trust on whole engines: registries that sign and registries that do not, archives, containers."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cosign import Cosign
from harness.engines import Engine
from harness.images import docker_archive, lay_busybox
from harness.registry_server import MANIFEST, Registry

pytestmark = pytest.mark.system
SECRET = {"TARE_TRUST_PASSPHRASE": "hunter2"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One busybox archive for all."""
    base = tmp_path_factory.mktemp("trust")
    lay_busybox(base / "root")
    yield docker_archive(base / "root", base / "box.tar", "box:1", {"Cmd": ["true"]})


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("e"), more=SECRET)
    yield made
    made.out("trust", "off")
    left = made.end()
    assert not left


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry")
    yield made
    made.end()


class Publisher:
    """Somebody with a registry, a key and an image in it, at work on the same engine."""

    def __init__(self, engine: Engine, registry: Registry, archive: Path, where: Path) -> None:
        self.engine = engine
        self.image = f"{registry.host}/team/app:1"
        self.scope = f"{registry.host}/team"
        self.key, self.pub = str(where / "k.key"), str(where / "k.pub")
        engine.out("trust", "key", "generate", str(where / "k"))
        engine.out("load", "-q", "-i", str(archive))
        engine.out("tag", "box:1", self.image)
        engine.out("push", "-q", self.image)

    def sign(self, *more: str, image: str = "") -> str:
        return self.engine.out("trust", "sign", "--key", self.key, *more, image or self.image)

    def trusted(self) -> None:
        self.engine.out("trust", "key", "add", self.pub, "--scope", self.scope)

    def away(self) -> None:
        """Nothing of it is on the engine any more."""
        for name in sorted(set(self.engine.out("images", "-q", "--no-trunc").split())):
            self.engine.out("rmi", "-f", name)


@pytest.fixture
def publisher(engine: Engine, registry: Registry, shared: Path, tmp_path: Path) -> Publisher:
    return Publisher(engine, registry, shared, tmp_path)


def refused(engine: Engine, *words: str) -> str:
    done = engine.tare(*words)
    assert done.returncode != 0, (words, done.stdout)
    assert "is not trusted" in done.stderr, done.stderr
    return done.stderr


def test_a_signed_image_is_pulled_and_run_and_an_unsigned_one_is_not(
    publisher: Publisher, registry: Registry
) -> None:
    engine = publisher.engine
    publisher.sign()
    publisher.trusted()
    registry.push_image("team/plain", "1", b"a layer that nobody signed")
    publisher.away()
    engine.out("trust", "on")

    engine.out("run", "--rm", "--pull=always", publisher.image)
    said = refused(engine, "pull", f"{publisher.scope}/plain:1")

    assert "it has no signature" in said
    assert "tare trust key add" in said
    assert engine.out("images", "-q", f"{publisher.scope}/plain") == ""


@pytest.mark.attack("A33")
def test_every_door_asks(publisher: Publisher, shared: Path, tmp_path: Path) -> None:
    engine = publisher.engine
    engine.out("create", "--name", "before", publisher.image)
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text(f"FROM {publisher.image}\nCMD true\n")
    identity = engine.out("images", "-q", "--no-trunc", publisher.image).split()[0]
    engine.out("trust", "on")

    refused(engine, "pull", publisher.image)
    refused(engine, "load", "-i", str(shared))
    refused(engine, "create", publisher.image)
    refused(engine, "create", identity)
    refused(engine, "run", "--rm", publisher.image)
    refused(engine, "start", "before")
    refused(engine, "build", "-q", str(tmp_path / "context"))
    imported = engine.tare("import", str(shared), "x:1")
    assert imported.returncode != 0
    assert "cannot be signed" in imported.stderr


@pytest.mark.attack("A33")
def test_a_name_of_ones_own_does_not_make_an_unsigned_image_trusted(publisher: Publisher) -> None:
    engine = publisher.engine
    publisher.sign()
    publisher.trusted()
    shutil.copy(publisher.key, publisher.key + ".copy")
    done = engine.out("run", "--rm", publisher.image, "sh", "-c", "echo unchanged")
    assert done == "unchanged"
    engine.out("run", "--name", "changed", publisher.image, "touch", "/backdoor")
    engine.out("commit", "changed", "other:1")
    engine.out("tag", "other:1", f"{publisher.scope}/app:2")
    # What was made of an accepted image is accepted, but not where a publisher must have signed.
    policy = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {publisher.scope: [{
            "type": "sigstoreSigned", "keyPath": publisher.pub,
            "signedIdentity": {"type": "matchRepository"},
        }]}},
    }  # fmt: skip
    path = engine.directory / "c/policy.json"
    path.write_text(json.dumps(policy))
    engine.out("trust", "on")

    engine.out("run", "--rm", publisher.image)
    refused(engine, "run", "--rm", f"{publisher.scope}/app:2")


@pytest.mark.attack("A33")
def test_a_policy_that_cannot_be_believed_accepts_nothing(publisher: Publisher) -> None:
    engine = publisher.engine
    publisher.sign()
    publisher.trusted()
    engine.out("trust", "on")
    engine.out("run", "--rm", publisher.image)
    path = engine.directory / "c/policy.json"

    path.write_text('{"default": [{"type": "insecureAcceptAnything"}],\n "transprots": {}}')
    typo = engine.tare("run", "--rm", publisher.image)
    path.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    path.chmod(0o666)
    writable = engine.tare("run", "--rm", publisher.image)
    status = engine.tare("trust")
    path.unlink()

    assert typo.returncode != 0
    assert "line 2: transprots is not known here; 'transports' is meant?" in typo.stderr
    assert writable.returncode != 0
    assert "can be written by others" in writable.stderr
    assert (status.returncode, "can be written by others" in status.stdout) == (1, True)
    engine.out("run", "--rm", publisher.image)


@pytest.mark.attack("A33")
def test_what_was_accepted_once_is_refused_when_its_key_is_revoked(publisher: Publisher) -> None:
    engine = publisher.engine
    publisher.sign()
    publisher.trusted()
    engine.out("trust", "on")
    engine.out("run", "--rm", publisher.image)

    engine.out("trust", "revoke", "k")

    assert "was revoked" in refused(engine, "run", "--rm", publisher.image)
    assert engine.tare("trust", "verify", "--offline", publisher.image).returncode == 1


@pytest.mark.attack("A33")
def test_a_request_may_ask_for_more_than_is_set_and_never_for_less(publisher: Publisher) -> None:
    engine = publisher.engine
    engine.out("trust", "off")

    engine.out("run", "--rm", publisher.image)
    refused(engine, "run", "--rm", "--trust", publisher.image)
    refused(engine, "pull", "--disable-content-trust=false", publisher.image)
    engine.environment["DOCKER_CONTENT_TRUST"] = "1"
    refused(engine, "run", "--rm", publisher.image)
    del engine.environment["DOCKER_CONTENT_TRUST"]
    engine.out("trust", "on")
    refused(engine, "run", "--rm", "--trust=false", "--disable-content-trust", publisher.image)


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has never seen a registry."""
    made = Engine(tmp_path_factory.mktemp("o"), more=SECRET)
    yield made
    made.out("trust", "off")
    left = made.end()
    assert not left


def test_signatures_travel_with_archives_to_an_engine_without_a_network(
    publisher: Publisher, other: Engine, tmp_path: Path
) -> None:
    publisher.sign()
    archive = tmp_path / "signed.tar"
    publisher.engine.out("save", "-o", str(archive), publisher.image)
    other.out("trust", "key", "add", publisher.pub, "--scope", publisher.scope)
    other.out("trust", "on")
    other.out("load", "-q", "-i", str(archive))

    other.out("run", "--rm", publisher.image)
    shown = json.loads(other.out("image", "inspect", publisher.image))
    listed = other.out("images")

    verdict = shown[0]["Tare"]["Trust"]
    assert (verdict["Verdict"], verdict["Accepted"]) == ("verified", True)
    assert listed.splitlines()[1].endswith("verified")


@pytest.mark.attack("A33")
def test_an_archive_without_its_signatures_is_refused(
    publisher: Publisher, other: Engine, tmp_path: Path
) -> None:
    publisher.sign()
    whole, bare = tmp_path / "whole.tar", tmp_path / "bare.tar"
    publisher.engine.out("save", "-o", str(whole), publisher.image)
    with tarfile.open(whole) as source, tarfile.open(bare, "w") as target:
        for member in source:
            if member.name != "tare/evidence.json":
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    other.out("trust", "key", "add", publisher.pub, "--scope", publisher.scope)
    other.out("trust", "on")

    refused(other, "load", "-i", str(bare))
    left = other.out("images", "-q")
    other.out("load", "-q", "-i", str(whole))

    assert left == ""


def test_an_image_that_no_registry_has_is_signed_for_archives(
    engine: Engine, shared: Path, tmp_path: Path
) -> None:
    engine.out("load", "-q", "-i", str(shared))
    engine.out("trust", "key", "generate", str(tmp_path / "k"))
    engine.out("trust", "key", "add", str(tmp_path / "k.pub"), "--scope", "docker.io/library/box")

    engine.out("trust", "sign", "--key", str(tmp_path / "k.key"), "--local", "box:1")
    engine.out("trust", "on")
    engine.out("run", "--rm", "box:1")
    engine.out("save", "-o", str(tmp_path / "x.tar"), "box:1")
    engine.out("rmi", "box:1")
    engine.out("load", "-q", "-i", str(tmp_path / "x.tar"))

    engine.out("run", "--rm", "box:1")


def test_a_vouch_and_a_pin_stand_in_for_a_publisher(publisher: Publisher, tmp_path: Path) -> None:
    engine = publisher.engine
    engine.out("trust", "on")
    refused(engine, "run", "--rm", publisher.image)

    said = engine.out("trust", "vouch", "--yes", "--key", publisher.key, publisher.image)
    engine.out("run", "--rm", publisher.image)
    engine.out("trust", "key", "rm", engine.out("trust", "key", "ls").split()[6])
    refused(engine, "run", "--rm", publisher.image)
    lock = tmp_path / "tare.lock"
    engine.out("trust", "pin", "--lock", str(lock), publisher.image)
    engine.out("run", "--rm", publisher.image)

    assert "vouched for" in said
    assert publisher.image in lock.read_text()
    engine.out("trust", "unpin", publisher.image)
    refused(engine, "run", "--rm", publisher.image)
    engine.out("trust", "pin", "--lock", str(lock))
    engine.out("run", "--rm", publisher.image)


@pytest.mark.attack("A33")
def test_a_registry_that_serves_another_image_under_a_pinned_tag(
    publisher: Publisher, registry: Registry
) -> None:
    engine = publisher.engine
    engine.out("trust", "pin", publisher.image)
    engine.out("trust", "on")
    engine.out("pull", "-q", publisher.image)
    registry.push_image("team/app", "1", b"another layer")

    assert "is pinned to" in refused(engine, "pull", publisher.image)
    engine.out("run", "--rm", publisher.image)


@pytest.mark.attack("A33")
def test_signatures_of_another_repository_do_not_count(
    publisher: Publisher, registry: Registry
) -> None:
    engine = publisher.engine
    said = publisher.sign()
    publisher.trusted()
    digest = said.rpartition("@")[2]
    # The attacker copies image and signatures to a name of the same publisher.
    engine.out("tag", "box:1", f"{publisher.scope}/billing:1")
    engine.out("push", "-q", f"{publisher.scope}/billing:1")
    tag = f"sha256-{digest.removeprefix('sha256:')}.sig"
    signature = registry.ask("GET", f"/v2/team/app/manifests/{tag}", Accept=MANIFEST)
    document = signature.json()
    listed = [document["config"], *document["layers"]]  # type: ignore[misc]
    for blob in listed:
        found = registry.ask("GET", f"/v2/team/app/blobs/{blob['digest']}")
        registry.push_blob("team/billing", found.body)
    done = registry.ask(
        "PUT", f"/v2/team/billing/manifests/{tag}", signature.body, Content_Type=MANIFEST
    )
    assert done.status == 201
    publisher.away()
    engine.out("trust", "on")

    assert "signed as" in refused(engine, "pull", f"{publisher.scope}/billing:1")


def test_cosign_verifies_what_tare_signs_and_tare_what_cosign_signs(
    publisher: Publisher, registry: Registry, tmp_path: Path
) -> None:
    engine = publisher.engine
    cosign = Cosign(tmp_path / "cosign")
    shutil.copy(publisher.pub, cosign.home / "cosign.pub")
    by_digest = publisher.sign().removeprefix("signed ").replace(":1@", "@")
    assert cosign.verifies(by_digest)

    (cosign.home / "cosign.pub").unlink()
    cosign.key_pair()
    other = f"{registry.host}/cosigned/app:1"
    engine.out("tag", "box:1", other)
    pushed = engine.out("push", other)
    cosign.sign(f"{registry.host}/cosigned/app@{pushed.split('digest: ')[1].split()[0]}")
    public = str(cosign.home / "cosign.pub")
    engine.out("trust", "key", "add", public, "--scope", f"{registry.host}/cosigned")
    publisher.away()
    engine.out("trust", "on")

    engine.out("run", "--rm", "--pull=always", other)


@pytest.mark.attack("A33")
def test_a_private_key_that_others_may_read_is_not_used(publisher: Publisher) -> None:
    os.chmod(publisher.key, 0o644)

    done = publisher.engine.tare("trust", "sign", "--key", publisher.key, publisher.image)

    assert done.returncode != 0
    assert "can be used by others" in done.stderr


def test_the_verdict_is_told_as_an_event(publisher: Publisher) -> None:
    engine = publisher.engine
    publisher.sign()
    publisher.trusted()
    engine.out("trust", "on")
    engine.out("run", "--rm", publisher.image)

    told = engine.out(
        "events", "--since", "1h", "--until", "0s", "--filter", "event=trust", "--format", "json"
    )

    found = [json.loads(line) for line in told.splitlines()]
    attributes = found[-1]["Actor"]["Attributes"]
    assert (attributes["verdict"], attributes["doing"]) == ("verified", "create")


@pytest.mark.attack("A36")
def test_a_registry_that_resembles_another_never_sees_credentials(engine: Engine) -> None:
    done = engine.tare("login", "-u", "me", "-p", "secret", "gchr.io")

    assert done.returncode != 0
    assert "credentials are not sent: the registry gchr.io resembles ghcr.io" in done.stderr


@pytest.mark.attack("A36")
def test_a_name_that_resembles_another_is_refused_where_that_is_wanted(engine: Engine) -> None:
    path = engine.directory / "c/config.toml"
    path.write_text(path.read_text() + '[trust]\nlook-alikes = "refuse"\n')

    misspelled = engine.tare("pull", "ubunut:1")
    elsewhere = engine.tare("pull", "ghrc.io/team/app:1")

    assert "ubunut is no official image, and resembles ubuntu" in misspelled.stderr
    assert "the registry ghrc.io resembles ghcr.io" in elsewhere.stderr


def test_the_ledger_says_who_did_what_to_which_digest(publisher: Publisher, tmp_path: Path) -> None:
    engine = publisher.engine
    said = publisher.sign()
    publisher.trusted()
    engine.out("trust", "on")
    engine.out("run", "--rm", publisher.image)
    engine.out("trust", "revoke", "k")
    refused(engine, "run", "--rm", publisher.image)

    entries = [
        json.loads(line) for line in engine.out("ledger", "show", "--format", "json").splitlines()
    ]
    head = engine.out("ledger", "verify").rpartition("head ")[2]
    engine.out("ledger", "export", "-o", str(tmp_path / "export"))
    whole = (tmp_path / "export").read_bytes()
    (tmp_path / "export").write_bytes(
        whole.replace(b'"verdict":"verified"', b'"verdict":"refused"')
    )

    decisions = [e for e in entries if e["did"].startswith("image trust")]
    assert [(e["did"], e["verdict"]) for e in decisions][-2:] == [
        ("image trust create", "verified"),
        ("image trust create refused", "refused"),
    ]
    assert decisions[-1]["digest"] == said.rpartition("@")[2]
    assert {e["who"] for e in decisions} == {f"uid {os.geteuid()}"}
    assert any(e["did"] == "trust change" and "revoked key" in e["what"] for e in entries)
    engine.out("ledger", "verify", "--head", head)
    changed = engine.tare("ledger", "verify", str(tmp_path / "export"))
    assert changed.returncode != 0
    assert "was changed" in changed.stderr


@pytest.mark.attack("A34")
def test_a_publisher_that_is_followed_says_which_digest_a_tag_has(
    publisher: Publisher, registry: Registry, tmp_path: Path
) -> None:
    engine = publisher.engine
    where = str(tmp_path / "publisher")
    repository = publisher.image.removesuffix(":1")
    engine.out("trust", "init", "--root-keys", "3", "--root-threshold", "2", where)
    engine.out("trust", "publish", "--push", repository, where, publisher.image)
    engine.out("trust", "follow", repository, where)
    engine.out("trust", "on")
    engine.out("run", "--rm", "--pull=always", publisher.image)
    old = registry.ask("GET", "/v2/team/app/manifests/_trust", Accept=MANIFEST).body
    engine.out("trust", "rotate", where, "timestamp")
    engine.out("trust", "publish", "--push", repository, where)
    engine.out("pull", "-q", publisher.image)

    registry.push_image("team/app", "1", b"another layer")
    swapped = refused(engine, "pull", publisher.image)
    registry.ask("PUT", "/v2/team/app/manifests/_trust", old, Content_Type=MANIFEST)
    engine.out("run", "--rm", publisher.image)
    stale = refused(engine, "pull", publisher.image)
    unknown = refused(engine, "pull", f"{repository}:2") if registry.ask(
        "PUT", "/v2/team/app/manifests/2",
        registry.ask("GET", "/v2/team/app/manifests/1", Accept=MANIFEST).body,
        Content_Type=MANIFEST,
    ).status == 201 else ""  # fmt: skip

    assert "the publisher says that" in swapped
    assert "not signed by enough of its keys" in stale
    assert "does not know" in unknown
    engine.out("trust", "unfollow", repository)
    assert "no rule and no key" in refused(engine, "run", "--rm", publisher.image)


@pytest.mark.attack("A35")
def test_an_archive_does_not_take_a_name_from_another_image_while_trust_is_on(
    engine: Engine, shared: Path, tmp_path: Path
) -> None:
    key = str(tmp_path / "k")
    engine.out("trust", "key", "generate", key)
    engine.out("trust", "key", "add", f"{key}.pub", "--scope", "*")
    engine.out("load", "-q", "-i", str(shared))
    engine.out("run", "--name", "made", "box:1", "touch", "/changed")
    engine.out("commit", "made", "box:2")
    engine.out("tag", "box:2", "other:1")
    engine.out("trust", "sign", "--local", "--key", f"{key}.key", "other:1")
    engine.out("trust", "sign", "--local", "--key", f"{key}.key", "box:1")
    engine.out("save", "-o", str(tmp_path / "a.tar"), "other:1")
    engine.out("tag", "box:1", "other:1")
    engine.out("trust", "sign", "--local", "--key", f"{key}.key", "other:1")
    engine.out("trust", "on")

    done = engine.tare("load", "-i", str(tmp_path / "a.tar"))

    assert done.returncode != 0
    assert "would replace other:1 by another image" in done.stderr
