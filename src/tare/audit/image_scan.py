"""An image's files as facts: what is setuid, what looks like a secret, which packages it has.

Layers are looked at one by one, for what a later layer deletes is still in the image, and each
once: a layer never changes. The image as a whole is looked at for packages and accounts. Every
layer is mounted read-only without a place in the file system; no link in it is followed out of it,
and sizes and counts are bounded.

Not for: judging (`image`).
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tare.audit import secrets
from tare.audit.secrets import Secret
from tare.build.sbom import languages, system
from tare.build.sbom.inventory import Files, Inventory
from tare.build.secret_names import is_secret_file
from tare.kernel import files
from tare.run import rootfs

_CONTENT_MAX: Final = 256 << 10
_TOTAL_MAX: Final = 256 << 20
_ENTRIES_MAX: Final = 500_000
_FOUND_MAX: Final = 200
_DEPTH_MAX: Final = 64
_KEPT: Final = 512
_BINARY: Final = 1024
# Manuals, locales and code of the system, which the packager has looked at and nobody edits.
_PASSED_OVER: Final = (
    b"usr/share/", b"usr/lib/python3", b"usr/lib/locale", b"usr/include/", b"usr/lib/x86_64-linux",
    b"usr/lib/aarch64-linux", b"usr/bin/", b"usr/sbin/", b"bin/", b"sbin/", b"lib/",
    b"var/lib/dpkg/", b"proc/", b"sys/", b"dev/",
)  # fmt: skip
_SETTINGS: Final = (
    b".env", b".ini", b".conf", b".cfg", b".cnf", b".properties", b".toml", b".yml", b".yaml",
    b".json", b".sh", b".envrc", b"rc",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """What one layer adds; paths begin without a slash."""

    setuid: tuple[tuple[str, int], ...] = ()  # path and mode
    capable: tuple[str, ...] = ()  # with file capabilities
    writable: tuple[str, ...] = ()
    secrets: tuple[tuple[str, Secret], ...] = ()
    files: int = 0
    cut_short: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """The image as a container sees it, and its layers one by one."""

    layers: tuple[tuple[str, LayerFacts], ...]  # by diff_id
    visible: frozenset[str]  # of the paths that layers name, those that are still there
    inventory: Inventory
    empty_passwords: tuple[str, ...] = ()
    duplicate_ids: tuple[str, ...] = ()


_known: OrderedDict[str, LayerFacts] = OrderedDict()
_images: OrderedDict[str, ImageFacts] = OrderedDict()
_lock = threading.Lock()


def scan(identity: str, layers: Sequence[tuple[str, str]]) -> ImageFacts:
    """The facts of the image *identity*, whose *layers* are diff_ids and paths, bottom first."""
    with _lock:
        if identity in _images:
            _images.move_to_end(identity)
            return _images[identity]
    found = tuple((diff_id, _layer(diff_id, path)) for diff_id, path in layers)
    facts = _whole(found, [path for _, path in layers])
    with _lock:
        _images[identity] = facts
        while len(_images) > _KEPT:
            _images.popitem(last=False)
    return facts


def _layer(diff_id: str, path: str) -> LayerFacts:
    with _lock:
        if diff_id in _known:
            return _known[diff_id]
    root = rootfs.mounted_image([path])
    try:
        facts = _Walk(root).facts()
    finally:
        os.close(root)
    with _lock:
        _known[diff_id] = facts
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return facts


class _Walk:
    """One pass over a layer."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._setuid: list[tuple[str, int]] = []
        self._capable: list[str] = []
        self._writable: list[str] = []
        self._secrets: list[tuple[str, Secret]] = []
        self._files = self._read = 0
        self._cut = False

    def facts(self) -> LayerFacts:
        """Walk all of it, as far as the bounds go."""
        stack: list[bytes] = [b""]
        while stack and not self._cut:
            here = stack.pop()
            try:
                handle = files.open_beneath(
                    self._root, here or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                )
            except OSError:
                continue
            try:
                stack += self._directory(here, handle)
            finally:
                os.close(handle)
        return LayerFacts(
            setuid=tuple(self._setuid),
            capable=tuple(self._capable),
            writable=tuple(self._writable),
            secrets=tuple(self._secrets),
            files=self._files,
            cut_short=self._cut,
        )

    def _directory(self, here: bytes, handle: int) -> list[bytes]:
        below = []
        with os.scandir(handle) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            self._files += 1
            if self._files > _ENTRIES_MAX:
                self._cut = True
                break
            name = os.fsencode(entry.name)
            path = here + b"/" + name if here else name
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                self._open_to_all(path, status.st_mode)
                if path.count(b"/") < _DEPTH_MAX:
                    below.append(path)
            elif stat.S_ISREG(status.st_mode):
                self._open_to_all(path, status.st_mode)
                self._file(path, name, handle, status)
        return below

    def _open_to_all(self, path: bytes, mode: int) -> None:
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and len(self._writable) < _FOUND_MAX:
            self._writable.append(_shown(path))

    def _file(self, path: bytes, name: bytes, handle: int, status: os.stat_result) -> None:
        if status.st_mode & (stat.S_ISUID | stat.S_ISGID) and len(self._setuid) < _FOUND_MAX:
            self._setuid.append((_shown(path), stat.S_IMODE(status.st_mode)))
        executable = status.st_mode & 0o111
        named = is_secret_file(os.fsdecode(name))
        wanted = 0 < status.st_size <= _CONTENT_MAX and (named or not path.startswith(_PASSED_OVER))
        if not wanted and not executable:
            return
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        except OSError:
            return
        try:
            if executable and self._has_capability(file):
                self._capable.append(_shown(path))
            if wanted and self._read < _TOTAL_MAX:
                self._content(path, file, named=named)
        finally:
            os.close(file)

    def _has_capability(self, file: int) -> bool:
        try:
            return bool(os.getxattr(file, "security.capability"))
        except OSError:
            return False

    def _content(self, path: bytes, file: int, *, named: bool) -> None:
        try:
            content = os.read(file, _CONTENT_MAX)
        except OSError:
            return
        self._read += len(content)
        if b"\0" in content[:_BINARY]:
            if named and path.endswith((b".p12", b".pfx", b".jks", b".keystore", b".kdbx")):
                self._found(path, Secret("a store of keys", "binary", sure=True))
            return
        assigned = named or path.endswith(_SETTINGS)
        found = list(secrets.in_content(content, assigned=assigned))
        for one in found:
            self._found(path, one)
        if named and not found and not path.endswith((b".pem", b".crt")):
            self._found(path, Secret("the name of a file that holds secrets", "", sure=False))

    def _found(self, path: bytes, secret: Secret) -> None:
        if len(self._secrets) < _FOUND_MAX:
            self._secrets.append((_shown(path), secret))


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _whole(layers: Sequence[tuple[str, LayerFacts]], paths: list[str]) -> ImageFacts:
    inventory = Inventory()
    if not paths:
        return ImageFacts(layers=(), visible=frozenset(), inventory=inventory)
    root = rootfs.mounted_image(paths)
    try:
        content = Files(root, inventory)
        system.collect(content, inventory)
        languages.collect(content, inventory)
        named = {
            path
            for _, facts in layers
            for path in (
                *(p for p, _ in facts.setuid), *facts.capable, *facts.writable,
                *(p for p, _ in facts.secrets),
            )
        }  # fmt: skip
        return ImageFacts(
            layers=tuple(layers),
            visible=frozenset(path for path in named if _there(root, path)),
            inventory=inventory,
            empty_passwords=_empty_passwords(content),
            duplicate_ids=_duplicates(content),
        )
    finally:
        os.close(root)


def _there(root: int, path: str) -> bool:
    """Whether the image as a whole still shows it; a link on the way leads nowhere outside."""
    try:
        os.close(files.open_in_root(root, os.fsencode(path), os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def _empty_passwords(content: Files) -> tuple[str, ...]:
    found = []
    for path in (b"etc/shadow", b"etc/passwd"):
        for line in (content.text(path) or "").splitlines()[:5000]:
            words = line.split(":")
            if len(words) > 2 and words[0] and not words[1]:
                found.append(words[0])
    return tuple(dict.fromkeys(found))


def _duplicates(content: Files) -> tuple[str, ...]:
    seen: dict[str, str] = {}
    found = []
    for line in (content.text(b"etc/passwd") or "").splitlines()[:5000]:
        words = line.split(":")
        if len(words) > 3 and words[2].isdigit():
            if words[2] in seen and seen[words[2]] != words[0]:
                found.append(f"{seen[words[2]]} and {words[0]} are both {words[2]}")
            seen.setdefault(words[2], words[0])
    return tuple(found)
