"""One audit of a running engine, from what is asked to the report.

Facts are collected in threads, so the daemon answers meanwhile; judging is arithmetic. A scope is
looked at only when one of its checks is asked for.

Not for: who may ask (the API's socket), or how a report looks (`formats`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from tare import __version__
from tare.audit import catalogue, container, finding, surroundings, workload
from tare.audit.container import Workload
from tare.audit.finding import Item, Report, Result, Scope
from tare.audit.request import AuditBody, scopes, wanted
from tare.audit.rules.rule import Check
from tare.audit.surroundings import Surroundings
from tare.audit.workload import Context
from tare.engine.engine import Engine
from tare.errors import InvalidError, TareError
from tare.model.record import ExecRecord, Record


async def audit(engine: Engine, asked: AuditBody) -> Report:
    """Look, judge and report; InvalidError for what cannot be asked, MissingError for a name."""
    start = time.time_ns()
    benchmark = catalogue.edition(asked.benchmark)
    checks = wanted(asked, benchmark)
    if asked.names and len(scopes(asked)) != 1:
        raise InvalidError("names can be given for one of image and workload only")
    found: dict[str, tuple[Item, ...]] = {}
    remarks: list[str] = []
    if any(check.scope is Scope.WORKLOAD for check in checks):
        found |= await _workloads(engine, asked, checks, remarks)
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


# --- workloads ----------------------------------------------------------------------------------


async def _workloads(
    engine: Engine, asked: AuditBody, checks: Sequence[Check], remarks: list[str]
) -> dict[str, tuple[Item, ...]]:
    records = await _records(engine, asked)
    running = [record for record in records if record.alive]
    idle = len(records) - len(running)
    if idle:
        remarks.append(f"{idle} containers do not run and were not looked at")
    around = await asyncio.to_thread(surroundings.look, engine.paths)
    facts = await _facts(engine, running, around)
    context = Context(around=around, allowed_ports=frozenset(asked.allowed_ports or ()))
    names = [check.name for check in checks if check.scope is Scope.WORKLOAD]
    if not facts:
        return {name: (finding.inapplicable("no container runs"),) for name in names}
    return {
        name: tuple(item for one in facts for item in workload.judge(one, name, context))
        for name in names
    }


async def _records(engine: Engine, asked: AuditBody) -> list[Record]:
    if asked.names:
        return [await engine.containers.get(name) for name in asked.names]
    found = await engine.containers.list(all=True)
    return sorted(found, key=lambda record: record.name)


async def _facts(engine: Engine, records: Sequence[Record], around: Surroundings) -> list[Workload]:
    known: list[tuple[Record, list[ExecRecord], str, tuple[str, ...]]] = []
    for record in records:
        execs = [engine.execs.inspect(identity) for identity in engine.execs.of(record.id)]
        newer, ports = await _image(engine, record)
        known.append((record, execs, newer, ports))

    def look() -> list[Workload]:
        return [
            container.look(record, around, execs=execs, newer_image=newer, image_ports=ports)
            for record, execs, newer, ports in known
        ]

    return await asyncio.to_thread(look)


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
