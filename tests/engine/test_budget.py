"""Admission under every interleaving: whatever is created, started, changed, ended or killed, the
reservations of what runs never exceed the budget."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fakes.daemon import Daemon
from fakes.driver import Kernel
from tare.engine.budget import Budgets
from tare.errors import ConflictError, InvalidError, MissingError, TareError
from tare.model.budget import Budget, reservable
from tare.model.record import Record, changed
from tare.model.spec import Resources, RestartPolicy
from tare.model.state import State

MIB = 1 << 20
HOLDING = (State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING)


def budgets_of(daemon: Daemon) -> Budgets:
    found = Budgets(daemon.paths, daemon.store, None)
    daemon.lifecycle.admit = found.admit
    return found


def held(daemon: Daemon, label: str = "") -> int:
    name, _, value = label.partition("=")
    return sum(
        (r.spec.resources.memory_reservation or r.spec.resources.memory or 0)
        for r in daemon.store.all()
        if r.state in HOLDING and (not label or r.spec.labels.get(name) == value)
    )


def test_two_that_fit_alone_and_not_together(daemon_at: Callable[..., Daemon]) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        budgets_of(daemon).set(Budget(reservable_memory=100 * MIB))
        one = daemon.add("one", resources=Resources(memory=60 * MIB))
        two = daemon.add("two", resources=Resources(memory=60 * MIB))

        await daemon.lifecycle.start(one.id)
        with pytest.raises(ConflictError, match=r"60 MiB are held \(one 60 MiB\), 40 MiB are free"):
            await daemon.lifecycle.start(two.id)
        await daemon.lifecycle.kill(one.id, 9, manual=True)
        await daemon.lifecycle.start(two.id)

        assert daemon.record(two).state is State.RUNNING
        await daemon.close()

    asyncio.run(work())


def test_of_many_starts_at_once_only_those_that_fit_come_through(
    daemon_at: Callable[..., Daemon],
) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        budgets_of(daemon).set(Budget(reservable_memory=100 * MIB))
        records = [daemon.add(f"c{n}", resources=Resources(memory=30 * MIB)) for n in range(12)]

        results = await asyncio.gather(
            *(daemon.lifecycle.start(r.id) for r in records), return_exceptions=True
        )

        assert results.count(True) == 3
        assert all(isinstance(one, ConflictError) for one in results if one is not True)
        assert held(daemon) == 90 * MIB
        await daemon.close()

    asyncio.run(work())


def test_a_restart_that_does_not_fit_waits_for_its_turn(daemon_at: Callable[..., Daemon]) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        budgets = budgets_of(daemon)
        budgets.set(Budget(reservable_memory=100 * MIB))
        policy = RestartPolicy(name="always")
        record = daemon.add("web", resources=Resources(memory=80 * MIB), restart=policy)
        other = daemon.add("other", resources=Resources(memory=80 * MIB))
        await daemon.lifecycle.start(record.id)
        daemon.kernel.end(record.id, 1)
        while daemon.record(record).state is not State.RESTARTING:
            await asyncio.sleep(0)
        await daemon.lifecycle.start(other.id)  # it is quicker
        while "does not fit" not in daemon.record(record).error:
            await asyncio.sleep(0.001)
        assert held(daemon) == 80 * MIB

        await daemon.lifecycle.kill(other.id, 9, manual=True)
        async with asyncio.timeout(60):
            while daemon.record(record).state is not State.RUNNING:
                await asyncio.sleep(0.001)
        await daemon.close()

    asyncio.run(work())


def test_budgets_survive_the_daemon(daemon_at: Callable[..., Daemon]) -> None:
    async def first() -> None:
        daemon = await daemon_at().boot()
        budgets = budgets_of(daemon)
        budgets.set(Budget(reservable_memory=100 * MIB, nano_cpus=10**9))
        budgets.set(Budget(memory=64 * MIB), "team=a")
        await daemon.lifecycle.start(daemon.add("one", resources=Resources(memory=90 * MIB)).id)
        await daemon.close()

    async def second() -> None:
        daemon = await daemon_at().boot()
        budgets = budgets_of(daemon)

        assert budgets.engine.nano_cpus == 10**9
        assert budgets.of("team=a").memory == 64 * MIB
        two = daemon.add("two", resources=Resources(memory=20 * MIB))
        with pytest.raises(ConflictError, match="one 90 MiB"):
            await daemon.lifecycle.start(two.id)
        await daemon.close()

    asyncio.run(first())
    asyncio.run(second())


def test_a_project_is_gated_by_its_own_budget_and_by_the_engines(
    daemon_at: Callable[..., Daemon],
) -> None:
    async def work() -> None:
        daemon = await daemon_at().boot()
        budgets = budgets_of(daemon)
        budgets.set(Budget(reservable_memory=200 * MIB))
        budgets.set(Budget(memory=100 * MIB), "team=a")
        ours = [
            daemon.add(f"a{n}", labels={"team": "a"}, resources=Resources(memory=60 * MIB))
            for n in range(2)
        ]
        other = daemon.add("b", resources=Resources(memory=130 * MIB))

        await daemon.lifecycle.start(ours[0].id)
        with pytest.raises(ConflictError, match="the budget of team=a"):
            await daemon.lifecycle.start(ours[1].id)
        await daemon.lifecycle.start(other.id)
        with pytest.raises(ConflictError, match="the engine's budget"):
            budgets.forget("team=a")
            await daemon.lifecycle.start(ours[1].id)
        await daemon.close()

    asyncio.run(work())


class Server(RuleBasedStateMachine):
    """Users who create, start, change, stop and lose containers, and change the budget."""

    loop: ClassVar[asyncio.AbstractEventLoop]

    @initialize(bound=st.integers(64, 400))
    def boot(self, bound: int) -> None:
        self.loop = asyncio.new_event_loop()  # type: ignore[misc]  # one for each run
        self.directory = Path(tempfile.mkdtemp(prefix="budget-"))
        self.kernel = Kernel()
        self.bound = bound * MIB
        self.project: int | None = None
        self.records: list[Record] = []
        self.count = 0
        self.life()
        self.budgets.set(Budget(reservable_memory=self.bound))

    def life(self) -> None:
        self.daemon = Daemon(self.directory, self.kernel)
        self.run(self.daemon.boot())
        self.budgets = budgets_of(self.daemon)

    def run(self, work: object) -> object:
        return self.loop.run_until_complete(work)  # type: ignore[arg-type]  # whatever a test awaits

    @rule(sizes=st.lists(st.integers(8, 160), min_size=1, max_size=6), ours=st.booleans())
    def start_many(self, sizes: list[int], ours: bool) -> None:
        """All at once."""
        made = []
        for size in sizes:
            self.count += 1
            labels = {"team": "a"} if ours else {}
            resources = Resources(memory=size * MIB)
            made.append(self.daemon.add(f"c{self.count}", labels=labels, resources=resources))
        self.records += made

        async def together() -> None:
            await asyncio.gather(
                *(self.daemon.lifecycle.start(r.id) for r in made), return_exceptions=True
            )

        self.run(together())

    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        if self.records:
            self.kernel.end(data.draw(st.sampled_from(self.records)).id, 0)
            self.run(asyncio.sleep(0))

    @rule(data=st.data(), size=st.integers(8, 300))
    def change_one(self, data: st.DataObject, size: int) -> None:
        if not self.records:
            return
        record = self.daemon.record(data.draw(st.sampled_from(self.records)))
        resources = Resources(memory=size * MIB)
        try:
            self.budgets.admit_update(record, resources)
        except ConflictError:
            return
        from dataclasses import replace

        self.daemon.store.put(changed(record, spec=replace(record.spec, resources=resources)))

    @rule(bound=st.integers(1, 400))
    def set_engine(self, bound: int) -> None:
        before = held(self.daemon)
        try:
            self.budgets.set(Budget(reservable_memory=bound * MIB))
        except ConflictError:
            assert before > bound * MIB
        else:
            assert before <= bound * MIB
            self.bound = bound * MIB

    @rule(bound=st.integers(64, 400))
    def set_project(self, bound: int) -> None:
        try:
            self.budgets.set(Budget(memory=bound * MIB), "team=a")
        except (ConflictError, InvalidError):
            return
        self.project = bound * MIB

    @rule()
    def forget_project(self) -> None:
        try:
            self.budgets.forget("team=a")
        except MissingError:
            assert self.project is None
        self.project = None

    @rule()
    def daemon_is_killed(self) -> None:
        self.daemon.store.close()
        self.life()

    @invariant()
    def nothing_is_oversubscribed(self) -> None:
        if not hasattr(self, "daemon"):
            return
        assert held(self.daemon) <= self.bound
        assert reservable(self.budgets.engine)[0] == self.bound
        if self.project is not None:
            assert held(self.daemon, "team=a") <= self.project

    def teardown(self) -> None:
        if not hasattr(self, "daemon"):
            return
        try:
            self.run(self.daemon.close())
        except TareError:
            pass
        self.loop.close()
        shutil.rmtree(self.directory, ignore_errors=True)


TestServer = Server.TestCase
TestServer.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
