"""A whole build: the Dockerfile read, its stages run side by side, the image made.

Stages run as tasks of their own and wait for each other only where one uses another, so what is
independent is done at the same time, and what the target does not need is never begun. All layers
of a build are leased to it until its image is named; they reach the disk with one sync at its
end. A build that fails or is killed leaves only what the cache may use.

Not for: what a step does (``stage``, ``copying``, ``adding``, ``running``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tare.build import graph
from tare.build.cache import Step
from tare.build.context import Ignoring, read_small
from tare.build.dockerfile import (
    Dockerfile,
    DockerfileError,
    Instruction,
    base_of,
    global_arguments,
    parse,
    parse_trigger,
)
from tare.build.dockerfile.source import Lines, Source
from tare.build.host import Host
from tare.build.placing import Manner, Placement
from tare.build.provenance import Evidence, UsedImage
from tare.build.request import (
    BuildError,
    BuildRequest,
    Built,
    Note,
    Progress,
    State,
    StepInfo,
    Tell,
    Warned,
)
from tare.build.selection import select
from tare.build.stage import DEFAULT_PATH, Made, StageRun, StepError
from tare.build.threads import in_thread
from tare.build.tree import DirectoryTree, Tree
from tare.errors import InvalidError, MissingError, TareError, UnsupportedError
from tare.image import importing, tar
from tare.image.erofs import convert
from tare.image.extract import extract
from tare.image.layers import extraction_rules
from tare.image.moments import format_time, parse_time
from tare.image.store import Image, ImageStore
from tare.model import oci
from tare.model.digest import Digest
from tare.model.ignore import IgnoreRules
from tare.model.oci import ImageConfig
from tare.model.reference import Reference

_DOCKERFILE_MAX: Final = 4 << 20
_TRIGGERS_MAX: Final = 1000
_AROUND: Final = 2


class Builder:
    """One build; `run` does it. The context is the caller's to close."""

    def __init__(self, request: BuildRequest, context: Tree, host: Host, tell: Tell) -> None:
        self.request = request
        self.context = context
        self.host = host
        self.tell = tell
        self.lease = host.store.retain()
        self.arguments: dict[str, str] = {}
        self.dockerfile: Dockerfile
        self._began_ns = time.time_ns()
        self._tasks: dict[int, asyncio.Task[Made]] = {}
        self._images: dict[str, asyncio.Task[Made]] = {}
        self._planned: graph.Plan
        self._imported: dict[str, Step] = {}
        self._used: list[str] = []
        self._layers: set[Digest] = set()
        self._cached = self.total = self._id = 0
        self._directory: Path | None = None
        self.ignore: IgnoreRules | None = None
        self.fetched: dict[str, tuple[str, str]] = {}
        """What was fetched from elsewhere: by address, the kind of its digest and the digest."""
        self._materials: dict[str, Image] = {}
        self._dockerfile_digest = ""
        self._closing = contextlib.ExitStack()
        self._context_lock = threading.Lock()
        self.crowd = asyncio.Semaphore(4)  # programs that run at the same time

    # --- the whole ----------------------------------------------------------------------------

    async def run(self) -> Built:
        """Do it all; BuildError, DockerfileError or another TareError when it cannot be done."""
        try:
            return await self._run()
        finally:
            await self._end_tasks()
            self.host.cache.touch(self._used)
            lease = self.lease
            await in_thread(self._settle)
            self._closing.close()
            self.host.store.discard(lease)

    def context_layer(self) -> str:
        """The context as a layer to be mounted, made when a step first mounts it."""
        with self._context_lock:
            if self._directory is None:
                made = Path(tempfile.mkdtemp(dir=self.host.cache.temporary))
                self._directory = made
                placement = Placement(None, Manner())
                placement.copy(select(self.context, ("/",)), "/", into=True)
                entries = tar.read(placement.stream())
                if self.host.extracts:
                    (made / "context").mkdir(mode=0o755)
                    root = os.open(made / "context", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    with contextlib.closing(DirectoryTree(root)):
                        extract(entries, root, rules=extraction_rules(made))
                else:
                    with open(made / "context", "xb", buffering=0) as out:
                        convert(entries, out)
            return os.fspath(self._directory / "context")

    def _settle(self) -> None:
        """What was made is for the next build, too: it shall outlive this process."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        with contextlib.suppress(TareError):
            self.host.store.settle(self._layers)

    async def _run(self) -> Built:
        request = self.request
        names = [Reference.parse(tag).with_default_tag() for tag in request.tags]
        if any(name.digest is not None for name in names):
            raise InvalidError("an image that is built cannot be named by a digest")
        if request.remote:
            await self._fetch_context(request.remote)
        self.dockerfile = await self._read()
        await in_thread(self._ignore)
        self._check_platform(request.platform)
        self.arguments = global_arguments(
            self.dockerfile,
            request.build_args,
            build=self.host.platform,
            target=self.host.platform,
            stage=request.target,
        )
        self._planned = graph.plan(
            self.dockerfile, request.target, lambda stage: base_of(stage, self.arguments)
        )
        self.total = sum(
            1 + len(planned.stage.instructions) for planned in self._planned.stages.values()
        )
        await in_thread(self._warn)
        if request.check_only:
            return Built(id=None)
        for name in request.cache_from:
            await self._import(name)
        for index in self._planned.stages:
            self._stage(index)
        made = await self._first_failure(self._tasks[self._planned.target])
        image = await in_thread(self._finish, made, names)
        return Built(
            id=image,
            names=tuple(name.familiar for name in names),
            steps=self._id,
            cached=self._cached,
            evidence=self._evidence(),
        )

    def _evidence(self) -> Evidence:
        """What the image is made of, as far as it came from outside."""
        index: int | None = self._planned.target
        base = ""
        while index is not None:
            planned = self._planned.stages[index]
            base, index = planned.base.image, planned.parent
        return Evidence(
            dockerfile=self.dockerfile.source.name,
            dockerfile_digest=self._dockerfile_digest,
            images=tuple(
                used_image(name, image, base=name == base)
                for name, image in sorted(self._materials.items())
            ),
            fetched=dict(self.fetched),
            began_ns=self._began_ns,
            ended_ns=time.time_ns(),
        )

    async def _read(self) -> Dockerfile:
        request = self.request
        content = request.inline
        if content is None:
            content = await in_thread(
                read_small,
                self.context,
                request.dockerfile,
                limit=_DOCKERFILE_MAX,
                what="the Dockerfile",
            )
        if content is None:
            raise InvalidError(
                f"Cannot locate specified Dockerfile: {request.dockerfile}",
                hint="name it with -f, relative to the build context",
            )
        if not content.strip():
            raise InvalidError(f"the Dockerfile ({request.dockerfile}) cannot be empty")
        self._dockerfile_digest = hashlib.sha256(content).hexdigest()
        return await in_thread(parse, content, name=request.dockerfile)

    async def _fetch_context(self, address: str) -> None:
        """Make the context of a repository, an archive or a lone Dockerfile somewhere else."""
        from tare.build import fetching
        from tare.build.adding import archive_of

        if fetching.is_git(address) or address.startswith(("github.com/", "git@")):
            if address.startswith("github.com/"):
                address = f"https://{address}"
            checkout = await fetching.clone(self, fetching.git_address(address))
            self._closing.callback(checkout.close)
            self.context = self._closing.enter_context(fetching.subtree(checkout))
            return
        file = await fetching.download(self, address)
        self._closing.callback(file.context.close)
        name = os.fsencode(file.name)
        archive = await in_thread(archive_of, file.context, name, self.host.cache.temporary)
        if archive is not None:
            self._closing.callback(archive.close)
            self.context = archive
            return
        # Not an archive: the Dockerfile itself, without a context.
        content = read_small(file.context, file.name, limit=_DOCKERFILE_MAX, what="the Dockerfile")
        self.request = replace(self.request, inline=content)

    def _ignore(self) -> None:
        """Leave out of the context what its ignore file names, now that the Dockerfile is read."""
        for name in (f"{self.request.dockerfile}.dockerignore", ".dockerignore"):
            content = read_small(self.context, name, limit=1 << 20, what="the ignore file")
            if content is not None:
                self.ignore = IgnoreRules.parse(content, name=name)
                self.context = Ignoring(self.context, self.ignore)
                return

    def _check_platform(self, text: str) -> None:
        if not text:
            return
        own = self.host.platform
        parts = (*text.lower().split("/"), "", "")
        same = parts[0] == own.os and (not parts[1] or parts[1] == own.architecture)
        if not same and text.lower() not in (own.os, own.architecture):
            raise UnsupportedError(
                f"cannot build for {text}: this host runs {own} and nothing else",
                hint="build on such a machine, or leave --platform out",
            )

    def _warn(self) -> None:
        from tare.build.checks import check

        environments, foreign = self._known_bases()
        found = check(
            self.dockerfile,
            self.ignore,
            build_args=self.request.build_args,
            environments=environments,
            foreign=foreign,
        )
        source = self.dockerfile.source
        for finding in found:
            excerpt = marked(source, finding.lines) if finding.lines is not None else ""
            self.tell(Warned(finding, source.name, excerpt))
        if found and self.dockerfile.directives.check.error:
            raise InvalidError(
                f"lint violation found for rules: {', '.join(sorted({f.name for f in found}))}",
                hint="the Dockerfile says so: # check=error=true",
            )

    def _known_bases(self) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
        """Of the base images that are here: their variables, and which are for other hosts."""
        environments: dict[str, dict[str, str]] = {}
        foreign: dict[str, str] = {}
        own = self.host.platform
        for planned in self._planned.stages.values():
            name = planned.base.image
            if planned.parent is not None or name == graph.SCRATCH:
                continue
            try:
                config = self.host.store.get(name).config
            except TareError:
                continue  # it will be pulled, or be missed
            environments[name] = {
                "PATH": DEFAULT_PATH,
                **dict(item.partition("=")[::2] for item in config.env),
            }
            if (config.os, config.architecture) != (own.os, own.architecture):
                there = oci.Platform(config.os, config.architecture, config.variant)
                foreign[name] = f'platform "{there}", expected "{own}" for current build'
        return environments, foreign

    async def _first_failure(self, target: asyncio.Task[Made]) -> Made:
        """The target's result, or the first error of any stage, as soon as there is one."""
        waiting = set(self._tasks.values())
        while not target.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            waiting |= {task for task in self._tasks.values() if not task.done()}
        return target.result()

    async def _end_tasks(self) -> None:
        tasks = [*self._tasks.values(), *self._images.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, made: Made, names: Sequence[Reference]) -> Digest:
        """Make the image, and name it; one that is there and named already costs nothing."""
        labels = {**made.config.labels, **self.request.labels}
        created = format_time(made.created_ns) if made.created_ns else made.config.created
        config = oci.encode(
            replace(
                made.config,
                labels=labels,
                diff_ids=made.layers,
                history=made.history,
                created=created,
            )
        )
        store = self.host.store
        wanted = config.digest
        self.lease.pin(wanted)
        if not all(store.find(name) == wanted for name in names) or not _known(store, wanted):
            store.add_image(config, names=names, parent=made.parent)
        return wanted

    # --- stages -------------------------------------------------------------------------------

    def _stage(self, index: int) -> asyncio.Task[Made]:
        """The task of a stage, begun when it is first asked for."""
        task = self._tasks.get(index)
        if task is None:
            task = self._tasks[index] = asyncio.create_task(self._run_stage(index))
        return task

    async def _run_stage(self, index: int) -> Made:
        planned = self._planned.stages.get(index)
        if planned is None:  # only an ONBUILD of a base image uses it
            stage = self.dockerfile.stages[index]
            only = graph.plan(
                self.dockerfile, str(index), lambda each: base_of(each, self.arguments)
            )
            planned = only.stages[index]
        stage = planned.stage
        with self._shown_at(stage.start):
            self._check_platform(planned.base.platform)
            made = await self._base(planned)
            self._tell_base(planned, made)
        triggers: list[Instruction] = []
        if planned.parent is None:
            for text in made.config.on_build[:_TRIGGERS_MAX]:
                triggers.append(parse_trigger(text, stage.start.place))
            made.config = replace(made.config, on_build=())
        total = len(triggers) + len(stage.instructions)
        run = StageRun(self, stage.name or f"stage-{index}", index, made, total)
        for instruction in (*triggers, *stage.instructions):
            with self._shown_at(instruction):
                await run.do(instruction)
        return run.made

    def _tell_base(self, planned: graph.Planned, made: Made) -> None:
        stage = planned.stage
        step = StepInfo(
            id=self.next_id(),
            of=self.total,
            stage=stage.name or f"stage-{stage.index}",
            number=0,
            total=len(stage.instructions),
            text=stage.start.original,
            lines=stage.start.lines,
        )
        self.tell(Progress(step=step, state=State.CACHED, result=made.link))

    async def _base(self, planned: graph.Planned) -> Made:
        """What a stage starts from, as a value of its own."""
        if planned.parent is not None:
            made = await asyncio.shield(self._stage(planned.parent))
            return replace(made, cmd_set=False)
        if planned.base.image == graph.SCRATCH:
            config = importing.blank_config(self.host.platform)
            return Made(config=config, link=graph.key_of({"from": graph.SCRATCH}))
        return replace(await self._image(planned.base.image))

    async def _image(self, name: str) -> Made:
        """An image to start or to copy from; fetched once, however many stages want it."""
        task = self._images.get(name)
        if task is None:
            task = self._images[name] = asyncio.create_task(self._find_image(name))
        return await asyncio.shield(task)

    async def _find_image(self, name: str) -> Made:
        image = await self.host.image(
            name, pull=self.request.pull, note=lambda text: self.tell(Note(text))
        )
        self._keep_layers(image)
        self._materials[name] = image
        return Made(
            config=image.config,
            layers=image.layers,
            history=image.config.history,
            link=graph.key_of({"from": str(image.id)}),
            created_ns=parse_time(image.config.created) or 0,
            parent=image.id,
        )

    def _keep_layers(self, image: Image) -> None:
        for layer in image.layers:
            if not self.host.store.has_layer(layer, self.lease):
                raise MissingError(f"No such layer: {layer}", hint="the image is being removed")

    async def other(self, stage: StageRun, name: str) -> Made:
        """The stage above, or the image, that ``--from`` or ``from=`` means."""
        found = self.dockerfile.stage(name, before=stage.index)
        if found is not None:
            return await asyncio.shield(self._stage(found.index))
        if name.lower() == graph.SCRATCH:
            raise InvalidError("there is nothing to copy from scratch")
        own = self.dockerfile.stage(name)
        if own is not None:
            raise InvalidError(
                f"stage {name!r} cannot be used here: it does not stand above this one"
            )
        return await self._image(name)

    @contextlib.contextmanager
    def _shown_at(self, instruction: Instruction) -> Iterator[None]:
        """Errors inside say where in the Dockerfile it was."""
        try:
            yield
        except (DockerfileError, BuildError):
            raise
        except TareError as error:
            raise _failed_at(error, instruction) from error

    # --- the cache ----------------------------------------------------------------------------

    def next_id(self) -> int:
        """A number for a step."""
        self._id += 1
        return self._id

    def now_ns(self) -> int:
        """The time that things are made at: SOURCE_DATE_EPOCH, if it was given."""
        epoch = self.request.epoch
        return time.time_ns() if epoch is None else epoch * 10**9

    def look_up(self, key: str) -> Step | None:
        """What a step with this key made before; its layer is leased to this build."""
        found = None if self.request.no_cache else self.host.cache.find(key)
        if found is None:
            found = self._imported.get(key)
            if found is None:
                return None
            self.host.cache.add(found)
        if found.layer is not None and not self.host.store.has_layer(found.layer, self.lease):
            return None
        self._used.append(key)
        self._cached += 1
        return found

    def knows(self, parts: Mapping[str, str]) -> bool:
        """Whether a step of these parts need not be done."""
        key = graph.key_of(parts)
        found = None if self.request.no_cache else self.host.cache.find(key)
        found = found or self._imported.get(key)
        return found is not None and (
            found.layer is None or self.host.store.has_layer(found.layer, self.lease)
        )

    def keep(self, step: Step) -> None:
        """Remember what a step made."""
        if step.layer is not None:
            self._layers.add(step.layer)
        self.host.cache.add(step)

    def why(
        self, what: str, key: str, parts: Mapping[str, str], files: Mapping[str, str]
    ) -> list[str]:
        """Why a step has to run."""
        if self.request.no_cache:
            return ["--no-cache was given"]
        before = self.host.cache.similar(what)
        if before is None:
            return ["it was not built before"]
        if before.key == key:
            return ["what it made is not kept any more"]
        found = graph.reasons(before.parts, parts)
        named = graph.changed_files(before.files, files) if before.files and files else ""
        return [named if word == "files changed" and named else word for word in found]

    async def _import(self, name: str) -> None:
        """Take the steps that an image's history tells: what ``--cache-from`` trusts."""
        try:
            image = await self.host.image(name, pull=False, note=lambda text: self.tell(Note(text)))
        except TareError as error:
            self.tell(Note(f"no cache from {name}: {error}"))
            return
        self._keep_layers(image)
        self._imported.update(steps_of(image.config))


def _failed_at(error: TareError, instruction: Instruction) -> BuildError:
    place = instruction.place
    excerpt = f"{place.source.name}:{place.lines.first}\n" + marked(place.source, place.lines)
    if isinstance(error, StepError):
        return BuildError(error, excerpt, command=error.command, code=error.code)
    return BuildError(error, excerpt)


def used_image(name: str, image: Image, *, base: bool) -> UsedImage:
    """An image that was used under *name*, with the digests that registries know by that name."""
    found: list[Digest] = []
    with contextlib.suppress(InvalidError):
        repository = Reference.parse(name).name
        for text in image.digests:
            reference = Reference.parse(text)
            if reference.name == repository and reference.digest is not None:
                found.append(reference.digest)
        name = Reference.parse(name).with_default_tag().familiar
    return UsedImage(name=name, id=image.id, digests=tuple(found), base=base)


def _known(store: ImageStore, wanted: Digest) -> bool:
    try:
        store.get(str(wanted))
    except MissingError:
        return False
    return True


def steps_of(config: ImageConfig) -> dict[str, Step]:
    """The cache keys in an image's history, with what each step made."""
    found: dict[str, Step] = {}
    layers = iter(config.diff_ids)
    for line in config.history:
        layer = None if line.empty_layer else next(layers, None)
        word, _, key = line.comment.partition(" ")
        if word == graph.FORMAT and len(key) == 64 and not set(key) - set("0123456789abcdef"):
            created = parse_time(line.created) or 0
            what = line.created_by
            found[key] = Step(key=key, layer=layer, created_ns=created, what=what)
    return found


def marked(source: Source, lines: Lines) -> str:
    """The lines of a Dockerfile around *lines*, those marked, as BuildKit shows them."""
    first = max(1, lines.first - _AROUND)
    last = min(len(source.lines), lines.last + _AROUND)
    rule = "-" * 20
    shown = [rule]
    for number in range(first, last + 1):
        marker = ">>>" if lines.first <= number <= lines.last else "   "
        text = source.line(number).rstrip()
        text = "".join(
            c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text
        )
        shown.append(f"{number:4} | {marker} {text}".rstrip())
    shown.append(rule)
    return "\n".join(shown)
