"""What COPY and ADD take: names and patterns of a Dockerfile, as files of a tree.

BuildKit's rules: a path is rooted in its tree and ``..`` stops there; a link that is named is
followed, links inside a directory are copied as links; a directory means what is in it; patterns
are those of Go's ``filepath.Match``, matched name by name. With ``--parents`` the path below the
pivot (``/./``) is kept, and ``**`` stands for any number of directories.

`Selection.digest` is what a cache key knows of the files: names, content, modes and owners by
number, links, attributes; not times. Pure but for what it asks of the tree.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from tare.build.tree import Node, Tree, join, resolve, walk
from tare.errors import InvalidError, MissingError
from tare.image.entry import Kind

Excludes = Callable[[bytes], bool]

_MOST: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """One file: where it is in the tree, and its name below the destination."""

    path: bytes
    name: bytes
    node: Node


@dataclass(frozen=True, slots=True)
class Source:
    """One thing to copy: a lone file under its own ``name``, or all that is in a directory.

    ``node`` and ``path`` are of the file or of the directory itself.
    """

    name: bytes
    path: bytes
    node: Node
    items: tuple[Item, ...] = ()

    @property
    def directory(self) -> bool:
        """Whether it stands for what is in it."""
        return self.node.kind is Kind.DIR


@dataclass(frozen=True, slots=True)
class Selection:
    """All that one instruction takes of one tree, in order."""

    tree: Tree
    sources: tuple[Source, ...] = field(default=())

    def described(self) -> Iterator[tuple[bytes, str]]:
        """Each file's name and what it is, in words that change when it does."""
        links: dict[tuple[int, int], bytes] = {}
        for source in self.sources:
            top = b"" if source.directory else source.name
            yield top, self._described(Item(source.path, top, source.node), links)
            for item in source.items:
                yield item.name, self._described(item, links)

    def _described(self, item: Item, links: dict[tuple[int, int], bytes]) -> str:
        node = item.node
        words = [node.kind.name, f"{node.mode:o}"]
        if self.tree.owned:
            words.append(f"{node.uid}:{node.gid}")
        match node.kind:
            case Kind.FILE:
                words.append(self.tree.digest(item.path))
                if node.identity is not None:
                    words.append(f"of {links.setdefault(node.identity, item.name)!r}")
            case Kind.SYMLINK:
                words = [node.kind.name, repr(node.link)]
            case Kind.CHAR | Kind.BLOCK:
                words.append(f"{node.major}:{node.minor}")
            case _:
                pass
        words += [f"{key!r}={node.xattrs[key]!r}" for key in sorted(node.xattrs)]
        return " ".join(words)

    def digest(self) -> str:
        """sha256 over all of `described`."""
        found = hashlib.sha256()
        for name, words in self.described():
            found.update(b"%d %b %b\n" % (len(name), name, words.encode("utf-8", "replace")))
        return found.hexdigest()


def _nothing(_: bytes) -> bool:
    return False


def select(
    tree: Tree,
    sources: Iterable[str],
    *,
    parents: bool = False,
    excludes: Excludes = _nothing,
) -> Selection:
    """The files of *tree* that *sources* name; MissingError for one that is not there.

    A pattern may match nothing as long as another source gives something.
    """
    found: list[Source] = []
    for text in sources:
        pick = _with_parents if parents else _plain
        found += pick(tree, text, excludes)
    if not found:
        raise MissingError("no source files were specified: the patterns match nothing")
    return Selection(tree, tuple(found))


def _plain(tree: Tree, text: str, excludes: Excludes) -> list[Source]:
    matched = _matches(tree, _steps(text))
    if matched is None:
        raise MissingError(f'"{_shown(text)}": not found')
    found = []
    for path in matched:
        place = resolve(tree.node, path)
        node = tree.node(place) if place is not None else None
        if place is None or node is None:
            raise MissingError(f'"{_shown(os.fsdecode(path))}": not found')
        name = path.rpartition(b"/")[2]
        if node.kind is Kind.DIR:
            found.append(Source(name, place, node, tuple(_inside(tree, place, excludes))))
        elif not (excludes(name) or excludes(path)):
            found.append(Source(name, place, node))
    return found


def _inside(tree: Tree, root: bytes, excludes: Excludes) -> Iterator[Item]:
    """What is in a directory and not excluded, with the directories that lead there."""
    start = len(root) + 1 if root else 0
    pending: dict[bytes, Item] = {}
    for count, (path, node) in enumerate(walk(tree, root)):
        if count > _MOST:
            raise InvalidError(f"more than {_MOST} files are to be copied")
        name = path[start:]
        item = Item(path, name, node)
        if excludes(name):
            if node.kind is Kind.DIR:
                pending[name] = item  # made all the same if something in it is wanted
            continue
        yield from _ancestors(name, pending)
        yield item


def _ancestors(name: bytes, pending: dict[bytes, Item]) -> Iterator[Item]:
    if not pending:
        return
    at = name.find(b"/")
    while at >= 0:
        above = pending.pop(name[:at], None)
        if above is not None:
            yield above
        at = name.find(b"/", at + 1)


