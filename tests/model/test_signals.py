"""Signals by name."""

from __future__ import annotations

import pytest

from tare.errors import InvalidError
from tare.model.signals import signal_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9", 9), ("KILL", 9), ("sigkill", 9), ("sigterm", 15), ("HUP", 1),
        ("RTMIN", 34), ("RTMIN+3", 37), ("SIGRTMAX", 64), ("SIGRTMAX-1", 63),
    ],
)  # fmt: skip
def test_signals_have_names_and_numbers(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "0", "65", "-9", "SIGFOO", "RTMIN-1", "RTMIN+99", "RTMAX+1", "SIG_DFL", "_IGN", "٩"],
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="Invalid signal"):
        signal_number(text)
