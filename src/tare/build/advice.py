"""Our own checks of a Dockerfile: what makes images unsafe, or different from day to day.

They are those that the linters and benchmarks of the field agree on. `checks` adds BuildKit's,
leaves out what the file asks to skip, and is the door; what only shows in the built image
(setuid files of packages, users without a password) is for the audit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tare.build.dockerfile import (
    Add,
    Cmd,
    Copy,
    Dockerfile,
    Entrypoint,
    Expose,
    Healthcheck,
    Instruction,
    Place,
    Run,
    Stage,
    User,
    Volume,
)
from tare.build.dockerfile.words import quoted
from tare.build.secret_names import is_secret_file
from tare.build.shell_commands import Command, Pipeline, bare, pipelines, program

EXPLANATIONS: Final = {
    "UntaggedBaseImage": (
        "Without a tag, or with latest, the base image may be another one at each build"
    ),
    "UnpinnedBaseImage": "A tag may move; only a digest names the same base image for ever",
    "RootUser": "A program that breaks out of its container does so as the user it runs as",
    "SecretFileCopied": (
        "A file in a layer can be read by everybody who has the image, deleted later or not; "
        "use RUN --mount=type=secret"
    ),
    "SudoUsed": "RUN steps are root already, or as USER says; sudo adds a setuid program",
    "DownloadWithoutChecksum": (
        "What a server sends can change from day to day; ADD --checksum=sha256:... fixes it"
    ),
    "DownloadPipedToShell": (
        "A program is run that nobody has looked at, and a download that breaks off runs by half"
    ),
    "VerificationDisabled": (
        "Signatures and certificates are what tells the real package from a planted one"
    ),
    "SshServer": (
        "A shell for a running container is one exec away; a server of its own needs keys, "
        "users and updates"
    ),
    "SetuidFile": "Whoever runs a setuid file gets its owner's rights",
    "EmptyPassword": "An account without a password is open to every process that can log in",
    "DuplicateUserId": "Two names for one number: rights given to one are given to the other",
    "UpdateAlone": (
        "The list of packages is cached with its own layer and gets old; update and install "
        "belong into one RUN"
    ),
    "DistributionUpgrade": (
        "The image then holds whatever was newest; take a newer base image instead"
    ),
    "WholeStageCopied": ("A copy of a whole stage brings its tools, caches and secrets with it"),
    "CopyFromUnknownStage": "A stage can only be copied from after it has been defined",
    "WorldWritableFile": "Every process in the container may change such a file",
    "VolumeOnSystemDirectory": (
        "A volume there hides what the image has, and keeps it out of updates"
    ),
    "HealthcheckMissing": "Without a check only the end of the process tells that it has failed",
}
_SHELLS: Final = frozenset(
    ("sh", "bash", "dash", "ash", "zsh", "ksh", "python", "python3", "perl", "ruby", "node")
)
_SYSTEM: Final = frozenset((
    "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin",
    "/sys", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin", "/var", "/var/lib", "/var/run",
))  # fmt: skip
_UNVERIFIED: Final = frozenset((
    "--allow-unauthenticated", "--nogpgcheck", "--no-gpg-check", "--no-gpg-checks",
    "--allow-untrusted", "--force-yes", "--trusted-host", "--no-check-certificate",
    "--allow-insecure-repositories", "--insecure", "--no-verify-ssl",
))  # fmt: skip
_INSTALLERS: Final = {
    "apt-get": ("install", "upgrade", "dist-upgrade", "full-upgrade", "build-dep", "download"),
    "apt": ("install", "upgrade", "full-upgrade", "build-dep", "download"),
    "apk": ("add", "upgrade"),
    "yum": ("install", "upgrade", "update"),
    "dnf": ("install", "upgrade", "update"),
    "zypper": ("install", "in", "update", "up"),
}
_UPDATES: Final = {
    "apt-get": ("update",),
    "apt": ("update",),
    "apk": ("update",),
    "yum": ("check-update", "makecache"),
    "dnf": ("check-update", "makecache"),
    "zypper": ("refresh", "ref"),
}
_ROOT: Final = frozenset(("root", "0"))
_OCTAL: Final = re.compile(r"0?[0-7]{3,4}")
_SETUID: Final = re.compile(r"[ugoa]*[ug][ugoa]*\+[rwxXt]*s[rwxXst]*|\+[rwxXt]*s[rwxXst]*")
_WRITABLE: Final = re.compile(r"[ugoa]*[oa][ugoa]*[+=][rxXst]*w[rwxXst]*|\+[rxXst]*w[rwxXst]*")


@dataclass(frozen=True, slots=True)
class Note:
    """A rule, the place it is about, and what it says of it."""

    rule: str
    place: Place
    text: str


def advise(dockerfile: Dockerfile) -> Iterator[Note]:
    """Everything, whatever the file says of skipping."""
    for stage in dockerfile.stages:
        yield from _base(dockerfile, stage)
        for instruction in stage.instructions:
            yield from _step(dockerfile, stage, instruction)
    yield from _result(dockerfile)


def _base(dockerfile: Dockerfile, stage: Stage) -> Iterator[Note]:
    image = stage.base
    if "$" in image or image == "scratch" or dockerfile.named(image, before=stage.index):
        return
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not digest and tag in ("", "latest"):
        text = f"Base image {quoted(image)} has no tag that says which one it is"
        yield Note("UntaggedBaseImage", stage.start.place, text)
    if not digest:
        text = f"Base image {quoted(image)} is not named by its digest"
        yield Note("UnpinnedBaseImage", stage.start.place, text)


def _result(dockerfile: Dockerfile) -> Iterator[Note]:
    """What is true of the last stage, the one that is built unless another is asked for."""
    chain = [dockerfile.stages[-1]]
    while base := dockerfile.named(chain[-1].base, before=chain[-1].index):
        chain.append(base)
    instructions = [i for stage in reversed(chain) for i in stage.instructions]
    users = [i for i in instructions if isinstance(i, User)]
    if users and users[-1].user.partition(":")[0] in _ROOT:
        text = f"The last USER is {quoted(users[-1].user)}"
        yield Note("RootUser", users[-1].place, text)
    if not any(isinstance(i, Healthcheck) for i in instructions):
        text = "The image says nothing of how to see that it works"
        yield Note("HealthcheckMissing", chain[0].start.place, text)


def _step(dockerfile: Dockerfile, stage: Stage, instruction: Instruction) -> Iterator[Note]:
    place = instruction.place
    match instruction:
        case Copy() | Add():
            yield from _files(instruction)
            if isinstance(instruction, Copy):
                yield from _other_stage(dockerfile, stage, instruction)
            else:
                yield from _downloads(instruction)
        case Run():
            yield from _run(instruction)
        case Cmd() | Entrypoint():
            command = instruction.command
            words = pipelines(command.arguments[0]) if command.shell and command.arguments else []
            programs = [program(c) for line in words for c in line]
            if not command.shell:
                programs = [program(command.arguments)]
            if "sshd" in programs:
                yield Note("SshServer", place, "The image runs an SSH server")
        case Expose():
            if any(port.partition("/")[0] == "22" for port in instruction.ports):
                yield Note("SshServer", place, "The image exposes the port of SSH")
        case Volume():
            for path in instruction.paths:
                if (path.rstrip("/") or "/") in _SYSTEM:
                    text = f"Volume on the system directory {quoted(path)}"
                    yield Note("VolumeOnSystemDirectory", place, text)
        case _:
            pass


def _files(copy: Copy | Add) -> Iterator[Note]:
    for source in copy.sources:
        if is_secret_file(source) and "://" not in source:
            text = f"{quoted(source)} looks like a secret and becomes part of the image"
            yield Note("SecretFileCopied", copy.place, text)
    yield from _mode(copy.place, copy.chmod, f"{copy.keyword} --chmod={copy.chmod}")


def _mode(place: Place, mode: str, where: str) -> Iterator[Note]:
    """What is wrong with a mode of chmod, octal or in letters."""
    setuid = writable = False
    if _OCTAL.fullmatch(mode):
        bits = int(mode, 8)
        setuid, writable = bool(bits & 0o6000), bool(bits & 0o002) and not bits & 0o1000
    else:
        for part in mode.split(","):
            setuid = setuid or _SETUID.fullmatch(part) is not None
            writable = writable or _WRITABLE.fullmatch(part) is not None
    if setuid:
        yield Note("SetuidFile", place, f"{where} sets the setuid or setgid bit")
    if writable:
        yield Note("WorldWritableFile", place, f"{where} lets everybody write")


def _other_stage(dockerfile: Dockerfile, stage: Stage, copy: Copy) -> Iterator[Note]:
    if not copy.from_name:
        return
    source = dockerfile.stage(copy.from_name)
    if dockerfile.stage(copy.from_name, before=stage.index) is None:
        if source is not None:
            text = f"Stage {quoted(copy.from_name)} is not defined before this one"
            yield Note("CopyFromUnknownStage", copy.place, text)
        elif copy.from_name.isdecimal():
            text = f"There is no stage {copy.from_name}"
            yield Note("CopyFromUnknownStage", copy.place, text)
    # Into a stage that starts from nothing a whole copy is the usual way to make one layer.
    elif {"/", "/."} & set(copy.sources) and copy.destination == "/" and stage.base != "scratch":
        text = f"All of stage {quoted(copy.from_name)} is copied"
        yield Note("WholeStageCopied", copy.place, text)


def _downloads(add: Add) -> Iterator[Note]:
    if add.checksum:
        return
    for source in add.sources:
        repository = source.partition("#")[0].endswith(".git")
        if source.startswith(("http://", "https://")) and not repository:
            text = f"{quoted(source)} is downloaded without --checksum"
            yield Note("DownloadWithoutChecksum", add.place, text)


# ---- RUN -------------------------------------------------------------------------------------


def _run(run: Run) -> Iterator[Note]:
    execution = run.execution()
    if execution.script is not None:
        lines = pipelines(execution.script.content)
    elif execution.shell:
        lines = pipelines(execution.arguments[0])
    else:
        lines = [(execution.arguments,)]
    told: set[tuple[str, str]] = set()
    for note in _script(run.place, lines):
        if (note.rule, note.text) not in told:
            told.add((note.rule, note.text))
            yield note


def _script(place: Place, lines: list[Pipeline]) -> Iterator[Note]:
    for line in lines:
        programs = [program(_without_sudo(bare(command))) for command in line]
        fetch = next((name for name in programs if name in ("curl", "wget")), "")
        if fetch and any(name in _SHELLS for name in programs[programs.index(fetch) + 1 :]):
            text = f"What {fetch} gets is run at once"
            yield Note("DownloadPipedToShell", place, text)
        for command in line:
            yield from _command(place, command)
    commands = [bare(command) for line in lines for command in line]
    updates = [c for c in commands if _does(c, _UPDATES)]
    if updates and not any(_does(command, _INSTALLERS) for command in commands):
        text = f"'{' '.join(updates[0][:2])}' stands alone in its RUN"
        yield Note("UpdateAlone", place, text)


def _does(command: Command, verbs: dict[str, tuple[str, ...]]) -> bool:
    words = _without_sudo(command)
    known = verbs.get(words[0].rpartition("/")[2] if words else "", ())
    return any(word in known for word in words[1:])


def _without_sudo(command: Command) -> Command:
    if program(command) != "sudo":
        return command
    words = bare(command)[1:]
    options = next((n for n, word in enumerate(words) if not word.startswith("-")), len(words))
    return words[options:]


def _command(place: Place, command: Command) -> Iterator[Note]:
    if program(command) == "sudo":
        yield Note("SudoUsed", place, "sudo is used")
    words = _without_sudo(bare(command))
    name = program(words)
    for word in words[1:]:
        option = word.partition("=")[0]
        if option in _UNVERIFIED or (name == "curl" and _short(word, "k")):
            yield Note("VerificationDisabled", place, f"'{option}' of {name} trusts anybody")
    match name:
        case "apt-get" | "apt":
            if {"dist-upgrade", "full-upgrade"} & set(words):
                yield Note("DistributionUpgrade", place, f"{name} upgrades the whole system")
        case "chmod":
            mode = next((word for word in words[1:] if not word.startswith("-")), "")
            yield from _mode(place, mode, f"chmod {mode}")
        case "passwd":
            if any(word == "--delete" or _short(word, "d") for word in words[1:]):
                yield Note("EmptyPassword", place, "passwd takes a password away")
        case "useradd" | "usermod" | "adduser":
            yield from _account(place, name, words)
        case _:
            pass
    if _does(words, _INSTALLERS) and "openssh-server" in words:
        yield Note("SshServer", place, "An SSH server is installed")


def _account(place: Place, name: str, words: Command) -> Iterator[Note]:
    options = words[1:]
    if name != "adduser" and any(w == "--non-unique" or _short(w, "o") for w in options):
        yield Note("DuplicateUserId", place, f"{name} gives a number that is taken")
    for option, value in pairwise(options):
        if name != "adduser" and option in ("-p", "--password") and value == "":
            yield Note("EmptyPassword", place, f"{name} sets an empty password")


def _short(word: str, letter: str) -> bool:
    """Whether *word* is short options with *letter* among them."""
    return word[:1] == "-" and word[:2] != "--" and letter in word[1:] and word[1:].isalpha()
