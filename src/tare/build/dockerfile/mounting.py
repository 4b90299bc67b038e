"""Reads the text of ``RUN --mount=...`` and ``--device=...`` into typed values.

Every option takes variables, put in at the time of the step, but ``from``: which stages a step
needs must be known before any step is done.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from tare.build.dockerfile import figures
from tare.build.dockerfile.instructions import Device
from tare.build.dockerfile.mounts import (
    BindMount,
    CacheMount,
    Mount,
    SecretMount,
    Sharing,
    SshMount,
    TmpfsMount,
)
from tare.build.dockerfile.suggestion import meant
from tare.build.dockerfile.words import quoted

_TYPES: Final = ("bind", "cache", "tmpfs", "secret", "ssh")
_ALIASES: Final = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "rw": "readwrite",
}
_OPTIONS: Final = (
    *("type", "from", "source", "target", "readonly", "readwrite", "id", "sharing"),
    *("required", "size", "mode", "uid", "gid", "env", *_ALIASES),
)
_FIELDS_MAX: Final = 64
_T = TypeVar("_T")


class MountError(ValueError):
    """The text of a mount or device makes no sense; the sentence is BuildKit's."""


@dataclass(slots=True)
class _Options:
    """What the text says, before the type decides what is allowed."""

    type: str = "bind"
    from_name: str = ""
    source: str = ""
    target: str = ""
    readonly: bool | None = None
    id: str = ""
    sharing: Sharing | None = None
    required: bool = False
    size: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None


def source_of(text: str) -> str:
    """The stage or image that a mount takes from, or empty; MountError."""
    source = ""
    for key, value, _ in _pairs(text):
        if key == "from" and value is not None:
            if "$" in value[:-1]:
                raise MountError(
                    "'from' doesn't support variable expansion, define alias stage instead"
                )
            source = value
    return source


def read_mount(text: str, expand: Callable[[str], str]) -> Mount:
    """The mount that *text* says; each value goes through *expand* first. MountError."""
    options = _Options()
    for key, value, field in _pairs(text):
        try:
            if value is None:
                _set_bare(options, key, field)
            else:
                _set(options, key, expand(value), field)
        except MountError:
            raise
        except ValueError as error:
            raise MountError(str(error)) from None
    return _typed(options)


def read_device(text: str) -> Device:
    """The device that *text* says; MountError."""
    name, required = "", False
    for key, value, field in _pairs(text):
        if key == "required":
            required = value is None or _figure(figures.truth, key, value)
        elif key == "name" and value is not None:
            if name:
                raise MountError(f"device name already set to {name}")
            name = value
        elif not name:
            name = field  # vendor.com/class=name has an equals sign of its own
        elif value is None:
            raise MountError(f"invalid field '{field}' must be a key=value pair")
        else:
            suggestion = meant(key, ("name", "required"))
            raise MountError(f"unexpected key '{key}' in '{field}'{suggestion}")
    return Device(name, required)


def _pairs(text: str) -> Iterator[tuple[str, str | None, str]]:
    """Each field as its key in lower case, its value (None without ``=``) and its whole text."""
    for number, field in enumerate(_fields(text)):
        if number >= _FIELDS_MAX:
            raise MountError(f"more than {_FIELDS_MAX} options")
        key, equals, value = field.partition("=")
        yield key.lower(), value if equals else None, field


def _fields(text: str) -> Iterator[str]:
    """The fields of one line of CSV: a field in double quotes may hold commas."""
    at = 0
    while True:
        if text.startswith('"', at):
            field, at = _quoted_field(text, at + 1)
            yield field
        else:
            end = text.find(",", at)
            field = text[at:] if end < 0 else text[at:end]
            if '"' in field:
                raise MountError('failed to parse csv mounts: bare " in non-quoted field')
            yield field
            at += len(field)
        if at >= len(text):
            return
        at += 1  # the comma


def _quoted_field(text: str, at: int) -> tuple[str, int]:
    letters: list[str] = []
    while True:
        end = text.find('"', at)
        if end < 0:
            raise MountError('failed to parse csv mounts: extraneous or missing " in quoted field')
        letters.append(text[at:end])
        at = end + 1
        if not text.startswith('"', at):
            break
        letters.append('"')
        at += 1
    if at < len(text) and text[at] != ",":
        raise MountError('failed to parse csv mounts: extraneous or missing " in quoted field')
    return "".join(letters), at


def _set_bare(options: _Options, key: str, field: str) -> None:
    match _ALIASES.get(key, key):
        case "readonly":
            options.readonly = True
        case "readwrite":
            options.readonly = False
        case "required":
            _refuse_required(options, key)
            options.required = True
        case _:
            raise MountError(f"invalid field '{field}' must be a key=value pair")


