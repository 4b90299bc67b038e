"""image sbom, provenance, outdated, rebuild, pin and unpin: what an operator does every week."""

from __future__ import annotations

import os
import time

from tare.client import document
from tare.client.cli.each import for_each
from tare.client.document import text
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import render, say, shown, warn, write_out
from tare.client.transport import Daemon, quoted, target
from tare.errors import FailedError, InvalidError, MissingError, TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from tare.client.document import Json

    Step: TypeAlias = tuple[str, Callable[[Daemon], None]]

_HEADERS = {
    "Name": "IMAGE",
    "ID": "IMAGE ID",
    "Kind": "KIND",
    "Base": "BASE",
    "Status": "STATUS",
    "Reasons": "WHY",
}
_BEHIND = 2
_NOT_KEPT = frozenset(("quiet", "progress", "iidfile", "output", "no-cache", "explain", "pull"))


def _sbom(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    query = {"image": arguments[0], "format": flags.text("format", "cyclonedx")}
    return _document(daemon, flags, target("/tare/images/sbom", query))


def _provenance(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    return _document(daemon, flags, target("/tare/images/provenance", {"image": arguments[0]}))


def _document(daemon: Daemon, flags: Flags, where: str) -> int:
    response = daemon.open("GET", where)
    if path := flags.text("output"):
        from tare.client.cli.archives import save_stream

        save_stream(response, path)
        return 0
    for piece in response.pieces():
        write_out(piece)
    return 0


# --- what is behind -------------------------------------------------------------------------------


def _standings(daemon: Daemon, names: list[str]) -> list[Json]:
    from binascii import b2a_base64

    from tare.client import credentials

    given = document.encode(credentials.stored())
    header = {"X-Registry-Config": b2a_base64(given, newline=False).decode("ascii")}
    where = "/tare/images/outdated?" + "&".join(f"image={quoted(name)}" for name in names)
    return document.items(document.decode(daemon.open("GET", where, headers=header).read()))


def _outdated(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    found = _standings(daemon, names)
    behind = any(text(one, "Status") == "behind" for one in found)
    unknown = any(text(one, "Status") == "unknown" for one in found)
    if flags.text("format") == "json":
        write_out((document.pretty(found) + "\n").encode())
        return _code(behind, unknown)
    chosen = [
        one for one in found if names or flags.flag("all") or text(one, "Status") != "current"
    ]
    if flags.flag("quiet"):
        say("\n".join(text(one, "Name") for one in chosen if text(one, "Status") == "behind"))
        return _code(behind, unknown)
    rows = [
        {
            "Name": shown(text(one, "Name")),
            "ID": text(one, "Id").removeprefix("sha256:")[:12],
            "Kind": text(one, "Kind"),
            "Base": shown(text(one, "Base")),
            "Status": text(one, "Status"),
            "Reasons": shown("; ".join(document.strings(one, "Reasons"))),
        }
        for one in chosen
    ]
    columns = ("Name", "Kind", "Base", "Status", "Reasons")
    write_out(render(flags.text("format"), columns, _HEADERS, rows).encode("utf-8", "replace"))
    if flags.flag("packages"):
        for one in chosen:
            for package in document.items(one, "Packages"):
                versions = f"{text(package, 'Installed')} -> {text(package, 'Available')}"
                say(shown(f"{text(one, 'Name')}: {text(package, 'Name')} {versions}"))
    return _code(behind, unknown)


def _code(behind: bool, unknown: bool) -> int:
    return _BEHIND if behind else int(unknown)


# --- building again -------------------------------------------------------------------------------


def _rebuild(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    if bool(names) == flags.flag("all"):
        raise UsageError("name images, or say --all", hint="tare image outdated shows them")
    found = _standings(daemon, names)
    behind = [one for one in found if text(one, "Status") == "behind"]
    dry = flags.flag("dry-run")
    failures = sum(not _renewed(daemon, one, dry=dry) for one in behind)
    for one in found:
        if text(one, "Status") == "unknown":
            why = "; ".join(document.strings(one, "Reasons"))
            warn(shown(f"{text(one, 'Name')}: left as it is, because it is not known: {why}"))
    current = len(found) - len(behind)
    verb = "would be" if dry else "were"
    say(f"{len(behind) - failures} of {len(found)} images {verb} renewed, {current} are left")
    return int(failures > 0)


def _renewed(daemon: Daemon, one: Json, *, dry: bool) -> bool:
    """Make one image anew and say how long it took; the old one keeps its name until then."""
    name = shown(text(one, "Name"))
    why = shown("; ".join(document.strings(one, "Reasons")))
    try:
        steps = _steps(one)
        for words in steps:
            say(f"{name}: {words[0]} ({why})")
        if dry:
            return True
        started = time.monotonic()
        for _, deed in steps:
            deed(daemon)
    except TareError as error:
        warn(f"tare: {name}: {error}" + (f"\n  {error.hint}" if error.hint else ""))
        return False
    say(f"{name}: done in {time.monotonic() - started:.1f}s")
    return True


def _steps(one: Json) -> list[Step]:
    """What makes it anew, in words and as deeds; MissingError when nobody knows how."""
    steps: list[Step] = [_pulling(name) for name in document.strings(one, "Pulls")]
    kind = text(one, "Kind")
    if kind == "bootstrapped":
        given = {key: str(value) for key, value in document.mapping(one, "Bootstrap").items()}
        steps.append((f"bootstrap {given.get('suite', '')}", _bootstrapping(one, given)))
    elif kind == "built":
        recipe = document.decode(text(one, "Recipe").encode() or b"null")
        if not isinstance(recipe, dict):
            raise MissingError(
                "how it was built is not known",
                hint="it was built by another client, or from standard input: tare build it anew",
            )
        steps.append((f"build {text(recipe, 'path')}", _building(recipe)))
    elif not steps:
        raise MissingError("how it was made is not known", hint="build it anew")
    return steps


def _pulling(name: str) -> Step:
    def pull(daemon: Daemon) -> None:
        from tare.client.cli.transfers import COMMANDS as transfers

        _succeed(transfers["pull"].run(daemon, Flags({"quiet": True}), [name]), f"pull {name}")

    return f"pull {name}", pull


def _bootstrapping(one: Json, given: dict[str, str]) -> Callable[[Daemon], None]:
    def bootstrap(daemon: Daemon) -> None:
        query = {key: value for key, value in given.items() if value}
        where = target("/tare/images/bootstrap", {**query, "tag": text(one, "Name")})
        for line in daemon.open("POST", where).lines():
            entry = document.decode(line)
            if words := text(entry, "error"):
                raise FailedError(words, hint=text(entry, "hint"))

    return bootstrap


def _building(recipe: Json) -> Callable[[Daemon], None]:
    def build(daemon: Daemon) -> None:
        from tare.client.cli.build import COMMANDS as builder

        options = document.mapping(recipe, "options")
        values: dict[str, bool | int | str | list[str]] = {"progress": "quiet"}
        for name, value in options.items():
            if isinstance(value, list):
                values[name] = [str(word) for word in value]
            elif isinstance(value, (str, bool, int)):
                values[name] = value
        for word in document.strings(options, "build-arg"):
            if "=" not in word and word not in os.environ:
                raise InvalidError(
                    f"it was built with a secret argument that was not kept: {word}",
                    hint=f"put it into the environment: {word}=... tare image rebuild",
                )
        here = os.getcwd()
        try:
            os.chdir(text(recipe, "directory"))
        except OSError as error:
            raise MissingError(
                f"the directory it was built in is gone: {text(recipe, 'directory')}"
                f" ({error.strerror})"
            ) from error
        try:
            path = text(recipe, "path")
            _succeed(builder["build"].run(daemon, Flags(values), [path]), f"build {path}")
        finally:
            os.chdir(here)

    return build


def _succeed(code: int, what: str) -> None:
    if code:
        raise FailedError(f"{what} failed with exit code {code}")


def recipe(flags: Flags, path: str) -> Json:
    """What the daemon is to keep of a build so that it can be done again; None if it cannot."""
    if path == "-" or flags.text("file") == "-" or flags.flag("check"):
        return None
    options = {name: value for name, value in flags.values.items() if name not in _NOT_KEPT}
    return {
        "directory": os.getcwd(),
        "path": path,
        "options": {k: list(v) if isinstance(v, list) else v for k, v in options.items()},
    }


# --- pins -----------------------------------------------------------------------------------------


def _pin(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    if not names:
        listed = daemon.call("GET", "/tare/images/pins")
        say("\n".join(str(name) for name in listed) if isinstance(listed, list) else "")
        return 0
    return _changed(daemon, names, off=False)


def _unpin(daemon: Daemon, flags: Flags, names: list[str]) -> int:
    return _changed(daemon, names, off=True)


def _changed(daemon: Daemon, names: list[str], *, off: bool) -> int:
    def deed(name: str) -> str:
        query: dict[str, str | int | bool] = {"image": name, "off": off}
        return text(daemon.call("POST", target("/tare/images/pins", query)), "Name")

    return for_each(names, deed)


_OUTPUT = ("o", "string", "Write to this file instead of standard output")

COMMANDS = {
    "image sbom": Command(
        "[OPTIONS] IMAGE",
        "Write an image's bill of materials, read from its files",
        _sbom,
        {
            "format": ("", "string", "cyclonedx (default) or spdx; both are JSON"),
            "output": _OUTPUT,
        },
        least=1,
        most=1,
    ),
    "image provenance": Command(
        "[OPTIONS] IMAGE",
        "Write what was noted of how an image was built",
        _provenance,
        {"output": _OUTPUT},
        least=1,
        most=1,
        notes="It is there for images that were built with --provenance.",
    ),
    "image outdated": Command(
        "[OPTIONS] [IMAGE...]",
        "Show which images are behind what they were made of",
        _outdated,
        {
            "all": ("a", "bool", "Those that are not behind, too"),
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a Go template"),
            "packages": ("", "bool", "Name the newer packages"),
            "quiet": ("q", "bool", "Only the names of those that are behind"),
        },
        notes="Exits with 2 when an image is behind, else with 1 when that of one is not known.",
    ),
    "image rebuild": Command(
        "[OPTIONS] [IMAGE...]",
        "Make those images anew that are behind",
        _rebuild,
        {
            "all": ("a", "bool", "All images that are behind"),
            "dry-run": ("n", "bool", "Only say what would be done"),
        },
        notes="Bases come before what is built on them. A name means the old image until the new"
        " one is there.",
    ),
    "image pin": Command(
        "[IMAGE...]", "Keep names from every prune, and from rmi without --force", _pin
    ),
    "image unpin": Command("IMAGE [IMAGE...]", "Keep names no more", _unpin, least=1),
}
