"""The ``filters`` of a query: Docker's two JSON shapes to names and their values. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from tare.errors import InvalidError

Filters = Mapping[str, tuple[str, ...]]

_LIMIT: Final = 256
_DECODER: Final = msgspec.json.Decoder(dict[str, dict[str, bool] | list[str] | None])


def filters(text: str | None, known: Collection[str]) -> Filters:
    """``{"label":{"a=b":true}}`` or ``{"label":["a=b"]}``; an unknown name is InvalidError."""
    if not text:
        return {}
    try:
        given = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidError(f"invalid filter: {error}") from error
    found: dict[str, tuple[str, ...]] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidError(f"invalid filter '{name[:40]}'")
        chosen = (
            tuple(key for key, on in value.items() if on)
            if isinstance(value, dict)
            else tuple(value or ())
        )
        if len(chosen) > _LIMIT or any(len(word) > 1024 for word in chosen):
            raise InvalidError(f"invalid filter '{name}': too many or too long values")
        if chosen:
            found[name] = chosen
    return found
