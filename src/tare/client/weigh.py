"""Weighs an image: runs it as a container and as a machine, in turns, and keeps the figures.

Goes through the daemon's socket as any user does. Whatever it starts carries a label of this
weighing, by which `clean` removes it; what only waits to be measured ends by itself as well.

Not for: how the figures look (client.weigh_text, client.weigh_page).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tare.client import document, runspec, streams, weigh_inside
from tare.client.cli.ps import filters as encoded_filters
from tare.client.document import flag, mapping, number, text
from tare.client.options import Flags
from tare.client.sdk import Container
from tare.client.transport import Daemon, quoted, target
from tare.client.weigh_inside import Reading
from tare.errors import FailedError, MissingError, TareError

if TYPE_CHECKING:
    from tare.client.document import Json
    from tare.client.transport import Connection

LABEL: Final = "tare.weigh"
SILENCE: Final = 30.0
"""Seconds in which a workload should say something; an emulated machine boots in three."""
_LINGER: Final = 3.0  # that one which has spoken may take to end by itself
_GONE: Final = 30.0
_READY: Final = b"tare-weighs"
_WAITS: Final = f"echo {_READY.decode()}; exec sleep 900"
_HEALTHY: Final = 180.0


@dataclass(slots=True)
class Side:
    """What one isolation has shown so far; *failed* says why it cannot be run at all."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: str = ""
    exit_code: int = 0
    surface: Mapping[str, Json] = field(default_factory=dict)

    def add(self, key: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(key, []).append(value)

    def take(self, readings: Sequence[Reading]) -> None:
        """Samples, and why there are none."""
        for reading in readings:
            if reading.value is not None:
                self.add(reading.key, reading.value)
            else:
                self.missing.setdefault(reading.key, reading.why)


class Weighing:
    """One weighing of one image; use it in a ``with``, whose end removes all that it started."""

    def __init__(
        self, daemon: Daemon, image: str, command: Sequence[str], *, patience: float = SILENCE
    ) -> None:
        """MissingError when the image is not there."""
        self._daemon = daemon
        self.image, self.command = image, list(command)
        try:
            self.details = mapping(daemon.call("GET", f"/images/{quoted(image)}/json"))
        except MissingError as error:
            raise MissingError(str(error), hint=f"`tare pull {image}` brings it.") from None
        self._token = os.urandom(6).hex()
        self._patience = patience

    def __enter__(self) -> Weighing:
        return self

    def __exit__(self, *_: object) -> None:
        self.clean()

    @property
    def has_health_check(self) -> bool:
        """Whether the image says how to see that it works."""
        test = document.strings(mapping(self.details, "Config"), "Healthcheck", "Test")
        return bool(test) and test != ["NONE"]

    # --- one round ----------------------------------------------------------------------------

    def round(self, side: str, found: Side, tell: Callable[[str], None]) -> None:
        """Measure everything once; a start that fails is noted and ends the side."""
        try:
            tell("cold start")
            self._cool()
            self._first(side, found, "cold")
            tell("warm start")
            self._first(side, found, "warm")
            if self.has_health_check:
                tell("to healthy")
                self._to_healthy(side, found)
            tell("at rest and under load")
            self._rest(side, found)
        except TareError as error:
            found.failed = str(error)
            found.samples.clear()

    def _cool(self) -> None:
        self._daemon.call("POST", target("/tare/cool", {"image": self.image}))

    def _first(self, side: str, found: Side, how: str) -> None:
        """Run the image as its user would; the time to its first output and to its end."""
        began = time.monotonic()
        spoke: list[float] = []

        def hear(_: bytes) -> None:
            if not spoke:
                spoke.append(time.monotonic() - began)

        def left() -> float:
            end = self._patience if not spoke else spoke[0] + _LINGER
            return began + end - time.monotonic()

        with self._run(side, self.command, "") as (identity, connection):
            frames = streams.Frames({1: hear, 2: hear})
            try:
                streams.pump(connection, frames.feed, deadline=left)
            except TimeoutError:
                self._weigh(identity, found, "memory-workload")
                found.missing.setdefault(f"end-{how}", "it goes on by itself: it was ended")
            else:
                found.add(f"end-{how}", time.monotonic() - began)
                found.missing.setdefault("memory-workload", "it ends by itself")
                found.exit_code = found.exit_code or _code(frames.report, side)
        if spoke:
            found.add(f"first-{how}", spoke[0])
        else:
            found.missing[f"first-{how}"] = "it printed nothing"

    def _to_healthy(self, side: str, found: Side) -> None:
        began = time.monotonic()
        with self._run(side, self.command, "") as (identity, connection):
            while (passed := time.monotonic() - began) < _HEALTHY:
                _drain(connection, 0.02)
                state = self._daemon.call("GET", f"/containers/{identity}/json")
                if text(state, "State", "Health", "Status") == "healthy":
                    found.add("healthy", passed)
                    return
                if not flag(state, "State", "Running"):
                    found.missing["healthy"] = "it ended before it was healthy"
                    return
            found.missing["healthy"] = f"it was not healthy within {_HEALTHY:.0f} s"

    def _rest(self, side: str, found: Side) -> None:
        """Memory and disk of one that only waits, then loads inside it."""
        said = bytearray()
        began = time.monotonic()
        try:
            with self._run(side, ["-c", _WAITS], "sh", kept=True) as (identity, connection):
                frames = streams.Frames({1: said.extend, 2: said.extend})

                def left() -> float:
                    over = _READY in said
                    return 0.0 if over else began + self._patience - time.monotonic()

                try:
                    streams.pump(connection, frames.feed, deadline=left)
                except TimeoutError:
                    pass
                if _READY not in said:
                    raise MissingError("its shell does not answer")
                self._weigh(identity, found, "memory-idle", surface=True)
                container = Container(self._daemon, identity)
                found.take(weigh_inside.loads(container))
        except TareError as error:
            for key in ("memory-idle", "disk", *weigh_inside.KEYS):
                found.missing.setdefault(key, f"the image's own shell cannot be used: {error}")

    def _weigh(self, identity: str, found: Side, key: str, *, surface: bool = False) -> None:
        query: dict[str, str | int | bool] = {"container": identity, "surface": surface}
        weight = self._daemon.call("GET", target("/tare/weight", query))
        found.add(key, number(weight, "Memory", "Pss"))
        if surface:
            found.add("disk", number(weight, "Disk"))
            found.surface = mapping(weight, "Surface")

    # --- starting and removing ----------------------------------------------------------------

    @contextmanager
    def _run(
        self, side: str, command: Sequence[str], entrypoint: str, *, kept: bool = False
    ) -> Iterator[tuple[str, Connection]]:
        flags = Flags({"label": [f"{LABEL}={self._token}"], "vm": side == "vm"})
        if entrypoint:
            flags.values["entrypoint"] = entrypoint
        body = runspec.create_body(flags, [self.image, *command], detached=False)
        host = body.setdefault("HostConfig", {})
        assert isinstance(host, dict)
        # What is removed at its end is not synced to the disk: no place to measure writes.
        host["AutoRemove"] = not kept
        body["AttachStdin"] = body["OpenStdin"] = body["StdinOnce"] = False
        response = self._daemon.open("POST", "/tare/run", body, upgrade=True)
        identity = response.headers.get("tare-id", "")
        try:
            yield identity, response.connection
        finally:
            response.connection.close()
            self._remove(identity)

    def _remove(self, identity: str) -> None:
        """Remove it and wait until it is gone: the next start is not to pay for this end."""
        end = time.monotonic() + _GONE
        while time.monotonic() < end:
            try:
                self._daemon.call(
                    "DELETE", target(f"/containers/{identity}", {"force": True, "v": True})
                )
            except MissingError:
                return
            except TareError:
                time.sleep(0.02)  # it is being removed: by its end
        raise FailedError(f"the container {identity[:12]} does not go away")

    def clean(self) -> None:
        """Remove everything of this weighing, also what was just being made."""
        daemon = Daemon(self._daemon.path, starts=False)
        end, quiet = time.monotonic() + _GONE, 0
        try:
            # A start that was broken off may still come about: look until twice nothing is there.
            while quiet < 2 and time.monotonic() < end:
                query: dict[str, str | int | bool] = {
                    "all": True, "filters": encoded_filters([f"label={LABEL}={self._token}"]),
                }  # fmt: skip
                listed = document.items(daemon.call("GET", target("/containers/json", query)))
                quiet = 0 if listed else quiet + 1
                for each in listed:
                    where = f"/containers/{text(each, 'Id')}"
                    try:
                        daemon.call("DELETE", target(where, {"force": True, "v": True}))
                    except TareError:
                        pass  # it is on its way out; the next look tells
                time.sleep(0.1)
        finally:
            daemon.close()


def _drain(connection: Connection, seconds: float) -> None:
    """Take what is printed, so that nobody waits for us; at least *seconds* long while it runs."""
    end = time.monotonic() + seconds
    try:
        streams.pump(connection, lambda _: None, deadline=lambda: end - time.monotonic())
    except TimeoutError:
        return
    time.sleep(max(end - time.monotonic(), 0.0))


def _code(report: Mapping[str, Json], side: str) -> int:
    if "StatusCode" not in report:
        raise FailedError(f"the daemon ended while the {side} ran")
    return number(dict(report), "StatusCode")
