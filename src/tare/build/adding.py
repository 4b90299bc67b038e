"""ADD: what COPY does of the context, and archives unpacked, addresses and repositories fetched.

An archive of the context is told by its content, as Docker does, and unpacked with its own owners;
what was fetched stays as it is unless ``--unpack`` is said. Nothing is unpacked on the host: an
archive is read into a `context.Context`, whose files are then placed.

Not for: fetching (``fetching``).
"""

from __future__ import annotations

import bz2
import contextlib
import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tare.build import graph
from tare.build.context import Context
from tare.build.copying import (
    add_layer,
    base_of,
    chosen,
    described,
    excludes_of,
    manner,
    owner_of,
    place_inline,
    target_of,
)
from tare.build.dockerfile import Add, Copy, Instruction
from tare.build.placing import Placement
from tare.build.selection import Selection, Source
from tare.build.threads import in_thread
from tare.build.tree import Tree
from tare.errors import FailedError, InvalidError
from tare.image.entry import Kind
from tare.model.digest import Digest

if TYPE_CHECKING:
    from tare.build.fetching import Fetched
    from tare.build.stage import StageRun

_XZ: Final = b"\xfd7zXZ\0"
_BZIP2: Final = b"BZh"
_MEMORY: Final = 128 << 20
_OUTPUT: Final = 1 << 20
_FREE: Final = 64 << 20
_RATIO: Final = 200


async def add(stage: StageRun, instruction: Add, written: Instruction) -> None:
    """Do an ADD."""
    from tare.build import fetching

    builder = stage.builder
    remote = [text for text in instruction.sources if fetching.is_remote(text)]
    local = tuple(text for text in instruction.sources if not fetching.is_remote(text))
    if instruction.checksum and (len(remote) != 1 or local):
        raise InvalidError("checksum requires HTTP(S) or Git sources: exactly one of them")
    count = len(instruction.sources) + len(instruction.files)
    destination, into = target_of(stage, instruction.destination, count)
    owner = await owner_of(stage, instruction.chown)
    rules = excludes_of(instruction.exclude)
    selection: Selection | None = None
    digests = []
    if local:
        like_copy = Copy(
            sources=local, destination=instruction.destination, place=instruction.place
        )
        selection = await in_thread(chosen, builder.context, like_copy, rules)
        digests.append(await in_thread(selection.digest))
    async with contextlib.AsyncExitStack() as closing:
        fetched: list[Fetched] = []

        async def fetch(*, anew: bool) -> None:
            fetched.clear()
            for text in remote:
                found = await fetching.fetch(builder, instruction, text, anew=anew)
                closing.callback(found.close)
                fetched.append(found)

        def parts_now() -> dict[str, str]:
            return {
                "instruction": _wish(instruction, destination, into=into),
                "owner": "" if owner is None else f"{owner[0]}:{owner[1]}",
                "files": " ".join((*digests, *(found.digest for found in fetched))),
                **base_of(stage, link=instruction.link),
            }

        await fetch(anew=False)
        parts = parts_now()
        if any(found.selection is None for found in fetched) and not builder.knows(parts):
            # It is what it was, but what was made of it is gone: the files are needed after all.
            await fetch(anew=True)
            parts = parts_now()

        def files() -> Mapping[str, str]:
            return described(selection) if selection is not None else {}

        def place() -> Digest | None:
            with contextlib.ExitStack() as inner:
                base = None if instruction.link else stage.mounted()
                if base is not None:
                    inner.callback(base.close)
                placement = Placement(base, manner(stage, owner, instruction.chmod))
                adding = _Adding(stage, placement, destination, into=into)
                if selection is not None:
                    adding.local(selection, instruction.unpack, inner)
                for found in fetched:
                    adding.remote(found, instruction.unpack, inner)
                place_inline(placement, instruction.files, destination, into=into)
                return add_layer(stage, placement)

        async def make() -> Digest | None:
            return await in_thread(place)

        await stage.layered(written, parts, make, created_by=_told(instruction), files=files)


def _wish(instruction: Add, destination: str, *, into: bool) -> str:
    """What an ADD asks for, beside the files themselves."""
    return json.dumps(
        [
            "add",
            destination,
            into,
            instruction.chmod,
            instruction.link,
            instruction.unpack,
            instruction.keep_git_dir,
            [[file.name, file.content] for file in instruction.files],
        ]
    )


