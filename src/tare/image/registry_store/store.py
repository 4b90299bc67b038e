"""The registry's content as a whole: what is there, under which names, and how it comes and goes.

::

    STATE/registry/        0700
        lock               flock of the process that serves it
        registry.db        names and references (``index``)
        blobs/ALG/HEX      content, 0600; ALG is sha256 or sha512
        uploads/ID         content on its way in (``uploads``)

The rules that make it safe against kill -9 at any point: a blob's bytes are hashed, compared and
synced before it gets its name, and it gets its name before the index knows it; the index forgets it
in the same transaction in which the file goes. What a crash leaves between is a file that nothing
knows, or a row without a file, and `recover` deletes both.

One process serves a store (`serve` holds the lock); `collect` may run beside it. Blocking; the
caller has threads. Not for: HTTP, who may do what.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tare.errors import ConflictError
from tare.image.registry_store.index import Index
from tare.image.registry_store.uploads import Upload, is_id, new_id
from tare.kernel import files
from tare.model.distribution import Code, ContentDigest, DistributionError
from tare.model.stored_manifest import Link, StoredManifest

DIRECTORY: Final = "registry"
"""Where it lies in the state of an engine."""
ABANDONED_SECONDS: Final = 24 * 3600
"""An upload that nobody wrote to for so long is deleted."""
UPLOADS_MAX: Final = 1000
_FRESH_SECONDS: Final = 3600

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that is there."""

    digest: ContentDigest
    path: Path
    size: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest that is there."""

    digest: ContentDigest
    media_type: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose subject is another."""

    digest: str
    media_type: str
    size: int
    artifact_type: str
    annotations: dict[str, str]


