"""Advice on a Dockerfile that could be built: BuildKit's checks by their names, and our own.

`check` reads nothing but the file and, where given, the ignore rules. ``# check=skip=NAME`` at
the top, or in a comment right above an instruction, is honoured; rules in `OPTIONAL` are told
only where ``# check=experimental=NAME`` asks for them. Our own rules are in `advice`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Final

from tare.build.advice import EXPLANATIONS as _OWN
from tare.build.advice import Note, advise
from tare.build.dockerfile import (
    Add,
    Arg,
    Cmd,
    Copy,
    Dockerfile,
    DockerfileError,
    Entrypoint,
    Env,
    Expose,
    Finding,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Shell,
    Stage,
    Workdir,
)
from tare.build.dockerfile.expansion import expand_noting
from tare.build.dockerfile.parser import check_options
from tare.build.dockerfile.ports import read_port
from tare.build.dockerfile.scope import Scope, global_arguments
from tare.build.dockerfile.suggestion import nearest
from tare.build.dockerfile.words import Lexer, LexError, Word, quoted
from tare.build.secret_names import names_a_secret
from tare.errors import TareError
from tare.model.ignore import IgnoreRules
from tare.model.oci import Platform
from tare.model.reference import Reference

_BUILDKIT: Final = {
    "StageNameCasing": "Stage names should be lowercase",
    "FromAsCasing": "The 'as' keyword should match the case of the 'from' keyword",
    "NoEmptyContinuation": "Empty continuation lines will become errors in a future release",
    "ConsistentInstructionCasing": (
        "All commands within the Dockerfile should use the same casing (either upper or lower)"
    ),
    "DuplicateStageName": "Stage names should be unique",
    "ReservedStageName": "Reserved words should not be used as stage names",
    "JSONArgsRecommended": (
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related "
        "to OS signals"
    ),
    "MaintainerDeprecated": (
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
    ),
    "UndefinedArgInFrom": "FROM command must use declared ARGs",
    "WorkdirRelativePath": (
        "Relative workdir without an absolute workdir declared within the build can have "
        "unexpected results if the base image changes"
    ),
    "UndefinedVar": "Variables should be defined before their use",
    "MultipleInstructionsDisallowed": (
        "Multiple instructions of the same type should not be used in the same stage"
    ),
    "LegacyKeyValueFormat": (
        "Legacy key/value format with whitespace separator should not be used"
    ),
    "RedundantTargetPlatform": (
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the "
        "default behavior"
    ),
    "SecretsUsedInArgOrEnv": "Sensitive data should not be used in the ARG or ENV commands",
    "InvalidBaseImagePlatform": "Base image platform does not match expected target platform",
    "InvalidDefaultArgInFrom": (
        "Default value for global ARG results in an empty or invalid base image name"
    ),
    "FromPlatformFlagConstDisallowed": "FROM --platform flag should not use a constant value",
    "CopyIgnoredFile": "Attempting to Copy file that is excluded by .dockerignore",
    "InvalidDefinitionDescription": (
        "Comment for build stage or argument should follow the format: `# <arg/stage name> "
        "<description>`. If this is not intended to be a description comment, add an empty line "
        "or comment between the instruction and the comment"
    ),
    "ExposeProtoCasing": "Protocol in EXPOSE instruction should be lowercase",
    "ExposeInvalidFormat": (
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will "
        "become an error in a future release"
    ),
}
RULES: Final[Mapping[str, str]] = {**_BUILDKIT, **_OWN}
OPTIONAL: Final = frozenset(
    ("InvalidDefinitionDescription", "UnpinnedBaseImage", "HealthcheckMissing")
)
_SEARCHES: Final = 200  # for what was meant, and names that each looks at
_RESERVED: Final = ("context", "scratch")
_IGNORED_ROOT: Final = frozenset(("*", "**", "**/*"))
_PLATFORM: Final = Platform("linux", "amd64")  # any will do: rules look at names, not at values


def check(
    dockerfile: Dockerfile,
    ignore: IgnoreRules | None = None,
    *,
    build_args: Mapping[str, str] = MappingProxyType({}),
    environments: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    foreign: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Finding, ...]:
    """What is unwise in *dockerfile*, its own ``warnings`` among it, by line. Never raises.

    *environments* are the variables of base images by the name in FROM. Without a base's a
    variable that nothing here sets may come from it, so only what looks like a slip is told.
    *foreign* says of base images that they are of another platform, and of which in what words.
    """
    checker = _Checker(dockerfile, ignore, build_args, environments, foreign)
    notes = list(checker.notes())
    found = {_finding(note): None for note in notes if _wanted(dockerfile, note)}
    skip = dockerfile.directives.check.skip
    own = (w for w in dockerfile.warnings if not skip & {"all", w.name})
    everything = (*found, *own)
    return tuple(sorted(everything, key=lambda f: f.lines.first if f.lines else 0))


def _finding(note: Note) -> Finding:
    return Finding(note.rule, note.place.lines, note.text, RULES[note.rule])


def _wanted(dockerfile: Dockerfile, note: Note) -> bool:
    options = [dockerfile.directives.check]
    for comment in note.place.comments:
        name, equals, value = comment.partition("=")
        if equals and name.strip().lower() == "check":
            try:
                options.append(check_options(value.strip().partition(" ")[0]))
            except ValueError:
                break
    if note.rule in OPTIONAL:
        return any(option.experimental & {"all", note.rule} for option in options)
    return not any(option.skip & {"all", note.rule} for option in options)


class _Checker:
    def __init__(
        self,
        dockerfile: Dockerfile,
        ignore: IgnoreRules | None,
        build_args: Mapping[str, str],
        environments: Mapping[str, Mapping[str, str]],
        foreign: Mapping[str, str],
    ) -> None:
        self._dockerfile = dockerfile
        self._ignore = ignore
        self._build_args = build_args
        self._environments = environments
        self._foreign = foreign
        self._arguments = self._global_arguments(build_args)
        self._defaults = self._global_arguments({})
        self._searches = 0
        self._scopes: dict[int, tuple[Scope, bool]] = {}
        self._absolute: set[int] = set()  # stages in which a WORKDIR has been set
        self._shells: set[int] = set()  # and a SHELL

    def _global_arguments(self, build_args: Mapping[str, str]) -> dict[str, str]:
        file = self._dockerfile
        try:
            return global_arguments(file, build_args, build=_PLATFORM, target=_PLATFORM)
        except DockerfileError:
            return {}  # a required argument without a default: the build itself will tell

    def notes(self) -> Iterator[Note]:
        """Everything, whatever the file says of skipping."""
        yield from self._casing()
        names: set[str] = set()
        for arg in self._dockerfile.global_args:
            yield from self._described(arg)
            yield from _secrets(arg)
        for stage in self._dockerfile.stages:
            yield from self._start(stage, names)
            yield from self._steps(stage)
        yield from advise(self._dockerfile)

    def _casing(self) -> Iterator[Note]:
        everything: list[Instruction] = []
        for stage in self._dockerfile.stages:
            everything += (stage.start, *stage.instructions)
        written = [(_keyword(instruction), instruction) for instruction in everything]
        lower = sum(word.islower() for word, _ in written)
        upper = sum(word.isupper() for word, _ in written)
        majority = "lowercase" if lower > upper else "uppercase"
        for word, instruction in written:
            if not (word.islower() if lower > upper else word.isupper()):
                text = (
                    f"Command '{word}' should match the case of the command majority ({majority})"
                )
                yield Note("ConsistentInstructionCasing", instruction.place, text)

    # ---- FROM --------------------------------------------------------------------------------

    def _start(self, stage: Stage, names: set[str]) -> Iterator[Note]:
        start = stage.start
        words = start.original.split()
        if start.name:
            yield from _stage_name(start, words)
            if start.name in names:
                text = f"Duplicate stage name {quoted(start.name)}, stage names should be unique"
                yield Note("DuplicateStageName", start.place, text)
            names.add(start.name)
            yield from _description("FROM", (start.name,), start)
        image = self._word(start.image, start)
        if image is not None:
            yield from self._undeclared(image, start)
            if image.text in self._foreign and not start.platform:
                text = f"Base image {image.text} was pulled with {self._foreign[image.text]}"
                yield Note("InvalidBaseImagePlatform", start.place, text)
            default = self._word(start.image, start, self._defaults)
            if default is not None and not self._names_a_base(default.text, stage):
                text = (
                    f"Default value for ARG {start.image} results in empty or invalid base image "
                    "name"
                )
                yield Note("InvalidDefaultArgInFrom", start.place, text)
        if start.platform and (platform := self._word(start.platform, start)) is not None:
            yield from self._undeclared(platform, start)
            yield from _platform(start, platform, self._arguments)

    def _names_a_base(self, name: str, stage: Stage) -> bool:
        if not self._defaults or self._dockerfile.named(name, before=stage.index):
            return True
        try:
            Reference.parse(name)
        except TareError:
            return False
        return True

    def _word(
        self, text: str, start: From, arguments: Mapping[str, str] | None = None
    ) -> Word | None:
        known = self._arguments if arguments is None else arguments
        try:
            return Lexer(start.place.escape).word(text, known)
        except LexError:
            return None

    def _undeclared(self, word: Word, start: From) -> Iterator[Note]:
        declared = {d.name for arg in self._dockerfile.global_args for d in arg.declarations}
        known = declared | self._arguments.keys()
        for name in sorted(word.unmatched - known):
            found = nearest(name, islice(known, _SEARCHES))
            text = f"FROM argument '{name}' is not declared"
            text += f" (did you mean {found}?)" if found else ""
            yield Note("UndefinedArgInFrom", start.place, text)

    # ---- the steps of a stage ----------------------------------------------------------------

    def _steps(self, stage: Stage) -> Iterator[Note]:
        scope, known = self._scope(stage)
        self._scopes[stage.index] = scope, known
        base = self._base(stage)
        for marks in (self._absolute, self._shells):
            if base is not None and base.index in marks:
                marks.add(stage.index)
        last: dict[type[Instruction], Instruction] = {}
        sound = True
        for instruction in stage.instructions:
            if sound:
                sound = yield from self._variables(instruction, scope, known=known)
            yield from self._step(instruction, stage.index)
            if isinstance(instruction, Cmd | Entrypoint | Healthcheck):
                before = last.get(type(instruction))
                if before is not None:
                    text = (
                        f"Multiple {_keyword(before)} instructions should not be used in the "
                        "same stage because only the last one will be used"
                    )
                    yield Note("MultipleInstructionsDisallowed", before.place, text)
                last[type(instruction)] = instruction

    def _base(self, stage: Stage) -> Stage | None:
        image = self._word(stage.base, stage.start)
        return None if image is None else self._dockerfile.named(image.text, before=stage.index)

    def _scope(self, stage: Stage) -> tuple[Scope, bool]:
        """The variables that a stage begins with, and whether those of its base are known."""
        base = self._base(stage)
        if base is not None:
            scope, known = self._scopes[base.index]
            return scope.child(), known
        image = self._word(stage.base, stage.start)
        name = stage.base if image is None else image.text
        variables = {} if name == "scratch" else self._environments.get(name)
        return Scope(variables or {}, self._arguments, self._build_args), variables is not None

    def _variables(
        self, instruction: Instruction, scope: Scope, *, known: bool
    ) -> Generator[Note, None, bool]:
        """Tell of variables that are not there; False where the build will end at this step."""
        if isinstance(instruction, Expose):
            return True  # BuildKit has no word for these, and a range would be written out here
        unset: set[str] = set()
        environment = scope.environment
        try:
            if isinstance(instruction, Arg):
                for declaration in instruction.declarations:
                    word = Lexer(instruction.place.escape).word(
                        declaration.value or "", scope.environment
                    )
                    unset |= word.unmatched
                    scope.declare(Arg(place=instruction.place, declarations=(declaration,)))
            else:
                expand_noting(instruction, environment, unset)
                if isinstance(instruction, Env):
                    scope.set(instruction)
        except (DockerfileError, LexError):
            return False
        for name in sorted(unset - scope.declared):
            found = self._meant(name, scope)
            if not (known or found or name in self._arguments):
                continue
            text = f"Usage of undefined variable '${name}'"
            text += f" (did you mean ${found}?)" if found else ""
            yield Note("UndefinedVar", instruction.place, text)
        return True

    def _meant(self, name: str, scope: Scope) -> str:
        # Enough for any mistake a person makes, and no load by a file made to be one.
        self._searches += 1
        if self._searches > _SEARCHES:
            return ""
        return nearest(name, islice((*scope.environment, *scope.declared), _SEARCHES))

    def _step(self, instruction: Instruction, stage: int) -> Iterator[Note]:
        place = instruction.place
        match instruction:
            case Maintainer():
                text = "Maintainer instruction is deprecated in favor of using label"
                yield Note("MaintainerDeprecated", place, text)
            case Workdir():
                # Only the first of a stage matters: the others are relative to it.
                if stage not in self._absolute and not instruction.path.startswith(("/", "$", '"')):
                    text = (
                        f"Relative workdir {quoted(instruction.path)} can have unexpected "
                        "results if the base image changes"
                    )
                    yield Note("WorkdirRelativePath", place, text)
                self._absolute.add(stage)
            case Shell():
                self._shells.add(stage)
            case Cmd() | Entrypoint():
                if instruction.command.shell and stage not in self._shells:
                    text = (
                        f"JSON arguments recommended for {_keyword(instruction)} to prevent "
                        "unintended behavior related to OS signals"
                    )
                    yield Note("JSONArgsRecommended", place, text)
            case Env() | Label():
                yield from _legacy(instruction)
                yield from _secrets(instruction)
            case Arg():
                yield from self._described(instruction)
                yield from _secrets(instruction)
            case Copy() | Add():
                yield from self._ignored(instruction)
            case Expose():
                yield from _ports(instruction)
            case _:
                pass

    def _described(self, arg: Arg) -> Iterator[Note]:
        names = tuple(declaration.name for declaration in arg.declarations)
        return _description("ARG", names, arg)

    def _ignored(self, copy: Copy | Add) -> Iterator[Note]:
        rules = self._ignore
        # Where patterns take back, a directory may be ignored and a file in it not.
        if rules is None or rules.takes_back or (isinstance(copy, Copy) and copy.from_name):
            return
        for source in copy.sources:
            if "$" in source or "://" in source:
                continue
            path = posixpath.normpath(source)
            if path in (".", "/"):
                ignored = any(pattern in _IGNORED_ROOT for pattern in rules.patterns)
            else:
                ignored = rules.ignores(path.lstrip("/"))
            if ignored:
                word = "Add" if isinstance(copy, Add) else "Copy"
                text = f"Attempting to {word} file {quoted(path)} that is excluded by .dockerignore"
                yield Note("CopyIgnoredFile", copy.place, text)


def _keyword(instruction: Instruction) -> str:
    """The instruction's name as written."""
    return instruction.original.split(maxsplit=1)[0]


