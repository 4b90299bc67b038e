"""Layers by diff_id: each one converted once, in one pass, verified, then visible.

::

    layers/HEX.erofs     the layer as overlayfs wants it, for kernels that mount EROFS from a file
    layers/HEX.recipe    how to make its archive again from that file (``recipe``)
    layers/HEX/          instead of both: the layer extracted (rootless, old kernels), and
    layers/HEX.tar.zst   its archive, recompressed (an extracted file may be one of a chain of
                         entries of one name, so a tree does not always give the archive back)
    layers/HEX.json      written last: with it the layer is there, without it the rest is leftovers
    layers/.tmp-*/       being made

HEX is the sha256 of the uncompressed archive: the diff_id, by which image configurations name
their layers, so whatever archive or registry a layer came from, it lies here once. Everything is
synced before HEX.json is. Not for: who uses a layer (``index``, ``store``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tare.errors import FailedError, InvalidError, MissingError
from tare.image import erofs, extract, tar
from tare.image.compress import (
    Compression,
    Compressor,
    compressor,
    detect,
    open_decompressed,
)
from tare.image.entry import ByteSource, Entry, Kind, Limits
from tare.image.recipe import Recorder, replay
from tare.image.whiteout import LayerSummary, Meaning, meaning
from tare.kernel import files
from tare.model.digest import Digest
from tare.model.oci import Descriptor

_FORMAT: Final = 1
_TEMPORARY: Final = ".tmp-"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """A layer that is there. ``path`` is its EROFS file, or its directory.

    ``size`` counts the bytes of its files, ``archive_size`` those of its archive. ``max_id`` is
    the largest uid or gid in it; ``opaque_root`` says that it hides all layers below.
    """

    diff_id: Digest
    path: Path
    size: int
    archive_size: int
    max_id: int = 0
    opaque_root: bool = False


class Layers:
    """The layers below one directory, which it makes. May be used from several threads."""

    def __init__(self, directory: Path, *, extract: bool) -> None:
        self._directory = directory
        self.extracts = extract
        self._lock = threading.RLock()
        self._settling = threading.Lock()  # taken before `_lock`, never inside it
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known: dict[Digest, LayerInfo] = {}
        # Made and not yet synced: they have no HEX.json, so a crash takes them away whole.
        self._fresh: dict[Digest, dict[str, object]] = {}
        for path in directory.glob("[0-9a-f]*.json"):
            info = self._read_info(path)
            if info is not None:
                self._known[info.diff_id] = info

    def __contains__(self, diff_id: Digest) -> bool:
        return diff_id in self._known

    def all(self) -> list[Digest]:
        """Every layer that is there."""
        with self._lock:
            return list(self._known)

    def get(self, diff_id: Digest) -> LayerInfo:
        """A layer that is there; else MissingError."""
        info = self._known.get(diff_id)
        if info is None:
            raise MissingError(f"No such layer: {diff_id}")
        return info

    def add(
        self,
        stream: ByteSource,
        *,
        diff_id: Digest | None = None,
        blob: Descriptor | None = None,
        pin: Callable[[Digest], None] = lambda _: None,
        durable: bool = True,
    ) -> LayerInfo:
        """Make a layer of an archive, plain or compressed, and verify it.

        1. the bytes read have the digest and size that *blob* says, if it is given;
        2. the archive inside has the digest *diff_id*, if it is given;
        3. only then the layer becomes visible, on disk before it does.

        *pin* is called with the diff_id before that, so that no collector may take it away.
        Without *durable* it is visible at once and on disk only after `settle`: a build makes many
        layers, and one sync serves them all.
        """
        work = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._directory))
        try:
            measured = _Measured(stream, blob)
            with open_decompressed(measured, digest=True, read_ahead=True) as plain:
                convert = self._extracted if self.extracts else self._erofs
                summary = convert(_Affordable(plain, self._directory), work, durable=durable)
                found = Digest(plain.digest)
                size = plain.size
            if not size:
                raise InvalidError("the archive is empty")
            measured.verify(found)
            if diff_id is not None and found != diff_id:
                raise InvalidError(
                    f"layer {diff_id} is not what it says it is: its archive is {found}",
                    hint="the archive or the registry is damaged, or somebody changed it",
                )
            pin(found)
            return self._commit(work, found, size, summary, durable=durable)
        finally:
            _remove_tree(work)

    def settle(self, diff_ids: Iterable[Digest]) -> None:
        """Put on disk whatever of these is not there yet: a crash after this loses nothing."""
        with self._settling:
            with self._lock:
                wanted = [digest for digest in dict.fromkeys(diff_ids) if digest in self._fresh]
                for digest in wanted:
                    self._write_facts(digest)
            if wanted and self.extracts:
                os.sync()  # thousands of files: one sync of the file system is the quickest
            # All was written before the first sync, whose journal commit serves the others.
            for digest in wanted:
                for suffix in (".new",) if self.extracts else (".new", ".erofs", ".recipe"):
                    with contextlib.suppress(FileNotFoundError):  # removed or settled meanwhile
                        files.sync_file(self._path(digest, suffix))
            with self._lock:
                self._publish([digest for digest in wanted if digest in self._fresh])

    def _write_facts(self, digest: Digest) -> None:
        """Write what will be HEX.json, under a name that means nothing yet."""
        content = json.dumps(self._fresh[digest], sort_keys=True).encode()
        with open(self._path(digest, ".new"), "wb", opener=_private) as file:
            file.write(content)

    def _publish(self, diff_ids: list[Digest]) -> None:
        """Make layers that are synced visible to the next start, all with one more sync."""
        for digest in diff_ids:
            os.rename(self._path(digest, ".new"), self._path(digest, ".json"))
        if diff_ids:
            files.sync_directory(self._directory)  # with it, the renames of their files
        for digest in diff_ids:
            del self._fresh[digest]

    def archive(self, diff_id: Digest) -> Iterator[bytes]:
        """The layer's archive, bit for bit; FailedError at its end if it is not that."""
        info = self.get(diff_id)
        digest = hashlib.sha256()
        size = 0
        pieces = self._archive_pieces(info)
        while True:
            try:
                piece = next(pieces, None)
            except (InvalidError, FailedError) as error:
                raise _damaged(diff_id) from error
            if piece is None:
                break
            digest.update(piece)
            size += len(piece)
            yield piece
        if digest.hexdigest() != diff_id.hex or size != info.archive_size:
            raise _damaged(diff_id)

    def verify(self, diff_id: Digest) -> None:
        """Read all of a layer; FailedError if anything in it was changed since it was made."""
        info = self.get(diff_id)
        if self.extracts:
            for _ in self.archive(diff_id):
                pass
            return
        # The conversion is deterministic, so the same archive must give the same file.
        work = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._directory))
        try:
            with open_decompressed(_Pieces(self.archive(diff_id)), digest=True) as plain:
                self._erofs(plain, work, durable=False)
            if not _same(work / "erofs", info.path):
                raise _damaged(diff_id)
        finally:
            _remove_tree(work)

    def remove(self, diff_id: Digest) -> int:
        """Delete a layer if it is there; answers how many bytes of disk that freed."""
        with self._lock:
            info = self._known.pop(diff_id, None)
            if info is None:
                return 0
            self._fresh.pop(diff_id, None)
            for suffix in (".json", ".new"):
                self._path(diff_id, suffix).unlink(missing_ok=True)
            freed = 0
            for suffix in (".erofs", ".recipe", ".tar.zst"):
                path = self._path(diff_id, suffix)
                if path.exists():
                    freed += path.stat().st_blocks * 512
                    path.unlink()
            if self.extracts:
                freed += info.size
                _remove_tree(info.path)
            return freed

    def recover(self) -> None:
        """Delete what a crash left half made or half deleted."""
        known = {digest.hex for digest in self._known}
        for path in self._directory.iterdir():
            if path.name.split(".")[0] in known and not path.name.startswith("."):
                continue
            _remove_tree(path)

    # -- making one -------------------------------------------------------------------------

    def _erofs(self, plain: ByteSource, work: Path, *, durable: bool) -> LayerSummary:
        with (
            open(work / "erofs", "xb", buffering=0, opener=_private) as out,
            open(work / "recipe", "xb", opener=_private) as recipe,
        ):
            recorder = Recorder(plain, recipe)
            writer = erofs.ErofsWriter(out)
            for entry, content in tar.read(recorder):
                if _stored_whole(entry):
                    recorder.data(content.offset, entry.size, writer.position)
                writer.add(entry, content)
            summary = writer.finish()
            recorder.finish()
            recipe.flush()
            for file in (out, recipe) if durable else ():
                os.fsync(file.fileno())
        return summary

    def _extracted(self, plain: ByteSource, work: Path, *, durable: bool) -> LayerSummary:
        root = work / "tree"
        root.mkdir(mode=0o755)
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with open(work / "tar.zst", "xb", opener=_private) as kept:
                copy = _Copied(plain, compressor(Compression.ZSTD, kept, level=1))
                entries = tar.read(copy)
                rules = extraction_rules(work)
                summary = extract.extract(entries, descriptor, rules=rules)
                copy.finish()
                kept.flush()
            if durable:
                os.sync()  # thousands of files: one sync of the file system is the quickest
        finally:
            os.close(descriptor)
        return summary

    def _commit(
        self, work: Path, diff_id: Digest, size: int, summary: LayerSummary, *, durable: bool
    ) -> LayerInfo:
        with self._lock:
            if diff_id not in self._known:
                if self.extracts:
                    _remove_tree(self._path(diff_id, ""))
                    os.rename(work / "tree", self._path(diff_id, ""))
                    os.rename(work / "tar.zst", self._path(diff_id, ".tar.zst"))
                else:
                    os.rename(work / "erofs", self._path(diff_id, ".erofs"))
                    os.rename(work / "recipe", self._path(diff_id, ".recipe"))
                facts = {"format": _FORMAT, "archive_size": size, **asdict(summary)}
                self._known[diff_id] = self._info(diff_id, facts)
                self._fresh[diff_id] = facts
            info = self._known[diff_id]
        if durable:
            self.settle((diff_id,))
        return info

    # -- reading one ------------------------------------------------------------------------

    def _archive_pieces(self, info: LayerInfo) -> Iterator[bytes]:
        if self.extracts:
            with (
                open(self._path(info.diff_id, ".tar.zst"), "rb") as kept,
                open_decompressed(kept, limits=Limits(ratio=None)) as plain,
            ):
                while piece := plain.read(1 << 20):
                    yield piece
            return
        with (
            open(self._path(info.diff_id, ".recipe"), "rb") as recipe,
            open(info.path, "rb") as file,
        ):
            yield from replay(recipe, file.fileno())

    def _read_info(self, path: Path) -> LayerInfo | None:
        """What HEX.json says, if what it says is of the kind that we keep."""
        diff_id = Digest(path.name.removesuffix(".json"))
        try:
            facts = json.loads(path.read_bytes())
            if facts["format"] > _FORMAT:
                raise FailedError(
                    f"layer {diff_id} was written by a newer tare", hint="upgrade tare"
                )
            info = self._info(diff_id, facts)
        except (ValueError, KeyError, TypeError):
            return None
        return info if info.path.exists() else None

    def _info(self, diff_id: Digest, facts: dict[str, object]) -> LayerInfo:
        """A layer as *facts* describe it; KeyError, TypeError or ValueError if they do not."""
        size, archive_size, max_id = (
            int(str(facts[name])) for name in ("size", "archive_size", "max_id")
        )
        return LayerInfo(
            diff_id=diff_id,
            path=self._path(diff_id, "" if self.extracts else ".erofs"),
            size=size,
            archive_size=archive_size,
            max_id=max_id,
            opaque_root=bool(facts["opaque_root"]),
        )

    def _path(self, diff_id: Digest, suffix: str) -> Path:
        return self._directory / (diff_id.hex + suffix)


