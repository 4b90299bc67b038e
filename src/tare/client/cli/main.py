"""The entry of the command line: finds the command, runs it, reports errors.

The only module of the client that turns errors into words and an exit code. It imports next to
nothing: a command's module comes in when the command is known.
"""

from __future__ import annotations

import os
import sys

from tare.client.cli.registry import ALIASES, COMMANDS, COMMON, GROUPS, LATER
from tare.client.options import Command, Flags, UsageError, help_text, parse
from tare.client.tables import say, warn, write_out
from tare.client.transport import ALWAYS, Daemon
from tare.errors import TareError

_GLOBAL_HELP = """
Global options:
  -H, --host string   Socket of the daemon (default: TARE_HOST, else this user's own)
  -v, --version       Print the version
      --help          Print this help

Run 'tare COMMAND --help' for more information on a command.
"""


def main(argv: list[str]) -> int:
    """Run the command line *argv* (without the program's name) and return the exit code."""
    try:
        return _main(argv)
    except TareError as error:
        _report(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141  # as if SIGPIPE had ended us
    except OSError as error:
        subject = f"{error.filename}: " if error.filename else ""
        warn(f"tare: {subject}{error.strerror or error}")
        return 1


def script() -> None:
    """Entry point of the installed ``tare``: never returns."""
    code = main(sys.argv[1:])
    # Nothing is buffered and nothing is left to clean: skip the interpreter's tidying (2 ms).
    os._exit(code)


def _report(error: TareError) -> None:
    text = f"tare: {error}"
    if error.hint:
        text += "".join(f"\n  {line}" for line in error.hint.splitlines())
    warn(text)


def _main(argv: list[str]) -> int:
    host, words = _globals(argv)
    if words is None:
        from tare import __version__

        say(f"tare version {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        return _help(words[1:])
    name, rest = _find(words)
    if not name:
        return 0
    command = command_named(name)
    parsed = parse(name, command, rest)
    if parsed is None:
        write_out(help_text(name, command, _width()).encode())
        return 0
    _ask_for_trust(parsed[0])
    daemon = Daemon(host)
    try:
        return command.run(daemon, *parsed)
    finally:
        daemon.close()


def _ask_for_trust(flags: Flags) -> None:
    """Let every request of this command ask for verified images, where its user does.

    As Docker's client knows it, too: by its variable, and by its option that says no.
    """
    wanted = os.environ.get("DOCKER_CONTENT_TRUST", "") in ("1", "t", "T", "true", "TRUE", "True")
    if flags.given("disable-content-trust"):
        wanted = not flags.flag("disable-content-trust")
    if wanted or flags.flag("trust"):
        ALWAYS["Tare-Trust"] = "on"


def _globals(argv: list[str]) -> tuple[str, list[str] | None]:
    host = ""
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] not in ("-h", "--help"):
        word, equals, value = argv[at].partition("=")
        at += 1
        if word in ("-v", "--version"):
            return host, None
        if word in ("-H", "--host"):
            if not equals:
                if at >= len(argv):
                    raise UsageError(f"flag needs an argument: {word}", exit_code=125)
                value = argv[at]
                at += 1
            host = value
        elif word not in ("-D", "--debug"):
            raise UsageError(f"unknown flag: {word}", hint="See 'tare --help'.", exit_code=125)
    return host, argv[at:]


def _find(words: list[str]) -> tuple[str, list[str]]:
    """The canonical name of the command and its arguments; "" when a group's help was printed."""
    first = words[0]
    if (three := " ".join(words[:3])) in COMMANDS and len(words) > 2:
        return three, words[3:]  # tare trust key ls
    if first in COMMANDS and (pair := " ".join(words[:2])) in COMMANDS and len(words) > 1:
        return pair, words[2:]  # tare budget shows, tare budget set changes
    if first in COMMANDS:
        return first, words[1:]
    if first in LATER:
        raise TareError(f"`tare {first}` is not there yet", hint=LATER[first])
    if first in GROUPS:
        if len(words) == 1 or words[1] in ("--help", "-h"):
            write_out(_group_help(first).encode(), 1 if len(words) > 1 else 2)
            return "", []
        name = f"{first} {words[1]}"
        if name in COMMANDS or name in ALIASES:
            return ALIASES.get(name, name), words[2:]
        if name in LATER:
            raise TareError(f"`tare {name}` is not there yet", hint=LATER[name])
        raise _unknown(name, first)
    raise _unknown(first, "")


def _unknown(name: str, group: str) -> UsageError:
    from tare.client.options import nearest

    known = dict.fromkeys((*COMMANDS, *ALIASES, *GROUPS))
    within = {key: None for key in known if key.startswith(f"{group} ") == bool(group)}
    near = nearest(name, within)
    hint = f"Did you mean `tare {near}`?\n" if near else ""
    return UsageError(
        f"unknown command: tare {name}",
        hint=f"{hint}See 'tare{' ' + group if group else ''} --help'.",
    )


def command_named(name: str) -> Command:
    """The command with this canonical name."""
    module = f"tare.client.cli.{COMMANDS[name][0]}"
    __import__(module)
    commands: dict[str, Command] = sys.modules[module].COMMANDS
    return commands[name]


def _width() -> int:
    from tare.client.terminal import size

    return min(size()[1] or 80, 120)


def _help(words: list[str]) -> int:
    if words:
        return _main([*words, "--help"])
    lines = [
        "Usage:  tare [OPTIONS] COMMAND",
        "",
        "Run images as containers: fast, safe by default, with Docker's commands.",
        "",
        "Common commands:",
        *(f"  {name:<11} {COMMANDS[name][1]}" for name in COMMON),
        "",
        "Commands:",
    ]
    single = (name for name in COMMANDS if " " not in name and name not in COMMON)
    lines += [f"  {name:<11} {COMMANDS[name][1]}" for name in single]
    lines += ["", "Management commands:"]
    lines += [f"  {name:<11} {about}" for name, about in GROUPS.items()]
    write_out(("\n".join(lines) + "\n" + _GLOBAL_HELP).encode())
    return 0


def _group_help(group: str) -> str:
    names = [name for name in (*COMMANDS, *ALIASES) if name.startswith(f"{group} ")]
    lines = [f"Usage:  tare {group} COMMAND", "", GROUPS[group], "", "Commands:"]
    for name in sorted(names):
        about = COMMANDS[ALIASES.get(name, name)][1]
        lines.append(f"  {name.partition(' ')[2]:<11} {about}")
    lines += ["", f"Run 'tare {group} COMMAND --help' for more information on a command."]
    return "\n".join(lines) + "\n"