def _stage_name(start: From, words: list[str]) -> Iterator[Note]:
    name, keyword, joint = words[-1], words[0], words[-2]
    if name != name.lower():
        text = f"Stage name '{name}' should be lowercase"
        yield Note("StageNameCasing", start.place, text)
    # Where the keyword itself is mixed, another rule says so.
    wanted = joint.lower() if keyword.islower() else joint.upper()
    if (keyword.islower() or keyword.isupper()) and joint != wanted:
        text = f"'{joint}' and '{keyword}' keywords' casing do not match"
        yield Note("FromAsCasing", start.place, text)
    if start.name in _RESERVED:
        text = f"Stage name should not use the same name as reserved stage {quoted(start.name)}"
        yield Note("ReservedStageName", start.place, text)


def _description(keyword: str, names: tuple[str, ...], instruction: Instruction) -> Iterator[Note]:
    comments = instruction.place.comments
    if comments and comments[-1].split(" ", 1)[0] not in names:
        name = names[0] if len(names) == 1 else "<arg_key>"
        text = f"Comment for {keyword} should follow the format: `# {name} <description>`"
        yield Note("InvalidDefinitionDescription", instruction.place, text)


def _platform(start: From, word: Word, arguments: Mapping[str, str]) -> Iterator[Note]:
    if word.matched == {"TARGETPLATFORM"} and not word.unmatched:
        if word.text == arguments["TARGETPLATFORM"]:
            text = (
                f"Setting platform to predefined {start.platform} in FROM is redundant as this "
                "is the default behavior"
            )
            yield Note("RedundantTargetPlatform", start.place, text)
    elif not word.matched and not word.unmatched:
        parts = word.text.split("/")
        # A stage that is named for its platform is meant for it.
        if not any(part and part in start.name for part in parts):
            text = f"FROM --platform flag should not use constant value {quoted(word.text)}"
            yield Note("FromPlatformFlagConstDisallowed", start.place, text)