def _damaged(diff_id: Digest) -> FailedError:
    return FailedError(f"layer {diff_id} was changed on disk", hint="load or pull its image again")


def _stored_whole(entry: Entry) -> bool:
    """Does the EROFS file hold the entry's data in one piece?"""
    return (
        entry.kind is Kind.FILE
        and entry.size > 0
        and entry.sparse is None
        and meaning(entry)[0] is Meaning.ENTRY
        and bool(entry.path)
    )


class _Affordable:
    """Passes bytes on while a tenth of what was free on the disk would stay free."""

    def __init__(self, stream: ByteSource, directory: Path) -> None:
        self._stream = stream
        status = os.statvfs(directory)
        self._left = status.f_bavail * status.f_frsize * 9 // 10

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes of the stream; OSError ENOSPC when they would fill the disk."""
        data = self._stream.read(n)
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return data


class _Measured:
    """Passes compressed bytes on, and takes their measure for *blob*."""

    def __init__(self, stream: ByteSource, blob: Descriptor | None) -> None:
        self._stream = stream
        self._blob = blob
        self._hash = hashlib.sha256() if blob is not None else None
        self._size = 0

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes of the stream."""
        data = self._stream.read(n)
        if self._hash is not None and data:
            # An uncompressed blob is hashed once, as what comes out of it.
            if not self._size and len(data) >= 6 and detect(data) is Compression.PLAIN:
                self._hash = None
            else:
                self._hash.update(data)
        self._size += len(data)
        if self._blob is not None and self._size > self._blob.size:
            raise InvalidError(
                f"blob {self._blob.digest} is longer than the {self._blob.size} bytes announced"
            )
        return data

    def verify(self, plain: Digest) -> None:
        """All was read: InvalidError if it is not what was announced."""
        blob = self._blob
        if blob is None:
            return
        if self._size != blob.size:
            raise InvalidError(
                f"blob {blob.digest} has {self._size} bytes; {blob.size} were announced"
            )
        found = plain if self._hash is None else Digest(self._hash.hexdigest())
        if found != blob.digest:
            raise InvalidError(f"blob {blob.digest} is not what it says it is: it is {found}")


