"""A pull that is killed at any of its steps: nothing corrupt, nothing leaked, the next one goes on.

One process loads the code once and forks: a child pulls and is killed (SIGKILL) right after
its n-th call that changes the disk; another child then opens what is left, as a new daemon does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from fakes import archives
from fakes.registry import FakeRegistry
from tare.image.compress import Compression

_TESTS: Final = Path(__file__).resolve().parents[2]
_MOST: Final = 200
_CODE: Final = r"""
import json, os, signal, sqlite3, sys, traceback
tests, name, top = sys.argv[1:4]
sys.path[:0] = [tests, os.path.join(os.path.dirname(tests), "src")]
from pathlib import Path
import aiohttp
from harness.desk import Desk
from tare.image import index
from tare.image.registry import download, push

os.fsync = lambda descriptor: None  # processes die here, not the host
left = 0

def dying(call):
    def wrapper(*arguments, **named):
        global left
        left = mine = left - 1
        found = call(*arguments, **named)
        if mine == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return wrapper

class Connection(sqlite3.Connection):
    def execute(self, statement, *values):
        call = super().execute
        return (dying(call) if statement == "COMMIT" else call)(statement, *values)

def arm(number):
    global left
    left = number
    connect = sqlite3.connect
    index.sqlite3.connect = lambda *a, **n: connect(*a, factory=Connection, **n)
    for call in ("rename", "replace", "unlink", "fsync", "pwrite"):
        setattr(os, call, dying(getattr(os, call)))

def listing(state):
    return sorted(
        str(path.relative_to(state)) for path in state.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    )

def forked(work):
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(out)
        code = 1
        try:
            os.write(into, json.dumps(work()).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    os.close(into)
    with open(out) as file:
        told = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, json.loads(told) if told else None

def pulled(state, number=0):
    if number:
        arm(number)
    desk = Desk(state)
    desk.pull(name)
    desk.store.close()

def looked_at(state):
    desk = Desk(state)
    before = [str(one.id) for one in desk.store.list()]
    for one in before:
        desk.store.verify(one)
    strays = [path for path in listing(state) if ".tmp-" in path or path.endswith(".new")]
    desk.pull(name)
    content = [len(layer) for layer in desk.content(name)]
    desk.store.close()
    return {"before": before, "strays": strays, "content": content, "left": listing(state)}

pulled_once = Path(top) / "whole"
whole = forked(lambda: looked_at(pulled_once))[1]
for number in range(1, int(sys.argv[4])):
    state = Path(top) / str(number)
    status, _ = forked(lambda: pulled(state, number))
    seen = forked(lambda: looked_at(state))
    print(json.dumps({"status": status, "seen": seen, "whole": whole}), flush=True)
    if status == 0:
        break
"""


def test_whatever_call_is_the_last_the_next_pull_makes_it_whole(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    layers = [archives.layer({"a": b"a" * 70_000}), archives.layer({"b": os.urandom(90_000)})]
    registry.put_image("a/b", "1", layers, Compression.GZIP)
    words = [str(_TESTS), f"{registry.host}/a/b:1", str(tmp_path), str(_MOST)]

    done = subprocess.run(
        [sys.executable, "-c", _CODE, *words], capture_output=True, text=True, timeout=300
    )

    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told and told[-1]["status"] == 0, done.stderr
    assert len(told) > 10, "the calls that change the disk are not seen"
    for number, one in enumerate(told, 1):
        status, seen = one["seen"]
        assert one["status"] in (0, -9), (number, done.stderr)
        assert status == 0, (number, done.stderr)
        assert seen["strays"] == [], number
        assert seen["content"] == [len(layer) for layer in layers], number
        assert seen["left"] == one["whole"]["left"], number