def _legacy(instruction: Env | Label) -> Iterator[Note]:
    word = _keyword(instruction)
    for pair in instruction.pairs:
        if pair.legacy:
            text = f'"{word} key=value" should be used instead of legacy "{word} key value" format'
            yield Note("LegacyKeyValueFormat", instruction.place, text)


def _secrets(instruction: Instruction) -> Iterator[Note]:
    match instruction:
        case Arg():
            names = [declaration.name for declaration in instruction.declarations]
        case Env():
            names = [pair.key for pair in instruction.pairs]
        case _:
            return
    for name in names:
        if names_a_secret(name):
            text = (
                "Do not use ARG or ENV instructions for sensitive data "
                f"({instruction.keyword} {quoted(name)})"
            )
            yield Note("SecretsUsedInArgOrEnv", instruction.place, text)


def _ports(expose: Expose) -> Iterator[Note]:
    for word in expose.ports:
        try:
            port = read_port(word)
        except ValueError:
            continue  # a variable, or the build itself will tell
        if port.protocol != port.protocol.lower():
            text = f"Defined protocol '{word}' in EXPOSE instruction should be lowercase"
            yield Note("ExposeProtoCasing", expose.place, text)
        if port.mapped:
            text = (
                "EXPOSE instruction should not define an IP address or host-port mapping, "
                f"found '{word}'"
            )
            yield Note("ExposeInvalidFormat", expose.place, text)
