"""docs/cli.md, made from the option tables: ``python -m tare.client.cli.reference > docs/cli.md``.

Not a manual: what the words mean together is told in the README and the tour.
"""

from __future__ import annotations

from tare.client.cli.main import command_named
from tare.client.cli.registry import ALIASES, COMMANDS, LATER

_HEAD = """# The command line

Made by `python -m tare.client.cli.reference > docs/cli.md` from the tables that parse options;
a test compares the two. Names, short forms, output and exit codes are those of Docker's CLI 28.
Options that Docker does not have are `--security-profile`, `logs --raw` and `save --format`;
commands that it does not have are `audit`, `budget`, `doctor`, `explain`, `image bootstrap`, `image
outdated`, `image pin`, `image provenance`, `image rebuild`, `image sbom`, `image unpin`, `trust`,
`vm`, `volume export`, `volume import` and `weigh`.

Errors are one sentence on standard error, with a hint below where there is something to do. Exit
codes: 125 for options that make no sense and for containers that could not be made or started, 126
for a program that may not be executed, 127 for one that is not there, 128+N after signal N, else
the program's own or 1.

`TARE_HOST` or `-H` names a daemon's socket; without them the user's own daemon is used, and
started if none answers.
"""


def markdown() -> str:
    """The whole document."""
    parts = [_HEAD, "\n## Commands\n", "\n| command | also | what it does |\n|---|---|---|\n"]
    for name in sorted(COMMANDS):
        also = ", ".join(f"`{alias}`" for alias, of in sorted(ALIASES.items()) if of == name)
        parts.append(
            f"| [`{name}`](#tare-{name.replace(' ', '-')}) | {also} | {COMMANDS[name][1]} |\n"
        )
    for name in sorted(COMMANDS):
        parts.append(_section(name))
    parts.append("\n## Not there yet\n\n| command | instead |\n|---|---|\n")
    parts += [f"| `{name}` | {instead} |\n" for name, instead in sorted(LATER.items())]
    return "".join(parts)


def _section(name: str) -> str:
    command = command_named(name)
    lines = [
        f"\n## tare {name}\n",
        f"{command.about}.\n",
        "```",
        f"tare {name} {command.usage}",
        "```",
    ]
    if command.notes:
        lines += ["", command.notes]
    if command.options:
        lines += ["", "| option | value | |", "|---|---|---|"]
    for flag, (short, kind, about) in sorted(command.options.items()):
        names = f"`-{short}`, `--{flag}`" if short else f"`--{flag}`"
        about = about.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {names} | {'' if kind == 'bool' else kind} | {about} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(markdown())
