"""COPY and WORKDIR: files of the context, of a stage or of an image, as a layer.

No container is started: what is copied is described for the cache key, and only when that is not
known placed above the files so far (``placing``) and given to the image store.

Not for: ADD's archives, addresses and repositories (``adding``).
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tare.build import graph
from tare.build.dockerfile import Copy, InlineFile, Instruction, Workdir
from tare.build.placing import Manner, Placement
from tare.build.selection import Selection, select
from tare.build.threads import in_thread
from tare.build.tree import DirectoryTree, Tree
from tare.errors import InvalidError
from tare.image.entry import Kind
from tare.model.digest import Digest
from tare.model.ignore import IgnoreRules
from tare.run import identity

if TYPE_CHECKING:
    from tare.build.stage import Made, StageRun

_SHOWN_FILES = 5000


def excludes_of(patterns: tuple[str, ...]) -> IgnoreRules | None:
    """The rules of ``--exclude``."""
    return IgnoreRules(patterns) if patterns else None


def chosen(tree: Tree, instruction: Copy, rules: IgnoreRules | None) -> Selection:
    """What COPY takes of *tree*."""
    return select(
        tree,
        instruction.sources,
        parents=instruction.parents,
        excludes=lambda path: rules is not None and rules.ignores(os.fsdecode(path)),
    )


async def copy(stage: StageRun, instruction: Copy, written: Instruction) -> None:
    """Do a COPY."""
    builder = stage.builder
    rules = excludes_of(instruction.exclude)
    destination, into = target_of(stage, instruction.destination, len(instruction.sources))
    owner = await owner_of(stage, instruction.chown)
    if instruction.from_name:
        other = await builder.other(stage, instruction.from_name)
        digest = await in_thread(_digest_of_layers, stage, other, instruction, rules)
        selection = None
    else:
        selection = None
        digest = ""
        if instruction.sources:
            selection = await in_thread(chosen, builder.context, instruction, rules)
            digest = await in_thread(selection.digest)
        other = None
    parts = {
        "instruction": json.dumps(
            ["copy", destination, into, instruction.chmod, instruction.link, inline_of(instruction)]
        ),
        "owner": "" if owner is None else f"{owner[0]}:{owner[1]}",
        "files": digest,
        **base_of(stage, link=instruction.link),
    }

    def files() -> Mapping[str, str]:
        if selection is None:
            return {}
        return described(selection)

    async def make() -> Digest | None:
        return await in_thread(place)

    def place() -> Digest | None:
        with contextlib.ExitStack() as closing:
            taken = selection
            if other is not None:
                tree = closing.enter_context(layers_of(stage, other))
                taken = chosen(tree, instruction, rules)
            base = None if instruction.link else stage.mounted()
            if base is not None:
                closing.callback(base.close)
            placement = Placement(base, manner(stage, owner, instruction.chmod))
            if taken is not None:
                placement.copy(taken, destination, into=into)
            place_inline(placement, instruction.files, destination, into=into)
            return add_layer(stage, placement)

    await stage.layered(written, parts, make, created_by=told(instruction), files=files)


def _digest_of_layers(
    stage: StageRun, other: Made, instruction: Copy, rules: IgnoreRules | None
) -> str:
    """The digest of what is copied out of layers; taken once for the same question."""
    cache = stage.builder.host.cache
    question = graph.key_of(
        {
            "layers": graph.chain(other.layers),
            "sources": json.dumps(instruction.sources),
            "exclude": json.dumps(instruction.exclude),
            "parents": str(instruction.parents),
        }
    )
    known = cache.digest(question)
    if known is not None:
        return known
    with layers_of(stage, other) as tree:
        found = chosen(tree, instruction, rules).digest()
    cache.remember(question, found)
    return found


@contextlib.contextmanager
def layers_of(stage: StageRun, made: Made) -> Iterator[Tree]:
    """The files of another stage or image."""
    from tare.build.context import Context
    from tare.build.stage import mounted

    tree = mounted(stage.builder, made.layers)
    if tree is None:
        empty = Context(stage.builder.host.cache.temporary)
        with contextlib.closing(empty):
            yield empty
        return
    with contextlib.closing(tree):
        yield tree


def described(selection: Selection) -> dict[str, str]:
    """What is copied, file by file, for `graph.changed_files`; {} where that is too much."""
    if sum(1 + len(source.items) for source in selection.sources) > _SHOWN_FILES:
        return {}
    return {
        os.fsdecode(name) or ".": graph.veiled(words)[:16] for name, words in selection.described()
    }


def inline_of(instruction: Copy) -> list[list[str]]:
    """The files that stand in the Dockerfile, for a key."""
    return [[file.name, file.content] for file in instruction.files]


def base_of(stage: StageRun, *, link: bool) -> dict[str, str]:
    """The part of a key that stands for what is below, and for how times are set."""
    epoch = stage.builder.request.epoch
    parts = {} if link else {"base": stage.chain}
    if epoch is not None:
        parts["epoch"] = str(epoch)
    return parts


def target_of(stage: StageRun, destination: str, sources: int) -> tuple[str, bool]:
    """Where files go, from the root, and whether that is a directory in any case."""
    into = destination.endswith(("/", "/.")) or destination in (".", "")
    path = posixpath.normpath(stage.absolute(destination))
    return "/" + path.lstrip("/"), into or sources > 1


def manner(stage: StageRun, owner: tuple[int, int] | None, mode: str) -> Manner:
    """How files of this build are placed."""
    epoch = stage.builder.request.epoch
    return Manner(
        owner=owner,
        mode=mode,
        now_ns=stage.builder.now_ns(),
        latest_ns=None if epoch is None else epoch * 10**9,
    )


def place_inline(
    placement: Placement, files: tuple[InlineFile, ...], destination: str, *, into: bool
) -> None:
    """Place the files that stand in the Dockerfile; each is named by its here-document."""
    for file in files:
        place = placement.destination(destination)
        there = placement.node(place)
        if into or len(files) > 1 or (there is not None and there.kind is Kind.DIR):
            name = posixpath.basename(file.name)
            if name in ("", ".", ".."):
                raise InvalidError(f"the here-document {file.name!r} has no name for a file")
            place = placement.destination(f"{destination}/{name}")
        placement.file(place, file.content.encode("utf-8", "surrogateescape"))


def add_layer(stage: StageRun, placement: Placement) -> Digest | None:
    """Make a layer of what was placed, if anything was."""
    if not placement.changes:
        return None
    builder = stage.builder
    info = builder.host.store.add_layer(placement.stream(), lease=builder.lease, durable=False)
    return info.diff_id


def told(instruction: Copy) -> str:
    """What history says of it."""
    words = ["COPY"]
    if instruction.from_name:
        words.append(f"--from={instruction.from_name}")
    if instruction.chown:
        words.append(f"--chown={instruction.chown}")
    if instruction.chmod:
        words.append(f"--chmod={instruction.chmod}")
    names = (*instruction.sources, *(file.name for file in instruction.files))
    return " ".join((*words, *names, instruction.destination))


# --- owners ---------------------------------------------------------------------------------------


async def owner_of(stage: StageRun, text: str) -> tuple[int, int] | None:
    """The ids that ``--chown`` means: numbers as they are, names by the image's own files."""
    if not text:
        return None
    name, colon, group = text.partition(":")
    if not name or (colon and not group) or ":" in group:
        raise InvalidError(f"invalid --chown {text!r}", hint="write it as USER or USER:GROUP")
    uid, gid = identity.number(name), identity.number(group) if group else None
    if uid is not None and not group:
        return uid, uid
    if uid is not None and gid is not None:
        return uid, gid
    return await in_thread(_looked_up, stage, name, group)


