"""trust init, publish, rotate, follow: a publisher's metadata (TUF) in a directory of his own.

::

    DIR/keys/ROLE-N.key     private keys, sealed with one passphrase
    DIR/metadata/*.json     what is published: may be copied anywhere
"""

from __future__ import annotations

import base64
import os
import time

from tare.client import document
from tare.client.cli.transfers import headers_for, parsed
from tare.client.cli.trust import passphrase, write_new
from tare.client.document import number, text
from tare.client.options import Command, Flags
from tare.client.tables import say
from tare.client.transport import Daemon, target
from tare.errors import ConflictError, InvalidError, MissingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.trust.keys import PrivateKey
    from tare.trust.tuf_author import Author

_FILE_MAX = 8 << 20


def _init(_daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    from tare.trust.keys import PrivateKey
    from tare.trust.tuf_author import ROLES, Author

    where = arguments[0]
    roots = flags.number("root-keys", 1)
    threshold = flags.number("root-threshold", 1)
    if not 1 <= threshold <= roots <= 16:
        raise InvalidError("--root-threshold is at least 1 and at most --root-keys (16 at most)")
    if os.path.lexists(f"{where}/keys"):
        raise ConflictError(f"{where} has keys already")
    word = passphrase(new=True)
    os.makedirs(f"{where}/metadata", exist_ok=True)
    os.mkdir(f"{where}/keys", 0o700)
    keys = {
        role: [PrivateKey.generate() for _ in range(roots if role == "root" else 1)]
        for role in ROLES
    }
    for role, listed in keys.items():
        for at, key in enumerate(listed, 1):
            write_new(f"{where}/keys/{role}-{at}.key", key.encrypted(word), 0o600)
    author = Author.create(keys, int(time.time()), thresholds={"root": threshold})
    _written(where, author)
    say(f"{where}/metadata/1.root.json is what others begin with: give it to them by a safe way")
    say(f"{where}/keys/root-*.key are needed for rotations only: keep them elsewhere")
    return 0


def _metadata(where: str) -> dict[str, bytes]:
    """The files of a directory of metadata; its own or one below it."""
    inner = f"{where}/metadata"
    directory = inner if os.path.isdir(inner) else where
    found = {}
    for name in os.listdir(directory):
        if name.endswith(".json"):
            with open(f"{directory}/{name}", "rb") as file:
                found[name] = file.read(_FILE_MAX)
    if not found:
        raise MissingError(f"there is no metadata in {directory}")
    return found


def _author(where: str) -> tuple[Author, bytes]:
    from tare.trust.keys import PrivateKey
    from tare.trust.tuf_author import Author

    word = passphrase(new=False)
    keys: list[PrivateKey] = []
    for name in sorted(os.listdir(f"{where}/keys")):
        path = f"{where}/keys/{name}"
        with open(path, "rb") as file:
            keys.append(PrivateKey.parse(file.read(_FILE_MAX), word, path))
    return Author.load(_metadata(where), keys), word


def _written(where: str, author: Author) -> None:
    for name, raw in author.files.items():
        path = f"{where}/metadata/{name}"
        temporary = f"{path}.new"
        with open(temporary, "wb") as file:
            file.write(raw)
        os.replace(temporary, path)


def _files(given: dict[str, bytes]) -> Json:
    return {name: base64.b64encode(raw).decode("ascii") for name, raw in given.items()}


def _publish(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    from tare.model.digest import Digest

    where, images = arguments[0], arguments[1:]
    author, _ = _author(where)
    targets = {}
    for ref in images:
        about = daemon.call("GET", target("/tare/trust/subject", {"ref": ref}))
        digest = Digest.parse(text(about, "Document", "digest"))
        targets[text(about, "Name")] = (digest, number(about, "Document", "size"))
        say(f"{text(about, 'Name')}  {digest}")
    author.publish(targets, int(time.time()))
    _written(where, author)
    scope = flags.text("push")
    if scope:
        body: dict[str, Json] = {"Scope": scope, "Files": _files(author.current)}
        headers = headers_for(parsed(scope))
        response = daemon.open("POST", "/tare/trust/publish", body, headers=headers)
        response.read()
        response.connection.close()
        say(f"pushed to {scope}:_trust")
    return 0


def _rotate(_daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    from tare.trust.keys import PrivateKey

    where, role = arguments
    author, word = _author(where)
    if role not in author.root.signed.roles:
        raise InvalidError(f"there is no role {role[:40]!r}: root, targets, snapshot, timestamp")
    count = len(author.root.signed.roles[role].keyids)
    fresh = [PrivateKey.generate() for _ in range(count)]
    author.rotate(role, fresh, int(time.time()))
    old = [name for name in os.listdir(f"{where}/keys") if name.startswith(f"{role}-")]
    version = author.root.signed.version
    for at, key in enumerate(fresh, 1):
        write_new(f"{where}/keys/{role}-{version}.{at}.key", key.encrypted(word), 0o600)
    _written(where, author)
    for name in old:
        os.unlink(f"{where}/keys/{name}")
    say(f"{role} has {count} new keys, by {version}.root.json")
    return 0


def _follow(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    scope, where = arguments
    daemon.call("POST", "/tare/trust/follow", {"Scope": scope, "Files": _files(_metadata(where))})
    say(f"the publisher of {scope} says which digest a tag has")
    return 0


def _unfollow(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    for scope in arguments:
        daemon.call("DELETE", target("/tare/trust/follow", {"scope": scope}))
        say(document.compact(scope).strip('"'))
    return 0


COMMANDS = {
    "trust init": Command(
        "[OPTIONS] DIR",
        "Make keys and metadata of a publisher, who says which digest a tag has",
        _init,
        {
            "root-keys": ("", "int", "How many keys the root has (default 1)"),
            "root-threshold": ("", "int", "How many of them must sign it (default 1)"),
        },
        least=1,
        most=1,
    ),
    "trust publish": Command(
        "[OPTIONS] DIR [IMAGE...]",
        "Say which digests names have; without an image, sign the same anew for today",
        _publish,
        {"push": ("", "string", "Bring the metadata to this repository, as its tag _trust")},
        least=1,
        notes="The timestamp is good for a day, the snapshot for a week: do it daily.",
    ),
    "trust rotate": Command(
        "DIR ROLE",
        "Give a publisher's role new keys: root, targets, snapshot or timestamp",
        _rotate,
        least=2,
        most=2,
    ),
    "trust follow": Command(
        "SCOPE DIR",
        "Let a publisher's metadata decide what tags below a scope are; again for newer metadata",
        _follow,
        least=2,
        most=2,
        notes="The first time 1.root.json is believed: it must have come by a way that you trust.\n"
        "When SCOPE is a repository, newer metadata is fetched at each pull from its tag _trust.",
    ),
    "trust unfollow": Command("SCOPE [SCOPE...]", "Follow a publisher no more", _unfollow, least=1),
}
