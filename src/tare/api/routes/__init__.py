"""The handlers, a module for each noun of the API."""

from __future__ import annotations

from tare.api.routes import (
    absent,
    archives,
    audit,
    budget,
    building,
    containers,
    execs,
    images,
    keeping,
    ledger,
    machines,
    networks,
    observe,
    own,
    registries,
    streaming,
    system,
    trust,
    volumes,
    weighing,
)
from tare.api.routing import Routes


def install(routes: Routes) -> None:
    """Add every path of the API to *routes*."""
    for noun in (
        absent, archives, audit, budget, building, containers, execs, images, keeping, machines,
        networks, observe, own, registries, streaming, system, trust, volumes, ledger,
        weighing,
    ):  # fmt: skip
        noun.install(routes)
