"""The table [registry] of the configuration: what the daemon serves, or why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tare.engine import config
from tare.errors import InvalidError


def write(directory: Path, text: str) -> Path:
    path = directory / config.NAME
    path.write_text(text)
    path.chmod(0o644)
    return directory


@pytest.mark.parametrize("text", ["", "[registry]\n", "[registry]\nlisten = ':5000'\n"])
def test_no_registry_is_served_unless_it_is_enabled(tmp_path: Path, text: str) -> None:
    assert config.load(write(tmp_path, text)).registry is None


def test_a_registry_with_everything(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem", "users"):
        (tmp_path / name).touch()
    text = """
[registry]
enabled = true
listen = "[::]:443"
tls-cert = "cert.pem"
tls-key = "key.pem"
htpasswd = "users"
read-only = true
images = false
data = "/srv/registry"
"""

    found = config.load(write(tmp_path, text)).registry

    assert found is not None
    assert (found.host, found.port) == ("::", 443)
    assert (found.tls_cert, found.tls_key) == (tmp_path / "cert.pem", tmp_path / "key.pem")
    assert (found.htpasswd, found.data) == (tmp_path / "users", Path("/srv/registry"))
    assert (found.read_only, found.images) == (True, False)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("listen = 'nowhere'", "line 3: registry.listen is not an address"),
        ("listen = 5000", "line 3: registry.listen must be a string"),
        ("tls-cert = 'config.toml'", "line 3: registry.tls-cert needs the other"),
        ("htpasswd = 'nobody'", "line 3: registry.htpasswd names a file that is not there"),
        ("port = 5", "line 3: registry.port is not known here"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InvalidError) as refused:
        config.load(write(tmp_path, f"[registry]\nenabled = true\n{line}\n"))

    assert said in str(refused.value)