def _looked_up(stage: StageRun, name: str, group: str) -> tuple[int, int]:
    cache = stage.builder.host.cache
    question = graph.key_of({"layers": stage.chain, "user": name, "group": group})
    known = cache.digest(question)
    if known is not None:
        uid, _, gid = known.partition(":")
        return int(uid), int(gid)
    tree = stage.mounted()
    passwd = groups = b""
    if tree is not None:
        with contextlib.closing(tree):
            passwd = identity.read_account_file(tree.root, "etc/passwd")
            groups = identity.read_account_file(tree.root, "etc/group")
    who = identity.resolve(f"{name}:{group}" if group else name, (), passwd, groups)
    cache.remember(question, f"{who.uid}:{who.gid}")
    return who.uid, who.gid


# --- WORKDIR --------------------------------------------------------------------------------------


async def workdir(stage: StageRun, instruction: Workdir, written: Instruction) -> None:
    """Do a WORKDIR: the directory is made if it is not there."""
    path = posixpath.normpath(stage.absolute(instruction.path))
    path = "/" + path.lstrip("/")
    parts = {"instruction": json.dumps(["workdir", path]), **base_of(stage, link=False)}

    def place() -> Digest | None:
        tree = stage.mounted()
        try:
            return _make_directory(stage, tree, path)
        finally:
            if tree is not None:
                tree.close()

    async def make() -> Digest | None:
        return await in_thread(place)

    await stage.layered(written, parts, make, created_by=f"WORKDIR {path}")
    stage.made.config = replace(stage.made.config, cwd=path)


def _make_directory(stage: StageRun, tree: DirectoryTree | None, path: str) -> Digest | None:
    placement = Placement(tree, manner(stage, None, ""))
    target = placement.destination(path)
    if not target:
        return None
    placement.directory(target)
    return add_layer(stage, placement)
