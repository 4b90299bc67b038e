"""The processes of a machine's guest, as its init lists them: ``tare top``.

What comes is a hostile guest's word: bounded, and checked field by field before it is shown.

Not for: the host's processes (engine.observing).
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from tare.errors import FailedError, UnsupportedError
from tare.model.record import Record, Top
from tare.vm import protocol, relay
from tare.vm.protocol import Decoder, ProtocolError, ToGuest, ToHost

_TITLES: Final = ("UID", "PID", "PPID", "TIME", "CMD")
_LINE: Final = re.compile(
    r"(?P<pid>[0-9]{1,10}) (?P<parent>[0-9]{1,10}) (?P<uid>[0-9]{1,10}) [0-9]{1,15}"
    r" (?P<ticks>[0-9]{1,15}) (?P<name>.{0,16})"
)
_PATIENCE: Final = 10.0


async def top_of(record: Record, arguments: str = "-ef") -> Top:
    """The processes in the guest; only the columns of ``ps -ef`` are there."""
    if (arguments or "-ef").strip() not in ("-ef", "-e", "-A", "aux"):
        raise UnsupportedError(
            f"ps {arguments[:40]}: a virtual machine's processes are shown in one way only",
            hint="leave the options of ps out",
        )
    try:
        async with asyncio.timeout(_PATIENCE):
            content = await _ask(f"/proc/{record.pid}/root{relay.CONTROL}")
    except (TimeoutError, OSError, ProtocolError) as error:
        raise FailedError(f"the machine {record.name} does not answer: {error}") from error
    return parse(content)


def parse(content: bytes) -> Top:
    """The table of what the guest listed; lines that are not of the agreed form are left out."""
    rows = []
    for line in content.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or "2" in (match["pid"], match["parent"]) or match["pid"] == "1":
            continue  # a thread of the guest's kernel, or our own init
        seconds = int(match["ticks"]) // 100
        time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        name = "".join(letter if letter.isprintable() else "?" for letter in match["name"])
        rows.append((match["uid"], match["pid"], match["parent"], time, name))
    return Top(titles=_TITLES, processes=tuple(rows))


async def _ask(path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(protocol.frame(ToGuest.LIST))
        decoder = Decoder(ToHost)
        while data := await reader.read(1 << 16):
            for said in decoder.feed(data):
                if said.type == ToHost.LISTED:
                    return said.payload
        raise ProtocolError("it ended")
    finally:
        writer.close()
