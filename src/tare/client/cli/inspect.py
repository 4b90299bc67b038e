"""inspect: everything that is known of containers and images, as JSON or by a template."""

from __future__ import annotations

from tare.client import document
from tare.client.options import Command, Flags
from tare.client.tables import shown, warn, write_out
from tare.client.transport import Daemon, quoted, segment, target
from tare.errors import InvalidError, MissingError, TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.client.document import Json
    from tare.client.options import Action

_LATER = ("config", "node", "plugin", "secret", "service", "task")


def _inspect(kinds: tuple[str, ...]) -> Action:
    def run(daemon: Daemon, flags: Flags, names: list[str]) -> int:
        wanted = flags.text("type")
        chosen = kinds
        if wanted:
            if wanted not in ("container", "image", "network", "volume", *_LATER):
                raise InvalidError(
                    f'unknown type: "{wanted}": must be "container", "image", "network" or "volume"'
                )
            chosen = (wanted,)
        return _print(daemon, flags, names, chosen)

    return run


def _print(daemon: Daemon, flags: Flags, names: list[str], kinds: tuple[str, ...]) -> int:
    sized = flags.flag("size")
    return print_each(flags, names, lambda name: _details(daemon, name, kinds, sized=sized))


def print_each(flags: Flags, names: list[str], ask: Callable[[str], Json]) -> int:
    """Print what *ask* tells of each of *names*, by ``--format``; 1 if there was an error."""
    form = flags.text("format")
    template = None
    if form not in ("", "json"):
        from tare.client.templates import Template

        template = Template(form)
    code = 0
    found: list[Json] = []
    for name in names:
        try:
            details = ask(name)
            if template is not None:
                line = template.render(details) + "\n"
                write_out(shown(line, "\n\t").encode("utf-8", "replace"))
        except TareError as error:
            warn(f"tare: {error}" + (f"\n  {error.hint}" if error.hint else ""))
            code = 1
        else:
            found.append(details)
    if form == "json":
        write_out("".join(document.compact(each) + "\n" for each in found).encode())
    elif not form:
        write_out((document.pretty(found) + "\n").encode())
    return code


def _details(daemon: Daemon, name: str, kinds: tuple[str, ...], *, sized: bool) -> Json:
    for kind in kinds:
        if kind in _LATER:
            continue
        if kind in ("volume", "network"):
            try:
                return daemon.call("GET", f"/{kind}s/{segment(name)}")
            except MissingError:
                continue
        step = segment(name) if kind == "container" else quoted(name)
        where = target(f"/{kind}s/{step}/json", {"size": sized and kind == "container"})
        try:
            return daemon.call("GET", where)
        except MissingError:
            continue
    what = kinds[0] if len(kinds) == 1 else "object"
    raise MissingError(f"no such {what}: {name}")


_FORMAT = ("f", "string", "Print by 'json' or a Go template, for example '{{.State.Status}}'")

COMMANDS = {
    "inspect": Command(
        "[OPTIONS] NAME|ID [NAME|ID...]",
        "Show all details of containers and images",
        _inspect(("container", "image", "network", "volume")),
        {
            "format": _FORMAT,
            "size": ("s", "bool", "Sizes of containers, too"),
            "type": ("", "string", "Only things of this kind: container, image or volume"),
        },
        least=1,
    ),
    "container inspect": Command(
        "[OPTIONS] CONTAINER [CONTAINER...]",
        "Show all details of containers",
        _inspect(("container",)),
        {"format": _FORMAT, "size": ("s", "bool", "Sizes, too")},
        least=1,
    ),
    "image inspect": Command(
        "[OPTIONS] IMAGE [IMAGE...]",
        "Show all details of images",
        _inspect(("image",)),
        {"format": _FORMAT, "platform": ("", "string", "Platform of the image (linux/amd64)")},
        least=1,
    ),
}
