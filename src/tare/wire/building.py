"""Builds on the wire: Docker's ``POST /build`` and tare's own, and what both tell meanwhile.

Docker's classic builder is spoken to by query parameters and tells lines of text; tare's client
sends a document before the context and is told events (docs/api-extensions.md).

Not for: the context's bytes (api).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from tare.build.cache import Entry
from tare.build.request import (
    BuildError,
    BuildRequest,
    Built,
    Event,
    Note,
    Output,
    Progress,
    State,
    Warned,
)
from tare.build.sbom.documents import Format
from tare.build.secret_names import names_a_secret
from tare.errors import InvalidError, TareError, UnsupportedError
from tare.image.registry import credentials as registry_credentials
from tare.image.registry.credentials import Credentials
from tare.model import strict_json
from tare.model.spec import Resources, Ulimit
from tare.model.strict_json import Fields
from tare.wire import values
from tare.wire.body import UlimitBody
from tare.wire.resources import ulimits

Json = dict[str, object]

_TEXT_MAX: Final = 64 << 10
_COUNT_MAX: Final = 1000
_SECRET_MAX: Final = 500 << 10
_MEMORY_MIN: Final = 6 << 20
_CONFIG_MAX: Final = 256 << 10
_SHORT: Final = 12


# --- Docker's -------------------------------------------------------------------------------------


def classic(query: Mapping[str, str], tags: list[str], extra_hosts: list[str]) -> BuildRequest:
    """A request from the query of ``POST /build``; *tags* are all its ``t``."""
    if query.get("version", "1") not in ("", "1"):
        raise InvalidError(
            "BuildKit's protocol is not spoken",
            hint="build with `tare build`, or with DOCKER_BUILDKIT=0",
        )
    if _truth(query.get("squash", "")):
        raise UnsupportedError(
            "squashing layers is not supported",
            hint="copy the files of one stage into another: COPY --from",
        )
    epoch_args = _strings("buildargs", query.get("buildargs", ""))
    return BuildRequest(
        dockerfile=values.checked_text("dockerfile", query.get("dockerfile") or "Dockerfile"),
        remote=values.checked_text("remote", query.get("remote", "")),
        tags=tuple(tag for tag in tags if tag),
        target=query.get("target", ""),
        build_args=epoch_args,
        labels=_strings("labels", query.get("labels", "")),
        platform=query.get("platform", ""),
        no_cache=_truth(query.get("nocache", "")),
        pull=_truth(query.get("pull", "")),
        cache_from=tuple(_list("cachefrom", query.get("cachefrom", ""))),
        network=_network(query.get("networkmode", "")),
        extra_hosts=tuple(extra_hosts),
        shm_size=_number("shmsize", query.get("shmsize", "")) or 64 << 20,
        ulimits=_ulimits(query.get("ulimits", "")),
        resources=_resources(query),
        epoch=epoch(epoch_args),
    )


def epoch(arguments: Mapping[str, str]) -> int | None:
    """SOURCE_DATE_EPOCH, where it is given as a build argument."""
    text = arguments.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        raise InvalidError(f"SOURCE_DATE_EPOCH is no number of seconds: {text[:40]!r}")
    return int(text)


def _truth(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "false", "no", "none")


def _number(name: str, text: str) -> int:
    if not text:
        return 0
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise InvalidError(f"invalid {name}: {text[:40]!r} is not a whole number")
    return int(text)


def _decoded(name: str, text: str, kind: type) -> object:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidError(f"invalid {name}: {error}") from None


def _strings(name: str, text: str) -> dict[str, str]:
    """A JSON object of strings; a null is a name without a value, which is none."""
    if not text:
        return {}
    found = _decoded(name, text, dict[str, str | None])
    assert isinstance(found, dict)
    if len(found) > _COUNT_MAX:
        raise InvalidError(f"invalid {name}: more than {_COUNT_MAX} of them")
    return {key: checked(name, value) for key, value in found.items() if value is not None}


def checked(name: str, value: str) -> str:
    """*value*, if it is of a sane length and has no NUL."""
    return values.checked_text(name, value, limit=_TEXT_MAX)


def _list(name: str, text: str) -> list[str]:
    found = _decoded(name, text, list[str] | None) if text else None  # type: ignore[arg-type]
    return found if isinstance(found, list) else []


def _ulimits(text: str) -> tuple[Ulimit, ...]:
    if not text:
        return ()
    found = _decoded("ulimits", text, list[UlimitBody] | None)  # type: ignore[arg-type]
    return ulimits(found if isinstance(found, list) else None)


def _network(text: str) -> str:
    name = values.checked_text("networkmode", text, limit=256)
    return "" if name in ("default", "bridge") else name


def _resources(query: Mapping[str, str]) -> Resources:
    memory = _number("memory", query.get("memory", ""))
    if 0 < memory < _MEMORY_MIN:
        raise InvalidError("Minimum memory limit allowed is 6MB")
    return Resources(
        memory=memory if memory > 0 else None,
        memory_swap=_number("memswap", query.get("memswap", "")) or None,
        cpu_shares=_number("cpushares", query.get("cpushares", "")) or None,
        cpu_quota_us=_number("cpuquota", query.get("cpuquota", "")) or None,
        cpu_period_us=_number("cpuperiod", query.get("cpuperiod", "")) or None,
        cpuset_cpus=query.get("cpusetcpus", ""),
        cpuset_mems=query.get("cpusetmems", ""),
    )


def registry_config(header: str) -> dict[str, Credentials]:
    """``X-Registry-Config``: credentials by the registry's name as references have it."""
    if not header:
        return {}
    if len(header) > 2 * _CONFIG_MAX:
        raise InvalidError("the header X-Registry-Config is too long")
    try:
        # Clients differ in padding and alphabet.
        plain = header.translate(str.maketrans("-_", "+/")).rstrip("=")
        raw = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("the header X-Registry-Config is not base64") from None
    return _credentials(raw) if raw.strip() not in (b"", b"null", b"{}") else {}


