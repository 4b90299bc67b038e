"""``CONFIG/config.toml``: what the administrator decides, read once at the daemon's start.

::

    [registries]                       # how many blobs of one pull or push at once
    downloads = 3
    uploads = 3

    [registries."docker.io"]           # or any HOST or HOST:PORT
    mirrors = ["https://mirror.example"]
    insecure = false                   # certificates nobody vouches for, and plain HTTP
    ca = "/etc/tare/ca.pem"            # vouches for this registry, beside the host's authorities
    certificate = "client.pem"         # shown to the registry; paths are relative to CONFIG
    key = "client.key"
    token-hosts = ["auth.example"]     # may be shown the credentials of this registry

    [registry]                         # a registry that the daemon itself serves
    enabled = true
    listen = "127.0.0.1:5000"
    tls-cert = "registry.pem"          # with tls-key; paths are relative to CONFIG
    tls-key = "registry.key"
    htpasswd = "users"                 # who may use it; without it, everybody who reaches it
    read-only = false
    images = true                      # show the engine's own images too
    data = "/srv/registry"             # instead of STATE/registry

    [network]
    default = "bridge"                 # of containers that name none: bridge, or none
    publish = "127.0.0.1"              # where -p 8080:80 is published
    pools = ["10.77.0.0/16:24"]        # subnets are cut from these, here 256 of them
    icc = false                        # whether containers of the default network reach each other
    host-access = false                # whether they reach what listens on this host

    [trust]
    look-alikes = "warn"               # of names that resemble others: off, warn or refuse

    [images]
    quota = "20G"                      # all layers together; the longest unused go, see `image pin`
    reserve = "256M"                   # below so much free disk no container is started

    [metrics]
    listen = "127.0.0.1:9323"          # GET /metrics for Prometheus, and nothing else

A table is one field of `Config` and one function in `_TABLES` that reads it; each takes all its
keys from a `Table`, and whatever it did not take is refused. Errors name file, line and key.

Not for: what the tables mean (the packages that define their values do), and credentials.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

from tare.errors import InvalidError
from tare.image.registry.settings import HostSettings, Mirror, Settings, check_host
from tare.image.registry_store.settings import LISTEN, ServeSettings, parse_listen
from tare.model.networking import BRIDGE, NONE, NetworkSettings

NAME: Final = "config.toml"
DEFAULT_RESERVE: Final = 64 << 20
_SIZE: Final = re.compile("([0-9]{1,9})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_LIMIT: Final = 256 << 10
_DOCKER_CERTIFICATES: Final = Path("/etc/docker/certs.d")
Step = str | int


@dataclass(frozen=True, slots=True)
class Config:
    """What is configured; a table that is absent has its defaults."""

    registries: Settings = field(default_factory=Settings)
    registry: ServeSettings | None = None
    """The registry to serve, if one is."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    look_alikes: str = "warn"
    """What becomes of names that resemble others: off, warn or refuse."""
    images_quota: int = 0
    """Bytes of all layers together; 0 is no bound."""
    reserve: int = DEFAULT_RESERVE
    """Bytes that must be free on the disk of the state for a container to start."""
    metrics: tuple[str, int] | None = None
    """Where figures for Prometheus are served by TCP, if anywhere."""


