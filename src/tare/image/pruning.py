"""Which images a collector takes, and how much that frees. Pure: the store does it.

Not for: deciding what is in use; the store knows leases, its callers know containers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tare.errors import InvalidError
from tare.image.index import Row
from tare.image.moments import parse_time
from tare.model.digest import Digest


@dataclass(frozen=True, slots=True)
class Swept:
    """What a collector took, or would take: names, images, layers, and the bytes they hold."""

    names: tuple[str, ...] = ()
    images: tuple[Digest, ...] = ()
    layers: tuple[Digest, ...] = ()
    freed: int = 0


def orphans(
    going: Iterable[Row], all_rows: Iterable[Row], kept: Callable[[Digest], bool]
) -> list[Digest]:
    """The layers that no image has any more when *going* are gone, and nothing else keeps."""
    gone = {row.id for row in going}
    needed = {layer for row in all_rows if row.id not in gone for layer in row.layers}
    mine = dict.fromkeys(layer for row in going for layer in reversed(row.layers))
    return [layer for layer in mine if layer not in needed and not kept(layer)]


def oldest_first(
    rows: Iterable[Row], used: Mapping[Digest, int], may_go: Callable[[Row], bool]
) -> list[Row]:
    """Those that may go, the longest unused first; one that was never used counts as it came."""
    found = [row for row in rows if may_go(row)]
    return sorted(found, key=lambda row: (used.get(row.id, row.added_ns), row.added_ns, row.id.hex))


def passing(filters: Mapping[str, Iterable[str]]) -> Callable[[int, Mapping[str, str]], bool]:
    """Whether an image, by its time of creation and its labels, passes ``until`` and ``label``."""
    for key in filters:
        if key not in ("until", "label", "label!", "dangling"):
            raise InvalidError(f"invalid filter {key!r}: until, label and label! are possible")
    moments = [_moment(text) for text in filters.get("until", ())]
    with_labels = list(filters.get("label", ()))
    without = list(filters.get("label!", ()))

    def wanted(created_ns: int, labels: Mapping[str, str]) -> bool:
        return (
            all(created_ns < moment for moment in moments)
            and all(_has_label(labels, text) for text in with_labels)
            and not any(_has_label(labels, text) for text in without)
        )

    return wanted


def _has_label(labels: Mapping[str, str], text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in labels and (not equals or fnmatch.fnmatchcase(labels[name], value))


def _moment(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text) * 10**9
    moment = parse_time(text)
    if moment is None:
        raise InvalidError(f"invalid filter 'until={text[:80]}': not a time")
    return moment
