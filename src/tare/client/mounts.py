"""``-v``, ``--mount``, ``--tmpfs`` and ``--device`` as the fields of the create request.

Relative host paths are made absolute here, where the caller's directory is known. Whether the
paths exist is the daemon's to say.
"""

from __future__ import annotations

import os

from tare.client import units
from tare.errors import InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.options import Flags

_SYNONYMS = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_SWITCHES = ("readonly", "volume-nocopy", "bind-nonrecursive", "bind-create-src")
_KEYS = (
    "type", "source", "target", "consistency", "bind-propagation", "bind-recursive",
    "volume-subpath", "volume-label", "volume-driver", "volume-opt", "tmpfs-size", "tmpfs-mode",
    "image-subpath", *_SWITCHES,
)  # fmt: skip
_TYPES = ("bind", "volume", "tmpfs", "image")


def add(flags: Flags, body: dict[str, Json], host: dict[str, Json]) -> None:
    """Put all mounts asked for into the request; InvalidError names the wrong one."""
    volumes: dict[str, Json] = {}
    binds: list[Json] = []
    for spec in flags.list("volume"):
        bind = volume(spec)
        if ":" in bind:
            binds.append(bind)
        else:
            volumes[bind] = {}
    if volumes:
        body["Volumes"] = volumes
    if binds:
        host["Binds"] = binds
    if flags.given("mount"):
        host["Mounts"] = [mount(spec) for spec in flags.list("mount")]
    if flags.given("tmpfs"):
        host["Tmpfs"] = {
            target: options
            for target, _, options in (word.partition(":") for word in flags.list("tmpfs"))
        }


def volume(spec: str) -> str:
    """A ``-v`` word, its host path absolute."""
    parts = spec.split(":")
    if len(parts) > 3:
        raise InvalidError(f"invalid spec: {spec}: too many colons", exit_code=125)
    if not all(parts[:2]):
        raise InvalidError(
            f"invalid spec: {spec}: empty section between colons",
            hint="Write HOST_PATH:CONTAINER_PATH[:ro].",
            exit_code=125,
        )
    if len(parts) > 1 and (parts[0] == "~" or parts[0].startswith(("~/", "."))):
        parts[0] = os.path.abspath(os.path.expanduser(parts[0]))
    return ":".join(parts)


def csv(text: str) -> list[str]:
    """The fields of one CSV record; quotes protect commas and are doubled inside."""
    fields: list[str] = []
    at = 0
    while True:
        if text[at : at + 1] == '"':
            value, at = _quoted(text, at + 1)
        else:
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            value, at = text[at:end], end
            if '"' in value:
                raise InvalidError(f'bare " in a field of {text!r}')
        fields.append(value)
        if at >= len(text):
            return fields
        at += 1


def _quoted(text: str, at: int) -> tuple[str, int]:
    value = ""
    while True:
        end = text.find('"', at)
        if end < 0:
            raise InvalidError(f'missing " in {text!r}')
        value += text[at:end]
        if text[end + 1 : end + 2] == '"':
            value, at = value + '"', end + 2
            continue
        if text[end + 1 : end + 2] not in ("", ","):
            raise InvalidError(f'extra text after " in {text!r}')
        return value, end + 1


def mount(spec: str) -> dict[str, Json]:
    """A ``--mount`` word as one entry of HostConfig.Mounts."""
    given: dict[str, str] = {}
    many: dict[str, dict[str, Json]] = {"volume-label": {}, "volume-opt": {}}
    for field in csv(spec):
        key, equals, value = field.partition("=")
        key = _SYNONYMS.get(key.strip().lower(), key.strip().lower())
        if key not in _KEYS:
            raise _bad(spec, f"unexpected key '{key}' in '{field}'", key)
        if not equals:
            if key not in _SWITCHES:
                raise _bad(spec, f"invalid field '{field}' must be a key=value pair")
            value = "true"
        if key in many:
            name, _, text = value.partition("=")
            many[key][name] = text
        else:
            given[key] = value
    kind = given.get("type", "volume").lower()
    if kind not in _TYPES:
        raise _bad(spec, f"unknown type '{kind}' (known: {', '.join(_TYPES)})")
    if not given.get("target"):
        raise _bad(spec, "target is required")
    for key in (*given, *(name for name, value in many.items() if value)):
        group = key.partition("-")[0]
        if group in _TYPES and group != kind:
            raise _bad(spec, f"cannot mix '{group}-*' options with mount type '{kind}'")
    return _entry(spec, kind, given, many)


