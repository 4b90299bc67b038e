"""Docker's filters of ``ps`` and ``container prune``, over records. Pure.

Values of one key are alternatives (labels: all required), keys are all required.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from tare.errors import InvalidError
from tare.model.record import HealthStatus, Record
from tare.model.state import STATUS

Filters = Mapping[str, Sequence[str]]
Test = Callable[[Record], bool]

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")


def tests(filters: Filters, find: Callable[[str], Record]) -> list[Test]:
    """One test for each key; InvalidError for a key or value that Docker does not know.

    *find* resolves a reference, for ``before`` and ``since``.
    """
    return [_test(key, values, find) for key, values in filters.items() if values]


def select(records: Iterable[Record], wanted: Sequence[Test]) -> list[Record]:
    """The records that pass all tests, in their order."""
    return [r for r in records if all(test(r) for test in wanted)]


def _test(key: str, values: Sequence[str], find: Callable[[str], Record]) -> Test:
    match key:
        case "id":
            prefixes = tuple(values)
            return lambda r: r.id.startswith(prefixes)
        case "name":
            return _name(values)
        case "label":
            return labelled(values)
        case "status":
            return _status(values)
        case "exited":
            codes = {_number("exited", value) for value in values}
            return lambda r: r.exit_code in codes and not r.running and r.finished_ns > 0
        case "health":
            return _health(values)
        case "ancestor":
            return _ancestor(values)
        case "before" | "since":
            times = [find(value).created_ns for value in values]
            if key == "before":
                return lambda r: r.created_ns < min(times)
            return lambda r: r.created_ns > max(times)
        case "network":
            return _network(values)
        case "volume":
            return lambda r: any(m.target in values or m.source in values for m in r.spec.mounts)
        case "is-task":
            return lambda r: "false" in values or "0" in values
        case "publish":
            wanted = [_ports(value) for value in values]
            return lambda r: any(
                p.host_port in ports and p.protocol == protocol
                for joined in (r.networks if r.alive else ())
                for p in joined.ports
                for ports, protocol in wanted
            )
        case "expose":
            wanted = [_ports(value) for value in values]
            return lambda r: any(
                int(number) in ports and protocol == asked
                for number, _, protocol in (p.partition("/") for p in r.spec.exposed_ports)
                for ports, asked in wanted
            )
        case "isolation":
            return lambda r: r.spec.isolation in values
    raise InvalidError(f"invalid filter '{key[:40]}'")


def _network(values: Sequence[str]) -> Test:
    """Those in a network of that name or id, be it only the host's or none."""

    def test(record: Record) -> bool:
        word = record.spec.namespaces.network or ("" if record.networks else "none")
        return word in values or any(
            joined.network in values or joined.network_id.startswith(tuple(values))
            for joined in record.networks
        )

    return test


def _ports(text: str) -> tuple[range, str]:
    """``80``, ``80/udp``, ``8000-8010/tcp``."""
    numbers, _, protocol = text.partition("/")
    low, dash, high = numbers.partition("-")
    try:
        first, last = int(low), int(high) if dash else int(low)
    except ValueError:
        raise InvalidError(f"invalid filter: {text[:40]!r} is no port") from None
    if protocol not in ("", "tcp", "udp", "sctp") or not 0 < first <= last <= 65_535:
        raise InvalidError(f"invalid filter: {text[:40]!r} is no port")
    return range(first, last + 1), protocol or "tcp"


def _name(values: Sequence[str]) -> Test:
    # Names are matched anywhere, as Docker does; a plain word needs no regular expression.
    plain = [v.removeprefix("/") for v in values if _PLAIN.fullmatch(v.removeprefix("/"))]
    try:
        patterns = [re.compile(v) for v in values if not _PLAIN.fullmatch(v.removeprefix("/"))]
    except re.error as error:
        raise InvalidError(f"invalid filter 'name': {error}") from None

    def test(record: Record) -> bool:
        name = record.name
        if any(word in name for word in plain):
            return True
        return any(p.search(name) or p.search("/" + name) for p in patterns)

    return test


def exact_name(filters: Filters) -> str | None:
    """The one name that ``name=^/?NAME$`` asks for, so that it can be looked up."""
    values = filters.get("name", ())
    if len(values) != 1:
        return None
    text = values[0]
    if not (text.startswith("^") and text.endswith("$")):
        return None
    bare = text[1:-1].removeprefix("/?").removeprefix("/")
    return bare if _PLAIN.fullmatch(bare) else None


def plain_names(filters: Filters) -> list[str] | None:
    """The words that names must contain, when they say no more than that."""
    words = [value.removeprefix("/") for value in filters.get("name", ())]
    return words if words and all(_PLAIN.fullmatch(word) for word in words) else None


def labelled(values: Sequence[str]) -> Test:
    """All of ``NAME`` or ``NAME=VALUE`` are among a record's labels."""
    pairs = [value.partition("=") for value in values]

    def test(record: Record) -> bool:
        labels = record.spec.labels
        return all(
            name in labels and (not equals or labels[name] == value)
            for name, equals, value in pairs
        )

    return test


def without(value: str) -> Test:
    """A label that a record must not have."""
    has = labelled([value])
    return lambda r: not has(r)


def before(moment_ns: int) -> Test:
    """Made before a moment."""
    return lambda r: r.created_ns < moment_ns


def _status(values: Sequence[str]) -> Test:
    known = set(STATUS.values())
    for value in values:
        if value not in known:
            raise InvalidError(f"invalid filter 'status={value[:40]}'")
    return lambda r: STATUS[r.state] in values


def _health(values: Sequence[str]) -> Test:
    for value in values:
        if value not in set(HealthStatus):
            raise InvalidError(f"invalid filter 'health={value[:40]}'")

    def test(record: Record) -> bool:
        status = record.health.status if record.health else HealthStatus.NONE
        return status in values

    return test


def _ancestor(values: Sequence[str]) -> Test:
    def test(record: Record) -> bool:
        identity = record.spec.image_id
        bare = identity.partition(":")[2]
        image = record.spec.image
        return any(
            value in (image, identity)
            or f"{value}:latest" == image
            or (len(value) >= 12 and bare.startswith(value))
            for value in values
        )

    return test


def _number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidError(f"invalid filter '{key}={text[:40]}'") from None


def moment(text: str) -> int:
    """``until``'s value in ns: Unix seconds, RFC 3339, or a Go duration before now."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        seconds, _, fraction = text.partition(".")
        return int(seconds) * 10**9 + int(fraction.ljust(9, "0") or 0)
    parts = re.findall(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|ms|s|m|h)", text)
    if parts and "".join(n + u for n, u in parts) == text:
        return time.time_ns() - int(sum(float(n) * _UNITS[u] for n, u in parts))
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise InvalidError(f"invalid filter 'until={text[:40]}'") from None
    return int(found.timestamp() * 1e9)


_UNITS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
