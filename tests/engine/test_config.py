"""The configuration file: read strictly, and what is wrong in it named with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tare.engine import config
from tare.errors import InvalidError


def write(directory: Path, text: str) -> Path:
    path = directory / config.NAME
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    found = config.load(tmp_path)

    assert found.registries.downloads == 3
    assert found.registries.hosts == {}
    assert tmp_path / "certs.d" in found.registries.certificates


def test_a_registry_has_mirrors_authorities_and_what_it_allows(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    write(
        tmp_path,
        """
[registries]
downloads = 5
[registries."docker.io"]
mirrors = ["https://mirror.example/hub/", "other.example:5000"]
[registries."registry.example:5000"]
insecure = true
ca = "ca.pem"
token-hosts = ["auth.example"]
""",
    )

    found = config.load(tmp_path).registries

    assert found.downloads == 5
    mirrors = found.of("registry-1.docker.io").mirrors
    assert [(m.scheme, m.host, m.path) for m in mirrors] == [
        ("https", "mirror.example", "hub"),
        ("https", "other.example:5000", ""),
    ]
    other = found.of("registry.example:5000")
    assert other.insecure
    assert other.ca == tmp_path / "ca.pem"
    assert found.may_see_credentials("registry.example:5000", "auth.example")
    assert not found.may_see_credentials("registry.example:5000", "auth.example.org")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[registries]\n\n# a comment\nmirorrs = []\n", 4, "registries.mirorrs is not known here"),
        ("[registrys]\n", 1, "registrys is not known"),
        ("a = 1\n", 1, "a is not known"),
        ("[registries]\ndownloads = 'many'\n", 2, "must be a whole number"),
        ("[registries]\ndownloads = true\n", 2, "must be a whole number"),
        ("[registries]\ndownloads = 0\n", 2, "must be from 1 to 32"),
        ('[registries."a.b"]\ninsecure = "yes"\n', 2, "must be true or false"),
        ('[registries."a b"]\n', 1, "not the name of a registry"),
        ('[registries."a:0"]\n', 1, "not the name of a registry"),
        ('[registries."a.b"]\nca = "nowhere.pem"\n', 2, "a file that is not there"),
        ('[registries."a.b"]\nmirrors = [\n  "file:///etc",\n]\n', 2, "which is not http"),
        ('[registries."a.b"]\nmirrors = "x"\n', 2, "must be a list of strings"),
        ('[registries."a.b"]\nmirrors = ["http://u:p@h"]\n', 2, "which is not http"),
        ('x = """\n[registries]\nmirorrs = 1\n"""\n[registries]\nmirorrs = 2\n', 6, "mirorrs"),
        ("registries = 3\n", 1, "must be a table"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = write(tmp_path, text)

    with pytest.raises(InvalidError) as caught:
        config.load(tmp_path)

    assert f"{path}: line {line}: " in str(caught.value)
    assert words in str(caught.value)


def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "[registries\n")

    with pytest.raises(InvalidError, match="line 1"):
        config.load(tmp_path)


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("x")
    write(tmp_path, '[registries."a.b"]\ncertificate = "c"\n')

    with pytest.raises(InvalidError, match="certificate needs the other"):
        config.load(tmp_path)


def test_a_file_that_others_may_change_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "").chmod(0o664)

    with pytest.raises(InvalidError, match="may be changed by others"):
        config.load(tmp_path)


def test_what_is_no_file_and_what_is_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / config.NAME, 0o600)
    with pytest.raises(InvalidError, match="not a regular file"):
        config.load(tmp_path)
    os.unlink(tmp_path / config.NAME)

    write(tmp_path, "#" * (300 << 10))
    with pytest.raises(InvalidError, match="larger than"):
        config.load(tmp_path)
