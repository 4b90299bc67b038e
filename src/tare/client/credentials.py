"""The user's credentials for registries: ``~/.docker/config.json`` and credential helpers.

The file is Docker's, shared with Docker's clients: what is not about credentials in it is kept as
it is. A helper is a program ``docker-credential-NAME``; its name is a word, never a path, so that
the file cannot make us run anything (attack A32). Not for: what registries do with them; the
daemon keeps none.
"""

from __future__ import annotations

import os
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from tare.client import document
from tare.client.document import text
from tare.errors import FailedError, InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json

HUB = "https://index.docker.io/v1/"
_LIMIT = 4 << 20
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_TOKEN_USER = "<token>"  # noqa: S105  # how helpers say that the secret is an identity token
_HELPER_SECONDS = 60


def server_of(host: str) -> str:
    """The name under which Docker stores credentials of a registry's host; "" is Docker Hub."""
    return HUB if host in ("", *_HUB_HOSTS) else host


def _host(server: str) -> str:
    rest = server.partition("://")[2] or server
    host = rest.partition("/")[0]
    return "index.docker.io" if host in _HUB_HOSTS else host


def path() -> str:
    """Where the file is."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(directory, "config.json")


def read() -> dict[str, Json]:
    """The file's content; empty when there is none, InvalidError when it is no JSON object."""
    where = path()
    try:
        with open(where, "rb") as file:
            raw = file.read(_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InvalidError(f"cannot read {where}: {error.strerror}") from None
    if len(raw) > _LIMIT:
        raise InvalidError(f"{where} is larger than {_LIMIT >> 20} MiB")
    if not raw.strip():
        return {}
    try:
        found = document.decode(raw)
    except FailedError:
        found = None
    if not isinstance(found, dict):
        raise InvalidError(f"{where} is not a JSON object", hint="Correct it or move it away.")
    return found


def write(config: dict[str, Json]) -> None:
    """Replace the file's content; nobody else may read it."""
    where = os.path.realpath(path())
    directory = os.path.dirname(where)
    fresh = f"{where}.{os.getpid()}.part"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        made = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(made, "wb") as file:
                file.write(document.pretty(config, "\t").encode() + b"\n")
                file.flush()
                os.fsync(made)
            os.replace(fresh, where)
        except BaseException:
            os.unlink(fresh)
            raise
    except OSError as error:
        raise FailedError(f"cannot write {where}: {error.strerror}") from None


# --- one registry's -------------------------------------------------------------------------------


def _key(config: dict[str, Json], server: str) -> str:
    """Under which name of the file's *server* stands; "" when it does not."""
    stored = document.mapping(config, "auths")
    if server in stored:
        return server
    return next((name for name in stored if _host(name) == _host(server)), "")


def helper_of(config: dict[str, Json], server: str) -> str:
    """The credential helper that keeps what belongs to *server*; "" is the file itself."""
    helpers = document.mapping(config, "credHelpers")
    for name in helpers:
        if _host(name) == _host(server):
            return text(helpers, name)
    return text(config, "credsStore")


def find(host: str) -> dict[str, Json] | None:
    """What is stored for a registry's host, as Docker's AuthConfig; None when nothing is."""
    config = read()
    server = server_of(host)
    if helper := helper_of(config, server):
        return _from_helper(helper, server)
    stored = document.mapping(config, "auths", _key(config, server))
    token, packed = text(stored, "identitytoken"), text(stored, "auth")
    if not token and not packed:
        return None
    found: dict[str, Json] = {"serveraddress": server}
    if packed:
        try:
            plain = a2b_base64(packed, strict_mode=True).decode().rstrip("\0")
        except (Base64Error, UnicodeDecodeError):
            raise InvalidError(
                f"{path()}: what is stored for {server} cannot be read",
                hint=f"tare login {host} stores it again.",
            ) from None
        user, _, secret = plain.partition(":")
        found.update({"username": user, "password": secret})
    if token:
        found["identitytoken"] = token
    return found


def stored() -> dict[str, Json]:
    """All that is stored for registries, by server: for requests that may need any of them."""
    if not os.path.exists(path()):
        return {}
    found: dict[str, Json] = {}
    config = read()
    for server in (*document.mapping(config, "auths"), *document.mapping(config, "credHelpers")):
        told = find(server)
        if told:
            found[server] = {key: value for key, value in told.items() if isinstance(value, str)}
    return found


def given(host: str, user: str, secret: str) -> dict[str, Json]:
    """Credentials that were said, as Docker's AuthConfig."""
    return {"username": user, "password": secret, "serveraddress": server_of(host)}


def header(found: dict[str, Json] | None) -> dict[str, str]:
    """The header by which the daemon is given credentials; none for nobody."""
    if not found:
        return {}
    packed = b2a_base64(document.encode(found), newline=False).decode("ascii")
    return {"X-Registry-Auth": packed.replace("+", "-").replace("/", "_")}


def store(server: str, user: str, secret: str, token: str = "") -> bool:
    """Keep credentials; True when that was in the file, for everybody who can read it."""
    config = read()
    if helper := helper_of(config, server):
        _call(
            helper,
            "store",
            document.encode(
                {
                    "ServerURL": server,
                    "Username": _TOKEN_USER if token else user,
                    "Secret": token or secret,
                }
            ),
        )
        kept: Json = {}
    else:
        packed = b2a_base64(f"{user}:{secret}".encode(), newline=False).decode("ascii")
        kept = {"auth": packed, "identitytoken": token} if token else {"auth": packed}
    auths = document.mapping(config, "auths")
    auths.pop(_key(config, server), None)
    auths[server] = kept
    config["auths"] = auths
    write(config)
    return not helper


def erase(server: str) -> bool:
    """Forget credentials; False when there were none."""
    config = read()
    known = _key(config, server)
    if helper := helper_of(config, server):
        _call(helper, "erase", server.encode())
    if not known:
        return bool(helper)
    auths = document.mapping(config, "auths")
    del auths[known]
    config["auths"] = auths
    write(config)
    return True


# --- helpers --------------------------------------------------------------------------------------


def _from_helper(helper: str, server: str) -> dict[str, Json] | None:
    answer = _call(helper, "get", server.encode())
    if answer is None:
        return None
    try:
        told = document.decode(answer)
    except FailedError:
        told = None
    if not isinstance(told, dict):
        raise FailedError(f"the credential helper {helper} said something that is not JSON")
    user, secret = text(told, "Username"), text(told, "Secret")
    if user == _TOKEN_USER:
        return {"serveraddress": server, "identitytoken": secret}
    return {"serveraddress": server, "username": user, "password": secret}


def _call(helper: str, verb: str, given: bytes) -> bytes | None:
    """Run a helper; what it says, or None when it keeps nothing of that name."""
    import subprocess

    if not helper or not _WORD.issuperset(helper) or helper.startswith((".", "-")):
        raise InvalidError(
            f"{path()}: {helper!r} is no name of a credential helper",
            hint="It is the NAME of a program docker-credential-NAME on the PATH.",
        )
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, verb],
            input=given,
            capture_output=True,
            check=False,
            timeout=_HELPER_SECONDS,
        )
    except FileNotFoundError:
        raise FailedError(
            f"the credential helper {program} is not installed",
            hint=f"Install it, or take credsStore and credHelpers out of {path()}.",
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedError(f"the credential helper {program} failed: {error}") from None
    if done.returncode == 0:
        return done.stdout
    said = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
    if "credentials not found" in said:
        return None
    raise FailedError(f"the credential helper {program} failed: {said[:300]}")
