"""What trust keeps on disk: signatures by the digest that they are about, and what is made here.

::

    STATE/trust/
      switch          "off", "warn" or "on": what was set last
      ring.json       trusted keys, pins, revocations                      (trust.ring)
      clock           the latest time that was seen: one set back is noticed
      evidence/HEX    signatures about the manifest with that digest, as JSON
      made/HEX        empty: the image with that id was made here, of images that were accepted

Every file is written whole (`files.replace`). Nothing here is believed: what is in ``evidence`` is
verified whenever it is used. Only ``made``, ``ring.json`` and ``switch`` are the engine's own word.

Not for: what any of it means (engine.trust).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.errors import FailedError, InvalidError, TareError
from tare.kernel import files
from tare.model import strict_json
from tare.model.digest import Digest
from tare.model.strict_json import Fields
from tare.trust.switch import Mode

if TYPE_CHECKING:
    from tare.trust.ring import Ring
    from tare.trust.signature import Artifact

_FILE_MAX: Final = 64 << 20
_CLOCK_SECONDS: Final = 600
_TOLERANCE: Final = 300


class EvidenceStore:
    """The directory STATE/trust; owned by the one daemon, used by its threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for path in (directory, directory / "evidence", directory / "made"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._seen = self._read_clock()

    # --- the switch and the ring --------------------------------------------------------------

    def mode(self) -> Mode:
        """What was set last; ``warn`` when nothing was. A file that is neither is ``on``."""
        try:
            return Mode.parse((self.directory / "switch").read_text("ascii").strip())
        except FileNotFoundError:
            return Mode.WARN
        except (OSError, UnicodeDecodeError, InvalidError):
            return Mode.ON  # it fails closed

    def set_mode(self, mode: Mode) -> None:
        """Keep what is set."""
        files.replace(self.directory / "switch", f"{mode}\n".encode())

    @property
    def has_ring(self) -> bool:
        """Whether anything was ever put into the ring."""
        return (self.directory / "ring.json").exists()

    def ring(self) -> Ring:
        """The ring; FailedError when it cannot be read: then nothing may be trusted."""
        from tare.trust.ring import LIMIT, Ring

        path = self.directory / "ring.json"
        try:
            raw = _bounded(path, LIMIT)
        except FileNotFoundError:
            return Ring()
        try:
            return Ring.decode(raw, str(path))
        except TareError as error:
            raise FailedError(
                f"the trusted keys cannot be read: {error}", hint="restore the file from a backup"
            ) from error

    def set_ring(self, ring: Ring) -> None:
        """Keep *ring*."""
        files.replace(self.directory / "ring.json", strict_json.encode(ring.encode()))

    @property
    def any(self) -> bool:
        """Whether any signature is kept."""
        with os.scandir(self.directory / "evidence") as entries:
            return next(entries, None) is not None

    # --- signatures ---------------------------------------------------------------------------

    def artifacts(self, subject: Digest) -> tuple[Artifact, ...]:
        """What is kept about *subject*; a file that cannot be read holds nothing."""
        from tare.trust.signature import ARTIFACTS_MAX, decode

        path = self.directory / "evidence" / subject.hex
        try:
            top = Fields(strict_json.decode(_bounded(path, _FILE_MAX), str(path), limit=_FILE_MAX),
                         str(path))  # fmt: skip
            return decode(top.each("artifacts", limit=ARTIFACTS_MAX))
        except (FileNotFoundError, TareError):
            return ()

    def add(self, subject: Digest, artifacts: Sequence[Artifact]) -> None:
        """Keep *artifacts* too; the latest come first, and the oldest beyond 50 go."""
        from tare.trust.signature import ARTIFACTS_MAX, encode

        before = self.artifacts(subject)
        merged = {one.digest: one for one in (*before, *artifacts)}
        fresh = [one.digest for one in artifacts if one.digest not in {b.digest for b in before}]
        if not fresh:
            return
        ordered = [merged[d] for d in dict.fromkeys((*fresh, *merged))][:ARTIFACTS_MAX]
        raw = strict_json.encode({"artifacts": encode(ordered)})
        if len(raw) > _FILE_MAX:
            raise InvalidError(f"the signatures of {subject} are {len(raw)} bytes: too many")
        files.replace(self.directory / "evidence" / subject.hex, raw)

    def keep_only(self, subjects: Iterable[Digest], images: Iterable[Digest]) -> None:
        """Delete what is about images that are gone."""
        for name, kept in (("evidence", subjects), ("made", images)):
            wanted = {digest.hex for digest in kept}
            for path in (self.directory / name).iterdir():
                if path.name not in wanted:
                    path.unlink(missing_ok=True)

    # --- made here ----------------------------------------------------------------------------

    def made(self, image: Digest) -> bool:
        """Whether this engine made the image, of accepted ones."""
        return (self.directory / "made" / image.hex).exists()

    def mark_made(self, image: Digest) -> None:
        """It did."""
        files.replace(self.directory / "made" / image.hex, b"")

    def unmark_made(self, image: Digest) -> None:
        """The same image came out of others, which were not accepted."""
        (self.directory / "made" / image.hex).unlink(missing_ok=True)

    # --- time ---------------------------------------------------------------------------------

    def _read_clock(self) -> int:
        try:
            return int((self.directory / "clock").read_text("ascii"))
        except (OSError, ValueError):
            return 0

    def now(self) -> int:
        """Seconds since 1970, never before what was seen once: a clock set back frees no key."""
        now = int(time.time())
        if now > self._seen + _CLOCK_SECONDS:
            with contextlib.suppress(OSError):
                files.replace(self.directory / "clock", str(now).encode())
            self._seen = now
        return max(now, self._seen)

    @property
    def set_back(self) -> int:
        """By how many seconds the clock runs behind what was seen; 0 when it does not."""
        behind = self._seen - int(time.time())
        return behind if behind > _TOLERANCE else 0


def _bounded(path: Path, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise InvalidError(f"{path} is longer than {limit} bytes")
    return raw