class _Copied:
    """Passes bytes on and keeps them compressed."""

    def __init__(self, stream: ByteSource, kept: Compressor) -> None:
        self._stream = stream
        self._kept = kept

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes of the stream."""
        data = self._stream.read(n)
        self._kept.write(data)
        return data

    def finish(self) -> None:
        """All was read."""
        self._kept.close()


class _Pieces:
    """An iterator of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes; empty at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        data, self._rest = (self._rest, b"") if n < 0 else (self._rest[:n], self._rest[n:])
        return data


def extraction_rules(directory: Path) -> extract.Rules:
    """How layers are extracted here: without privilege, overlayfs reads ``user.overlay.*``."""
    try:
        os.setxattr(directory, "trusted.tare", b"")
        os.removexattr(directory, "trusted.tare")
    except OSError:
        owner = extract.same_owner if os.geteuid() == 0 else None
        return extract.Rules(userxattr=True, devices=False, owner=owner)
    return extract.Rules()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _same(one: Path, other: Path) -> bool:
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            left, right = a.read(1 << 20), b.read(1 << 20)
            if left != right:
                return False
            if not left:
                return True


def _remove_tree(path: Path) -> None:
    """Delete a file or a tree, whatever modes its directories have."""

    def open_up(function: Callable[[str], object], name: str, _: object) -> None:
        parent = os.path.dirname(name)
        os.chmod(parent, stat.S_IRWXU)
        if os.path.isdir(name) and not os.path.islink(name):
            os.chmod(name, stat.S_IRWXU)
            shutil.rmtree(name)
        else:
            function(name)

    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, onerror=open_up)