def _refuse_required(options: _Options, key: str) -> None:
    if options.type not in ("secret", "ssh"):
        raise MountError(f"unexpected key '{key}' for mount type '{options.type}'")


def _set(options: _Options, key: str, value: str, field: str) -> None:
    match _ALIASES.get(key, key):
        case "type":
            options.type = value.lower()
            if options.type not in _TYPES:
                suggestion = meant(value, _TYPES)
                raise MountError(f"unsupported mount type {quoted(value)}{suggestion}")
        case "from":
            options.from_name = value
        case "source":
            options.source = value
        case "target":
            options.target = value
        case "readonly":
            options.readonly = _figure(figures.truth, key, value)
        case "readwrite":
            options.readonly = not _figure(figures.truth, key, value)
        case "required":
            _refuse_required(options, key)
            options.required = _figure(figures.truth, key, value)
        case "size":
            if options.type != "tmpfs":
                raise MountError(f"unexpected key '{key}' for mount type '{options.type}'")
            options.size = _figure(figures.size, key, value)
        case "id":
            options.id = value
        case "sharing":
            options.sharing = _sharing(value)
        case "mode":
            options.mode = _number(value, "mode", 8)
        case "uid":
            options.uid = _number(value, "uid")
        case "gid":
            options.gid = _number(value, "gid")
        case "env":
            options.env = value
        case _:
            raise MountError(f"unexpected key '{key}' in '{field}'{meant(key, _OPTIONS)}")


def _figure(read: Callable[[str], _T], key: str, value: str) -> _T:
    try:
        return read(value)
    except ValueError:
        raise MountError(f"invalid value for {key}: {value}") from None


def _number(value: str, key: str, base: int = 10) -> int:
    try:
        return figures.number(value, base)
    except ValueError:
        raise MountError(f"invalid value {value} for {key}") from None


def _sharing(value: str) -> Sharing:
    try:
        return Sharing(value.lower())
    except ValueError:
        suggestion = meant(value, tuple(Sharing))
        raise MountError(f"unsupported sharing value {quoted(value)}{suggestion}") from None


def _typed(options: _Options) -> Mount:
    kind = options.type
    if kind not in ("secret", "ssh", "cache"):
        for name in ("mode", "uid", "gid"):
            if getattr(options, name) is not None:
                raise MountError(f"{name} not allowed for {quoted(kind)} type mounts")
    if kind == "secret":
        return _secret(options)
    if options.sharing is not None and kind != "cache":
        raise MountError(f"invalid cache sharing set for {kind} mount")
    match kind:
        case "bind":
            return BindMount(
                target=options.target or ".",
                from_name=options.from_name,
                source=options.source,
                readonly=options.readonly is not False,
            )
        case "cache":
            return _cache(options)
        case "tmpfs":
            return TmpfsMount(
                target=options.target or ".",
                size=options.size,
                readonly=options.readonly is True,
            )
        case _:
            return _ssh(options)


def _cache(options: _Options) -> CacheMount:
    target = options.target or "."
    return CacheMount(
        target=target,
        cache_id=options.id or posixpath.normpath(target),
        from_name=options.from_name,
        source=options.source,
        readonly=options.readonly is True,
        sharing=options.sharing or Sharing.SHARED,
        mode=0o755 if options.mode is None else options.mode,
        uid=options.uid or 0,
        gid=options.gid or 0,
    )


def _secret(options: _Options) -> SecretMount:
    if options.from_name:
        raise MountError("secret mount should not have a from")
    if options.sharing is not None:
        raise MountError("secret mount should not define sharing")
    if not (options.source or options.target or options.id):
        raise MountError("invalid secret mount. one of source, target required")
    if options.source and options.id:
        raise MountError("both source and id can't be set")
    secret_id = options.source or options.id or posixpath.basename(options.target)
    target = options.target
    if options.env is None and not target:
        target = "/run/secrets/" + posixpath.basename(secret_id)
    return SecretMount(
        secret_id=secret_id,
        target=target,
        variable="" if options.env is None else options.env or secret_id,
        required=options.required,
        mode=0o400 if options.mode is None else options.mode,
        uid=options.uid or 0,
        gid=options.gid or 0,
    )


def _ssh(options: _Options) -> SshMount:
    if options.source:
        raise MountError("ssh does not support source")
    return SshMount(
        agent_id=options.id or "default",
        target=options.target,
        required=options.required,
        mode=0o600 if options.mode is None else options.mode,
        uid=options.uid or 0,
        gid=options.gid or 0,
    )
