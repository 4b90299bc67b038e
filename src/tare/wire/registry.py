"""What registries are asked, in Docker's words: progress as lines of JSON, platforms. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tare.errors import InvalidError
from tare.image.registry.download import Phase, Step
from tare.image.registry.pull import LayerKept, LayerNotice, Notice
from tare.image.registry.push import Pushed, PushNotice, PushPhase
from tare.image.registry.search import Result
from tare.model.oci import Descriptor, Platform

Json = dict[str, object]

_PHASES: Final = {
    Phase.WAITING: "Pulling fs layer",
    Phase.DOWNLOADING: "Downloading",
    Phase.RETRYING: "Retrying",
    Phase.VERIFYING: "Verifying Checksum",
    Phase.EXTRACTING: "Extracting",
    Phase.DONE: "Pull complete",
}
_WITH_BAR: Final = frozenset({Phase.DOWNLOADING, Phase.EXTRACTING})
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_BAR: Final = 50
_TOKEN: Final = re.compile("[a-z0-9][a-z0-9_.+-]{0,63}")
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "armhf": "arm"}


def platform(text: str) -> Platform | None:
    """``linux/arm64/v8``; ``linux`` or an architecture alone is not enough; "" is None."""
    if not text:
        return None
    words = text.lower().split("/")
    if not 2 <= len(words) <= 3 or not all(map(_TOKEN.fullmatch, words)):
        raise InvalidError(
            f"invalid platform: {text[:80]!r}", hint="write OS/ARCHITECTURE, linux/arm64"
        )
    architecture = _ARCHITECTURES.get(words[1], words[1])
    variant = words[2] if len(words) == 3 else ""
    if (architecture, variant) == ("arm64", ""):
        variant = "v8"
    return Platform(words[0], architecture, variant)


class PullLines:
    """The lines of one pull, as Docker's daemon writes them; it remembers what it told."""

    def __init__(self) -> None:
        self._last: dict[str, Phase] = {}

    def of(self, told: Notice | LayerNotice | LayerKept) -> list[Json]:
        """The lines that say what was *told*."""
        match told:
            case Notice():
                return [{"status": told.text, **({"id": told.subject} if told.subject else {})}]
            case LayerKept():
                return [_line("Already exists", told.id)]
            case LayerNotice():
                return self._layer(told.id, told.step)

    def _layer(self, id: str, step: Step) -> list[Json]:
        before = self._last.get(id)
        self._last[id] = step.phase
        lines = []
        if step.phase is Phase.DONE:
            if before not in (Phase.VERIFYING, Phase.EXTRACTING):
                # Somebody else fetched it.
                lines.append(_line("Download complete", id))
            lines.append(_line("Extracting", id, step))
            lines.append(_line("Pull complete", id))
        elif step.phase is Phase.VERIFYING:
            lines += [_line("Verifying Checksum", id), _line("Download complete", id)]
        elif step.phase is Phase.RETRYING:
            lines.append(_line("Retrying", id))
        else:
            shown = step if step.phase in _WITH_BAR else None
            lines.append(_line(_PHASES[step.phase], id, shown))
        return lines


def _line(status: str, id: str, step: Step | None = None) -> Json:
    line: Json = {"status": status, "progressDetail": {}, "id": id}
    if step is not None:
        line["progressDetail"] = {"current": step.current, "total": step.total}
        line["progress"] = bar(step.current, step.total)
    return line


def push_line(told: Notice | PushNotice) -> Json:
    """The line that says what was *told* of a push."""
    if isinstance(told, Notice):
        return {"status": told.text}
    match told.phase:
        case PushPhase.PREPARING:
            return _line("Preparing", told.id)
        case PushPhase.PUSHING:
            return _line("Pushing", told.id, Step(Phase.DOWNLOADING, told.current, told.total))
        case PushPhase.PUSHED:
            return _line("Pushed", told.id)
        case PushPhase.EXISTS:
            return _line("Layer already exists", told.id)
        case PushPhase.MOUNTED:
            return _line(f"Mounted from {told.origin}", told.id)


def pushed(done: Pushed) -> Json:
    """The line by which clients learn what they have pushed."""
    aux = {"Tag": done.tag, "Digest": str(done.digest), "Size": done.size}
    return {"progressDetail": {}, "aux": aux}


def distribution(descriptor: Descriptor, platforms: Iterable[Platform]) -> Json:
    """``GET /distribution/NAME/json``."""
    return {
        "Descriptor": {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
        },
        "Platforms": [
            {
                "architecture": one.architecture,
                "os": one.os,
                **({"variant": one.variant} if one.variant else {}),
            }
            for one in platforms
        ],
    }


def found(results: Iterable[Result]) -> list[Json]:
    """``GET /images/search``."""
    return [
        {
            "name": one.name,
            "description": one.description,
            "star_count": one.stars,
            "is_official": one.official,
            "is_automated": one.automated,
        }
        for one in results
    ]


def bar(current: int, total: int) -> str:
    """``[==>     ]  1.2MB/3.4MB``, as Docker draws it."""
    if total <= 0:
        return f"{size(current):>8}"
    done = min(int(current / total * 100) // 2, _BAR)
    return f"[{'=' * done + '>':<{_BAR + 1}}] {size(current):>8}/{size(total)}"


def size(value: float) -> str:
    """Bytes with four significant digits, in powers of 1000."""
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.4g}{_UNITS[unit]}"