def _with_parents(tree: Tree, text: str, excludes: Excludes) -> list[Source]:
    base, pivot, rest = text.partition("/./")
    if not pivot:
        base, rest = "", text
    root = resolve(tree.node, os.fsencode(base))
    top = tree.node(root) if root is not None else None
    if root is None or top is None or top.kind is not Kind.DIR:
        raise MissingError(f'"{_shown(base)}": not found')
    matched = _matches(tree, _steps(rest), root=root, deep=True)
    if matched is None:
        raise MissingError(f'"{_shown(text)}": not found')
    start = len(root) + 1 if root else 0
    items: dict[bytes, Item] = {}
    for path in matched:
        name = path[start:]
        parts = name.split(b"/") if name else []
        for depth in range(1, len(parts) + 1):
            step = b"/".join(parts[:depth])
            node = tree.node(join(root, step))
            if node is None:
                break
            items.setdefault(step, Item(join(root, step), step, node))
        node = tree.node(path)
        if node is not None and node.kind is Kind.DIR:
            for below, found in walk(tree, path):
                items.setdefault(below[start:], Item(below, below[start:], found))
    kept = [item for name, item in sorted(items.items()) if not excludes(name)]
    needed = {item.name[:at] for item in kept for at in _slashes(item.name)}
    names = {item.name for item in kept}
    kept += [items[name] for name in needed - names if name in items]
    kept.sort(key=lambda item: item.name)
    return [Source(b"", root, top, tuple(kept))] if kept else []


def _slashes(name: bytes) -> Iterator[int]:
    at = name.find(b"/")
    while at >= 0:
        yield at
        at = name.find(b"/", at + 1)


def _steps(text: str) -> list[bytes]:
    """The names of a path as written, ``..`` taken away from the left."""
    steps: list[bytes] = []
    for part in os.fsencode(text).split(b"/"):
        if part == b"..":
            del steps[-1:]
        elif part not in (b"", b"."):
            steps.append(part)
    return steps


def _shown(text: str) -> str:
    return "/" + b"/".join(_steps(text)).decode("utf-8", "replace")


def _matches(
    tree: Tree, steps: list[bytes], *, root: bytes = b"", deep: bool = False
) -> list[bytes] | None:
    """The paths that a path with patterns means, sorted; None for a plain one that is not there."""
    if not any(map(_is_pattern, steps)):
        path = root
        for step in steps:
            path = join(path, re.sub(rb"\\(.)", rb"\1", step))
        place = resolve(tree.node, path, follow=False)
        return None if place is None else [path]
    found = [root]
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if deep and step == b"**":
            found = [below for path in found for below in _deep(tree, path, last=last)]
            continue
        if not _is_pattern(step):
            name = re.sub(rb"\\(.)", rb"\1", step)
            found = [join(path, name) for path in found]
        else:
            expression = _expression(step)
            found = [
                join(path, name)
                for path in found
                for name in _names(tree, path)
                if expression.fullmatch(name)
            ]
        if last:
            found = [path for path in found if resolve(tree.node, path, follow=False) is not None]
    return sorted(dict.fromkeys(found))


def _names(tree: Tree, path: bytes) -> list[bytes]:
    """The names in a directory, links to it followed; none in anything else."""
    place = resolve(tree.node, path)
    node = tree.node(place) if place is not None else None
    return tree.names(place) if place is not None and node and node.kind is Kind.DIR else []


def _deep(tree: Tree, path: bytes, *, last: bool) -> Iterator[bytes]:
    """The directory itself and all directories below it; of the last step, everything below."""
    if not last:
        yield path
    place = resolve(tree.node, path)
    if place is None:
        return
    for below, node in walk(tree, place):
        if last or node.kind is Kind.DIR:
            yield below


def _is_pattern(step: bytes) -> bool:
    return re.search(rb"[*?\[]", re.sub(rb"\\.", b"", step)) is not None


@lru_cache(maxsize=256)
def _expression(step: bytes) -> re.Pattern[bytes]:
    """One step of Go's ``filepath.Match`` as a regular expression; InvalidError if it is none."""
    out, at = [], 0
    while at < len(step):
        letter = step[at : at + 1]
        at += 1
        if letter == b"*":
            out.append(b".*")
        elif letter == b"?":
            out.append(b".")
        elif letter == b"[":
            piece, at = _class(step, at)
            out.append(piece)
        else:
            if letter == b"\\":
                letter = step[at : at + 1]
                at += 1
                if not letter:
                    raise _bad(step)
            out.append(re.escape(letter))
    return re.compile(b"".join(out), re.DOTALL)


def _class(step: bytes, at: int) -> tuple[bytes, int]:
    """A class of characters from behind its ``[``, and where it ends."""
    negated = step[at : at + 1] == b"^"
    at += negated
    ranges: list[bytes] = []
    while step[at : at + 1] != b"]" or not ranges:
        first, at = _letter(step, at)
        last = first
        if step[at : at + 1] == b"-":
            last, at = _letter(step, at + 1)
        if first <= last:
            ranges.append(re.escape(first) + b"-" + re.escape(last))
        elif not ranges:
            ranges.append(b"")
    body = b"".join(ranges)
    if not body:
        return (b"." if negated else rb"(?!)"), at + 1
    return (b"[^" if negated else b"[") + body + b"]", at + 1


def _letter(step: bytes, at: int) -> tuple[bytes, int]:
    letter = step[at : at + 1]
    if letter == b"\\":
        at += 1
        letter = step[at : at + 1]
    elif letter in (b"-", b"]"):
        raise _bad(step)
    if not letter:
        raise _bad(step)
    return letter, at + 1


def _bad(step: bytes) -> InvalidError:
    return InvalidError(f"syntax error in pattern: {os.fsdecode(step)!r}")
