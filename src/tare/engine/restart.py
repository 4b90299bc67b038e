"""Restart policies: whether, and after how long, an ended container is started again.

Docker's numbers: 100 ms, doubled at each restart up to a minute, and back to 100 ms when the
container was up for ten seconds.

Not for: timers and starting (engine.lifecycle does).
"""

from __future__ import annotations

from typing import Final

from tare.errors import InvalidError
from tare.model.spec import RestartPolicy

FIRST: Final = 0.1
LONGEST: Final = 60.0
_GOOD_RUN_NS: Final = 10_000_000_000
_POLICIES: Final = ("no", "always", "unless-stopped", "on-failure")


def next_delay(previous: float, up_ns: int) -> float:
    """The seconds to wait before the next start, after *previous* (0: none yet)."""
    if previous <= 0 or up_ns >= _GOOD_RUN_NS:
        return FIRST
    return min(previous * 2, LONGEST)


def again(policy: RestartPolicy, *, code: int, manual: bool, count: int) -> bool:
    """Whether a container that ended with *code* after *count* restarts is started again."""
    if manual:
        return False
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            return code != 0 and (policy.maximum_retries == 0 or count < policy.maximum_retries)
        case _:
            return False


def at_engine_start(policy: RestartPolicy, *, ran_before: bool, manual: bool) -> bool:
    """Whether a stopped container is started because the engine starts.

    ``on-failure`` is not: what ended while no engine was there is decided by `again`.
    """
    if not ran_before:
        return False
    return policy.name == "always" or (policy.name == "unless-stopped" and not manual)


def check(policy: RestartPolicy, *, auto_remove: bool) -> None:
    """Refuse a policy that makes no sense, in Docker's words."""
    name = policy.name or "no"
    if name not in _POLICIES:
        raise InvalidError(
            f"invalid restart policy: unknown policy '{name[:80]}'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retries and name != "on-failure":
        raise InvalidError(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if policy.maximum_retries < 0:
        raise InvalidError("invalid restart policy: maximum retry count cannot be negative")
    if auto_remove and name != "no":
        raise InvalidError("can't create 'AutoRemove' container with restart policy")
