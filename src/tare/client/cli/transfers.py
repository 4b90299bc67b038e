"""pull, push, login, logout, search and manifest inspect: what goes to registries and comes back.

The daemon speaks to registries; the user's credentials are sent with each request and stay here.
"""

from __future__ import annotations

import sys

from tare.client import credentials, document, progress, terminal
from tare.client.cli.ps import filters
from tare.client.document import number, text
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import render, say, warn, write_out
from tare.client.transport import Daemon, quoted, target
from tare.errors import DeniedError, InvalidError, TareError, UnsupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.model.reference import Reference

_HEADERS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
    "IsAutomated": "AUTOMATED",
}
_DESCRIPTION = 45


def parsed(name: str) -> Reference:
    """An image's name; InvalidError in Docker's words."""
    from tare.model.reference import Reference

    return Reference.parse(name)


def headers_for(reference: Reference) -> dict[str, str]:
    """The credentials that are stored for the registry of an image."""
    return credentials.header(credentials.find(reference.domain))


def fetch(
    daemon: Daemon,
    name: str,
    *,
    platform: str = "",
    every: bool = False,
    quiet: bool = False,
    descriptor: int = 1,
) -> Reference:
    """Have the daemon pull an image, and show how it goes; its full name."""
    reference = parsed(name)
    if every and (reference.tag or reference.digest):
        raise InvalidError("tag can't be used with --all-tags/-a")
    if not every and reference.tag is None and reference.digest is None:
        reference = reference.with_default_tag()
        if not quiet and descriptor == 1:
            say(f"Using default tag: {reference.tag}")
    query: dict[str, str | int | bool] = {
        "fromImage": reference.name,
        "tag": str(reference.digest or reference.tag or ""),
        "platform": platform,
    }
    response = daemon.open("POST", target("/images/create", query), headers=headers_for(reference))
    progress.display(response, descriptor=descriptor, quiet=quiet)
    return reference


