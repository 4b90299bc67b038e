"""What an entry of a layer means, before anyone makes anything of it.

A layer is an archive of changes: some names are orders to hide what lies below. Here are the rules
that the EROFS writer and the extractor share, so that both make the same tree: which names are
whiteouts (image-spec, layer.md, "Whiteouts"), which are traps, and which extended attributes an
archive may set. Not for: making whiteouts, which differs by file system.
"""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tare.errors import FailedError, InvalidError
from tare.image.entry import NO_XATTRS, Entry, Kind, show

_PREFIX: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = frozenset((b".wh..wh.aufs", b".wh..wh.plnk", b".wh..wh.orph"))
_CAPABILITY: Final = b"security.capability"
_CAP_REVISION: Final = 0xFF000000
_CAP_EFFECTIVE: Final = 1


class Meaning(enum.Enum):
    """What a layer's entry is."""

    ENTRY = "entry"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    NOTHING = "nothing"


@dataclass(slots=True)
class LayerSummary:
    """What was made of a layer, and what was left out."""

    entries: int = 0
    """Names in the tree, implied directories and whiteouts included."""
    size: int = 0
    """Bytes of file data, holes not counted."""
    written: int = 0
    """Bytes of the EROFS file; 0 for an extracted layer."""
    whiteouts: int = 0
    opaque_root: bool = False
    """The layer hides all below it. overlayfs does not honour this mark on the root of a layer:
    whoever mounts must leave the lower layers out."""
    implied: int = 0
    """Directories that the archive used and did not describe: made 0755 root."""
    skipped_devices: int = 0
    stripped_xattrs: int = 0
    max_id: int = 0
    """The largest uid or gid: what a user namespace must map."""


def meaning(entry: Entry) -> tuple[Meaning, bytes]:
    """What *entry* is, and the path it is about: the hidden name, or the opaque directory.

    InvalidError for names that begin with ``.wh.`` and are no whiteout of one plain name, and for
    whiteouts that overlayfs would see but no archive may smuggle in (attack A27).
    """
    path = entry.path
    if entry.kind is Kind.CHAR and entry.major == 0 and entry.minor == 0:
        raise InvalidError(f"layer entry {show(path)}: a device 0:0 would hide files below it")
    if _PREFIX not in path:
        return Meaning.ENTRY, path
    *parents, base = path.split(b"/")
    first = parents[0] if parents else base
    if first in _AUFS:  # bookkeeping of a file system that old images were made on
        return Meaning.NOTHING, path
    if any(part.startswith(_PREFIX) for part in parents):
        raise InvalidError(f"layer entry {show(path)}: something inside a whiteout")
    if not base.startswith(_PREFIX):
        return Meaning.ENTRY, path
    if entry.kind not in (Kind.FILE, Kind.HARDLINK):
        raise InvalidError(f"layer entry {show(path)}: a whiteout that is not a file")
    parent = b"/".join(parents)
    if base == _OPAQUE:
        return Meaning.OPAQUE, parent
    target = base[len(_PREFIX) :]
    if target in (b"", b".", b"..") or target.startswith(_PREFIX):
        raise InvalidError(f"layer entry {show(path)}: a whiteout of no possible name")
    return Meaning.WHITEOUT, parent + b"/" + target if parent else target


def permitted_xattrs(entry: Entry, summary: LayerSummary) -> Mapping[bytes, bytes]:
    """The attributes of *entry* that may be set; the others are counted in *summary*.

    ``user.*`` but overlayfs's own, and file capabilities. ``trusted.*``, ``system.*`` and labels of
    security modules are the host's to give: an archive could redirect, hide or mislabel by them.
    """
    if not entry.xattrs:
        return NO_XATTRS
    kept: dict[bytes, bytes] = {}
    if entry.kind is Kind.FILE or entry.kind is Kind.DIR:
        for key, value in entry.xattrs.items():
            if key == _CAPABILITY and entry.kind is Kind.FILE:
                capability = _capability(value)
                if capability is not None:
                    kept[key] = capability
            elif len(key) > 5 and key.startswith(b"user.") and not key.startswith(b"user.overlay."):
                kept[key] = value
    summary.stripped_xattrs += len(entry.xattrs) - len(kept)
    return kept


def cannot_write(subject: str, error: OSError) -> FailedError:
    """What to raise when the host could not take *subject*."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return FailedError(
        f"cannot write {subject}: {error.strerror}",
        hint="free some space, for example with: tare image prune" if full else "",
    )


def _capability(value: bytes) -> bytes | None:
    """A file capability the kernel understands, or None.

    Revision 3 names the root of one host's user namespace. It is written as revision 2, and the
    kernel gives it the root of the namespace in which it is set or mounted.
    """
    if len(value) < 12:
        return None
    magic = int.from_bytes(value[:4], "little")
    match magic & _CAP_REVISION, len(value):
        case (0x01000000, 12) | (0x02000000, 20):
            return value
        case (0x03000000, 24):
            return struct.pack("<I", 0x02000000 | (magic & _CAP_EFFECTIVE)) + value[4:20]
    return None
