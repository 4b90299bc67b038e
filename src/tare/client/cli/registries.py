"""registry serve, gc, passwd and ls: the registry that tare itself serves.

They do not ask the daemon: this process becomes the one that does it (``tare.api.registry``), which
the client may not import. Not for: pull and push.
"""

from __future__ import annotations

import os
import sys

from tare.client.autostart import interpreter
from tare.client.options import Command, Flags
from tare.client.transport import Daemon
from tare.errors import FailedError

# Isolated: nothing in the caller's directory or environment changes what is imported.
_CODE = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from tare.api.registry.command import main; sys.exit(main(sys.argv[1:]))"
)


_AUTH = "TARE_REGISTRY_AUTH"


def _become(command: str, flags: Flags, arguments: list[str], auth: str = "") -> int:
    """Replace this process by the one that does *command*; it keeps terminal, pid and signals."""
    words = [command]
    for name, value in sorted(flags.values.items()):
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words.append(f"--{name}={value}")
    if arguments:
        words += ["--", *arguments]
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    python = interpreter()
    sys.stdout.flush()
    try:
        os.execve(  # noqa: S606  # no shell is what we want
            python,
            [python, "-I", "-c", _CODE, os.path.dirname(package), *words],
            {**os.environ, _AUTH: auth},
        )
    except OSError as error:
        raise FailedError(f"cannot start the registry: {python}: {error.strerror}") from error


def _serve(_daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    return _become("serve", flags, arguments)


def _gc(_daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    return _become("gc", flags, arguments)


def _passwd(_daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    return _become("passwd", flags, arguments)


def _ls(_daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    auth = ""
    head = arguments[0].partition("/")[0] if arguments else ""
    if "." in head or ":" in head or head == "localhost":
        from tare.client import credentials

        auth = credentials.header(credentials.find(head)).get("X-Registry-Auth", "")
    return _become("ls", flags, arguments, auth)


_DATA = ("", "string", "Directory of the registry's content (default: registry in the state)")

COMMANDS: dict[str, Command] = {
    "registry serve": Command(
        "[OPTIONS]",
        "Serve a registry until it is told to end",
        _serve,
        {
            "data": _DATA,
            "htpasswd": ("", "string", "File of the users who may use it (bcrypt)"),
            "listen": ("", "string", 'Address to listen on (default "127.0.0.1:5000")'),
            "no-images": ("", "bool", "Do not show the engine's own images"),
            "read-only": ("", "bool", "Let nobody push or delete"),
            "tls-cert": ("", "string", "Certificate to show, with what it is signed by (PEM)"),
            "tls-key": ("", "string", "Key of the certificate (PEM)"),
            "verbose": ("v", "bool", "Print a line for each request"),
        },
        most=0,
        notes=(
            "It prints the address that it listens on, and ends on SIGINT and SIGTERM. The images"
            " of the engine can be pulled from it by their names; what is pushed is kept apart."
        ),
    ),
    "registry gc": Command(
        "[OPTIONS]",
        "Delete the blobs of the registry that no manifest needs",
        _gc,
        {
            "data": _DATA,
            "dry-run": ("", "bool", "Delete nothing, only say what would be deleted"),
            "grace": ("", "uint", "Hours that a blob may wait for its manifest (default 24)"),
            "untagged": ("", "bool", "Delete manifests that have no tag, too"),
        },
        most=0,
        notes="It may run while the registry is served, which does the same every hour.",
    ),
    "registry ls": Command(
        "[OPTIONS] [REPOSITORY | HOST[/REPOSITORY]]",
        "List the names that the registry has",
        _ls,
        {"data": _DATA},
        most=1,
        notes=(
            "Without an argument those of the registry that tare serves, the engine's images"
            " included; with a host the repositories of that registry, or the tags of one."
        ),
    ),
    "registry passwd": Command(
        "FILE USER",
        "Set a user's password in a file for --htpasswd",
        _passwd,
        least=2,
        most=2,
        notes="The password is asked for, or read from standard input.",
    ),
}
