"""What can be said of one container in sentences: how it is, what bounds it, who reaches it.

Values only; `engine.explain` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound, in words, and where it comes from (``--memory``, ``default``, ``budget``)."""

    what: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Port:
    """One published port: who may reach it and which rule does it."""

    port: str  # 127.0.0.1:8080 -> 80/tcp
    rule: str
    reach: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that `tare explain` says."""

    id: str
    name: str
    state: str
    verdict: tuple[str, ...]  # why it is as it is, the cause first
    advice: tuple[str, ...]  # what could be done
    limits: tuple[Limit, ...]
    ports: tuple[Port, ...]
    networks: tuple[str, ...]
    isolation: tuple[str, ...]
    volumes: tuple[str, ...]
