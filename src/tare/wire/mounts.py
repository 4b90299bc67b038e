"""Mounts asked for: the ``-v`` forms, ``--mount`` objects and ``--tmpfs`` options.

Pure. Whether a source exists, and whether a target may be mounted over, is decided later.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Final

from tare.errors import InvalidError, UnsupportedError
from tare.model.spec import Mount, MountKind, VolumeWish
from tare.model.volume import checked_name
from tare.wire.body import DriverConfig, MountBody, VolumeOptions
from tare.wire.values import checked_text, size

_PROPAGATIONS: Final = frozenset(("private", "rprivate", "shared", "rshared", "slave", "rslave"))
_ACCESS: Final = frozenset(("ro", "rw"))
_LABEL: Final = frozenset(("z", "Z"))
_COPY: Final = frozenset(("nocopy",))
_CONSISTENCY: Final = frozenset(("consistent", "cached", "delegated", "default"))
_TMPFS_FLAGS: Final = frozenset(
    [
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "unbindable",
        "runbindable",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "defaults",
    ]
)
_TMPFS_VALUES: Final = frozenset(["mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol"])
_OCTAL: Final = re.compile(r"[0-7]{1,5}")
_SPEC_LIMIT: Final = 8192


def _is_absolute(path: str) -> bool:
    return path.replace("\\", "/").startswith("/")


def _mode_words(mode: str) -> tuple[str, ...]:
    """The words of the third part of ``a:b:MODE``; each group at most once."""
    words = tuple(mode.split(","))
    groups = (_ACCESS, _PROPAGATIONS, _LABEL, _COPY, _CONSISTENCY)
    counts = [sum(word in group for word in words) for group in groups]
    if sum(counts) != len(words) or max(counts) > 1:
        raise InvalidError(f"invalid mode: {mode}")
    return words


def _split(text: str) -> tuple[str, str, str]:
    """Source, target and mode of *text*; source is empty for an anonymous volume."""
    wrong = InvalidError(
        f"invalid volume specification: '{text}'", hint="the form is SOURCE:TARGET[:OPTIONS]"
    )
    if len(text) > _SPEC_LIMIT:
        raise InvalidError("invalid volume specification: it is too long")
    parts = text.split(":")
    if len(parts) > 3 or not parts[0]:
        raise wrong
    if len(parts) == 1:
        return "", parts[0], ""
    if len(parts) == 2:
        if not parts[1]:
            raise wrong
        try:
            _mode_words(parts[1])
        except InvalidError:
            return parts[0], parts[1], ""
        raise wrong  # "/path:ro" names no target
    if not parts[1]:
        raise wrong
    return parts[0], parts[1], parts[2]


def volume(text: str) -> Mount:
    """Read one ``-v`` form; InvalidError in Docker's words where Docker refuses it."""
    checked_text("volume specification", text)
    source, target, mode = _split(text)
    words = _mode_words(mode) if mode else ()
    kind = MountKind.BIND if source.startswith("/") else MountKind.VOLUME
    wrong = f"invalid volume specification: '{text}': invalid mount config for type \"{kind}\": "
    if posixpath.normpath(target.replace("\\", "/")) in ("/", "//"):
        raise InvalidError(f"{wrong}invalid specification: destination can't be '/'")
    if not _is_absolute(target):
        raise InvalidError(f"{wrong}invalid mount path: '{target}' mount path must be absolute")
    propagation = next((word for word in words if word in _PROPAGATIONS), "")
    if propagation and kind is MountKind.VOLUME:
        raise InvalidError(f"{wrong}field BindOptions must not be specified")
    if "nocopy" in words and kind is MountKind.BIND:
        raise InvalidError(f"{wrong}field VolumeOptions must not be specified")
    return Mount(
        kind=kind,
        target=_clean(target),
        source=_clean(source) if kind is MountKind.BIND else source,
        read_only="ro" in words,
        propagation=propagation or "rprivate",
        create_source=True,
        no_copy="nocopy" in words,
        anonymous=kind is MountKind.VOLUME and not source,
        options=tuple(word for word in words if word in _LABEL | _COPY),
    )


def _clean(path: str) -> str:
    """The path without ``.``, ``..`` and doubled slashes, as moby's filepath.Clean."""
    if "\\" in path:
        return path
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def container_path(what: str, path: str) -> str:
    """An absolute, cleaned path inside a container that is not its root, or InvalidError."""
    checked_text(what, path)
    if not path.startswith("/"):
        raise InvalidError(f"invalid {what}: '{path}' mount path must be absolute")
    cleaned = _clean(path)
    if cleaned == "/":
        raise InvalidError(f"invalid {what}: '{path}': destination can't be '/'")
    return cleaned


def _bind(body: MountBody, target: str) -> Mount:
    source, options = body.source or "", body.bind_options
    wrong = 'invalid mount config for type "bind": '
    if not source:
        raise InvalidError(f"{wrong}field Source must not be empty")
    checked_text("mount source", source)
    if not source.startswith("/"):
        raise InvalidError(f"{wrong}invalid mount path: '{source}' mount path must be absolute")
    if body.volume_options is not None or body.tmpfs_options is not None:
        raise InvalidError(f"{wrong}only BindOptions may be specified")
    propagation = (options.propagation if options else None) or "rprivate"
    if propagation not in _PROPAGATIONS:
        raise InvalidError(f"{wrong}invalid propagation mode: {propagation}")
    extra = []
    if options and options.read_only_non_recursive:
        extra.append("ro-non-recursive")
    if options and options.read_only_force_recursive:
        extra.append("ro-force-recursive")
    return Mount(
        kind=MountKind.BIND,
        target=target,
        source=_clean(source),
        read_only=bool(body.read_only),
        propagation=propagation,
        create_source=bool(options and options.create_mountpoint),
        recursive=not (options and options.non_recursive),
        options=tuple(extra),
    )