def _entry(
    spec: str, kind: str, given: dict[str, str], many: dict[str, dict[str, Json]]
) -> dict[str, Json]:
    entry: dict[str, Json] = {"Type": kind, "Target": given["target"]}
    source = given.get("source", "")
    if kind == "bind" and source.startswith("."):
        source = os.path.abspath(source)
    if source:
        entry["Source"] = source
    if "consistency" in given:
        entry["Consistency"] = given["consistency"]
    if _switch(spec, given, "readonly"):
        entry["ReadOnly"] = True
    options: dict[str, Json] = {}
    if kind == "bind":
        options = _bind(spec, given)
    elif kind == "volume":
        if _switch(spec, given, "volume-nocopy"):
            options["NoCopy"] = True
        if "volume-subpath" in given:
            options["Subpath"] = given["volume-subpath"]
        if many["volume-label"]:
            options["Labels"] = many["volume-label"]
        driver: dict[str, Json] = {}
        if "volume-driver" in given:
            driver["Name"] = given["volume-driver"]
        if many["volume-opt"]:
            driver["Options"] = many["volume-opt"]
        if driver:
            options["DriverConfig"] = driver
    elif kind == "tmpfs":
        if "tmpfs-size" in given:
            options["SizeBytes"] = units.size(given["tmpfs-size"])
        if "tmpfs-mode" in given:
            options["Mode"] = _octal(spec, given["tmpfs-mode"])
    elif "image-subpath" in given:
        options["Subpath"] = given["image-subpath"]
    if options:
        entry[f"{kind.title()}Options"] = options
    return entry


def _bind(spec: str, given: dict[str, str]) -> dict[str, Json]:
    options: dict[str, Json] = {}
    propagation = given.get("bind-propagation", "").lower()
    if propagation:
        if propagation not in ("private", "rprivate", "shared", "rshared", "slave", "rslave"):
            raise _bad(spec, f"invalid bind-propagation '{propagation}'")
        options["Propagation"] = propagation
    if _switch(spec, given, "bind-nonrecursive"):
        options["NonRecursive"] = True
    if _switch(spec, given, "bind-create-src"):
        options["CreateMountpoint"] = True
    recursive = given.get("bind-recursive", "enabled")
    read_only = _switch(spec, given, "readonly")
    match recursive:
        case "enabled":
            pass
        case "disabled":
            options["NonRecursive"] = True
        case "writable":
            options["ReadOnlyNonRecursive"] = True
        case "readonly":
            if not read_only or propagation != "rprivate":
                raise _bad(
                    spec,
                    "bind-recursive=readonly requires readonly and bind-propagation=rprivate",
                )
            options["ReadOnlyForceRecursive"] = True
        case _:
            raise _bad(spec, f"invalid bind-recursive '{recursive}'")
    return options


def _switch(spec: str, given: dict[str, str], key: str) -> bool:
    value = given.get(key, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise _bad(spec, f"invalid value for {key}: {value}")
    return value in ("true", "1")


def _octal(spec: str, text: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise _bad(spec, f"invalid value for tmpfs-mode: {text}") from None


def _bad(spec: str, sentence: str, key: str = "") -> InvalidError:
    hint = "For example --mount type=bind,source=/data,target=/data,readonly."
    if key:
        from tare.client.options import nearest

        near = nearest(key, dict.fromkeys(_KEYS))
        hint = f"Did you mean {near}?" if near else hint
    return InvalidError(
        f'invalid argument "{spec}" for "--mount" flag: {sentence}', hint=hint, exit_code=125
    )


def add_devices(words: list[str], host: dict[str, Json]) -> None:
    """``--device``: paths to Devices, CDI names (vendor/class=name) to DeviceRequests."""
    devices: list[Json] = []
    named: list[Json] = []
    for word in words:
        if not word.startswith("/") and "=" in word:
            named.append(word)
        else:
            devices.append(device(word))
    if devices:
        host["Devices"] = devices
    if named:
        host["DeviceRequests"] = [{"Driver": "cdi", "DeviceIDs": named}]


def device(word: str) -> dict[str, Json]:
    """HOST[:CONTAINER][:rwm]."""
    path, *more = word.split(":")
    target, permissions = path, "rwm"
    if more and _is_permissions(more[-1]):
        permissions = more.pop()
    if more:
        target = more.pop(0)
    if more or not path or not target:
        raise InvalidError(
            f"bad format for --device: {word!r}", hint="Write /dev/HOST[:/dev/CONTAINER[:rwm]]."
        )
    return {"PathOnHost": path, "PathInContainer": target, "CgroupPermissions": permissions}


def _is_permissions(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)