class RegistryStore:
    """The content below *directory*, which it makes. May be used from several threads."""

    def __init__(self, directory: Path, *, clock: Clock = time.time) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.clock = clock
        for name in ("uploads", "blobs/sha256", "blobs/sha512"):
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.index = Index(directory / "registry.db")
        self._uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the files; uploads stay and go on with the next one who serves."""
        for upload in self._uploads.values():
            upload.rest()
        self.index.close()

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Hold the lock of the one process that serves, and make true what a crash interrupted."""
        path = self.directory / "lock"
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(
                    f"another process serves {self.directory} already",
                    hint="name another directory with --data",
                ) from None
            self.recover()
            yield
        finally:
            os.close(held)

    def recover(self) -> None:
        """Delete what a crash left half made: call it with the lock held, before anything else."""
        with self.index.change():
            rows = self.index.write("SELECT digest FROM blobs")
            known = {str(row[0]) for row in rows}
            found = set()
            for algorithm in ("sha256", "sha512"):
                for entry in os.scandir(self.directory / "blobs" / algorithm):
                    name = f"{algorithm}:{entry.name}"
                    found.add(name)
                    if name not in known:
                        os.unlink(entry.path)
            for digest in known - found:
                self.index.write("DELETE FROM blobs WHERE digest = ?", digest)
            self._drop_uploads()

    def expire(self) -> None:
        """Delete the uploads that were abandoned."""
        with self.index.change():
            self._drop_uploads()

    def _drop_uploads(self) -> None:
        known = {str(row[0]) for row in self.index.write("SELECT id FROM uploads")}
        oldest = self.clock() - ABANDONED_SECONDS
        for entry in list(os.scandir(self.directory / "uploads")):
            upload = self._uploads.get(entry.name)
            if upload is not None and not upload.busy.acquire(blocking=False):
                known.discard(entry.name)
                continue
            try:
                if entry.name in known and entry.stat(follow_symlinks=False).st_mtime > oldest:
                    known.discard(entry.name)
                    continue
                self._forget(entry.name)
            finally:
                if upload is not None:
                    upload.busy.release()
        for id in known:
            self._forget(id)

    # -- blobs ------------------------------------------------------------------------------

    def blob(self, repository: str, digest: ContentDigest) -> Blob:
        """A blob that *repository* has; else BLOB_UNKNOWN."""
        rows = self.index.read(
            "SELECT size, since FROM links JOIN blobs USING (digest)"
            " JOIN repositories ON repositories.id = links.repository"
            " WHERE name = ? AND digest = ?",
            repository,
            str(digest),
        )
        path = self._path(digest)
        # A collector that was killed may have left the row: then a push must send it again.
        if not rows or not path.exists():
            raise DistributionError(Code.BLOB_UNKNOWN, f"there is no blob {digest} in {repository}")
        size, since = rows[0]
        return Blob(digest, path, int(str(size)), int(str(since)))

    def want(self, repository: str, blob: Blob) -> None:
        """Somebody asks whether *blob* is there, perhaps to name it next: the collector waits."""
        if blob.since < self.clock() - _FRESH_SECONDS:
            with self.index.change():
                self._link(repository, blob.digest)

    def mount(self, repository: str, digest: ContentDigest, source: str | None) -> bool:
        """Let *repository* have a blob that *source* (None: any other) has; False if none has."""
        query = "SELECT 1 FROM links JOIN repositories ON id = repository WHERE digest = ?"
        with self.index.change():
            if source is None:
                found = self.index.write(f"{query} LIMIT 1", str(digest))
            else:
                found = self.index.write(f"{query} AND name = ?", str(digest), source)
            if found:
                self._link(repository, digest)
        return bool(found)

    def remove_blob(self, repository: str, digest: ContentDigest) -> None:
        """Take a blob from *repository*; BLOB_UNKNOWN, or UNSUPPORTED while a manifest needs it."""
        with self.index.change():
            number = self.index.make_repository(repository)
            needed = self.index.write(
                "SELECT manifest FROM parts WHERE repository = ? AND digest = ? LIMIT 1",
                number,
                str(digest),
            )
            if needed:
                raise DistributionError(
                    Code.UNSUPPORTED,
                    f"blob {digest} is part of manifest {needed[0][0]!s}:"
                    " that must be deleted first",
                )
            self.index.write(
                "DELETE FROM links WHERE repository = ? AND digest = ?", number, str(digest)
            )
            if not self.index.changed():
                raise DistributionError(
                    Code.BLOB_UNKNOWN, f"there is no blob {digest} in {repository}"
                )
            self.drop_unlinked(str(digest))

    def drop_unlinked(self, digest: str) -> int:
        """Inside a change: delete a blob that no repository has; answers the bytes freed."""
        if self.index.write("SELECT 1 FROM links WHERE digest = ? LIMIT 1", digest):
            return 0
        rows = self.index.write("SELECT size FROM blobs WHERE digest = ?", digest)
        self.index.write("DELETE FROM blobs WHERE digest = ?", digest)
        self._path(ContentDigest.parse(digest)).unlink(missing_ok=True)
        return int(str(rows[0][0])) if rows else 0

    def _link(self, repository: str, digest: ContentDigest) -> None:
        number = self.index.make_repository(repository)
        self.index.write(
            "INSERT INTO links VALUES (?, ?, ?)"
            " ON CONFLICT (repository, digest) DO UPDATE SET since = excluded.since",
            number,
            str(digest),
            int(self.clock()),
        )

    def _path(self, digest: ContentDigest) -> Path:
        return self.directory / "blobs" / digest.algorithm / digest.hex

    # -- uploads ----------------------------------------------------------------------------

    def begin(self, repository: str) -> Upload:
        """A new, empty upload to *repository*; TOOMANYREQUESTS when there are very many."""
        id = new_id()
        path = self.directory / "uploads" / id
        with self.index.change():
            if self.index.write("SELECT count(*) >= ? FROM uploads", UPLOADS_MAX)[0][0]:
                raise DistributionError(Code.TOOMANYREQUESTS, "too many uploads are open")
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            self.index.write(
                "INSERT INTO uploads VALUES (?, ?, ?)", id, repository, int(self.clock())
            )
        with self._lock:
            return self._uploads.setdefault(id, Upload(id, repository, path))

    def upload(self, repository: str, id: str) -> Upload:
        """An upload to *repository* that goes on; else BLOB_UPLOAD_UNKNOWN."""
        if is_id(id):
            with self._lock:
                upload = self._uploads.get(id)
                if upload is None and self.index.read("SELECT 1 FROM uploads WHERE id = ?", id):
                    upload = self._reopen(id)
                if upload is not None and upload.repository == repository:
                    return upload
        raise DistributionError(
            Code.BLOB_UPLOAD_UNKNOWN, f"there is no such upload to {repository}"
        )

    def _reopen(self, id: str) -> Upload | None:
        """An upload that was begun before this process."""
        rows = self.index.read("SELECT repository FROM uploads WHERE id = ?", id)
        try:
            upload = Upload(id, str(rows[0][0]), self.directory / "uploads" / id)
        except FileNotFoundError:
            return None
        return self._uploads.setdefault(id, upload)

    def finish(self, upload: Upload, expected: ContentDigest) -> Blob:
        """The upload is the blob *expected*; DIGEST_INVALID, and it is gone, if it is not."""
        try:
            upload.seal(expected)
        except DistributionError:
            self.cancel(upload)
            raise
        target = self._path(expected)
        with self.index.change():
            os.rename(upload.path, target)
            files.sync_directory(target.parent)
            self.index.write(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?)", str(expected), upload.size
            )
            self._link(upload.repository, expected)
            self.index.write("DELETE FROM uploads WHERE id = ?", upload.id)
        with self._lock:
            self._uploads.pop(upload.id, None)
        return Blob(expected, target, upload.size)

    def cancel(self, upload: Upload) -> None:
        """Forget an upload and what was received of it."""
        upload.rest()
        with self.index.change():
            self._forget(upload.id)

    def _forget(self, id: str) -> None:
        self.index.write("DELETE FROM uploads WHERE id = ?", id)
        (self.directory / "uploads" / id).unlink(missing_ok=True)
        with self._lock:
            self._uploads.pop(id, None)

    # -- manifests --------------------------------------------------------------------------

    def missing(self, repository: str, manifest: StoredManifest) -> list[Link]:
        """The blobs that *manifest* needs and *repository* does not have."""
        missing = []
        for link in manifest.blobs:
            if not link.elsewhere:
                try:
                    self.blob(repository, link.digest)
                except DistributionError:
                    missing.append(link)
        return missing

    def put_manifest(
        self, repository: str, reference: str | ContentDigest, manifest: StoredManifest
    ) -> ContentDigest:
        """Keep *manifest*, tagged if *reference* is a tag; answers its digest.

        1. a digest must be that of its bytes, else DIGEST_INVALID;
        2. what it refers to must be there and as large as it says, else MANIFEST_BLOB_UNKNOWN or
           SIZE_INVALID; its subject need not be;
        3. all becomes visible at once.
        """
        algorithm = reference.algorithm if isinstance(reference, ContentDigest) else "sha256"
        digest = ContentDigest.of(manifest.raw, algorithm)
        if isinstance(reference, ContentDigest) and digest != reference:
            raise DistributionError(
                Code.DIGEST_INVALID, f"the manifest is {digest}, and not {reference}"
            )
        with self.index.change():
            number = self.index.make_repository(repository)
            self._check_parts(number, manifest)
            self._insert(number, str(digest), manifest)
            if isinstance(reference, str):
                self.index.write(
                    "INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", number, reference, str(digest)
                )
        return digest

    def _check_parts(self, number: int, manifest: StoredManifest) -> None:
        blobs = (
            "SELECT size FROM links JOIN blobs USING (digest) WHERE repository = ? AND digest = ?"
        )
        children = "SELECT size FROM manifests WHERE repository = ? AND digest = ?"
        for query, links in ((blobs, manifest.blobs), (children, manifest.manifests)):
            for link in links:
                rows = self.index.write(query, number, str(link.digest))
                gone = links is manifest.blobs and not self._path(link.digest).exists()
                if (not rows or gone) and not link.elsewhere:
                    raise DistributionError(
                        Code.MANIFEST_BLOB_UNKNOWN,
                        f"the manifest refers to {link.digest}, which was not pushed",
                    )
                if rows and rows[0][0] != link.size:
                    raise DistributionError(
                        Code.SIZE_INVALID,
                        f"{link.digest} has {rows[0][0]!s} bytes, and not the {link.size}"
                        " that the manifest says",
                    )

    def _insert(self, number: int, digest: str, manifest: StoredManifest) -> None:
        write = self.index.write
        write("INSERT OR IGNORE INTO documents VALUES (?, ?)", digest, manifest.raw)
        write(
            "INSERT INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (repository, digest) DO UPDATE"
            " SET media_type = excluded.media_type, since = excluded.since",
            number,
            digest,
            str(manifest.media_type),
            len(manifest.raw),
            manifest.artifact_type,
            None if manifest.subject is None else str(manifest.subject.digest),
            json.dumps(dict(manifest.annotations)),
            int(self.clock()),
        )
        for link in {link.digest for link in (*manifest.blobs, *manifest.manifests)}:
            write("INSERT OR IGNORE INTO parts VALUES (?, ?, ?)", number, digest, str(link))

    def manifest(self, repository: str, reference: str | ContentDigest) -> Document:
        """A manifest of *repository* by tag or digest; else MANIFEST_UNKNOWN."""
        by_tag = isinstance(reference, str)
        tags = " JOIN tags USING (repository, digest)" if by_tag else ""
        column = "tags.name" if by_tag else "manifests.digest"
        rows = self.index.read(
            "SELECT manifests.digest, media_type, raw FROM manifests"  # noqa: S608  # words of ours
            " JOIN repositories ON repositories.id = manifests.repository"
            f" JOIN documents USING (digest){tags}"
            f" WHERE repositories.name = ? AND {column} = ?",
            repository,
            str(reference),
        )
        if not rows:
            raise unknown_manifest(repository, reference)
        digest, media_type, raw = rows[0]
        assert isinstance(raw, bytes)
        return Document(ContentDigest.parse(str(digest)), str(media_type), raw)

    def remove_manifest(self, repository: str, reference: str | ContentDigest) -> None:
        """Take a tag away, or a manifest with all its tags; MANIFEST_UNKNOWN if it is not there."""
        with self.index.change():
            number = self.index.make_repository(repository)
            if isinstance(reference, str):
                self.index.write(
                    "DELETE FROM tags WHERE repository = ? AND name = ?", number, reference
                )
            else:
                self.index.write(
                    "DELETE FROM manifests WHERE repository = ? AND digest = ?",
                    number,
                    str(reference),
                )
            if not self.index.changed():
                raise unknown_manifest(repository, reference)
            self.drop_documents()

    def drop_documents(self) -> None:
        """Inside a change: forget the bytes of manifests that no repository has."""
        self.index.write(
            "DELETE FROM documents WHERE NOT EXISTS"
            " (SELECT 1 FROM manifests WHERE manifests.digest = documents.digest)"
        )

    # -- what there is ----------------------------------------------------------------------

    def tags(self, repository: str) -> list[str] | None:
        """The tags of *repository* in lexical order; None if there is no such repository."""
        number = self.index.repository(repository)
        if number is None:
            return None
        rows = self.index.read("SELECT name FROM tags WHERE repository = ? ORDER BY name", number)
        return [str(row[0]) for row in rows]

    def repositories(self) -> list[str]:
        """The names of all repositories in lexical order."""
        rows = self.index.read("SELECT name FROM repositories ORDER BY name")
        return [str(row[0]) for row in rows]

    def referrers(
        self, repository: str, subject: ContentDigest, *, after: str = "", limit: int = 1000
    ) -> list[Referrer]:
        """The manifests about *subject*, by digest, at most *limit* that come *after* one."""
        rows = self.index.read(
            "SELECT digest, media_type, size, artifact_type, annotations FROM manifests"
            " JOIN repositories ON repositories.id = manifests.repository"
            " WHERE repositories.name = ? AND subject = ? AND digest > ? ORDER BY digest LIMIT ?",
            repository,
            str(subject),
            after,
            limit,
        )
        return [
            Referrer(str(digest), str(kind), int(str(size)), str(artifact), json.loads(str(notes)))
            for digest, kind, size, artifact, notes in rows
        ]


def unknown_manifest(repository: str, reference: str | ContentDigest) -> DistributionError:
    """The error that says so."""
    return DistributionError(
        Code.MANIFEST_UNKNOWN, f"there is no manifest {reference} in {repository}"
    )


@contextmanager
def discarding(store: RegistryStore, upload: Upload) -> Iterator[None]:
    """Cancel *upload* when this ``with`` fails: nobody can know of it yet."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            store.cancel(upload)
        raise
