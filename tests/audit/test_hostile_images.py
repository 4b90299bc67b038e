"""Images made to fool a look at their files: links out, secrets behind links, odd names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.needs import needs
from tare.audit import image_scan
from tare.audit.image_scan import ImageFacts

KEY = "-----BEGIN PRIVATE KEY-----\n"


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    needs("root", "overlay")
    root = tmp_path / "layer"
    (root / "etc").mkdir(parents=True)
    return root


def scanned(*layers: Path) -> ImageFacts:
    # A name of its own for each: what was scanned is remembered by it.
    named = [(f"sha256:{os.urandom(32).hex()}", str(layer)) for layer in layers]
    return image_scan.scan(os.urandom(8).hex(), named)


@pytest.mark.attack("A21")
def test_links_out_of_the_image_lead_nowhere(layer: Path, host_canary: Path) -> None:
    (layer / "etc/shadow").symlink_to(host_canary)
    (layer / "etc/passwd").symlink_to("../../../../../../etc/passwd")
    (layer / "out").symlink_to(host_canary.parent)
    (layer / "key.pem").symlink_to(host_canary)

    facts = scanned(layer)

    assert facts.empty_passwords == ()
    assert facts.duplicate_ids == ()
    assert facts.layers[0][1].secrets == ()


@pytest.mark.attack("A21")
def test_a_path_of_one_layer_that_another_makes_a_link_is_not_sought_outside(
    layer: Path, tmp_path: Path, host_canary: Path
) -> None:
    # The lower layer has a secret below run/, which the upper one replaces by a link to the host's.
    directory = host_canary.parent.relative_to("/")
    (layer / directory).mkdir(parents=True)
    (layer / directory / host_canary.name).write_text(KEY)
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / directory.parts[0]).symlink_to("/nowhere")

    facts = scanned(layer, upper)

    ((path, secret),) = facts.layers[0][1].secrets
    assert (path, secret.what) == (str(directory / host_canary.name), "a private key")
    assert facts.visible == frozenset()


def test_names_that_are_no_text_are_survived(layer: Path) -> None:
    name = os.fsencode(layer) + b"/etc/\xff\xfe\n.env"
    with open(name, "w") as file:
        file.write(KEY)

    ((path, _),) = scanned(layer).layers[0][1].secrets

    assert path.encode("utf-8", "surrogateescape") == b"etc/\xff\xfe\n.env"


def test_what_is_no_regular_file_is_never_opened(layer: Path) -> None:
    os.mkfifo(layer / "etc/.env")
    (layer / "etc/id_rsa").mkdir()

    facts = scanned(layer)  # a FIFO that was opened would wait for ever

    assert facts.layers[0][1].secrets == ()


def test_setuid_and_capabilities_are_found_in_every_layer(layer: Path, tmp_path: Path) -> None:
    (layer / "a").write_text("x")
    (layer / "a").chmod(0o4755)
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "b").write_text("x")
    (upper / "b").chmod(0o2755)

    facts = scanned(layer, upper)

    assert [one.setuid for _, one in facts.layers] == [(("a", 0o4755),), (("b", 0o2755),)]
    assert facts.visible == {"a", "b"}


def test_a_layer_is_looked_at_once(layer: Path) -> None:
    (layer / "etc/.env").write_text(KEY)
    named = [(f"sha256:{os.urandom(32).hex()}", str(layer))]
    first = image_scan.scan("one", named)
    (layer / "etc/.env").unlink()

    second = image_scan.scan("two", named)

    assert second.layers == first.layers