def _pull(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    quiet = flags.flag("quiet")
    every = flags.flag("all-tags")
    reference = fetch(
        daemon, arguments[0], platform=flags.text("platform"), every=every, quiet=quiet
    )
    say(str(reference) if not every else reference.name)
    return 0


def _push(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    if flags.text("platform"):
        raise UnsupportedError("images here are of one platform: --platform chooses nothing")
    reference = parsed(arguments[0])
    every, quiet = flags.flag("all-tags"), flags.flag("quiet")
    if every and (reference.tag or reference.digest):
        raise InvalidError("tag can't be used with --all-tags/-a")
    if not every and reference.tag is None and reference.digest is None:
        reference = reference.with_default_tag()
        if not quiet:
            say(f"Using default tag: {reference.tag}")
    if reference.digest is not None:
        raise InvalidError(
            "cannot push a digest reference", hint="name it first: tare tag IMAGE REPOSITORY:TAG"
        )
    where = target(f"/images/{quoted(reference.name)}/push", {"tag": reference.tag or ""})
    response = daemon.open("POST", where, headers=headers_for(reference))
    progress.display(response, quiet=quiet)
    if quiet:
        say(str(reference) if not every else reference.name)
    return 0


# --- who we are -----------------------------------------------------------------------------------


def _login(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    server = credentials.server_of(_server(arguments))
    user, secret = flags.text("username"), flags.text("password")
    if flags.flag("password-stdin"):
        if secret:
            raise UsageError("--password and --password-stdin are mutually exclusive")
        if not user:
            raise UsageError("Must provide --username with --password-stdin")
        secret = sys.stdin.read(1 << 16).rstrip("\r\n")
    elif secret:
        warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    asked: dict[str, Json] | None = None
    if not user and not secret:
        asked = credentials.find(_server(arguments))
        if asked is not None:
            say(
                f"Authenticating with existing credentials... [Username: {text(asked, 'username')}]"
            )
    if asked is None:
        user, secret = _ask(user, secret)
        asked = {"username": user, "password": secret, "serveraddress": server}
    answer = _authenticated(daemon, asked)
    token = text(answer, "IdentityToken") or text(asked, "identitytoken")
    if credentials.store(server, text(asked, "username"), text(asked, "password"), token):
        warn(
            f"WARNING! Your credentials are stored unencrypted in '{credentials.path()}'.\n"
            "Configure a credential helper (credsStore) to remove this warning.\n"
        )
    say(text(answer, "Status"))
    return 0


def _authenticated(daemon: Daemon, asked: dict[str, Json]) -> Json:
    try:
        return daemon.call("POST", "/auth", asked)
    except DeniedError as error:
        raise DeniedError(
            f"{error}", hint=error.hint or "See that the name and the password are right."
        ) from None


def _ask(user: str, secret: str) -> tuple[str, str]:
    if user and secret:
        return user, secret
    if not terminal.is_terminal(0):
        raise InvalidError(
            "cannot perform an interactive login from a non TTY device",
            hint="Use --username and --password-stdin.",
        )
    if not user:
        print("Username: ", end="", flush=True)
        user = sys.stdin.readline().strip()
    if not secret:
        from getpass import getpass

        secret = getpass("Password: ")
    if not user or not secret:
        raise InvalidError("username and password are required")
    return user, secret


def _server(arguments: list[str]) -> str:
    """The host of the registry that was named; "" is Docker Hub."""
    named = arguments[0] if arguments else ""
    host = named.partition("://")[2] or named
    return host.partition("/")[0]


def _logout(_daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    server = credentials.server_of(_server(arguments))
    if credentials.erase(server):
        say(f"Removing login credentials for {server}")
    else:
        say(f"Not logged in to {server}")
    return 0


# --- looking --------------------------------------------------------------------------------------


def _search(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    words = arguments[0]
    host, slash, _ = words.partition("/")
    registry = host if slash and ("." in host or ":" in host or host == "localhost") else ""
    query: dict[str, str | int | bool] = {
        "term": words,
        "limit": flags.number("limit") or "",
        "filters": filters(flags.list("filter")),
    }
    response = daemon.open(
        "GET",
        target("/images/search", query),
        headers=credentials.header(credentials.find(registry)),
    )
    whole = flags.flag("no-trunc")
    rows = []
    for each in document.items(document.decode(response.read())):
        description = " ".join(text(each, "description").split())
        if not whole and len(description) > _DESCRIPTION:
            description = description[: _DESCRIPTION - 1] + "…"
        rows.append(
            {
                "Name": text(each, "name"),
                "Description": description,
                "StarCount": str(number(each, "star_count")),
                "IsOfficial": "[OK]" if document.flag(each, "is_official") else "",
                "IsAutomated": "[OK]" if document.flag(each, "is_automated") else "",
            }
        )
    columns = ("Name", "Description", "StarCount", "IsOfficial")
    table = render(flags.text("format"), columns, _HEADERS, rows)
    write_out(table.encode("utf-8", "replace"))
    return 0


def _manifest(daemon: Daemon, name: str) -> tuple[Json, str]:
    reference = parsed(name)
    where = f"/distribution/{quoted(str(reference))}/manifest"
    answer = document.decode(daemon.open("GET", where, headers=headers_for(reference)).read())
    return answer, str(reference.with_default_tag())


def _inspect_manifest(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    answer, shown = _manifest(daemon, arguments[-1])
    manifest = document.decode(text(answer, "Manifest").encode())
    if not flags.flag("verbose"):
        say(document.pretty(manifest, "   "))
        return 0
    listed = document.items(manifest, "manifests")
    if not listed:
        say(document.pretty(_verbose(answer, manifest, shown)))
        return 0
    found: list[Json] = []
    repository = parsed(arguments[-1]).name
    for each in listed:
        below, name = _manifest(daemon, f"{repository}@{text(each, 'digest')}")
        found.append(_verbose(below, document.decode(text(below, "Manifest").encode()), name))
    say(document.pretty(found))
    return 0


def _verbose(answer: Json, manifest: Json, name: str) -> Json:
    descriptor = document.mapping(answer, "Descriptor")
    kind = "SchemaV2Manifest" if "docker" in text(descriptor, "mediaType") else "OCIManifest"
    platform = next(iter(document.items(answer, "Platforms")), None)
    return {"Ref": name, "Descriptor": {**descriptor, "platform": platform}, kind: manifest}


# --- for run and create ---------------------------------------------------------------------------


def bring_missing(daemon: Daemon, name: str, *, platform: str, quiet: bool) -> None:
    """Pull an image that a container is to be made of; words go to standard error."""
    if not quiet:
        warn(f"Unable to find image '{parsed(name).with_default_tag().familiar}' locally")
    bring(daemon, name, platform=platform, quiet=quiet)


def bring(daemon: Daemon, name: str, *, platform: str, quiet: bool) -> None:
    """Pull an image for `run`; a failure has the exit code of a container that was not made."""
    try:
        fetch(daemon, name, platform=platform, quiet=quiet, descriptor=2)
    except TareError as error:
        error.exit_code = 125
        if name.partition(":")[0] in ("debian", "ubuntu"):
            remedy = f"`tare image bootstrap {name}` makes it from the distribution's packages."
            error.hint = f"{error.hint}\n{remedy}".strip()
        raise


_TRUST = ("", "bool", "=false is --trust; the daemon's policy holds in any case")

COMMANDS = {
    "pull": Command(
        "[OPTIONS] NAME[:TAG|@DIGEST]",
        "Bring an image from a registry",
        _pull,
        {
            "all-tags": ("a", "bool", "Every tag of the repository"),
            "disable-content-trust": _TRUST,
            "platform": ("", "string", "For this platform (linux/arm64), not the host's"),
            "quiet": ("q", "bool", "Print the name only"),
            "trust": ("", "bool", "Refuse the image unless it is verified"),
        },
        least=1,
        most=1,
    ),
    "push": Command(
        "[OPTIONS] NAME[:TAG]",
        "Give an image to a registry",
        _push,
        {
            "all-tags": ("a", "bool", "Every tag of the repository that is here"),
            "disable-content-trust": _TRUST,
            "platform": ("", "string", "Images here are of one platform: this is refused"),
            "quiet": ("q", "bool", "Print the name only"),
        },
        least=1,
        most=1,
    ),
    "login": Command(
        "[OPTIONS] [SERVER]",
        "Check credentials with a registry and keep them",
        _login,
        {
            "password": ("p", "string", "Password or token; others see it in the process list"),
            "password-stdin": ("", "bool", "Read the password from standard input"),
            "username": ("u", "string", "Who you are"),
        },
        most=1,
        notes="Without SERVER it is Docker Hub. They are kept in ~/.docker/config.json, or by the"
        " credential helper named there.",
    ),
    "logout": Command(
        "[SERVER]",
        "Forget the credentials for a registry",
        _logout,
        most=1,
        notes="Without SERVER it is Docker Hub.",
    ),
    "search": Command(
        "[OPTIONS] TERM",
        "Search Docker Hub, or another registry",
        _search,
        {
            "filter": (
                "f",
                "filter",
                "Only those for which NAME=VALUE (stars=3)",
            ),
            "format": ("", "string", "Print by 'table', 'table TEMPLATE', 'json' or a template"),
            "limit": ("", "int", "At most so many (1 to 100)"),
            "no-trunc": ("", "bool", "Do not shorten"),
        },
        least=1,
        most=1,
        notes="Another registry stands before the term: localhost:5000/debian.",
    ),
    "manifest inspect": Command(
        "[OPTIONS] IMAGE",
        "Show a manifest or an index as a registry has it",
        _inspect_manifest,
        {
            "insecure": ("", "bool", "Accepted: which registries may be insecure is configured"),
            "verbose": ("v", "bool", "With descriptors and platforms, and what an index leads to"),
        },
        least=1,
        most=1,
    ),
}
