"""The daemon's end of the name server: start it, tell it what changed, outlive it.

`NameServer.put` makes a table the one in force: it is written to ``RUN/dns.json``, and the server
answers when it has read it, so a container that starts afterwards finds all names. When the
server dies another is started at once; it needs nobody's memory, only the file.

Not for: what stands in the table (the engine decides).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from typing import Final

from tare.errors import FailedError
from tare.kernel import background
from tare.network import dns_table
from tare.network.dns_server import VERSION
from tare.network.dns_table import Table

_START_TIMEOUT: Final = 15.0
_ANSWER_TIMEOUT: Final = 15.0
_TRIES: Final = 3


class NameServer:
    """One engine's name server, living or not; used from one event loop."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._connection: socket.socket | None = None
        self._answer: asyncio.Future[dict[str, object]] | None = None
        self._lock = asyncio.Lock()
        self._table = Table()
        self._asked = 0
        self._served = 0
        self._closed = False
        self._watching: asyncio.Task[None] | None = None
        self.problems: tuple[str, ...] = ()
        """What the server said last that it could not do, a sentence each."""

    async def put(self, table: Table) -> None:
        """Return when *table*, or a later one, is what the server answers by; FailedError.

        Without clients no server is needed, and none is started.
        """
        self._table = table
        self._asked += 1
        mine = self._asked
        # Whoever comes while another's table is on its way shares the next one.
        async with self._lock:
            if self._served >= mine or self._closed:
                return
            now = self._asked
            self._write(dns_table.encode(self._table))
            await self._told(needed=bool(self._table.clients))
            self._served = now

    async def close(self) -> None:
        """Leave it to itself: it goes on answering."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        self._drop()

    def _write(self, content: bytes) -> None:
        """Replace the table; it dies with the boot, so nothing is synced."""
        temporary = f"{self._directory}/.dns.json"
        try:
            descriptor = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            with open(descriptor, "wb") as file:
                file.write(content)
            os.rename(temporary, f"{self._directory}/dns.json")
        except OSError as error:
            raise FailedError(f"cannot write the table of names: {error}") from error

    async def _told(self, *, needed: bool) -> None:
        """Have the server read the table; start one if it is needed."""
        for _ in range(_TRIES):
            try:
                if self._connection is None and not await self._reach(start=needed):
                    return
                answer = await self._ask()
            except (ConnectionError, TimeoutError):
                self._drop()
                continue
            if answer.get("version") != VERSION:
                self._end()
                continue
            found = answer.get("problems")
            self.problems = tuple(map(str, found)) if isinstance(found, list) else ()
            return
        raise FailedError(
            "the name server keeps dying",
            hint=f"see {self._directory}/dns.log; names do not resolve",
        )

    async def _ask(self) -> dict[str, object]:
        connection = self._connection
        assert connection is not None
        self._answer = asyncio.get_running_loop().create_future()
        try:
            connection.send(b"read")
            return await asyncio.wait_for(self._answer, _ANSWER_TIMEOUT)
        finally:
            self._answer = None

    async def _reach(self, *, start: bool) -> bool:
        """Connect, to a new server if need be and *start*; False when there is none."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _START_TIMEOUT
        child: subprocess.Popen[bytes] | None = None
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                connection.connect(f"{self._directory}/dns.sock")
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                if not start:
                    return False
                if child is None or child.poll() is not None:
                    child = self._spawn()
                if loop.time() > deadline:
                    raise FailedError(
                        "the name server does not start", hint=f"see {self._directory}/dns.log"
                    ) from None
                await asyncio.sleep(0.005)
            else:
                connection.setblocking(False)
                self._connection = connection
                loop.add_reader(connection.fileno(), self._readable, connection)
                return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start a server that no signal to us reaches; the lock lets only one live."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(f"{self._directory}/dns.log", flags, 0o600)
        try:
            return background.start("tare.network.dns_server", self._directory, log=log)
        finally:
            os.close(log)

    def _readable(self, connection: socket.socket) -> None:
        try:
            content = connection.recv(1 << 16)
            found = json.loads(content) if content else None
        except BlockingIOError:
            return
        except (OSError, ValueError):
            found = None
        if isinstance(found, dict):
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(found)
            return
        waiting = self._answer
        self._drop()
        if waiting is not None:
            if not waiting.done():
                waiting.set_exception(ConnectionResetError("the name server died"))
        elif not self._closed and self._table.clients:
            self._watching = asyncio.get_running_loop().create_task(self._again())

    async def _again(self) -> None:
        """The server died: another takes its place."""
        with contextlib.suppress(FailedError):
            await self.put(self._table)

    def _end(self) -> None:
        """Let a server of another version go."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(b"end")
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection.fileno())
            connection.close()
