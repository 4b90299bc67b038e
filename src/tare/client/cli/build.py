"""build and builder: an image of a Dockerfile, and what builds keep."""

from __future__ import annotations

import os
from binascii import b2a_base64

from tare.client import document, units
from tare.client.cli.each import confirmed
from tare.client.document import number, text
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import say, warn, write_out
from tare.client.transport import Daemon, quoted, target
from tare.errors import InvalidError, TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.client.document import Json

_KIND = "application/vnd.tare.build"
_DOCKERFILE_MAX = 4 << 20
_SECRET_MAX = 500 << 10
_HEAD = 512
_REMOTE = ("http://", "https://", "git://", "ssh://", "git+ssh://", "git@", "github.com/")


def _build(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    from tare.client import credentials
    from tare.client.cli.upkeep import recipe

    output = _Output(flags)
    asked: dict[str, Json] = {}
    _options(flags, asked)
    context = _context(flags, arguments[0], asked)
    asked["credentials"] = credentials.stored()
    asked["recipe"] = recipe(flags, arguments[0])
    head = document.encode(asked)
    first = len(head).to_bytes(4, "big") + head
    from tare.client.building import Progress

    progress = Progress(
        flags.text("progress", "auto"),
        quiet=flags.flag("quiet"),
        explain=flags.flag("explain"),
        check=flags.flag("check"),
    )
    response = daemon.open("POST", "/tare/build", _joined(first, context), kind=_KIND)
    done = progress.follow(response)
    identity = text(done, "id")
    if flags.flag("check"):
        return progress.checked()
    if path := flags.text("iidfile"):
        with open(path, "w", encoding="ascii") as file:
            file.write(identity)
    output.write(daemon, identity, bool(flags.list("tag")))
    if flags.flag("quiet") and not output.to_stdout:
        say(identity)
    return 0


def _joined(first: bytes, context: Iterator[bytes]) -> Iterator[bytes]:
    """The document and the beginning of the context in one piece: most contexts are no longer."""
    yield first + next(context, b"")
    yield from context


# --- options --------------------------------------------------------------------------------------


def _options(flags: Flags, asked: dict[str, Json]) -> None:
    arguments = _build_args(flags.list("build-arg"))
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and "SOURCE_DATE_EPOCH" not in arguments:
        arguments["SOURCE_DATE_EPOCH"] = epoch
    labels: dict[str, Json] = {}
    for word in flags.list("label"):
        name, _, value = word.partition("=")
        labels[name] = value
    asked.update(
        {
            "tags": list(flags.list("tag")),
            "target": flags.text("target"),
            "build_args": dict(arguments),
            "labels": labels,
            "platform": flags.text("platform"),
            "no_cache": flags.flag("no-cache"),
            "pull": flags.flag("pull"),
            "cache_from": [_cache_source(word) for word in flags.list("cache-from")],
            "network": flags.text("network"),
            "allow": list(flags.list("allow")),
            "extra_hosts": list(flags.list("add-host")),
            "check": flags.flag("check"),
            "sbom": flags.text("sbom-format") or ("cyclonedx" if flags.flag("sbom") else ""),
            "provenance": flags.flag("provenance"),
            "secrets": {
                name: value for word in flags.list("secret") for name, value in _secret(word)
            },
            "agents": dict(_agent(word) for word in flags.list("ssh")),
        }
    )
    if size := flags.text("shm-size"):
        asked["shm_size"] = units.size(size)
    if size := flags.text("memory"):
        asked["memory"] = units.size(size)
    if words := flags.list("ulimit"):
        from tare.client.runspec import ulimit

        asked["ulimits"] = [ulimit(word) for word in words]


def _build_args(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name:
            raise UsageError(f"invalid --build-arg {word!r}", exit_code=125)
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _cache_source(word: str) -> str:
    """``IMAGE`` or ``type=registry,ref=IMAGE``."""
    if "=" not in word:
        return word
    fields = dict(part.partition("=")[::2] for part in word.split(","))
    if fields.get("type") not in ("registry", "image") or not fields.get("ref"):
        raise InvalidError(
            f"cannot take a cache from {word!r}", hint="name an image: --cache-from IMAGE"
        )
    return fields["ref"]


def _secret(word: str) -> Iterator[tuple[str, Json]]:
    """``id=NAME,src=FILE`` or ``id=NAME,env=VARIABLE``."""
    fields: dict[str, str] = {}
    for part in word.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in ("id", "src", "source", "env", "type"):
            raise InvalidError(
                f"invalid --secret {word!r}",
                hint="write it as id=NAME,src=FILE or id=NAME,env=NAME",
            )
        fields["src" if key == "source" else key] = value
    name = fields.get("id") or os.path.basename(fields.get("src", ""))
    if not name:
        raise InvalidError(f"--secret {word!r} has no id")
    variable = fields.get("env", "")
    path = fields.get("src", "")
    if not variable and not path:
        variable, path = (name, "") if name in os.environ else ("", name)
    if variable or fields.get("type") == "env":
        variable = variable or path or name
        if variable not in os.environ:
            raise InvalidError(f"secret {name}: the variable {variable} is not set")
        content = os.environb[os.fsencode(variable)]
    else:
        content = _content(path, _SECRET_MAX, f"secret {name}")
    yield name, b2a_base64(content, newline=False).decode("ascii")


def _content(path: str, limit: int, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InvalidError(f"{what}: cannot read {path}: {error.strerror}") from None
    if len(content) > limit:
        raise InvalidError(f"{what}: {path} is larger than {limit >> 10} KiB")
    return content


def _agent(word: str) -> tuple[str, Json]:
    """``default``, or ``ID=SOCKET``."""
    name, _, path = word.partition("=")
    path = path or os.environ.get("SSH_AUTH_SOCK", "")
    if not path:
        raise InvalidError(
            f"--ssh {word}: there is no SSH agent", hint="eval $(ssh-agent); ssh-add"
        )
    if os.path.isfile(path):
        raise InvalidError(
            f"--ssh {word}: a key file is not taken",
            hint="give it to an agent: eval $(ssh-agent); ssh-add " + path,
        )
    return name, os.path.abspath(path)


# --- context --------------------------------------------------------------------------------------


def _context(flags: Flags, where: str, asked: dict[str, Json]) -> Iterator[bytes]:
    """The context's archive; where it is not sent, *asked* says where it comes from."""
    named = flags.text("file")
    if where == "-":
        if named == "-":
            raise InvalidError(
                "invalid argument: can't use stdin for both build context and dockerfile"
            )
        return _from_stdin(named, asked)
    if where.startswith(_REMOTE) and not os.path.isdir(where):
        asked["remote"] = where
        asked["dockerfile"] = named or "Dockerfile"
        return iter(())
    if not os.path.isdir(where):
        raise InvalidError(
            f"unable to prepare context: path {where!r} not found"
            if not os.path.exists(where)
            else f"unable to prepare context: {where!r} is not a directory"
        )
    return _from_directory(where, named, asked)


def _from_directory(where: str, named: str, asked: dict[str, Json]) -> Iterator[bytes]:
    from tare.client.packing import pack

    ignore = os.path.join(where, ".dockerignore")
    if named == "-":
        asked["inline"] = _encoded(_all_of_stdin())
        return pack(where, ignore)
    path = named or os.path.join(where, "Dockerfile")
    if not named and not os.path.exists(path) and os.path.exists(where + "/Containerfile"):
        path = os.path.join(where, "Containerfile")
    root, file = os.path.realpath(where), os.path.realpath(path)
    if not os.path.exists(file):
        raise InvalidError(
            f"failed to read dockerfile: {path}: no such file", hint="name it with -f FILE"
        )
    own = f"{path}.dockerignore"
    if file.startswith(root.rstrip("/") + "/") and not os.path.islink(path):
        asked["dockerfile"] = os.path.relpath(file, root)
    else:
        asked["dockerfile"] = os.path.basename(path)
        asked["inline"] = _encoded(_content(path, _DOCKERFILE_MAX, "the Dockerfile"))
    return pack(where, own if os.path.exists(own) else ignore)


def _from_stdin(named: str, asked: dict[str, Json]) -> Iterator[bytes]:
    """An archive, or a Dockerfile without a context."""
    head = b""
    while len(head) < _HEAD and (piece := os.read(0, 65536)):
        head += piece
    archive = head[257:262] == b"ustar" or head.startswith(
        (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
    )
    if not archive:
        asked["inline"] = _encoded(head + _all_of_stdin())
        return iter(())
    asked["dockerfile"] = named or "Dockerfile"
    return _with_rest(head)


def _with_rest(head: bytes) -> Iterator[bytes]:
    yield head
    while piece := os.read(0, 256 << 10):
        yield piece


def _all_of_stdin() -> bytes:
    parts = []
    size = 0
    while piece := os.read(0, 65536):
        parts.append(piece)
        size += len(piece)
        if size > _DOCKERFILE_MAX:
            raise InvalidError("the Dockerfile on standard input is too large")
    return b"".join(parts)


def _encoded(content: bytes) -> str:
    return b2a_base64(content, newline=False).decode("ascii")


# --- output ---------------------------------------------------------------------------------------


class _Output:
    """``--output``: where the result goes besides, or instead of, the engine's images."""

    def __init__(self, flags: Flags) -> None:
        given = flags.list("output")
        if len(given) > 1:
            raise InvalidError("only one --output is possible")
        self.kind, self.path = self._read(given[0]) if given else ("docker", "")
        self.to_stdout = self.path == "-"

    @staticmethod
    def _read(word: str) -> tuple[str, str]:
        if word == "-":
            return "tar", "-"
        if "=" not in word:
            return "local", word
        fields = dict(part.partition("=")[::2] for part in word.split(","))
        kind, path = fields.get("type", ""), fields.get("dest", "")
        if kind in ("image", "docker") and not path:
            return "docker", ""
        if kind not in ("local", "tar", "oci", "docker"):
            raise InvalidError(
                f"unknown --output type {kind!r}", hint="local, tar, oci, docker are there"
            )
        if not path:
            if kind == "local":
                raise InvalidError(f"--output {word!r} has no dest=DIRECTORY")
            path = "-"
        return kind, path

    def write(self, daemon: Daemon, identity: str, tagged: bool) -> None:
        """Fetch the image in the form that was asked for; without a tag it is not kept."""
        if not self.path:
            return
        from tare.client.cli.archives import save_stream

        if self.kind == "local":
            self._unpack(daemon, identity)
        else:
            where = target("/tare/files", {"image": identity})
            if self.kind != "tar":
                kind = "oci" if self.kind == "oci" else "docker-archive"
                where = target("/images/get", {"names": identity, "format": kind})
            save_stream(daemon.open("GET", where), "" if self.path == "-" else self.path)
        if not tagged:
            try:
                daemon.call("DELETE", f"/images/{quoted(identity)}")
            except TareError:
                pass  # somebody uses it already

    def _unpack(self, daemon: Daemon, identity: str) -> None:
        from tare.client.archive import Pieces, Unpacker

        os.makedirs(self.path, exist_ok=True)
        response = daemon.open("GET", target("/tare/files", {"image": identity}))
        unpacker = Unpacker(self.path)
        try:
            unpacker.unpack(Pieces(response.pieces()))
        finally:
            unpacker.close()
        if unpacker.skipped:
            warn(f"left out: {', '.join(unpacker.skipped[:5])}")


# --- builder --------------------------------------------------------------------------------------


def _prune(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    which = "all build cache" if flags.flag("all") else "build cache that no image uses"
    dry = flags.flag("dry-run")
    if not (dry or flags.flag("force")) and not confirmed(f"WARNING! This will remove {which}."):
        say("Nothing was removed.")
        return 1
    from tare.client.cli.ps import filters

    keep = flags.text("keep-storage")
    query: dict[str, str | int | bool] = {
        "all": flags.flag("all"),
        "filters": filters(flags.list("filter")),
        "keep-storage": str(units.size(keep)) if keep else "",
        "dry-run": dry,
    }
    answer = daemon.call("POST", target("/build/prune", query))
    deleted = document.strings(answer, "CachesDeleted")
    if deleted:
        head = "Build cache that would go:\n" if dry else "Deleted build cache:\n"
        write_out((head + "\n".join(deleted) + "\n\n").encode())
    word = "that would be reclaimed" if dry else "reclaimed space"
    say(f"Total {word}: {units.human_size(number(answer, 'SpaceReclaimed'))}")
    return 0


_OPTIONS = {
    "add-host": ("", "list", "One more line in /etc/hosts of the steps (HOST:IP)"),
    "allow": ("", "list", "Allow what steps may not do by themselves: network.host"),
    "build-arg": ("", "list", "The value of an ARG (NAME=VALUE, or NAME for the variable's)"),
    "cache-from": ("", "list", "Trust what this image's history says of its steps"),
    "check": ("", "bool", "Only check the Dockerfile"),
    "explain": ("", "bool", "Say why each step ran, or that it did not have to"),
    "file": ("f", "string", "The Dockerfile (default PATH/Dockerfile; - is standard input)"),
    "iidfile": ("", "string", "Write the image's id to this file"),
    "label": ("", "list", "A label of the image (NAME=VALUE)"),
    "memory": ("m", "bytes", "Most memory of a step"),
    "network": ("", "string", "The network of RUN: default, none, host"),
    "no-cache": ("", "bool", "Run every step"),
    "output": (
        "o",
        "list",
        "Where the result goes: DIRECTORY, or type=local|tar|oci|docker,dest=PATH",
    ),
    "platform": ("", "string", "Refuse to build for another platform than this"),
    "progress": ("", "string", "auto, plain, tty, quiet, rawjson"),
    "provenance": ("", "bool", "Note how the image was made; it is pushed with the image"),
    "pull": ("", "bool", "Ask the registries what the base images are now"),
    "quiet": ("q", "bool", "Only print the image's id"),
    "sbom": ("", "bool", "Note what the image is made of; it is pushed with the image"),
    "sbom-format": ("", "string", "cyclonedx (default) or spdx"),
    "secret": ("", "list", "A secret for RUN --mount=type=secret (id=NAME,src=FILE or env=NAME)"),
    "shm-size": ("", "bytes", "Size of /dev/shm"),
    "ssh": ("", "list", "An SSH agent for RUN --mount=type=ssh (default, or ID=SOCKET)"),
    "tag": ("t", "list", "A name for the image"),
    "trust": ("", "bool", "Refuse base images that are not verified"),
    "target": ("", "string", "Build up to this stage"),
    "ulimit": ("", "ulimit", "A limit of the steps' programs"),
}

COMMANDS = {
    "build": Command(
        "[OPTIONS] PATH | URL | -",
        "Build an image of a Dockerfile",
        _build,
        _OPTIONS,
        least=1,
        most=1,
    ),
    "builder prune": Command(
        "[OPTIONS]",
        "Remove what builds keep for the next one",
        _prune,
        {
            "all": ("a", "bool", "What images use, too"),
            "dry-run": ("n", "bool", "Only say what would go"),
            "filter": ("", "filter", "Only what was not used for so long (until=24h)"),
            "force": ("f", "bool", "Do not ask"),
            "keep-storage": ("", "bytes", "Keep so much, the last used first"),
        },
    ),
}
