"""The lifecycle automaton: pure, total, and the source of the diagram in docs/lifecycle.md.

An action first moves the record to an intent (``-ing``); what is then seen, not what was
asked for, settles it. The intent is the only trace that a dead workload was asked to die:
the restart policy reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a workload is; those in ``-ing`` (but RUNNING) are intents."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    RESTARTING = "restarting"  # exited, and the restart policy waits to start it again
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"  # removal failed half way


class Action(StrEnum):
    """What a user may ask of a workload."""

    START = "start"
    STOP = "stop"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    REMOVE = "remove"


class Fact(StrEnum):
    """What the kernel shows of a workload's first process."""

    ALIVE = "alive"
    FROZEN = "frozen"
    DEAD = "dead"
    ABSENT = "absent"  # it never ran, or nothing is known of it


STATUS: Final = {
    State.CREATED: "created",
    State.STARTING: "created",
    State.RUNNING: "running",
    State.PAUSED: "paused",
    State.STOPPING: "running",
    State.RESTARTING: "restarting",
    State.EXITED: "exited",
    State.REMOVING: "removing",
    State.DEAD: "dead",
}
"""The word that users and clients know for each state: intents show as what they began from."""

INTENTS: Final[Mapping[tuple[State, Action], State]] = {
    (State.CREATED, Action.START): State.STARTING,
    (State.EXITED, Action.START): State.STARTING,
    (State.RESTARTING, Action.START): State.STARTING,
    (State.RUNNING, Action.STOP): State.STOPPING,
    (State.PAUSED, Action.STOP): State.STOPPING,
    (State.RESTARTING, Action.STOP): State.STOPPING,
    (State.RUNNING, Action.PAUSE): State.RUNNING,
    (State.PAUSED, Action.UNPAUSE): State.PAUSED,
    (State.CREATED, Action.REMOVE): State.REMOVING,
    (State.EXITED, Action.REMOVE): State.REMOVING,
    (State.DEAD, Action.REMOVE): State.REMOVING,
    (State.REMOVING, Action.REMOVE): State.REMOVING,
}


def settled(state: State, fact: Fact) -> State:
    """The state to record now, given the last one recorded and what is seen."""
    match fact:
        case Fact.ALIVE:
            return State.RUNNING
        case Fact.FROZEN:
            return State.PAUSED
        case Fact.DEAD:
            return State.EXITED
        case Fact.ABSENT:
            never_ran = state in (State.CREATED, State.STARTING)
            return State.CREATED if never_ran else State.EXITED