class _Adding:
    """Places what one ADD brings."""

    def __init__(
        self, stage: StageRun, placement: Placement, destination: str, *, into: bool
    ) -> None:
        self._stage = stage
        self._placement = placement
        self._destination = destination
        self._into = into

    def local(
        self, selection: Selection, unpack: bool | None, closing: contextlib.ExitStack
    ) -> None:
        """Files of the context: archives unpacked unless that is not wanted."""
        for source in selection.sources:
            if unpack is not False and source.node.kind is Kind.FILE:
                archive = self._archive(selection.tree, source.path, closing)
                if archive is not None:
                    self._unpack(archive)
                    continue
            self._copy(selection.tree, source)

    def remote(self, found: Fetched, unpack: bool | None, closing: contextlib.ExitStack) -> None:
        """What was fetched: a file, or a repository's files."""
        selection = found.selection
        if selection is None:
            raise FailedError("what was fetched before is not kept any more: build again")
        for source in selection.sources:
            if unpack and source.node.kind is Kind.FILE:
                archive = self._archive(selection.tree, source.path, closing)
                if archive is not None:
                    self._unpack(archive)
                    continue
            self._copy(selection.tree, source)

    def _copy(self, tree: Tree, source: Source) -> None:
        self._placement.copy(Selection(tree, (source,)), self._destination, into=self._into)

    def _unpack(self, archive: Context) -> None:
        place = self._placement.destination(self._destination)
        self._placement.unpack(archive, place)

    def _archive(self, tree: Tree, path: bytes, closing: contextlib.ExitStack) -> Context | None:
        """The file as an archive; None if it is none."""
        archive = archive_of(tree, path, self._stage.builder.host.cache.temporary, owned=True)
        if archive is not None:
            closing.callback(archive.close)
        return archive


def archive_of(tree: Tree, path: bytes, directory: Path, *, owned: bool = False) -> Context | None:
    """The archive that a file is, to be closed; None if it is none."""
    if not looks_like_archive(tree, path):
        return None
    context = Context(directory, owned=owned)
    try:
        context.take(_Content(tree, path))
    except BaseException:
        context.close()
        raise
    return context


def looks_like_archive(tree: Tree, path: bytes) -> bool:
    """Whether a tar archive, compressed or not, begins there."""
    from tare.errors import UnsupportedError
    from tare.image.compress import open_decompressed

    try:
        with open_decompressed(_Content(tree, path)) as plain:
            head = plain.read(512)
    except (InvalidError, UnsupportedError):
        return False
    if len(head) < 512:
        return False
    digits = head[148:156].strip(b" \0")
    if not digits or set(digits) - set(b"01234567"):
        return False
    return int(digits, 8) == sum(head) - sum(head[148:156]) + 8 * 0x20


class _Content:
    """A file of a tree as a stream, with what the readers of archives do not know undone."""

    def __init__(self, tree: Tree, path: bytes) -> None:
        self._pieces: Iterator[bytes | memoryview] = iter(tree.content(path))
        self._rest: bytes | memoryview = b""
        first = bytes(next(self._pieces, b""))
        pieces = _chain(first, self._pieces)
        if first.startswith(_XZ):
            pieces = _inflated(pieces, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))
        elif first.startswith(_BZIP2):
            pieces = _inflated(pieces, bz2.BZ2Decompressor())
        self._pieces = pieces

    def read(self, n: int = -1, /) -> bytes:
        """At most *n* bytes; empty at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        size = len(self._rest) if n < 0 else min(n, len(self._rest))
        data = bytes(self._rest[:size])
        self._rest = self._rest[size:]
        return data


def _chain(first: bytes, rest: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    if first:
        yield first
    yield from rest


def _inflated(
    pieces: Iterator[bytes | memoryview], decompressor: lzma.LZMADecompressor | bz2.BZ2Decompressor
) -> Iterator[bytes]:
    """What xz or bzip2 hold, in bounded memory; a bomb is InvalidError."""
    taken = given = 0
    try:
        for piece in pieces:
            taken += len(piece)
            data: bytes = bytes(piece)
            while not decompressor.eof:
                out = decompressor.decompress(data, _OUTPUT)
                given += len(out)
                if given > _FREE and given > _RATIO * taken:
                    raise InvalidError(
                        "the archive grows more than 200 times: it is refused as a bomb"
                    )
                if out:
                    yield out
                if decompressor.needs_input:
                    break
                data = b""
            if decompressor.eof:
                return
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise InvalidError(f"the compressed archive is corrupt: {error}") from error
    raise InvalidError("the compressed archive is truncated")


def _told(instruction: Add) -> str:
    words = ["ADD"]
    if instruction.chown:
        words.append(f"--chown={instruction.chown}")
    if instruction.chmod:
        words.append(f"--chmod={instruction.chmod}")
    names = (*map(graph.without_password, instruction.sources),)
    inline = (file.name for file in instruction.files)
    return " ".join((*words, *names, *inline, instruction.destination))
