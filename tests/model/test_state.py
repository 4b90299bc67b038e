"""The lifecycle's tables: total, closed, and the source of docs/lifecycle.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tare.model.state import INTENTS, Action, Fact, State, settled

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_tables_say() -> None:
    drawn = subprocess.run(
        [sys.executable, "-I", ROOT / "tools/lifecycle"], capture_output=True, check=True
    )

    written = (ROOT / "docs/lifecycle.md").read_bytes()

    assert drawn.stdout == written, "run tools/lifecycle > docs/lifecycle.md"


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("fact", Fact)
def test_every_state_settles_to_one_that_is_no_intent(state: State, fact: Fact) -> None:
    after = settled(state, fact)

    assert after in {State.CREATED, State.RUNNING, State.PAUSED, State.EXITED}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("fact", Fact)
def test_settling_twice_is_settling_once(state: State, fact: Fact) -> None:
    once = settled(state, fact)

    assert settled(once, fact) is once


def test_what_lives_runs_and_what_is_dead_does_not() -> None:
    alive = {settled(state, fact) for state in State for fact in (Fact.ALIVE, Fact.FROZEN)}
    gone = {settled(state, fact) for state in State for fact in (Fact.DEAD, Fact.ABSENT)}

    assert alive == {State.RUNNING, State.PAUSED}
    assert gone == {State.CREATED, State.EXITED}


def test_only_what_never_ran_is_created_again() -> None:
    created = {state for state in State if settled(state, Fact.ABSENT) is State.CREATED}

    assert created == {State.CREATED, State.STARTING}


def test_every_action_is_possible_somewhere_and_every_state_has_a_way_on() -> None:
    asked = {action for _, action in INTENTS}
    left = {state for state, _ in INTENTS}

    assert asked == set(Action)
    # Those two are intents of an operation that is under way: it settles them, no action does.
    assert left == set(State) - {State.STARTING, State.STOPPING}


def test_an_action_has_one_intent_wherever_it_is_asked() -> None:
    intents = {
        action: {after for (_, asked), after in INTENTS.items() if asked is action}
        for action in Action
    }

    assert intents == {
        Action.START: {State.STARTING},
        Action.STOP: {State.STOPPING},
        Action.PAUSE: {State.RUNNING},  # the freezer is the truth: what is seen decides
        Action.UNPAUSE: {State.PAUSED},
        Action.REMOVE: {State.REMOVING},
    }
