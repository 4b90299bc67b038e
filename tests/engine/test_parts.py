"""The small parts: events, filters, generated files, directories, health, streams, transfer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from tare.engine import filters, generated, health, transfer
from tare.engine.events import KEPT, Events
from tare.engine.paths import Paths
from tare.engine.streams import Input, Output, pipe
from tare.engine.workloads import Workloads
from tare.errors import FailedError, InvalidError
from tare.model.record import Health, HealthStatus, Probe, Record, changed
from tare.model.spec import ContainerSpec, HealthCheck, Namespaces, ProcessSpec
from tare.model.state import State

SPEC = ContainerSpec(image="web:1", image_id="sha256:" + "0" * 64, process=ProcessSpec(args=("a",)))
RECORD = Record(id="ab" * 32, name="web-1", spec=SPEC, created_ns=100)


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


# --- events -----------------------------------------------------------------------------------


def test_past_and_coming_events_arrive_once_and_in_order() -> None:
    async def work() -> None:
        events = Events()
        events.emit("container", "create", "1", {"name": "a"})
        stream = events.subscribe(since_ns=0, filters={"type": ["container"]})
        events.emit("image", "pull", "x")
        events.emit("container", "start", "1", {"name": "a"})

        assert (await anext(stream)).action == "create"
        assert (await anext(stream)).action == "start"

    run(work())


def test_a_bounded_stream_of_events_ends() -> None:
    async def work() -> None:
        events = Events()
        for _ in range(KEPT + 5):
            events.emit("container", "create", "1")

        found = [event async for event in events.subscribe(since_ns=0, until_ns=1)]

        assert found == []
        assert events._listeners == set()

    run(work())


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ({"event": ["health_status"]}, True),
        ({"event": ["health_status: healthy", "die"]}, True),
        ({"container": ["web"]}, True),
        ({"container": ["abc"]}, True),
        ({"container": ["b"]}, False),
        ({"label": ["a=b"]}, True),
        ({"label": ["a=c"]}, False),
        ({"image": ["i"]}, True),
        ({"image": ["i:1"]}, True),
        ({"type": ["image"]}, False),
        ({"scope": ["swarm"]}, False),
        ({"type": ["container"], "event": ["die"]}, False),
    ],
)
def test_filters_of_events(wanted: dict[str, list[str]], passes: bool) -> None:
    async def work() -> None:
        events = Events()
        labels = {"name": "web", "image": "i:1", "a": "b"}
        events.emit("container", "health_status: healthy", "abcdef", labels)
        stream = events.subscribe(since_ns=0, until_ns=2**62, filters=wanted)
        if passes:
            assert (await anext(stream)).id == "abcdef"
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)

    run(work())


# --- filters of containers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ({"name": ["eb"]}, True),
        ({"name": ["^/?web-1$"]}, True),
        ({"name": ["^web$"]}, False),
        ({"id": ["abab"]}, True),
        ({"status": ["exited", "created"]}, True),
        ({"status": ["running"]}, False),
        ({"ancestor": ["web:1"]}, True),
        ({"ancestor": ["web"]}, False),
        ({"health": ["none"]}, True),
        ({"exited": ["0"]}, False),
        ({"network": ["none"]}, True),
        ({"label": ["x"]}, False),
    ],
)
def test_filters_of_containers(wanted: dict[str, list[str]], passes: bool) -> None:
    tests = filters.tests(wanted, lambda _: RECORD)
    assert bool(filters.select([RECORD], tests)) == passes


@pytest.mark.parametrize(
    "wanted", [{"nope": ["1"]}, {"status": ["odd"]}, {"exited": ["x"]}, {"name": ["("]}]
)
def test_a_filter_without_sense_is_refused(wanted: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidError, match="invalid filter"):
        filters.tests(wanted, lambda _: RECORD)


def test_a_whole_name_is_looked_up_and_not_searched() -> None:
    assert filters.exact_name({"name": ["^/?web-1$"]}) == "web-1"
    assert filters.exact_name({"name": ["^web$"]}) == "web"
    assert filters.exact_name({"name": ["web"]}) is None
    assert filters.exact_name({"name": ["^w.b$"]}) is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [("10", 10 * 10**9), ("1.5", 1_500_000_000), ("1970-01-01T00:00:01Z", 10**9)],
)
def test_moments(text: str, moment: int) -> None:
    assert filters.moment(text) == moment
    assert filters.moment("1h30m") < filters.moment("10m")
    with pytest.raises(InvalidError):
        filters.moment("yesterday")


# --- generated files --------------------------------------------------------------------------


def test_hosts_has_localhost_and_what_was_asked_for() -> None:
    text = generated.hosts(replace(SPEC, extra_hosts=("db:10.0.0.1", "six=::1")))

    assert "127.0.0.1\tlocalhost\n" in text
    assert text.endswith("10.0.0.1\tdb\n::1\tsix\n")


@pytest.mark.parametrize(
    "entry", ["db", "db:", ":1.2.3.4", "a b:1.2.3.4", "db:1.2.3", "x\ny:1.2.3.4"]
)
def test_a_host_that_would_break_the_file_is_refused(entry: str) -> None:
    with pytest.raises(InvalidError):
        generated.split_host(entry)


def test_the_host_gateway_is_the_way_out_and_without_one_has_no_line() -> None:
    spec = replace(SPEC, extra_hosts=("db:host-gateway",))

    assert "172.18.0.1\tdb\n" in generated.hosts(spec, name="me", gateway="172.18.0.1")
    assert "db" not in generated.hosts(spec, name="me")
    assert "127.0.0.1\tdb\n" in generated.hosts(spec, base="")


def test_what_is_asked_for_replaces_the_hosts_resolver() -> None:
    base = "nameserver 9.9.9.9\nsearch a.example\noptions rotate\n"

    text = generated.resolv_conf(replace(SPEC, dns=("1.1.1.1",), dns_search=(".",)), base)

    assert text == "options rotate\nnameserver 1.1.1.1\n"
    assert generated.resolv_conf(SPEC, base) == base


def test_the_host_name_is_the_short_id_unless_said() -> None:
    assert generated.hostname(SPEC, "ab" * 32) == "ab" * 6
    assert generated.hostname(replace(SPEC, hostname="h"), "ab" * 32) == "h"
    shared = replace(SPEC, namespaces=Namespaces(uts="host"))
    assert generated.hostname(shared, "ab" * 32) == os.uname().nodename


# --- paths and directories --------------------------------------------------------------------


def test_a_users_engine_is_in_the_users_directories() -> None:
    paths = Paths.detect({"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}, uid=7)

    assert os.fspath(paths.state) == "/home/u/.local/share/tare"
    assert os.fspath(paths.socket) == "/run/user/7/tare/tare.sock"
    assert os.fspath(Paths.detect({"HOME": "/h"}, uid=7).run) == "/tmp/tare-7"
    assert os.fspath(Paths.detect({"TARE_RUN_DIR": "/x"}, uid=0).run) == "/x"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c")
    paths.prepare()
    paths.prepare()
    (paths.state / "format").write_text("2\n")

    with pytest.raises(FailedError, match="format '2'"):
        paths.prepare()


@pytest.mark.parametrize("written", [False, True])
def test_a_directory_is_used_again_only_if_nobody_wrote_to_it(
    tmp_path: Path, written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tare.engine.workloads._GRACE", 0)
    paths = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c")
    paths.prepare()

    async def work() -> None:
        workloads = Workloads(paths)
        first = Path(workloads.make("a" * 64))
        (first / "upper").mkdir()
        (first / "work/work").mkdir(parents=True)
        (first / "work/incompat/volatile").mkdir(parents=True)
        (first / "log").write_text("secret")
        (paths.files / ("a" * 64)).mkdir()
        (paths.files / ("a" * 64) / "hosts").write_text("127.0.0.1 localhost")
        if written:
            (first / "upper/file").write_text("secret")
        workloads.discard("a" * 64)
        assert not first.exists()
        await workloads.drained()

        assert bool(list(paths.spare.iterdir())) == (not written)
        second = Path(workloads.make("b" * 64))

        # What a container saw, and may have given away, is not there any more: no upper, no files.
        left = sorted(p.relative_to(second).as_posix() for p in second.rglob("*"))
        assert left == ([] if written else ["work"])
        assert list(paths.files.iterdir()) == []
        assert list(paths.trash.iterdir()) == []

    run(work())


# --- health -----------------------------------------------------------------------------------


def probe(code: int, start: int = 0) -> Probe:
    return Probe(start_ns=start, end_ns=start + 1, exit_code=code, output="")


def test_so_many_failures_in_a_row_are_unhealthy_and_one_success_heals() -> None:
    check = HealthCheck(test=("CMD", "x"), retries=2)
    states, now = [], Health(status=HealthStatus.STARTING)
    for code in (1, 0, 1, 1, 1, 0):
        now = health.judged(now, probe(code), check, in_start=False)
        states.append((str(now.status), now.failing_streak))

    assert states == [
        ("starting", 1), ("healthy", 0), ("healthy", 1), ("unhealthy", 2), ("unhealthy", 3),
        ("healthy", 0),
    ]  # fmt: skip
    assert len(now.log) == health.KEPT


def test_a_failure_in_the_start_period_does_not_count() -> None:
    check = HealthCheck(test=("CMD", "x"), retries=1)
    now = Health(status=HealthStatus.STARTING)

    now = health.judged(now, probe(1), check, in_start=True)

    assert (now.status, now.failing_streak) == (HealthStatus.STARTING, 0)


def test_probes_come_sooner_while_it_starts() -> None:
    check = HealthCheck(test=("CMD", "x"), start_period_ns=10**10, start_interval_ns=10**9)
    record = changed(RECORD, started_ns=10**12, health=Health(status=HealthStatus.STARTING))

    assert health.pause(check, record, 10**12) == 1.0
    assert health.pause(check, record, 10**12 + 10**10) == 30.0


def test_the_shell_form_runs_by_the_shell() -> None:
    assert health.probe_spec(HealthCheck(test=("CMD-SHELL", "a && b"))).process.args == (
        "/bin/sh", "-c", "a && b",
    )  # fmt: skip
    assert not health.enabled(HealthCheck(test=("NONE",)))
    assert not health.enabled(None)


# --- streams and transfer ---------------------------------------------------------------------


def test_output_ends_when_all_its_pipes_do() -> None:
    async def work() -> None:
        (r1, w1), (r2, w2) = pipe(), pipe()
        output = Output([(1, r1), (2, r2)])
        os.write(w2, b"err")
        assert await anext(output) == (2, b"err")
        os.close(w2)
        asyncio.get_running_loop().call_soon(os.write, w1, b"out")
        assert await anext(output) == (1, b"out")
        os.close(w1)
        with pytest.raises(StopAsyncIteration):
            await anext(output)

    run(work())


def test_a_reader_that_waits_is_told_of_the_close() -> None:
    async def work() -> None:
        read, write = pipe()
        output = Output([(1, read)])
        waiting = asyncio.ensure_future(anext(output))
        await asyncio.sleep(0)
        output.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        os.close(write)

    run(work())


def test_input_waits_for_its_start_and_for_its_reader() -> None:
    async def work() -> None:
        entry = Input()
        content = b"x" * 300_000
        writing = asyncio.ensure_future(entry.write(content))
        read, write = pipe()
        await asyncio.sleep(0)
        assert not writing.done()
        entry.bind(write)

        got = b"".join(
            [chunk async for _, chunk in _until_closed(Output([(1, read)]), entry, writing)]
        )

        assert got == content

    run(work())


async def _until_closed(
    output: Output, entry: Input, writing: asyncio.Future[None]
) -> AsyncIterator[tuple[int, bytes]]:
    writing.add_done_callback(lambda _: entry.close())
    async for one in output:
        yield one


def test_input_closed_before_its_start_is_an_end_of_file_at_once() -> None:
    async def work() -> None:
        closed: list[int] = []
        entry = Input()
        entry.close()
        read, write = pipe()
        entry.bind(write, lambda: closed.append(1))

        assert os.read(read, 1) == b""
        assert closed == [1]
        os.close(read)

    run(work())


async def _source(chunks: list[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


def test_a_thread_reads_what_the_loop_is_given() -> None:
    async def work() -> None:
        content = os.urandom(3 << 20)
        parts = [content[i : i + 70_001] for i in range(0, len(content), 70_001)]
        assert (
            await transfer.consumed(_source(parts), lambda f: f.read()) == content[: len(content)]
        )

    run(work())


def test_a_thread_that_has_seen_enough_stops_the_source() -> None:
    async def work() -> None:
        endless = _source([b"x" * (1 << 20)] * 50)
        assert await transfer.consumed(endless, lambda f: f.read(3)) == b"xxx"

    run(work())


def test_the_producers_error_is_the_cause() -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise FailedError("disk gone")

    def incomplete(file: BinaryIO) -> bytes:
        content = file.read()
        if content == b"half":
            raise InvalidError("truncated")
        return content

    async def work() -> None:
        with pytest.raises(FailedError, match="disk gone"):
            async for _ in transfer.produced(fail):
                pass
        with pytest.raises(FailedError, match="disk gone"):
            await transfer.piped(fail, incomplete)

    run(work())


def test_a_reader_that_leaves_ends_the_producer() -> None:
    async def work() -> None:
        def produce(file: BinaryIO) -> None:
            while True:
                file.write(b"x" * 100_000)

        stream = transfer.produced(produce)
        assert await anext(stream)
        await stream.aclose()

    run(work())


def test_running_states_are_dockers() -> None:
    running = {s for s in State if changed(RECORD, state=s).running}
    assert running == {State.RUNNING, State.PAUSED, State.STOPPING, State.RESTARTING}
