"""The same deed for each of several names: go on after a failure, exit with 1 in the end."""

from __future__ import annotations

from tare.client.tables import say, warn
from tare.errors import TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def for_each(names: Iterable[str], deed: Callable[[str], str | None]) -> int:
    """Do *deed* for every name and print what it gives (None prints nothing)."""
    code = 0
    for name in names:
        try:
            said = deed(name)
        except TareError as error:
            warn(f"tare: {error}" + "".join(f"\n  {line}" for line in error.hint.splitlines()))
            code = 1
        else:
            if said is not None:
                say(said)
    return code


def confirmed(question: str) -> bool:
    """Ask on the terminal; anything but y or yes is no."""
    import sys

    print(f"{question}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
