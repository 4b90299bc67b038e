"""An image's defaults and a user's wishes, made into one complete container specification.

Docker's rules: a user's entrypoint drops the image's command, environment and labels are united
by name, and an empty entrypoint (``--entrypoint ""``) means none. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from tare.errors import InvalidError
from tare.model.spec import ContainerSpec, HealthCheck

if TYPE_CHECKING:
    from tare.model.oci import ImageConfig


def merge(config: ImageConfig, wishes: ContainerSpec) -> ContainerSpec:
    """*wishes* with the image's defaults wherever nothing was asked for.

    Not asked for are: an ``entrypoint``, ``command`` or ``health`` of None, an empty ``cwd``,
    ``user`` or ``stop_signal``. ``process.args`` is replaced. InvalidError if nothing would run.
    """
    entrypoint, command = merge_command(config, wishes.entrypoint, wishes.command)
    args = (entrypoint or ()) + (command or ())
    if not args:
        raise InvalidError(
            "no command specified", hint="name one: the image has neither ENTRYPOINT nor CMD"
        )
    process = replace(
        wishes.process,
        args=args,
        env=merge_env(config.env, wishes.process.env),
        cwd=wishes.process.cwd or config.cwd,
        user=wishes.process.user or config.user,
    )
    return replace(
        wishes,
        process=process,
        entrypoint=entrypoint,
        command=command,
        labels={**config.labels, **wishes.labels},
        volumes=tuple(dict.fromkeys((*config.volumes, *wishes.volumes))),
        exposed_ports=tuple(dict.fromkeys((*config.exposed_ports, *wishes.exposed_ports))),
        stop_signal=wishes.stop_signal or config.stop_signal or "SIGTERM",
        health=merge_health(config.health, wishes.health),
    )


def merge_command(
    config: ImageConfig,
    entrypoint: tuple[str, ...] | None,
    command: tuple[str, ...] | None,
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The entrypoint and the command that hold, given those asked for."""
    if not entrypoint:
        command = command or config.cmd
        if entrypoint is None:
            entrypoint = config.entrypoint
    if entrypoint == ("",):
        entrypoint = None
    return entrypoint, command


def merge_env(image: Iterable[str], user: Iterable[str]) -> tuple[str, ...]:
    """The user's variables, and behind them the image's whose names they do not set."""
    asked = tuple(user)
    names = {variable.partition("=")[0] for variable in asked}
    return (*asked, *(v for v in image if v.partition("=")[0] not in names))


def merge_health(image: HealthCheck | None, user: HealthCheck | None) -> HealthCheck | None:
    """The user's health check; the image's probe if the user only chose its times."""
    if user is None or image is None:
        return user or image
    return user if user.test else replace(user, test=image.test)
