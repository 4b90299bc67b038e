"""One audit of a running engine, from what is asked to the report.

Facts are collected in threads, so the daemon answers meanwhile; judging is arithmetic. A scope is
looked at only when one of its checks is asked for.

Not for: who may ask (the API's socket), or how a report looks (`formats`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tare import __version__
from tare.audit import (
    catalogue,
    container,
    dockerfile,
    files,
    finding,
    fixing,
    images,
    surroundings,
    workload,
)
from tare.audit import engine as engine_checks
from tare.audit.container import Workload
from tare.audit.engine import packet_filter
from tare.audit.files import Places
from tare.audit.finding import Item, Report, Result, Scope
from tare.audit.host import Host
from tare.audit.request import AuditBody, scopes, wanted
from tare.audit.rules.rule import Check
from tare.audit.surroundings import Surroundings
from tare.audit.view import View
from tare.audit.workload import Context
from tare.engine.engine import Engine
from tare.errors import InvalidError, TareError
from tare.model.networking import BRIDGE
from tare.model.record import ExecRecord, Record


async def audit(engine: Engine, asked: AuditBody) -> Report:
    """Look, judge and report; InvalidError for what cannot be asked, MissingError for a name."""
    start = time.time_ns()
    benchmark = catalogue.edition(asked.benchmark)
    checks = wanted(asked, benchmark)
    if asked.names and len(scopes(asked)) != 1:
        raise InvalidError("names can be given for one of image and workload only")
    look = _Look(engine, asked, checks)
    report = _reported(benchmark, start, checks, await look.all(), look.remarks)
    fixes = fixing.proposed(report) if asked.fix else []
    if not fixes:
        return report
    said = await asyncio.to_thread(fixing.apply, fixes)
    look = _Look(engine, asked, checks)
    found = await look.all()
    return _reported(benchmark, start, checks, found, [*said, *look.remarks])


def _reported(
    benchmark: str,
    start: int,
    checks: Sequence[Check],
    found: Mapping[str, tuple[Item, ...]],
    remarks: Sequence[str],
) -> Report:
    return Report(
        benchmark=catalogue.BENCHMARKS[benchmark],
        host=os.uname().nodename,
        engine=__version__,
        start_ns=start,
        end_ns=time.time_ns(),
        results=tuple(
            Result(
                check=check.name,
                id=catalogue.number(check, benchmark),
                items=found.get(check.name, ()),
            )
            for check in checks
        ),
        remarks=tuple(remarks),
    )


class _Look:
    """One audit under way: what was collected, for the scopes that share it."""

    def __init__(self, engine: Engine, asked: AuditBody, checks: Sequence[Check]) -> None:
        self._engine = engine
        self._asked = asked
        self._names: dict[Scope, list[str]] = {scope: [] for scope in Scope}
        for check in checks:
            self._names[check.scope].append(check.name)
        self._view = View()
        self._places = places_of(engine)
        self.remarks: list[str] = []

    async def all(self) -> dict[str, tuple[Item, ...]]:
        """The items of every check that was asked for, by its name."""
        found: dict[str, tuple[Item, ...]] = {}
        workloads: list[Workload] = []
        around = await asyncio.to_thread(surroundings.look, self._engine.paths)
        if self._names[Scope.WORKLOAD] or self._names[Scope.ENGINE]:
            workloads = await self._workloads(around)
        if self._names[Scope.HOST]:
            found |= await asyncio.to_thread(self._host)
        if self._names[Scope.ENGINE]:
            found |= await self._of_engine(around, workloads)
        if self._names[Scope.WORKLOAD]:
            found |= await asyncio.to_thread(self._judged, workloads, around)
        if self._names[Scope.IMAGE]:
            found |= await images.audit(
                self._engine, self._asked, self._names[Scope.IMAGE], self.remarks
            )
        if self._names[Scope.DOCKERFILE]:
            bodies = self._asked.dockerfiles or ()
            found |= await asyncio.to_thread(dockerfile.judge, bodies)
        return found

    # --- host and engine ------------------------------------------------------------------------

    def _host(self) -> dict[str, tuple[Item, ...]]:
        host = Host(
            self._view,
            self._places,
            trusted=self._asked.trusted_users or (),
            version=__version__,
        )
        return {name: tuple(host.judge(name)) for name in self._names[Scope.HOST]}

    async def _of_engine(
        self, around: Surroundings, workloads: Sequence[Workload]
    ) -> dict[str, tuple[Item, ...]]:
        engine = self._engine
        bridges = [n for n in engine.networks.all() if n.name == BRIDGE]
        bridge = next((n.interface for n in bridges if _there(n.interface)), "")
        table, trouble = await asyncio.to_thread(packet_filter, str(engine.paths.state))
        records = await engine.containers.list(all=True)
        chain = await asyncio.to_thread(engine.ledger.check)
        images = {str(image.id) for image in await engine.images.list()}
        facts = engine_checks.Facts(
            info=await engine.info(),
            config=engine.config,
            places=self._places,
            view=self._view,
            around=around,
            workloads=workloads,
            default_bridge=bridge,
            default_icc=engine.config.network.icc,
            filter=table,
            filter_trouble=trouble,
            listeners=await asyncio.to_thread(engine_checks.listeners),
            keeper=_pid(engine.paths.run / "keeper.lock"),
            images=len(images),
            images_used=len(images & {record.image_id for record in records}),
            ledger=(chain.entries, chain.fault),
        )

        def judge() -> dict[str, tuple[Item, ...]]:
            return {
                name: tuple(files.judge(name, self._view, self._places))
                or engine_checks.judge(name, facts)
                for name in self._names[Scope.ENGINE]
            }

        return await asyncio.to_thread(judge)

    # --- workloads ------------------------------------------------------------------------------

    async def _workloads(self, around: Surroundings) -> list[Workload]:
        records = await self._records()
        running = [record for record in records if record.alive]
        idle = len(records) - len(running)
        if idle and self._names[Scope.WORKLOAD]:
            self.remarks.append(f"{idle} containers do not run and were not looked at")
        known: list[tuple[Record, list[ExecRecord], str, tuple[str, ...]]] = []
        for record in running:
            execs = self._engine.execs
            found = [execs.inspect(identity) for identity in execs.of(record.id)]
            newer, ports = await _image(self._engine, record)
            known.append((record, found, newer, ports))

        def look() -> list[Workload]:
            return [
                container.look(record, around, execs=execs, newer_image=newer, image_ports=ports)
                for record, execs, newer, ports in known
            ]

        return await asyncio.to_thread(look)

    async def _records(self) -> list[Record]:
        containers = self._engine.containers
        if self._asked.names and self._names[Scope.WORKLOAD]:
            return [await containers.get(name) for name in self._asked.names]
        found = await containers.list(all=True)
        return sorted(found, key=lambda record: record.name)

    def _judged(
        self, workloads: Sequence[Workload], around: Surroundings
    ) -> dict[str, tuple[Item, ...]]:
        allowed = frozenset(self._asked.allowed_ports or ())
        context = Context(around=around, allowed_ports=allowed)
        names = self._names[Scope.WORKLOAD]
        if not workloads:
            return {name: (finding.inapplicable("no container runs"),) for name in names}
        return {
            name: tuple(item for one in workloads for item in workload.judge(one, name, context))
            for name in names
        }


def places_of(engine: Engine) -> Places:
    """Where this engine's things lie."""
    paths, config = engine.paths, engine.config
    programs = [found for name in ("tare", "tared") if (found := shutil.which(name))]
    served = config.registry
    return Places(
        state=str(paths.state),
        run=str(paths.run),
        config=str(paths.config),
        programs=tuple(programs),
        package=str(Path(__file__).resolve().parent.parent),
        interpreter=os.path.realpath("/proc/self/exe"),
        runtimes=tuple(
            found
            for name in (f"qemu-system-{os.uname().machine}", "qemu-system-x86_64")
            if (found := shutil.which(name))
        )[:1],
        ca=tuple(str(s.ca) for s in config.registries.hosts.values() if s.ca),
        certificates=(str(served.tls_cert),) if served and served.tls_cert else (),
        keys=(
            *((str(served.tls_key),) if served and served.tls_key else ()),
            *(str(s.key) for s in config.registries.hosts.values() if s.key),
        ),
        owner=os.geteuid(),
    )


def _there(interface: str) -> bool:
    try:
        return bool(interface and socket.if_nametoindex(interface))
    except OSError:
        return False


def _pid(path: Path) -> int:
    try:
        return int(path.read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


async def _image(engine: Engine, record: Record) -> tuple[str, tuple[str, ...]]:
    """The id that the name of its image has by now, if another; and the ports it declares."""
    newer = ""
    try:
        named = await engine.images.get(record.spec.image)
        newer = str(named.id) if str(named.id) != record.image_id else ""
    except TareError:
        pass  # the name was taken away: nothing newer is known
    try:
        own = await engine.images.get(record.image_id)
    except TareError:
        return newer, ()
    return newer, own.config.exposed_ports
