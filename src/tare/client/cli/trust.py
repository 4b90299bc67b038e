"""trust: the switch, keys, signatures, vouches, pins; keys never leave the caller's side."""

from __future__ import annotations

import contextlib
import os
import re
import time
from datetime import UTC, datetime

from tare.client import document, terminal
from tare.client.cli.transfers import headers_for, parsed
from tare.client.document import flag, items, mapping, number, strings, text
from tare.client.options import Command, Flags, UsageError
from tare.client.tables import aligned, say, shown, warn, write_out
from tare.client.transport import Daemon, target
from tare.errors import ConflictError, DeniedError, InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.options import Action
    from tare.model.strict_json import Json as Strict
    from tare.trust.keys import PrivateKey

_PASSPHRASES = ("TARE_TRUST_PASSPHRASE", "COSIGN_PASSWORD")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_LOCK_HEAD = "# tare.lock: which digest each image of this project has. Made by tare trust pin.\n"
_KEY_LIMIT = 64 << 10


# --- the switch -----------------------------------------------------------------------------------


def _status(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    found = daemon.call("GET", "/tare/trust")
    if _json(found, flags):
        return 0
    policy = mapping(found, "Policy")
    path = text(policy, "Path") or "none"
    trouble = text(policy, "Error")
    rows = [
        ["trust", text(found, "Mode")],
        ["policy", trouble or f"{path} ({number(policy, 'Scopes')} scopes)"],
        ["trusted keys", str(len(items(found, "Keys")))],
        ["pins", str(len(mapping(found, "Pins")))],
        ["revoked digests", str(len(strings(found, "Revoked")))],
    ]
    behind = number(found, "ClockSetBack")
    if behind:
        rows.append(["clock", f"set back by {behind} s: the later time that was seen counts"])
    write_out(aligned([[shown(cell) for cell in row] for row in rows]).encode())
    for name, digest in mapping(found, "Pins").items():
        say(f"pin  {shown(name)}  {digest}")
    return 1 if trouble else 0


def _switch(mode: str) -> Action:
    def run(daemon: Daemon, _flags: Flags, _arguments: list[str]) -> int:
        daemon.call("POST", "/tare/trust", {"Mode": mode})
        say(f"trust is {mode}")
        return 0

    return run


def _json(found: Json, flags: Flags) -> bool:
    form = flags.text("format")
    if form not in ("", "json"):
        raise InvalidError("--format takes json here")
    if form:
        write_out((document.compact(found) + "\n").encode())
    return bool(form)


# --- keys -----------------------------------------------------------------------------------------


def passphrase(*, new: bool) -> bytes:
    """The passphrase of a key, from the environment or the terminal."""
    for name in _PASSPHRASES:
        if name in os.environ:
            return os.environ[name].encode()
    if not terminal.is_terminal(0):
        raise InvalidError(
            "there is no passphrase and nobody to ask for it",
            hint=f"Set {_PASSPHRASES[0]} (empty, if the key is to have none).",
        )
    from getpass import getpass

    found = getpass("Passphrase of the key: ")
    if new and getpass("The same again: ") != found:
        raise InvalidError("the two passphrases differ")
    return found.encode()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_KEY_LIMIT + 1)


def _private(path: str) -> PrivateKey:
    """The key in a file that only its owner may read."""
    from tare.trust.keys import PrivateKey

    found = os.stat(path)
    if found.st_mode & 0o077:
        raise DeniedError(
            f"{path} can be used by others (mode {found.st_mode & 0o7777:04o})",
            hint=f"chmod 600 {path}, and think about who has read it",
        )
    raw = _read(path)
    sealed = raw.lstrip().startswith(b"-----BEGIN ENCRYPTED ")
    return PrivateKey.parse(raw, passphrase(new=False) if sealed else b"", path)


