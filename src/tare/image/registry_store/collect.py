"""The collector of a registry: deletes what no manifest needs any more.

It runs inside one write transaction, so a push that goes on meanwhile either had named its blobs
before, or finds out that they are gone when it names them (MANIFEST_BLOB_UNKNOWN, and pushes them
again). Blobs that were pushed or asked for lately are left alone, so the second is rare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tare.image.registry_store.store import RegistryStore

GRACE_SECONDS: Final = 24 * 3600
"""How long a blob may wait for the manifest that names it."""

# Untagged, part of no index, and about nothing that is still there.
_LOOSE: Final = """
DELETE FROM manifests AS old WHERE since <= ?
 AND NOT EXISTS (SELECT 1 FROM tags WHERE tags.repository = old.repository
                 AND tags.digest = old.digest)
 AND NOT EXISTS (SELECT 1 FROM parts WHERE parts.repository = old.repository
                 AND parts.digest = old.digest)
 AND NOT EXISTS (SELECT 1 FROM manifests AS other WHERE other.repository = old.repository
                 AND other.digest = old.subject)
"""
_UNUSED_LINKS: Final = """
DELETE FROM links WHERE since <= ?
 AND NOT EXISTS (SELECT 1 FROM parts WHERE parts.repository = links.repository
                 AND parts.digest = links.digest)
"""
_EMPTY: Final = """
DELETE FROM repositories WHERE id NOT IN (SELECT repository FROM links)
 AND id NOT IN (SELECT repository FROM manifests)
 AND name NOT IN (SELECT repository FROM uploads)
"""


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted, or would be: manifests, and blobs with their bytes."""

    manifests: int
    blobs: tuple[str, ...]
    freed: int


class _Dry(Exception):  # no error: it undoes the transaction
    def __init__(self, found: Collected) -> None:
        super().__init__()
        self.found = found


def collect(
    store: RegistryStore,
    *,
    grace: float = GRACE_SECONDS,
    untagged: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Delete blobs that no manifest has needed for *grace* seconds.

    With *untagged* also manifests that have no tag, are in no index and are about nothing that is
    there. With *dry_run* nothing is changed.
    """
    oldest = int(store.clock() - grace)
    try:
        with store.index.change():
            found = _collect(store, oldest, untagged=untagged, dry_run=dry_run)
            if dry_run:
                raise _Dry(found)
    except _Dry as dry:
        return dry.found
    return found


def _collect(store: RegistryStore, oldest: int, *, untagged: bool, dry_run: bool) -> Collected:
    write = store.index.write
    manifests = 0
    while untagged:
        write(_LOOSE, oldest)
        gone = store.index.changed()
        manifests += gone
        if not gone:
            break
    write(_UNUSED_LINKS, oldest)
    rows = write(
        "SELECT digest, size FROM blobs WHERE NOT EXISTS"
        " (SELECT 1 FROM links WHERE links.digest = blobs.digest) ORDER BY digest"
    )
    if not dry_run:
        for digest, _ in rows:
            store.drop_unlinked(str(digest))
        store.drop_documents()
        write(_EMPTY)
    return Collected(
        manifests, tuple(str(digest) for digest, _ in rows), sum(int(str(size)) for _, size in rows)
    )
