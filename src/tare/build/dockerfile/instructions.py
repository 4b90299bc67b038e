"""A Dockerfile as typed values: what `parse` returns and `expand` takes and gives.

Every text is as written: quotes and variables are still in it until `expansion.expand` replaces
them at the time of the step. Not for reading (`reading`), nor for doing (the executor).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tare.build.dockerfile.mounts import Mount
from tare.build.dockerfile.source import Lines, Place, Source

SCRATCH: Final = "scratch"
_TABS: Final = re.compile(r"^\t+", re.MULTILINE)
# What a RUN line is that holds nothing but one here-document (`reading` knows it to be one).
_LONE_HEREDOC: Final = re.compile(r"\d*<<-?\s*[^<\s]+|\d*<<-?\s*(['\"])[^<]*\1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has; equality is by meaning, not by place."""

    place: Place = field(compare=False, repr=False)

    @property
    def lines(self) -> Lines:
        """The lines of the file it takes, here-documents included."""
        return self.place.lines

    @property
    def original(self) -> str:
        """Its logical line as written."""
        return self.place.original

    @property
    def keyword(self) -> str:
        """``RUN``, ``COPY``: its name in capitals."""
        return type(self).__name__.upper()


# ---- parts of instructions -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """One ``key=value`` of ENV or LABEL; ``legacy`` where written ``key value``."""

    key: str
    value: str
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class Declaration:
    """One name of ARG; ``value`` None where it has no default."""

    name: str
    value: str | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document: ``content`` as it stands in the file, its tabs not yet taken off."""

    name: str
    content: str
    expand: bool = True
    chomp: bool = False
    descriptor: int = 0

    @property
    def text(self) -> str:
        """The content, leading tabs taken off where ``<<-`` asks for it."""
        return _TABS.sub("", self.content) if self.chomp else self.content


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A file whose content stands in the Dockerfile; ``expand`` until its variables are in."""

    name: str
    content: str
    expand: bool = False


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What RUN, CMD, ENTRYPOINT say.

    With ``shell`` there is one argument, to be given to the SHELL; else they are the JSON array.
    """

    arguments: tuple[str, ...]
    shell: bool
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Execution:
    """A RUN ready for the shell: here-documents folded in.

    With ``script`` the executor makes that file at ``/dev/pipes/NAME`` (mode 0755, read-only)
    for the time of the step; ``arguments`` name it already.
    """

    arguments: tuple[str, ...]
    shell: bool
    script: InlineFile | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """``RUN --device``: a CDI name, and whether the step fails without it."""

    name: str
    required: bool = False


class Network(StrEnum):
    """``RUN --network``."""

    DEFAULT = "default"
    NONE = "none"
    HOST = "host"


class Security(StrEnum):
    """``RUN --security``."""

    SANDBOX = "sandbox"
    INSECURE = "insecure"


# ---- instructions ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """``FROM [--platform=P] IMAGE [AS NAME]``; the name is in lower case, empty without one."""

    image: str
    name: str = ""
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """``RUN``.

    ``mount_flags`` are as written. ``mount_sources`` are the stages or images they take from,
    known before any variable is (``from=`` takes none). ``mounts`` is empty until `expand`.
    """

    command: CommandLine
    mount_flags: tuple[str, ...] = ()
    mount_sources: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: Network = Network.DEFAULT
    security: Security = Security.SANDBOX
    devices: tuple[Device, ...] = ()

    def execution(self) -> Execution:
        """The command with its here-documents folded in, as the shell is to get it.

        One lone here-document is the program itself (a script where it begins with ``#!``);
        any other stays in the text for the shell to read.
        """
        line = self.command
        if not line.heredocs or not line.shell or len(line.arguments) != 1:
            return Execution(line.arguments, line.shell)
        text = line.arguments[0]
        first = line.heredocs[0]
        if not _LONE_HEREDOC.fullmatch(text):
            rest = (f"\n{doc.content}{doc.name}" for doc in line.heredocs)
            return Execution((text + "".join(rest),), True)
        if not first.text.startswith("#!"):
            return Execution((first.text,), True)
        # The name is the file's word: it must not lead out of the directory.
        name = first.name.rpartition("/")[2]
        script = InlineFile(name if name not in ("", ".", "..") else "script", first.text)
        return Execution((f"/dev/pipes/{script.name}",), True, script)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Instruction):
    """``CMD``."""

    command: CommandLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Instruction):
    """``ENTRYPOINT``; no arguments and not ``shell`` takes the base's away."""

    command: CommandLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    """``LABEL``."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    """``MAINTAINER``: the image's author."""

    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    """``EXPOSE``; after `expand` each is ``PORT/PROTOCOL``, ranges written out."""

    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    """``ENV``; all values see the environment before this instruction."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    """``COPY``; an empty ``from_name`` is the build context. Flags left out are empty."""

    sources: tuple[str, ...]
    files: tuple[InlineFile, ...] = ()
    destination: str
    from_name: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Instruction):
    """``ADD``; None where a flag was left out and the kind of source decides."""

    sources: tuple[str, ...]
    files: tuple[InlineFile, ...] = ()
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()
    keep_git_dir: bool | None = None
    checksum: str = ""
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    """``VOLUME``."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    """``USER``."""

    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    """``WORKDIR``; may be relative to the one before."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """``ARG``; a default is expanded by `scope`, each after the ones before it."""

    declarations: tuple[Declaration, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    """``ONBUILD``: ``trigger`` is what the image's configuration keeps.

    ``instruction`` is it read once, so that a mistake is found now and not by who builds on it.
    """

    trigger: str
    instruction: Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopsignal(Instruction):
    """``STOPSIGNAL``."""

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """``HEALTHCHECK``: ``test`` begins with NONE, CMD or CMD-SHELL; 0 where nothing is said."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    """``SHELL``."""

    arguments: tuple[str, ...]


# ---- the file --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """``# check=skip=A,B;experimental=C;error=true``; a set with ``all`` in it means every one."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False


@dataclass(frozen=True, slots=True)
class Directives:
    """The comments at the top that change how the file is read; ``syntax`` is never fetched."""

    syntax: str = ""
    escape: str = "\\"
    check: CheckOptions = CheckOptions()


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake that does not stop a build: which rule, where, what about it, and why it matters.

    ``lines`` is None where it is about the whole file.
    """

    name: str
    lines: Lines | None
    text: str
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """From one FROM to the next; ``index`` counts from 0, texts are as written."""

    index: int
    start: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """What ``AS`` says, in lower case."""
        return self.start.name

    @property
    def base(self) -> str:
        """The image or stage it starts from, variables still in it."""
        return self.start.image

    @property
    def platform(self) -> str:
        """``--platform`` as written."""
        return self.start.platform

    @property
    def lines(self) -> Lines:
        """All of its lines."""
        last = self.instructions[-1].lines.last if self.instructions else self.start.lines.last
        return Lines(self.start.lines.first, last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """A whole file; it has at least one stage. ``warnings`` are what the reader itself noticed."""

    source: Source = field(repr=False)
    stages: tuple[Stage, ...]
    global_args: tuple[Arg, ...] = ()
    directives: Directives = Directives()
    warnings: tuple[Finding, ...] = ()

    def named(self, name: str, *, before: int | None = None) -> Stage | None:
        """The stage of that name (case does not matter, the last of two wins).

        *before* leaves out the stages from that index on: a FROM sees those above it.
        """
        wanted = name.lower()
        for stage in reversed(self.stages[:before]):
            if stage.name and stage.name == wanted:
                return stage
        return None

    def stage(self, name: str, *, before: int | None = None) -> Stage | None:
        """The stage of that name or number: ``COPY --from`` takes both, FROM and mounts a name."""
        found = self.named(name, before=before)
        stages = self.stages[:before]
        if found is None and name.isascii() and name.isdecimal() and len(name) < 6:
            return stages[int(name)] if int(name) < len(stages) else None
        return found