class Table:
    """One table of the file: keys are taken out of it by kind, and `end` refuses what is left."""

    def __init__(self, source: _Source, value: dict[str, object], path: tuple[Step, ...]) -> None:
        self._source = source
        self._value = value
        self._path = path
        self._taken: set[str] = set()

    @property
    def directory(self) -> Path:
        """Where the file lies: what its relative paths are relative to."""
        return self._source.path.parent

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise the error that says where *name* stands and what is wrong with it."""
        self._source.refuse((*self._path, name), why)

    def _take(self, name: str, kind: type, called: str) -> object:
        self._taken.add(name)
        value = self._value.get(name)
        # A bool is an int to Python, and to nobody else.
        if value is not None and (
            not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        ):
            self.refuse(name, f"must be {called}")
        return value

    def text(self, name: str, default: str = "") -> str:
        """A string, not empty."""
        value = self._take(name, str, "a string")
        if value is None:
            return default
        assert isinstance(value, str)
        if not value or not value.isprintable():
            self.refuse(name, "must be a string of printable characters, not empty")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._take(name, bool, "true or false")
        return default if value is None else value is True

    def number(self, name: str, default: int, *, least: int, most: int) -> int:
        """A whole number from *least* to *most*."""
        value = self._take(name, int, "a whole number")
        if value is None:
            return default
        assert isinstance(value, int)
        if not least <= value <= most:
            self.refuse(name, f"must be from {least} to {most}, not {value}")
        return value

    def size(self, name: str, default: int) -> int:
        """A number of bytes: ``"20G"``, ``"512M"``, ``"0"``."""
        text = self.text(name)
        if not text:
            return default
        found = _SIZE.fullmatch(text)
        if found is None:
            self.refuse(name, f"is {text[:40]!a}, which is no size like 20G or 512M")
        return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2].upper()]

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._take(name, list, "a list of strings")
        found = value if isinstance(value, list) else []
        if not all(isinstance(one, str) and one and one.isprintable() for one in found):
            self.refuse(name, "must be a list of strings, none of them empty")
        return tuple(found)

    def path(self, name: str) -> Path | None:
        """A file that is there; relative to the directory of the configuration."""
        text = self.text(name)
        if not text:
            return None
        path = self.directory / text
        if not path.is_file():
            self.refuse(name, f"names a file that is not there: {path}")
        return path

    def table(self, name: str) -> Table:
        """A table below this one; an empty one when it is absent."""
        value = self._take(name, dict, "a table")
        return Table(self._source, value if isinstance(value, dict) else {}, (*self._path, name))

    def tables(self) -> Iterable[tuple[str, Table]]:
        """Every table below this one that was not taken yet, by its name."""
        for name, value in self._value.items():
            if isinstance(value, dict) and name not in self._taken:
                yield name, self.table(name)

    def list_of_tables(self, name: str) -> list[Table]:
        """A list of tables, ``[[name]]``."""
        value = self._take(name, list, "a list of tables")
        found = value if isinstance(value, list) else []
        if not all(isinstance(one, dict) for one in found):
            self.refuse(name, "must be a list of tables")
        return [Table(self._source, one, (*self._path, name, at)) for at, one in enumerate(found)]

    def end(self) -> None:
        """Everything was taken; InvalidError names the first key that was not."""
        for name in self._value:
            if name not in self._taken:
                known = ", ".join(sorted(self._taken)) or "none"
                self.refuse(name, f"is not known here; there are: {known}")


class _Source:
    """The file, for finding where in it a key stands."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._text = text

    def refuse(self, path: tuple[Step, ...], why: str) -> NoReturn:
        shown = ".".join(
            f"[{step}]" if isinstance(step, int)
            else step if step.replace("-", "").replace("_", "").isalnum() and step.isascii()
            else ascii(step)
            for step in path
        )  # fmt: skip
        raise InvalidError(
            f"{self.path}: line {self._line(path)}: {shown} {why}",
            hint="correct the file and start the engine again",
        )

    def _line(self, path: tuple[Step, ...]) -> int:
        """The line where a key begins: after the last beginning of the file that lacks it.

        The parser tells no places. It is asked for every beginning of the file that is whole
        lines; slow, but exact, and done for an error only.
        """
        lines = self._text.split("\n")
        last_without = 0
        for number in range(1, len(lines) + 1):
            try:
                found: object = tomllib.loads("\n".join(lines[:number]))
            except tomllib.TOMLDecodeError:
                continue
            if _has(found, path):
                break
            last_without = number
        return last_without + 1


def _has(value: object, path: Iterable[Step]) -> bool:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return False
        if value is None:
            return False
    return True


def load(directory: Path) -> Config:
    """What *directory* configures; defaults when there is no file, InvalidError if it is wrong."""
    config = Config(registries=Settings(certificates=_certificates(directory)))
    path = directory / NAME
    text = _read(path)
    if text is None:
        return config
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidError(f"{path}: {error}", hint="the file is TOML: https://toml.io") from None
    source = _Source(path, text)
    top = Table(source, document, ())
    for name, read in _TABLES.items():
        table = top.table(name)
        config = read(config, table)
        table.end()
    top.end()
    return config


