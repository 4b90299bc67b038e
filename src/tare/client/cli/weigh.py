"""weigh: one image both ways on this host, and what each costs."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager

from tare.client import document
from tare.client.document import items, number, text
from tare.client.options import Command, Flags
from tare.client.tables import warn, write_out
from tare.client.transport import Daemon
from tare.errors import FailedError, InvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tare.client.weigh import Side
    from tare.client.weigh_receipt import Receipt

_ROUNDS = 5
_MOST_ROUNDS = 1000


def _weigh(daemon: Daemon, flags: Flags, arguments: list[str]) -> int:
    image, *command = arguments
    rounds = flags.number("rounds", _ROUNDS)
    if not 1 <= rounds <= _MOST_ROUNDS:
        raise InvalidError(f"--rounds takes 1 to {_MOST_ROUNDS}, not {rounds}")
    only, form, page = flags.text("only"), flags.text("format"), flags.text("html")
    if only not in ("", "container", "vm"):
        raise InvalidError(f"--only takes container or vm, not {only!r}")
    if form not in ("", "json"):
        raise InvalidError("--format takes json here")
    if page and not os.path.isdir(os.path.dirname(page) or "."):
        raise InvalidError(f"--html {page}: there is no such directory")
    receipt = _measure(daemon, image, command, rounds, (only,) if only else ("container", "vm"))
    _show(receipt, form, page)
    return 0


def _measure(
    daemon: Daemon, image: str, command: list[str], rounds: int, names: tuple[str, ...]
) -> Receipt:
    from tare.client import weigh_rows
    from tare.client.weigh import Side, Weighing
    from tare.client.weigh_receipt import Receipt

    sides = {name: Side() for name in names}
    free = weigh_rows.free_memory(daemon.call("GET", "/tare/budget"))
    with _ended_by_signals(), Weighing(daemon, image, command) as weighing:
        for turn in range(rounds):
            for name, side in sides.items():
                if not side.failed:
                    weighing.round(name, side, _progress(name, turn + 1, rounds))
            if all(side.failed for side in sides.values()):
                raise FailedError("; ".join(f"{n}: {side.failed}" for n, side in sides.items()))
    _progress_over()
    emulated = "vm" in sides and _emulated(daemon, sides["vm"])
    return Receipt(
        image=image,
        image_id=text(weighing.details, "Id"),
        command=command,
        rounds=rounds,
        when=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        engine=text(daemon.call("GET", "/version"), "Version"),
        host=weigh_rows.host_facts(daemon.call("GET", "/info")),
        sides=names,
        emulated=emulated,
        rows=weigh_rows.rows(
            sides,
            image_size=number(weighing.details, "Size"),
            free=free,
            health_check=weighing.has_health_check,
        ),
        facts=weigh_rows.facts(sides),
        cannot=weigh_rows.cannot(sides, emulated=emulated, rounds=rounds),
    )


def _emulated(daemon: Daemon, side: Side) -> bool:
    """Whether machines have no KVM: as one of them showed, else as the engine knows."""
    if side.surface:
        return side.surface.get("Accelerated") is not True
    checks = items(daemon.call("GET", "/tare/doctor"))
    return any(text(one, "check") == "KVM" and text(one, "status") != "ok" for one in checks)


def _show(receipt: Receipt, form: str, page: str) -> None:
    from tare.client import weigh_page, weigh_receipt, weigh_text
    from tare.client.terminal import size

    if page:
        with open(page, "w", encoding="utf-8") as file:
            file.write(weigh_page.render(receipt))
    if form == "json":
        found = document.compact(weigh_receipt.document(receipt), ordered=True)
        write_out((found + "\n").encode("utf-8", "replace"))
        return
    terminal = os.isatty(1)
    width = min(size()[1] or 80, 120) if terminal else 100
    colour = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    drawn = weigh_text.render(receipt, width=width, colour=colour)
    write_out(drawn.encode("utf-8", "replace"))
    if page:
        warn(f"The page is in {page}.")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end us as Ctrl-C does, so that nothing is left behind."""

    def end(*_: object) -> None:
        # Once: what cleans up is not to be broken off by the next.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """One line on a terminal that says what is being done."""

    def __init__(self, start: str) -> None:
        self._start = start

    def __call__(self, doing: str) -> None:
        if os.isatty(2):
            write_out(f"\r\033[K{self._start}: {doing} ...".encode(), 2)


def _progress(name: str, turn: int, rounds: int) -> _Progress:
    return _Progress(f"round {turn} of {rounds}, {name}")


def _progress_over() -> None:
    if os.isatty(2):
        write_out(b"\r\033[K", 2)


COMMANDS = {
    "weigh": Command(
        "[OPTIONS] IMAGE [-- COMMAND [ARG...]]",
        "Run an image as a container and as a VM, and show what each costs",
        _weigh,
        {
            "format": ("", "string", "Print by 'json'"),
            "html": ("", "string", "Write a page with charts to this file, too"),
            "only": ("", "string", "One side only: container or vm"),
            "rounds": ("", "int", f"How often each is measured (default {_ROUNDS})"),
        },
        least=1,
        notes=(
            "Everything it starts is removed at the end, and by Ctrl-C. Loads use the image's own\n"
            "shell, dd and nc; what it does not have is said. Keep the host quiet meanwhile."
        ),
    ),
}