def write_new(path: str, content: bytes, mode: int) -> None:
    """Write a file that must not be there yet; ConflictError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise ConflictError(f"{path} is there already", hint="keys are never overwritten") from None
    with open(descriptor, "wb") as file:
        file.write(content)


def _generate(_daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    from tare.trust.keys import PrivateKey

    name = arguments[0] if arguments else "cosign"
    for path in (f"{name}.key", f"{name}.pub"):
        if os.path.lexists(path):
            raise ConflictError(f"{path} is there already", hint="keys are never overwritten")
    key = PrivateKey.generate(flags.text("kind") or "ecdsa-p256")
    write_new(f"{name}.key", key.encrypted(passphrase(new=True)), 0o600)
    write_new(f"{name}.pub", key.public.pem(), 0o644)
    say(f"{name}.key  the private key: keep it, and a copy of it, where nobody else can read it")
    say(f"{name}.pub  the public key {key.public.id[:12]}: give it to whoever verifies")
    return 0


def _moment(flags: Flags, name: str) -> int:
    written = flags.text(name)
    if not written:
        return 0
    if not _DATE.fullmatch(written):
        raise InvalidError(f"invalid --{name} {written!r}: write it as 2027-01-31")
    try:
        return int(datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise InvalidError(f"invalid --{name}: there is no {written}") from None


def _add(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    path = arguments[0]
    scopes = flags.list("scope")
    if not scopes:
        raise UsageError(
            "a key needs a --scope: whose images may it sign?",
            hint="For example --scope registry.example/team; --scope '*' is every image.",
        )
    name = flags.text("name") or os.path.basename(path).rpartition(".")[0] or path
    body: dict[str, Json] = {
        "Pem": _read(path).decode("utf-8", "replace"),
        "Name": name,
        "Scopes": list(scopes),
        "NotBefore": _moment(flags, "not-before"),
        "NotAfter": _moment(flags, "not-after"),
        "Nameless": flags.flag("nameless"),
        "Vouches": flags.flag("vouches"),
    }
    found = daemon.call("POST", "/tare/trust/keys", body)
    say(f"{text(found, 'Name')}  {text(found, 'Id')[:12]}  may sign {', '.join(scopes)}")
    return 0


def _list(daemon: Daemon, flags: Flags, _arguments: list[str]) -> int:
    found = items(daemon.call("GET", "/tare/trust"), "Keys")
    if _json(list(found), flags):
        return 0
    rows = [["NAME", "ID", "KIND", "SCOPES", "UNTIL", "STATE"]]
    for each in found:
        until = number(each, "NotAfter")
        rows.append(
            [
                shown(text(each, "Name")),
                text(each, "Id")[:12],
                text(each, "Kind"),
                shown(", ".join(strings(each, "Scopes"))),
                datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d") if until else "-",
                text(each, "State") + (", vouches" if flag(each, "Vouches") else ""),
            ]
        )
    write_out(aligned(rows).encode())
    return 0


def _remove(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    for name in arguments:
        daemon.call("DELETE", target("/tare/trust/keys", {"key": name}))
        say(name)
    return 0


def _revoke(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    for name in arguments:
        say(
            f"revoked: {text(daemon.call('POST', '/tare/trust/revoke', {'What': name}), 'Revoked')}"
        )
    return 0


# --- signing --------------------------------------------------------------------------------------


def _signed(daemon: Daemon, ref: str, key: PrivateKey, *, push: bool) -> str:
    """Sign an image in both forms and hand that to the engine; the name it was signed as."""
    from tare.model import strict_json
    from tare.model.digest import Digest
    from tare.model.reference import Reference
    from tare.trust import signature

    about = daemon.call("GET", target("/tare/trust/subject", {"ref": ref}))
    name = Reference.parse(text(about, "Name"))
    digest = Digest.parse(text(about, "Document", "digest"))
    described: dict[str, Strict] = {
        "mediaType": text(about, "Document", "mediaType"),
        "size": number(about, "Document", "size"),
        "digest": str(digest),
    }
    if push and not flag(about, "Remote"):
        raise ConflictError(
            f"no registry is known to have {name.familiar}",
            hint="Push it first, or sign it with --local: then the signature stays with the"
            " engine and goes along with `tare save`.",
        )
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    bare = Reference(name.domain, name.path)
    made = [
        signature.signed_simple(key, [bare, name], digest),
        signature.signed_bundle(key, name, digest, described, now),
    ]
    artifacts = document.decode(strict_json.encode({"all": signature.encode(made)}))
    body: dict[str, Json] = {
        "Ref": ref,
        "Push": push,
        "Artifacts": document.field(artifacts, "all"),
    }
    response = daemon.open("POST", "/tare/trust/signatures", body, headers=headers_for(name))
    response.read()
    response.connection.close()
    return f"{name.familiar}@{digest}"


def _sign(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    key = _private(flags.text("key", "cosign.key"))
    for ref in arguments:
        say(f"signed {_signed(daemon, ref, key, push=not flags.flag('local'))}")
    return 0


def _vouch(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    ref = arguments[0]
    found = daemon.call("GET", target("/tare/trust/verdict", {"ref": ref, "fetch": 1}))
    image = daemon.call("GET", f"/images/{ref}/json")
    _about(found, image)
    if not flags.flag("yes"):
        if not terminal.is_terminal(0):
            raise InvalidError("nobody is there to say yes", hint="--yes says it")
        print("Do you answer for this image? [y/N] ", end="", flush=True)
        if os.read(0, 64).strip().lower() not in (b"y", b"yes"):
            return 1
    key = _private(flags.text("key", "cosign.key"))
    known = {text(each, "Id") for each in items(daemon.call("GET", "/tare/trust"), "Keys")}
    if key.public.id not in known:
        name = parsed(ref)
        scopes = flags.list("scope") or [name.name]
        body: dict[str, Json] = {
            "Pem": key.public.pem().decode("ascii"),
            "Name": flags.text("as") or f"voucher-{key.public.id[:8]}",
            "Scopes": list(scopes),
            "Vouches": True,
        }
        daemon.call("POST", "/tare/trust/keys", body)
    say(f"vouched for {_signed(daemon, ref, key, push=flags.flag('push'))}")
    return 0


def _about(found: Json, image: Json) -> None:
    """What is known of an image, for whoever is to answer for it."""
    rows = [
        ["digest", text(found, "Digest")],
        ["known as", ", ".join([*strings(image, "RepoTags"), *strings(image, "RepoDigests")])],
        ["created", text(image, "Created") or "it does not say"],
        ["author", text(image, "Author") or "it does not say"],
        ["runs as", text(image, "Config", "User") or "root"],
        ["layers", str(len(strings(image, "RootFS", "Layers")))],
        ["verdict", f"{text(found, 'Verdict')}: {'; '.join(strings(found, 'Reasons'))}"],
    ]
    labels = mapping(image, "Config", "Labels")
    for label in ("source", "revision", "version"):
        value = labels.get(f"org.opencontainers.image.{label}")
        if isinstance(value, str):
            rows.append([label, f"{value} (the image says so itself)"])
    write_out(aligned([[shown(cell) for cell in row] for row in rows]).encode())


def _verify(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    worst = 0
    for ref in arguments:
        query = {"ref": ref, "fetch": 0 if flags.flag("offline") else 1}
        where = target("/tare/trust/verdict", query)
        headers = {}
        if not flags.flag("offline"):
            with contextlib.suppress(InvalidError):  # an id is no name, and names no registry
                headers = headers_for(parsed(ref))
        response = daemon.open("GET", where, headers=headers)
        found = document.decode(response.read())
        response.connection.close()
        worst = max(worst, 0 if flag(found, "Accepted") else 1)
        if _json(found, flags):
            continue
        say(f"{shown(text(found, 'Name'))}  {text(found, 'Verdict')}")
        say(f"  digest  {text(found, 'Digest')}")
        say(f"  rule    {shown(text(found, 'Rule'))}")
        for reason in strings(found, "Reasons"):
            say(f"  because {shown(reason)}")
        for one in items(found, "Signatures"):
            said = text(one, "Unreadable")
            by = text(one, "Signer") or "a key that is not trusted here"
            name = text(one, "Name") or "no name"
            say("  found   " + shown(f"unusable: {said}" if said else
                                     f"{text(one, 'Form')} by {by}, as {name}"))  # fmt: skip
        for line in text(found, "Remedy").splitlines():
            warn(f"  {line}")
    return worst


# --- pins -----------------------------------------------------------------------------------------


def _pin(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    path = flags.text("lock")
    locked = _lock(path) if path else {}
    if not arguments and not path:
        raise UsageError("name an image, or --lock FILE", hint="See 'tare trust pin --help'.")
    if arguments:
        for ref in arguments:
            body: dict[str, Json] = {"Ref": ref, "Replace": flags.flag("replace")}
            digest = text(daemon.call("POST", "/tare/trust/pins", body), "Digest")
            locked[str(parsed(ref).with_default_tag())] = digest
            say(f"{parsed(ref).with_default_tag().familiar}  {digest}")
        if path:
            lines = "".join(f"{name} {digest}\n" for name, digest in sorted(locked.items()))
            with open(path, "w", encoding="ascii") as file:
                file.write(_LOCK_HEAD + lines)
        return 0
    for name, digest in locked.items():
        body = {"Ref": name, "Digest": digest, "Replace": flags.flag("replace")}
        daemon.call("POST", "/tare/trust/pins", body)
        say(f"{parsed(name).familiar}  {digest}")
    return 0


def _lock(path: str) -> dict[str, str]:
    """What a lock file says; InvalidError names the line that makes no sense."""
    from tare.model.digest import Digest

    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read(1 << 20).splitlines()
    except FileNotFoundError:
        return found
    for number_, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, digest = line.partition(" ")
        try:
            full = str(parsed(name))
            if full in found:
                raise InvalidError("the name stands there twice")
            found[full] = str(Digest.parse(digest.strip()))
        except InvalidError as error:
            raise InvalidError(f"{path}: line {number_}: {error}") from None
    return found


def _unpin(daemon: Daemon, _flags: Flags, arguments: list[str]) -> int:
    for ref in arguments:
        daemon.call("DELETE", target("/tare/trust/pins", {"ref": ref}))
        say(parsed(ref).with_default_tag().familiar)
    return 0


_FORMAT = ("", "string", "Print by 'json'")
_KEY = ("k", "string", "The private key (default: cosign.key)")

COMMANDS = {
    "trust": Command(
        "[OPTIONS]",
        "Show whether only verified images run, and by what they are verified",
        _status,
        {"format": _FORMAT},
        most=0,
        notes="The exit code is 1 when the policy cannot be read: then nothing is accepted.",
    ),
    "trust status": Command(
        "[OPTIONS]",
        "Show whether only verified images run, and by what they are verified",
        _status,
        {"format": _FORMAT},
        most=0,
    ),
    "trust on": Command(
        "", "Refuse images that nothing verifies, wherever they come from", _switch("on"), most=0
    ),
    "trust warn": Command("", "Warn of images that are not verified", _switch("warn"), most=0),
    "trust off": Command("", "Verify nothing", _switch("off"), most=0),
    "trust key generate": Command(
        "[OPTIONS] [NAME]",
        "Make a key pair, NAME.key and NAME.pub, in cosign's form",
        _generate,
        {"kind": ("", "string", "ecdsa-p256 (default) or ed25519")},
        most=1,
        notes="The passphrase is asked for, or taken from TARE_TRUST_PASSPHRASE.",
    ),
    "trust key add": Command(
        "[OPTIONS] FILE",
        "Trust a public key for the images of a scope",
        _add,
        {
            "name": ("", "string", "What to call it (default: the file's name)"),
            "nameless": ("", "bool", "Take signatures that name no repository (cosign 3)"),
            "not-after": ("", "string", "It counts before this day (2027-01-31)"),
            "not-before": ("", "string", "It counts from this day on"),
            "scope": ("s", "list", "A host, HOST/NAMESPACE, a repository, *.DOMAIN, or *"),
            "vouches": ("", "bool", "It is of somebody here, who answers for what others publish"),
        },
        least=1,
        most=1,
    ),
    "trust key ls": Command(
        "[OPTIONS]", "List the keys that are trusted", _list, {"format": _FORMAT}, most=0
    ),
    "trust key rm": Command("KEY [KEY...]", "Trust keys no more", _remove, least=1),
    "trust revoke": Command(
        "KEY|DIGEST [...]",
        "Let a key, or the image with a digest, count no more",
        _revoke,
        least=1,
    ),
    "trust sign": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        "Sign images, and bring the signatures to their registry",
        _sign,
        {
            "key": _KEY,
            "local": ("", "bool", "Keep the signature here; it goes along with save"),
        },
        least=1,
        notes="cosign verify --key cosign.pub --insecure-ignore-tlog=true IMAGE verifies it too.",
    ),
    "trust vouch": Command(
        "[OPTIONS] IMAGE",
        "Show what is known of an image, and answer for it with your own key",
        _vouch,
        {
            "as": ("", "string", "What to call the key, if it is not trusted yet"),
            "key": _KEY,
            "push": ("", "bool", "Bring the signature to the registry, too"),
            "scope": ("s", "list", "What the key may vouch for (default: this repository)"),
            "yes": ("y", "bool", "Do not ask"),
        },
        least=1,
        most=1,
    ),
    "trust verify": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        "Say whether images are verified, and why",
        _verify,
        {
            "format": _FORMAT,
            "offline": ("", "bool", "Ask no registry for signatures"),
        },
        least=1,
        notes="The exit code is 1 when one of them would be refused.",
    ),
    "trust pin": Command(
        "[OPTIONS] [IMAGE...]",
        "Let names mean the digests they have now, and no others",
        _pin,
        {
            "lock": ("", "string", "Write the pins to this file; without an image, read them"),
            "replace": ("", "bool", "Also where the name was pinned to another digest"),
        },
    ),
    "trust unpin": Command("IMAGE [IMAGE...]", "Let names mean any digest", _unpin, least=1),
}
