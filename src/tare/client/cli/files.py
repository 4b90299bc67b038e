"""cp, diff, commit and export: the files of a container.

cp follows Docker's rules: what lies at the destination decides whether the source goes into it,
over it or under a new name; a source that ends in ``/.`` means what is inside.
"""

from __future__ import annotations

import os
import stat

from tare.client import document, terminal
from tare.client.cli.archives import pieces, save_stream
from tare.client.cli.images import split_name
from tare.client.document import number, text
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import say, warn, write_out
from tare.client.transport import Daemon, Response, segment, target
from tare.errors import InvalidError, MissingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.client.document import Json

_GO_DIRECTORY = 1 << 31
_GO_SYMLINK = 1 << 27
_LINK_LIMIT = 40


def _cp(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    source, destination = arguments
    if not source or not destination:
        raise UsageError(f"{'source' if not source else 'destination'} can not be empty")
    from_container, inside_source = _split(source)
    to_container, inside_destination = _split(destination)
    if from_container and to_container:
        raise InvalidError(
            "copying between containers is not supported",
            hint="Copy to the host in between, or: tare cp A:/x - | tare cp - B:/dir",
        )
    if from_container:
        return _out(daemon, flags, (from_container, inside_source), destination)
    if to_container:
        return _into(daemon, flags, source, (to_container, inside_destination))
    raise UsageError(
        "must specify at least one container source",
        hint="Write CONTAINER:/path for the side that is in the container.",
    )


def _split(word: str) -> tuple[str, str]:
    """Container and path; no container for host paths (those with / or . before the colon)."""
    if word.startswith(("/", ".")):
        return "", word
    container, colon, path = word.partition(":")
    return (container, path) if colon else ("", word)


def _stat(daemon: Daemon, container: str, path: str) -> Json:
    where = target(f"/containers/{segment(container)}/archive", {"path": path})
    connection = daemon.connect()
    response = connection.send("HEAD", where)
    details = _path_stat(response)
    connection.close()
    if response.status == 404 and details is None:
        # HEAD has no body: ask for the container to know which of the two is missing.
        daemon.call("GET", f"/containers/{segment(container)}/json")
        raise MissingError(f"could not find the file {path} in container {container}")
    if response.status >= 400:
        daemon.open("GET", where).connection.close()
        raise response.error(b"the daemon refused to look at the path")
    return details


def _path_stat(response: Response) -> Json:
    from binascii import a2b_base64

    raw = response.headers.get("x-docker-container-path-stat", "")
    return document.decode(a2b_base64(raw)) if raw else None


def _absolute(path: str) -> str:
    """*path* from the container's root, with its telling end (``/`` or ``/.``) kept."""
    ending = "/." if path.endswith("/.") or path == "." else "/" if path.endswith("/") else ""
    clean = os.path.normpath(f"/{path}").replace("//", "/")
    return clean + ending if clean != "/" or ending == "/." else clean


def _out(daemon: Daemon, flags: Flags, source: tuple[str, str], destination: str) -> int:
    container, path = source[0], _absolute(source[1])
    if flags.flag("follow-link"):
        path = _followed(daemon, container, path)
    where = target(f"/containers/{segment(container)}/archive", {"path": path})
    response = daemon.open("GET", where)
    if destination == "-":
        if terminal.is_terminal(1):
            raise InvalidError("refusing to write an archive to a terminal", hint="Use a pipe.")
        for piece in response.pieces():
            write_out(piece)
        return 0
    details = _path_stat(response)
    is_directory = bool(number(details, "mode") & _GO_DIRECTORY)
    directory, rename = placed(destination, path, is_directory=is_directory)
    from tare.client.archive import Pieces, Unpacker

    unpacker = Unpacker(directory, rename=rename, owners=flags.flag("archive"))
    try:
        unpacker.unpack(Pieces(response.pieces()))
    finally:
        unpacker.close()
    for name in unpacker.skipped:
        warn(f"tare: left out {name}: neither a file, a directory nor a symbolic link")
    _told(flags, unpacker.size, destination)
    return 0


def _followed(daemon: Daemon, container: str, path: str) -> str:
    details = _stat(daemon, container, path)
    if number(details, "mode") & _GO_SYMLINK and (link := text(details, "linkTarget")):
        return link
    return path


def placed(destination: str, source: str, *, is_directory: bool) -> tuple[str, str]:
    """The host directory to unpack into, and the name the top gets ("" keeps its own).

    Docker's table: an existing directory takes the source inside; an existing file is replaced by
    a file; a missing name becomes the source's new name if its parent exists.
    """
    asserted = destination.endswith(("/", "/.")) or destination in (".", "..")
    if os.path.isdir(destination):
        return destination, ""
    name = os.path.normpath(destination)
    parent, base = os.path.split(name)
    parent = parent or "."
    if os.path.exists(destination.rstrip("/") or "/"):
        if is_directory:
            raise InvalidError(f"cannot copy directory {source} over the file {destination}")
        if asserted:
            raise InvalidError(f"{destination} is not a directory")
        # The file itself is replaced, not what a link points to elsewhere.
        real = os.path.realpath(name)
        return os.path.dirname(real), os.path.basename(real)
    if not os.path.isdir(parent):
        raise MissingError(
            f'invalid output path: directory "{parent}" does not exist', hint="Make it first."
        )
    if asserted and not is_directory:
        raise MissingError(f"destination directory {destination} must exist", hint="Make it first.")
    return parent, base


def _into(daemon: Daemon, flags: Flags, source: str, destination: tuple[str, str]) -> int:
    container, path = destination[0], _absolute(destination[1])
    found = _destination(daemon, container, path)
    path = text(found, "path") or path
    is_directory = bool(number(found, "mode") & _GO_DIRECTORY)
    exists = document.flag(found, "exists")
    counted = [0]
    if source == "-":
        if not exists or not is_directory:
            raise InvalidError(f'destination "{container}:{path}" must be a directory')
        directory, body = path, pieces(0)
    else:
        directory, body = _packed(flags, source, path, exists=exists, is_directory=is_directory)
    query = {
        "path": directory,
        "noOverwriteDirNonDir": "true",
        "copyUIDGID": "true" if flags.flag("archive") else "",
    }
    where = target(f"/containers/{segment(container)}/archive", query)
    kind = "application/x-tar"
    daemon.open("PUT", where, _counting(body, counted), kind=kind).connection.close()
    _told(flags, counted[0], f"{container}:{path}")
    return 0


def _counting(body: Iterator[bytes], counted: list[int]) -> Iterator[bytes]:
    for piece in body:
        counted[0] += len(piece)
        yield piece


def _destination(daemon: Daemon, container: str, path: str) -> dict[str, Json]:
    """What lies at *path* inside, links followed."""
    for _ in range(_LINK_LIMIT):
        try:
            details = _stat(daemon, container, path)
        except MissingError:
            daemon.call("GET", f"/containers/{segment(container)}/json")  # missing altogether?
            return {"path": path, "exists": False, "mode": 0}
        link = text(details, "linkTarget")
        if not number(details, "mode") & _GO_SYMLINK or not link:
            return {"path": path, "exists": True, "mode": number(details, "mode")}
        path = link if link.startswith("/") else os.path.normpath(f"{os.path.dirname(path)}/{link}")
    raise InvalidError(f"too many links on the way to {path}")


def _packed(
    flags: Flags, source: str, path: str, *, exists: bool, is_directory: bool
) -> tuple[str, Iterator[bytes]]:
    from tare.client.archive import packed

    follow = flags.flag("follow-link")
    try:
        details = os.stat(source) if follow or source.endswith("/") else os.lstat(source)
    except OSError as error:
        raise InvalidError(f"cannot copy {source}: {error.strerror}", exit_code=1) from None
    directory_source = stat.S_ISDIR(details.st_mode)
    base = os.path.basename(os.path.abspath(source)) or "/"
    contents = source.endswith("/.") or source == "."
    owners = flags.flag("archive")
    if exists and is_directory:
        name = "." if contents else base
        return path, packed(source, name, follow=follow, owners=owners)
    if exists and directory_source:
        raise InvalidError(f"cannot copy directory {source} over the file {path}")
    if not directory_source and path.endswith("/"):
        raise InvalidError(f"destination directory {path} must exist in the container")
    parent, name = os.path.split(path.rstrip("/"))
    return parent or "/", packed(source, name, follow=follow, owners=owners)


def _told(flags: Flags, size: int, where: str) -> None:
    if not flags.flag("quiet") and terminal.is_terminal(2):
        from tare.client.units import human_size

        warn(f"Successfully copied {human_size(size, 3)} to {where}")


def _diff(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    listed = document.items(daemon.call("GET", f"/containers/{segment(arguments[0])}/changes"))
    lines = [f"{'CAD'[number(each, 'Kind')]} {text(each, 'Path')}" for each in listed]
    if lines:
        say("\n".join(lines))
    return 0


def _commit(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    repository, tag = split_name(arguments[1]) if len(arguments) > 1 else ("", "")
    query: dict[str, str | int | bool] = {
        "container": arguments[0],
        "repo": repository,
        "tag": tag,
        "comment": flags.text("message"),
        "author": flags.text("author"),
        "pause": "" if flags.flag("pause", True) else "0",
    }
    where = target("/commit", query)
    where += "".join(f"&{target('', {'changes': each})[1:]}" for each in flags.list("change"))
    say(text(daemon.call("POST", where), "Id"))
    return 0


def _export(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    if not flags.text("output") and terminal.is_terminal(1):
        raise InvalidError(
            "cowardly refusing to save to a terminal", hint="Use the -o flag or redirect."
        )
    response = daemon.open("GET", f"/containers/{segment(arguments[0])}/export")
    save_stream(response, flags.text("output"))
    return 0


COMMANDS = {
    "cp": Command(
        "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n"
        "        tare cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
        "Copy files between a container and the host",
        _cp,
        {
            "archive": ("a", "bool", "Keep the owners of files (uid and gid)"),
            "follow-link": ("L", "bool", "Copy what SRC_PATH points to if it is a link"),
            "quiet": ("q", "bool", "Do not say what was copied"),
        },
        least=2,
        most=2,
        notes="- as the source reads a tar archive from standard input and unpacks it into a\n"
        "directory of the container; - as the destination writes one to standard output.",
    ),
    "diff": Command(
        "CONTAINER", "Show what a container changed in its file system", _diff, least=1, most=1
    ),
    "commit": Command(
        "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        "Make an image of what a container changed",
        _commit,
        {
            "author": ("a", "string", "Author (Jo Doe <jo@example.org>)"),
            "change": ("c", "list", "Apply a Dockerfile instruction (CMD, ENV, ...)"),
            "message": ("m", "string", "What to write into its history"),
            "pause": ("p", "bool", "Freeze the container meanwhile (default true)"),
        },
        least=1,
        most=2,
    ),
    "export": Command(
        "[OPTIONS] CONTAINER",
        "Write a container's file system as a tar archive",
        _export,
        {"output": ("o", "string", "Write to this file instead of standard output")},
        least=1,
        most=1,
    ),
}