def _credentials(raw: bytes) -> dict[str, Credentials]:
    what = "registry credentials"
    found = strict_json.decode(raw, what, limit=_CONFIG_MAX)
    if not isinstance(found, dict):
        raise InvalidError(f"{what}: not an object")
    told: dict[str, Credentials] = {}
    for server, value in found.items():
        if isinstance(value, dict):
            given = registry_credentials.from_fields(Fields(value, what))
            told[_domain(server)] = given
    return told


def _domain(server: str) -> str:
    host = registry_credentials.server_host(server)
    return "docker.io" if host in ("index.docker.io", "registry-1.docker.io") else host


# --- tare's own -----------------------------------------------------------------------------------


class RecipeBody(Struct, forbid_unknown_fields=True):
    """What the client would say to build this again: where it was, its options, the context."""

    directory: str
    path: str
    options: dict[str, str | bool | int | list[str]] = {}


class BuildBody(Struct, forbid_unknown_fields=True):
    """The document that begins the body of ``POST /tare/build``."""

    dockerfile: str = "Dockerfile"
    inline: str | None = None
    remote: str = ""
    tags: list[str] = []
    target: str = ""
    build_args: dict[str, str] = {}
    labels: dict[str, str] = {}
    platform: str = ""
    no_cache: bool = False
    pull: bool = False
    cache_from: list[str] = []
    network: str = ""
    allow: list[str] = []
    extra_hosts: list[str] = []
    shm_size: int = 64 << 20
    ulimits: list[UlimitBody] = []
    memory: int = 0
    secrets: dict[str, str] = {}
    agents: dict[str, str] = {}
    credentials: dict[str, dict[str, str]] = {}
    check: bool = False
    sbom: str = ""
    provenance: bool = False
    recipe: RecipeBody | None = None


BUILD: Final = msgspec.json.Decoder(BuildBody)


def own(body: BuildBody) -> BuildRequest:
    """A request from tare's own document."""
    for name, value in (*body.build_args.items(), *body.labels.items()):
        checked("build argument or label", name)
        checked("build argument or label", value)
    if unknown := set(body.allow) - {"network.host"}:
        raise InvalidError(f"--allow {sorted(unknown)[0]!r} is not known: network.host is")
    return BuildRequest(
        dockerfile=values.checked_text("dockerfile", body.dockerfile),
        inline=_unpacked("Dockerfile", body.inline) if body.inline is not None else None,
        remote=values.checked_text("remote", body.remote),
        tags=tuple(body.tags),
        target=body.target,
        build_args=body.build_args,
        labels=body.labels,
        platform=body.platform,
        no_cache=body.no_cache,
        pull=body.pull,
        cache_from=tuple(body.cache_from),
        network=_network(body.network),
        allow=tuple(body.allow),
        extra_hosts=tuple(body.extra_hosts),
        shm_size=body.shm_size,
        ulimits=ulimits(body.ulimits),
        resources=_resources({"memory": str(body.memory)}),
        secrets={name: _secret(name, text) for name, text in body.secrets.items()},
        agents=body.agents,
        epoch=epoch(body.build_args),
        check_only=body.check,
        sbom=str(Format.called(body.sbom)) if body.sbom else "",
        provenance=body.provenance,
        recipe=_recipe(body.recipe) if body.recipe is not None else "",
    )


def _recipe(body: RecipeBody) -> str:
    """The recipe as it is kept: a build argument that is a secret is known by its name only."""
    given = body.options.get("build-arg")
    if isinstance(given, list):
        kept = [
            name if names_a_secret(name) else f"{name}{equals}{value}"
            for name, equals, value in (word.partition("=") for word in given)
        ]
        body.options["build-arg"] = kept
    return checked("recipe", msgspec.json.encode(body).decode())


