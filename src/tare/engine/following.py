"""Publishers that are followed: their TUF metadata as it is trusted here, by scope.

::

    STATE/trust/followed.json    scope -> the trusted files (trust.tuf.State), in base64

A state only goes forward: it is replaced by what `trust.tuf.refreshed` makes of it and of newer
files, whole or not at all. Files come from a directory, or from the registry: the document with
the tag ``_trust`` in the repository that the scope names, one layer a file.

Not for: verdicts (trust.verdict), making metadata (trust.tuf_author).
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.errors import DeniedError, FailedError, InvalidError, MissingError, TareError
from tare.image.registry import companions
from tare.image.registry.client import Repository
from tare.image.registry.companions import Companion
from tare.kernel import files
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.oci import MANIFEST_MAX, MediaType
from tare.model.reference import Reference
from tare.model.strict_json import Fields, Json
from tare.trust.identity import check_scope, within

if TYPE_CHECKING:
    from tare.trust.tuf import State

TAG: Final = "_trust"
KIND: Final = "application/vnd.tare.tuf.v1"
TITLE: Final = "org.opencontainers.image.title"
_LIMIT: Final = 64 << 20
_SCOPES_MAX: Final = 100


class Following:
    """The publishers that one engine follows."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "followed.json"
        self._states: dict[str, State] | None = None

    @property
    def any(self) -> bool:
        """Whether anybody is followed, without reading."""
        return bool(self._states) if self._states is not None else self._path.exists()

    def states(self) -> Mapping[str, State]:
        """Scope to what is trusted; FailedError when it cannot be read."""
        if self._states is None:
            self._states = self._read()
        return self._states

    def _read(self) -> dict[str, State]:
        from tare.trust.keys import decoded
        from tare.trust.tuf import State

        what = str(self._path)
        try:
            top = strict_json.decode(self._path.read_bytes(), what, limit=_LIMIT)
        except FileNotFoundError:
            return {}
        found = {}
        try:
            for scope in list(top)[:_SCOPES_MAX]:
                one = Fields(top, what).fields(scope)
                found[scope] = State(
                    decoded(one.text("root", required=True), what),
                    decoded(one.text("timestamp"), what),
                    decoded(one.text("snapshot"), what),
                    {k: decoded(v, what) for k, v in one.mapping("targets").items()},
                )
        except TareError as error:
            raise FailedError(f"what is followed cannot be read: {error}") from error
        return found

    def _keep(self, states: dict[str, State]) -> None:
        value: dict[str, Json] = {}
        for scope, state in states.items():
            targets: dict[str, Json] = {k: _b64(v) for k, v in state.targets.items()}
            value[scope] = {
                "root": _b64(state.root),
                "timestamp": _b64(state.timestamp),
                "snapshot": _b64(state.snapshot),
                "targets": targets,
            }
        files.replace(self._path, strict_json.encode(value))
        self._states = states

    def follow(self, scope: str, given: Mapping[str, bytes], now: int) -> None:
        """Trust a publisher for *scope* from now on, or refresh what is trusted; DeniedError.

        The first time ``1.root.json`` is believed: it must have come by a way that is trusted.
        """
        from tare.trust import tuf

        check_scope(scope)
        known = self.states().get(scope)
        if known is None:
            if "1.root.json" not in given:
                raise InvalidError("there is no 1.root.json to begin with")
            known = tuf.started(given["1.root.json"])
        state = tuf.refreshed(known, lambda name, limit: _part(given.get(name), limit), now)
        if state != known:
            self._keep({**self.states(), scope: state})

    def unfollow(self, scope: str) -> None:
        """Follow a publisher no more; MissingError."""
        states = dict(self.states())
        if states.pop(scope, None) is None:
            raise MissingError(f"no publisher is followed for {scope[:80]}")
        self._keep(states)

    async def refresh(self, places: Sequence[Repository], name: Reference, now: int) -> str:
        """Fetch newer metadata for *name* from its registry; why that failed, or ""."""
        trouble = ""
        for scope in self.states():
            path = scope.partition("/")[2]
            if not within(scope, name) or not path or ":" in path:
                continue
            try:
                found = await companions.tagged(Repository(places[-1].host, path), TAG)
                if found is not None:
                    self.follow(scope, unpacked(found), now)
            except DeniedError as error:
                trouble = f"the metadata of {scope} is refused: {error}"
            except TareError as error:
                trouble = f"the metadata of {scope} cannot be fetched: {error}"
        return trouble


def unpacked(found: Companion) -> dict[str, bytes]:
    """The files in a document of the tag ``_trust``, by their titles."""
    what = "the publisher's metadata"
    top = Fields(strict_json.decode(found.raw, what, limit=MANIFEST_MAX), what)
    given = {}
    for layer in top.each("layers", limit=200):
        with contextlib.suppress(InvalidError):
            title = layer.mapping("annotations").get(TITLE, "")
            given[title] = found.blobs[Digest.parse(layer.text("digest"))]
    return given


def _part(raw: bytes | None, limit: int) -> bytes | None:
    return None if raw is None else raw[: limit + 1]


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def packed(given: Mapping[str, bytes]) -> Companion:
    """Metadata files as the document of the tag ``_trust``."""
    blobs = {Digest.of(raw): raw for raw in (*given.values(), b"{}")}
    layers: list[Json] = [
        {
            "mediaType": f"{KIND}+json",
            "digest": str(Digest.of(raw)),
            "size": len(raw),
            "annotations": {TITLE: name},
        }
        for name, raw in sorted(given.items())
    ]
    empty: dict[str, Json] = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": str(Digest.of(b"{}")),
        "size": 2,
    }
    document: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": str(MediaType.OCI_MANIFEST),
        "artifactType": KIND,
        "config": empty,
        "layers": layers,
    }
    return Companion(strict_json.encode(document), blobs)