def _read(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidError(f"{path} is not a regular file")
        # Whoever may write it decides whom the engine trusts.
        if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise InvalidError(
                f"{path} may be changed by others than the engine's user",
                hint=f"chown and chmod it: chmod go-w {path}",
            )
        content = file.read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise InvalidError(f"{path} is larger than {_LIMIT >> 10} KiB")
    try:
        return content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is not UTF-8: {error.reason}") from None


# --- the tables -----------------------------------------------------------------------------------


def _certificates(directory: Path) -> tuple[Path, ...]:
    """Directories of certificates: ours, and for root's engine Docker's."""
    return (directory / "certs.d", *((_DOCKER_CERTIFICATES,) if os.geteuid() == 0 else ()))


def _registries(config: Config, table: Table) -> Config:
    settings = replace(
        config.registries,
        downloads=table.number("downloads", 3, least=1, most=32),
        uploads=table.number("uploads", 3, least=1, most=32),
        hosts={name: _registry(table, name, one) for name, one in table.tables()},
    )
    return replace(config, registries=settings)


def _registry(registries: Table, name: str, table: Table) -> HostSettings:
    _host(registries, name, name)
    found = HostSettings(
        mirrors=tuple(_mirror(table, text) for text in table.texts("mirrors")),
        insecure=table.flag("insecure"),
        ca=table.path("ca"),
        certificate=table.path("certificate"),
        key=table.path("key"),
        token_hosts=tuple(_host(table, "token-hosts", t) for t in table.texts("token-hosts")),
    )
    if (found.certificate is None) != (found.key is None):
        table.refuse("key" if found.certificate is None else "certificate", "needs the other")
    table.end()
    return found


def _served(config: Config, table: Table) -> Config:
    enabled = table.flag("enabled")
    text = table.text("listen", LISTEN)
    try:
        host, port = parse_listen(text)
    except InvalidError as error:
        table.refuse("listen", f"is {error}")
    data = table.text("data")
    cert, key = table.path("tls-cert"), table.path("tls-key")
    if (cert is None) != (key is None):
        table.refuse("tls-key" if cert is None else "tls-cert", "needs the other")
    found = ServeSettings(
        data=table.directory / data if data else None,
        host=host,
        port=port,
        tls_cert=cert,
        tls_key=key,
        htpasswd=table.path("htpasswd"),
        read_only=table.flag("read-only"),
        images=table.flag("images", True),
    )
    return replace(config, registry=found if enabled else None)


def _host(table: Table, key: str, text: str) -> str:
    try:
        return check_host(text)
    except InvalidError as error:
        table.refuse(key, f"is {error}")


def _mirror(table: Table, text: str) -> Mirror:
    parts = urlsplit(text if "://" in text else f"https://{text}")
    if parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
        table.refuse("mirrors", f"has {text[:200]!a}, which is not http(s)://HOST[:PORT][/PATH]")
    host = _host(table, "mirrors", parts.netloc)
    return Mirror(host=host, scheme=parts.scheme, path=parts.path.strip("/"))


def _network(config: Config, table: Table) -> Config:
    default = table.text("default", BRIDGE)
    if default not in (BRIDGE, NONE):
        table.refuse("default", f"is {default[:40]!a}, and can be bridge or none")
    publish = table.text("publish")
    if publish:
        try:
            ipaddress.ip_address(publish)
        except ValueError:
            table.refuse("publish", f"is {publish[:60]!a}, which is no IP address")
    return replace(
        config,
        network=NetworkSettings(
            default=default,
            publish=publish,
            pools=tuple(_pool(table, text) for text in table.texts("pools")),
            icc=table.flag("icc"),
            host_access=table.flag("host-access"),
        ),
    )


def _pool(table: Table, text: str) -> tuple[str, int]:
    base, _, size = text.rpartition(":")
    try:
        prefix = ipaddress.ip_network(base)
        length = int(size)
        if not prefix.prefixlen <= length <= prefix.max_prefixlen - 2:
            raise ValueError
    except ValueError:
        table.refuse("pools", f"has {text[:60]!a}, which is not like 10.77.0.0/16:24")
    return str(prefix), length


def _trust(config: Config, table: Table) -> Config:
    word = table.text("look-alikes", "warn")
    if word not in ("off", "warn", "refuse"):
        table.refuse("look-alikes", f"is {word[:40]!a}, and can be off, warn or refuse")
    return replace(config, look_alikes=word)


def _images(config: Config, table: Table) -> Config:
    return replace(
        config,
        images_quota=table.size("quota", 0),
        reserve=table.size("reserve", DEFAULT_RESERVE),
    )


def _metrics(config: Config, table: Table) -> Config:
    text = table.text("listen")
    if not text:
        return config
    try:
        return replace(config, metrics=parse_listen(text))
    except InvalidError as error:
        table.refuse("listen", f"is {error}")


_TABLES: Final[dict[str, Callable[[Config, Table], Config]]] = {
    "registries": _registries,
    "registry": _served,
    "network": _network,
    "images": _images,
    "metrics": _metrics,
    "trust": _trust,
}