def own_credentials(body: BuildBody) -> dict[str, Credentials]:
    """Credentials by the registry's name."""
    return {
        _domain(server): registry_credentials.from_fields(
            Fields(dict(value), "registry credentials")
        )
        for server, value in body.credentials.items()
    }


def _unpacked(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError(f"invalid {name}: not base64") from None


def _secret(name: str, text: str) -> bytes:
    content = _unpacked("secret", text)
    if len(content) > _SECRET_MAX:
        raise InvalidError(f"secret {name} is larger than {_SECRET_MAX >> 10} KiB")
    return content


def event(told: Event) -> Json:
    """One event as a line of tare's own stream."""
    match told:
        case Progress(step=step):
            return {
                "step": {
                    "id": step.id,
                    "of": step.of,
                    "stage": step.stage,
                    "number": step.number,
                    "total": step.total,
                    "text": step.text,
                    "line": step.lines.first if step.lines is not None else 0,
                },
                "state": told.state.value,
                "seconds": round(told.seconds, 3),
                "why": list(told.why),
                "result": told.result,
            }
        case Output(step=step):
            text = told.data.decode("utf-8", "replace")
            return {"log": {"id": step.id, "stream": told.stream, "text": text}}
        case Note():
            return {"note": told.text}
        case Warned(finding=finding):
            return {
                "warning": {
                    "rule": finding.name,
                    "text": finding.text,
                    "explanation": finding.explanation,
                    "file": told.file,
                    "line": finding.lines.first if finding.lines is not None else 0,
                    "excerpt": told.excerpt,
                }
            }


def built(done: Built) -> Json:
    """What a build made, as the last line of tare's own stream."""
    return {
        "built": {
            "id": str(done.id) if done.id is not None else None,
            "names": list(done.names),
            "steps": done.steps,
            "cached": done.cached,
        }
    }


def kept(entry: Entry) -> Json:
    """One thing that the cache keeps, in ``/system/df``."""
    return {
        "ID": entry.id,
        "Type": "exec.cachemount" if entry.kind == "mount" else "regular",
        "Description": entry.what,
        "InUse": False,
        "Shared": False,
        "Size": entry.size,
        "CreatedAt": values.rfc3339(entry.used_ns),
        "LastUsedAt": values.rfc3339(entry.used_ns),
        "UsageCount": 1,
    }


def failure(error: TareError) -> Json:
    """A failed build, for both kinds of client: Docker's ask for the code of the program."""
    message = str(error)
    found: Json = {"errorDetail": {"message": message}, "error": message, "hint": error.hint}
    if isinstance(error, BuildError):
        found |= {"excerpt": error.excerpt, "reason": message}
        if error.command:
            message = f"The command '{error.command}' returned a non-zero code: {error.code}"
            found |= {"errorDetail": {"message": message, "code": error.code}, "error": message}
    return found


# --- the classic builder's words ------------------------------------------------------------------


class Words:
    """Events as lines of the classic builder's stream."""

    def __init__(self, say: Callable[[Json], None], *, quiet: bool) -> None:
        self._say = say
        self._quiet = quiet
        self._held: list[Json] = []

    def tell(self, told: Event) -> None:
        """Take one event; it may come from any thread."""
        for line in self._lines(told):
            if self._quiet:
                self._held.append(line)
            else:
                self._say(line)

    def failed(self) -> None:
        """A quiet build that failed is not quiet any more."""
        for line in self._held:
            self._say(line)

    def _lines(self, told: Event) -> list[Json]:
        match told:
            case Progress(state=State.RUNNING):
                return [self._step(told)]
            case Progress(state=State.CACHED, step=step):
                lines = [self._step(told)]
                if step.number:
                    lines.append(_stream(" ---> Using cache\n"))
                return [*lines, _stream(f" ---> {told.result[:_SHORT]}\n")]
            case Progress(state=State.DONE):
                return [_stream(f" ---> {told.result[:_SHORT]}\n")]
            case Output():
                return [_stream(told.data.decode("utf-8", "replace"))]
            case Note():
                return [{"status": told.text}]
            case Warned(finding=finding):
                where = f"{told.file}:{finding.lines.first}: " if finding.lines is not None else ""
                return [_stream(f"[Warning] {where}{finding.name}: {finding.text}\n")]
            case _:
                return []

    def _step(self, told: Progress) -> Json:
        step = told.step
        return _stream(f"Step {step.id}/{max(step.of, step.id)} : {step.text}\n")

    def done(self, result: Built) -> None:
        """The build is done."""
        if self._quiet:
            self._say(_stream(f"{result.id}\n"))
            return
        self._say({"aux": {"ID": str(result.id)}})
        self._say(_stream(f"Successfully built {result.id.hex[:_SHORT] if result.id else ''}\n"))
        for name in result.names:
            self._say(_stream(f"Successfully tagged {name}\n"))


def _stream(text: str) -> Json:
    return {"stream": text}