def _tmpfs(body: MountBody, target: str) -> Mount:
    options = body.tmpfs_options
    if body.source:
        raise InvalidError(
            'invalid mount config for type "tmpfs": field Source must not be specified'
        )
    if body.bind_options is not None or body.volume_options is not None:
        raise InvalidError(
            'invalid mount config for type "tmpfs": only TmpfsOptions may be specified'
        )
    limit = options.size_bytes if options else None
    mode = options.mode if options else None
    if limit is not None and limit < 0:
        raise InvalidError('invalid mount config for type "tmpfs": negative SizeBytes')
    if mode is not None and not 0 <= mode <= 0o7777:
        raise InvalidError('invalid mount config for type "tmpfs": Mode is out of range')
    extra = ["=".join(pair) for pair in (options.options or ())] if options else []
    for word in extra:
        _check_tmpfs_word(word)
    return Mount(
        kind=MountKind.TMPFS,
        target=target,
        read_only=bool(body.read_only),
        tmpfs_size=limit or None,
        tmpfs_mode=mode or None,
        options=tuple(extra),
    )


def mount(body: MountBody) -> Mount:
    """One of ``HostConfig.Mounts``; kinds that tare does not have are UnsupportedError."""
    kind = body.type or ""
    if kind in ("image", "cluster", "npipe"):
        raise UnsupportedError(f"mounts of type {kind!r} are not supported")
    if kind not in ("bind", "tmpfs", "volume"):
        raise InvalidError(f'invalid mount config: mount type unknown: "{kind}"')
    if not body.target:
        raise InvalidError(
            f'invalid mount config for type "{kind}": field Target must not be empty'
        )
    target = container_path(f'mount config for type "{kind}"', body.target)
    if kind == "bind":
        return _bind(body, target)
    if kind == "tmpfs":
        return _tmpfs(body, target)
    return _volume(body, target)


def _volume(body: MountBody, target: str) -> Mount:
    wrong = 'invalid mount config for type "volume": '
    bind = body.bind_options
    if bind is not None and bind.propagation:
        raise InvalidError(
            f"{wrong}field BindOptions must not be specified",
            hint="a volume is the engine's own: nothing is mounted in it that could propagate",
        )
    if bind is not None or body.tmpfs_options is not None:
        raise InvalidError(f"{wrong}only VolumeOptions may be given")
    options = body.volume_options or VolumeOptions()
    source, subpath = body.source or "", options.subpath or ""
    if source:
        checked_name(source)
    checked_text("volume subpath", subpath, limit=4096)
    if subpath and (subpath.startswith("/") or ".." in subpath.split("/")):
        raise InvalidError(
            f"{wrong}invalid subpath {subpath[:80]!r}: it must be a relative path within the volume"
        )
    if subpath and not source:
        raise InvalidError(f"{wrong}must not set Subpath when using anonymous volumes")
    driver = options.driver_config or DriverConfig()
    wish = VolumeWish(
        driver=driver.name or "",
        options=dict(driver.options or {}),
        labels=dict(options.labels or {}),
    )
    return Mount(
        kind=MountKind.VOLUME,
        target=target,
        source=source,
        read_only=bool(body.read_only),
        subpath=subpath,
        no_copy=bool(options.no_copy),
        anonymous=not source,
        options=("nocopy",) if options.no_copy else (),
        volume=wish if wish != VolumeWish() else None,
    )


def _check_tmpfs_word(word: str) -> None:
    name, equals, value = word.partition("=")
    known = name in _TMPFS_VALUES if equals else name in _TMPFS_FLAGS
    if not known or (equals and (not value or any(c in value for c in "\0\\, "))):
        raise InvalidError(f'Invalid tmpfs option ["{word[:80]}"]')


def tmpfs(target: str, options: str) -> Mount:
    """``--tmpfs TARGET[:OPTIONS]``."""
    where = container_path("tmpfs target", target)
    limit: int | None = None
    mode: int | None = None
    read_only, extra = False, []
    for word in filter(None, options.split(",")):
        _check_tmpfs_word(word)
        name, _, value = word.partition("=")
        if name == "size" and not value.endswith("%"):
            limit = size(value)
        elif name == "mode":
            if not _OCTAL.fullmatch(value):
                raise InvalidError(f"invalid tmpfs mode {value[:20]!r}: octal digits are expected")
            mode = int(value, 8)
        elif name in _ACCESS:
            read_only = name == "ro"
        else:
            extra.append(word)
    return Mount(
        kind=MountKind.TMPFS,
        target=where,
        read_only=read_only,
        tmpfs_size=limit or None,
        tmpfs_mode=mode,
        options=tuple(extra),
    )


def together(
    binds: Iterable[str], bodies: Iterable[MountBody], tmpfs_options: Mapping[str, str]
) -> tuple[Mount, ...]:
    """Every mount of a request, in order; two for one target are InvalidError."""
    mounts = [volume(text) for text in binds]
    mounts += [mount(body) for body in bodies]
    mounts += [tmpfs(target, options) for target, options in tmpfs_options.items()]
    seen: set[str] = set()
    for one in mounts:
        if one.target in seen:
            raise InvalidError(f"Duplicate mount point: {one.target}")
        seen.add(one.target)
    return tuple(mounts)
