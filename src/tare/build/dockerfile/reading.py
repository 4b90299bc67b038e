"""A node to a typed instruction: which flags and arguments each has, in BuildKit's words.

Not for dividing text (`nodes`), nor for what is only unwise (`checks`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from tare.build.dockerfile import figures
from tare.build.dockerfile.flags import FlagError, Flags, Kind
from tare.build.dockerfile.instructions import (
    Add,
    Arg,
    Cmd,
    CommandLine,
    Copy,
    Declaration,
    Device,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Heredoc,
    InlineFile,
    Instruction,
    Label,
    Maintainer,
    Network,
    Onbuild,
    Pair,
    Run,
    Security,
    Shell,
    Stopsignal,
    User,
    Volume,
    Workdir,
)
from tare.build.dockerfile.mounting import MountError, read_device, read_mount, source_of
from tare.build.dockerfile.nodes import KEYWORDS, Node, heredoc
from tare.build.dockerfile.source import DockerfileError
from tare.build.dockerfile.suggestion import meant
from tare.build.dockerfile.words import SPACES, Lexer, LexError, quoted

STAGE_NAME: Final = re.compile(r"[a-z][a-z0-9-_.]*")
_ONBUILD: Final = re.compile(rf"ONBUILD[{SPACES}]*", re.IGNORECASE)
_MILLISECOND: Final = 1_000_000
_NOT_TRIGGERS: Final = ("MAINTAINER", "FROM")
_TEXT, _TEXTS, _SWITCH = Kind.TEXT, Kind.TEXTS, Kind.SWITCH
_FLAGS: Final[dict[str, dict[str, Kind]]] = {
    "add": {
        "chown": _TEXT,
        "chmod": _TEXT,
        "link": _SWITCH,
        "keep-git-dir": _SWITCH,
        "checksum": _TEXT,
        "unpack": _SWITCH,
        "exclude": _TEXTS,
    },
    "copy": {
        "chown": _TEXT,
        "from": _TEXT,
        "chmod": _TEXT,
        "link": _SWITCH,
        "exclude": _TEXTS,
        "parents": _SWITCH,
    },
    "from": {"platform": _TEXT},
    "healthcheck": {
        "interval": _TEXT,
        "timeout": _TEXT,
        "start-period": _TEXT,
        "start-interval": _TEXT,
        "retries": _TEXT,
    },
    "run": {"mount": _TEXTS, "network": _TEXT, "security": _TEXT, "device": _TEXTS},
}


class _Wrong(Exception):
    """What is wrong with an instruction, and what in it to point at."""

    def __init__(self, reason: str, focus: str = "", hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.focus, self.hint = reason, focus, hint


def instruction(node: Node) -> Instruction:
    """The typed instruction that *node* is; DockerfileError."""
    keyword = node.keyword.lower()
    read = _READERS.get(keyword)
    try:
        if read is None:
            reason = f"unknown instruction: {node.keyword}"
            raise _Wrong(reason + meant(node.keyword, KEYWORDS, any_case=True), node.keyword)
        if any("\0" in word for word in node.arguments):
            raise _Wrong(
                f"{node.keyword.upper()} has a NUL character (\\u0000)",
                hint="no argument of a program, no path and no variable can hold one",
            )
        return read(node, Flags(_FLAGS.get(keyword, {}), node.flags))
    except _Wrong as wrong:
        reason, focus, hint = wrong.reason, wrong.focus, wrong.hint
    except FlagError as error:
        reason, focus, hint = str(error), error.focus, ""
    except (MountError, LexError) as error:
        reason, focus, hint = str(error), "", ""
    place = node.place
    raise DockerfileError(reason, place.source, place.lines, focus=focus, hint=hint)


def _one(node: Node) -> str:
    if len(node.arguments) != 1:
        raise _Wrong(f"{node.keyword.upper()} requires exactly one argument")
    return node.arguments[0]


def _some(node: Node) -> tuple[str, ...]:
    if not node.arguments:
        raise _Wrong(f"{node.keyword.upper()} requires at least one argument")
    return node.arguments


def _named_pairs(node: Node) -> tuple[Pair, ...]:
    arguments = _some(node)
    pairs = tuple(
        Pair(key, value, node.legacy)
        for key, value in zip(arguments[::2], arguments[1::2], strict=True)
    )
    if not all(pair.key for pair in pairs):
        raise _Wrong(f"{node.keyword.upper()} names can not be blank")
    return pairs


def _command(node: Node) -> CommandLine:
    return CommandLine(node.arguments, not node.json, node.heredocs)


def _from(node: Node, flags: Flags) -> From:
    words = node.arguments
    name = ""
    if len(words) == 3 and words[1].lower() == "as":
        name = words[2].lower()
        if not STAGE_NAME.fullmatch(name):
            raise _Wrong(
                f"invalid name for build stage: {quoted(words[2])}, "
                "name can't start with a number or contain symbols",
                words[2],
            )
    elif len(words) != 1:
        raise _Wrong("FROM requires either one or three arguments", hint="FROM IMAGE [AS NAME]")
    return From(place=node.place, image=words[0], name=name, platform=flags.text("platform"))


def _run(node: Node, flags: Flags) -> Run:
    if not node.arguments:
        raise _Wrong("RUN requires at least one argument")
    mounts = flags.texts("mount")
    lexer = Lexer(node.place.escape)

    def plainly(value: str) -> str:
        return lexer.word(value, {}).text

    for text in mounts:
        if "$" not in text:  # what has no variables is found wrong now, not in the middle
            read_mount(text, plainly)
    sources = (source_of(text) for text in mounts)
    return Run(
        place=node.place,
        command=_command(node),
        mount_flags=mounts,
        mount_sources=tuple(source for source in sources if source),
        network=_network(flags.text("network", "default")),
        security=_security(flags.text("security", "sandbox")),
        devices=_devices(flags.texts("device")),
    )


def _network(text: str) -> Network:
    try:
        return Network(text)
    except ValueError:
        reason = f"invalid network mode {quoted(text)}{meant(text, tuple(Network))}"
        raise _Wrong(reason, text) from None


def _security(text: str) -> Security:
    try:
        return Security(text)
    except ValueError:
        reason = f"security {quoted(text)} is not valid{meant(text, tuple(Security))}"
        raise _Wrong(reason, text) from None


def _devices(texts: tuple[str, ...]) -> tuple[Device, ...]:
    return tuple(read_device(text) for text in texts)


def _paths(node: Node) -> tuple[tuple[str, ...], tuple[InlineFile, ...], str]:
    """The sources, the files that stand in the Dockerfile, and the destination."""
    keyword = node.keyword.upper()
    if len(node.arguments) < 2:
        raise _Wrong(
            f"{keyword} requires at least two arguments, but only one was provided. "
            "Destination could not be determined",
            hint=f"{keyword} SOURCE... DESTINATION",
        )
    *sources, destination = node.arguments
    if node.json:
        return tuple(sources), (), destination
    if heredoc(destination) is not None:
        raise _Wrong(f"{keyword} cannot accept a heredoc as a destination", destination)
    documents = {document.name: document for document in node.heredocs}
    paths: list[str] = []
    files: list[InlineFile] = []
    for source in sources:
        opened = heredoc(source)
        document = None if opened is None else documents.get(opened.name)
        if document is None:
            paths.append(source)
        else:
            files.append(InlineFile(_file_name(document), document.text, document.expand))
    return tuple(paths), tuple(files), destination


def _file_name(document: Heredoc) -> str:
    """The last part of a document's name: it is a file's, and must not lead anywhere."""
    name = document.name.rpartition("/")[2]
    if name in ("", ".", ".."):
        raise _Wrong(f"a heredoc named {quoted(document.name)} cannot be a file", document.name)
    return name


def _add(node: Node, flags: Flags) -> Add:
    sources, files, destination = _paths(node)
    return Add(
        place=node.place,
        sources=sources,
        files=files,
        destination=destination,
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.switch("link") is True,
        exclude=flags.texts("exclude"),
        keep_git_dir=flags.switch("keep-git-dir"),
        checksum=flags.text("checksum"),
        unpack=flags.switch("unpack"),
    )


def _copy(node: Node, flags: Flags) -> Copy:
    sources, files, destination = _paths(node)
    from_name = flags.text("from")
    if Lexer(node.place.escape).word(from_name, {}).text != from_name:
        raise _Wrong(
            "variable expansion is not supported for --from, define a new stage with FROM "
            "using ARG from global scope as a workaround",
            from_name,
        )
    return Copy(
        place=node.place,
        sources=sources,
        files=files,
        destination=destination,
        from_name=from_name,
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.switch("link") is True,
        parents=flags.switch("parents") is True,
        exclude=flags.texts("exclude"),
    )


def _arg(node: Node, _flags: Flags) -> Arg:
    declarations: list[Declaration] = []
    for word in _some(node):
        name, equals, value = word.partition("=")
        if not name:
            raise _Wrong("ARG names can not be blank", word)
        declarations.append(
            Declaration(name, value if equals else None, description(node.place.comments, name))
        )
    return Arg(place=node.place, declarations=tuple(declarations))


def description(comments: tuple[str, ...], name: str) -> str:
    """What the comments above say of *name*: the line that begins with it."""
    lines = (line.removeprefix(f"{name} ") for line in comments if line.startswith(f"{name} "))
    return next(lines, "")


def _onbuild(node: Node, _flags: Flags) -> Onbuild:
    child = node.child
    if child is None:
        raise _Wrong("ONBUILD requires at least one argument")
    trigger = child.keyword.upper()
    if trigger == "ONBUILD":
        raise _Wrong("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if trigger in _NOT_TRIGGERS:
        raise _Wrong(f"{trigger} isn't allowed as an ONBUILD trigger", child.keyword)
    text = _ONBUILD.sub("", node.place.original, count=1)
    text += "".join(f"\n{document.content}{document.name}" for document in node.heredocs)
    inner = Node(
        keyword=child.keyword,
        flags=child.flags,
        arguments=child.arguments,
        place=node.place,
        json=child.json,
        legacy=child.legacy,
        heredocs=node.heredocs,
    )
    return Onbuild(place=node.place, trigger=text, instruction=instruction(inner))


def _shell(node: Node, _flags: Flags) -> Shell:
    arguments = _some(node)
    if not node.json:
        raise _Wrong(
            "SHELL requires the arguments to be in JSON form", hint='SHELL ["/bin/sh", "-c"]'
        )
    return Shell(place=node.place, arguments=arguments)


def _healthcheck(node: Node, flags: Flags) -> Healthcheck:
    kind, *rest = _some(node)
    match kind.upper():
        case "NONE":
            if rest:
                raise _Wrong("HEALTHCHECK NONE takes no arguments")
            return Healthcheck(place=node.place, test=("NONE",))
        case "CMD":
            if not rest:
                raise _Wrong("Missing command after HEALTHCHECK CMD")
        case unknown:
            raise _Wrong(f"Unknown type {quoted(unknown)} in HEALTHCHECK (try CMD)", kind)
    return Healthcheck(
        place=node.place,
        test=("CMD" if node.json else "CMD-SHELL", *rest),
        interval_ns=_interval(flags, "interval"),
        timeout_ns=_interval(flags, "timeout"),
        start_period_ns=_interval(flags, "start-period"),
        start_interval_ns=_interval(flags, "start-interval"),
        retries=_retries(flags.text("retries")),
    )


def _interval(flags: Flags, name: str) -> int:
    text = flags.text(name)
    if not text:
        return 0
    try:
        value = figures.duration(text)
    except ValueError as error:
        raise _Wrong(str(error), text) from None
    if value and value < _MILLISECOND:
        raise _Wrong(f'Interval "{name}" cannot be less than 1ms', text)
    return value


def _retries(text: str) -> int:
    if not text:
        return 0
    digits = text[1:] if text[0] in "+-" else text
    try:
        value = figures.number(digits)
    except ValueError:
        raise _Wrong(f"--retries is not a number: {quoted(text)}", text) from None
    if text.startswith("-") and value:
        raise _Wrong(f"--retries cannot be negative ({text})", text)
    if value >= 1 << 31:
        raise _Wrong(f"--retries is out of range: {quoted(text)}", text)
    return value


def _volume(node: Node, _flags: Flags) -> Volume:
    paths = tuple(path.strip(SPACES) for path in _some(node))
    if not all(paths):
        raise _Wrong("VOLUME specified can not be an empty string")
    return Volume(place=node.place, paths=paths)


_Reader = Callable[[Node, Flags], Instruction]
_READERS: Final[dict[str, _Reader]] = {
    "add": _add,
    "arg": _arg,
    "cmd": lambda node, _: Cmd(place=node.place, command=_command(node)),
    "copy": _copy,
    "entrypoint": lambda node, _: Entrypoint(place=node.place, command=_command(node)),
    "env": lambda node, _: Env(place=node.place, pairs=_named_pairs(node)),
    "expose": lambda node, _: Expose(place=node.place, ports=_some(node)),
    "from": _from,
    "healthcheck": _healthcheck,
    "label": lambda node, _: Label(place=node.place, pairs=_named_pairs(node)),
    "maintainer": lambda node, _: Maintainer(place=node.place, author=_one(node)),
    "onbuild": _onbuild,
    "run": _run,
    "shell": _shell,
    "stopsignal": lambda node, _: Stopsignal(place=node.place, signal=_one(node)),
    "user": lambda node, _: User(place=node.place, user=_one(node)),
    "volume": _volume,
    "workdir": lambda node, _: Workdir(place=node.place, path=_one(node)),
}
