"""Images as Docker shows them: inspect, list, history; and the configuration of a commit. Pure."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tare.errors import TareError
from tare.model.merge import merge_env
from tare.model.oci import History, ImageConfig
from tare.model.spec import ContainerSpec
from tare.wire import values
from tare.wire.body import ConfigBody, words
from tare.wire.container import DRIVER, healthcheck
from tare.wire.create import exposed_ports, health_check, stop_signal
from tare.wire.mounts import container_path
from tare.wire.system import architecture
from tare.wire.values import rfc3339

if TYPE_CHECKING:
    from tare.image.store import Image

Json = dict[str, object]
_EMPTY: Final[Json] = {}


def config(image: ImageConfig) -> Json:
    """``Config`` of an image."""
    found: Json = {
        "Hostname": "", "Domainname": "", "User": image.user, "AttachStdin": False,
        "AttachStdout": False, "AttachStderr": False, "Tty": False, "OpenStdin": False,
        "StdinOnce": False, "Env": list(image.env),
        "Cmd": None if image.cmd is None else list(image.cmd),
        "Image": "",
        "Volumes": dict.fromkeys(image.volumes, _EMPTY) or None,
        "WorkingDir": image.cwd,
        "Entrypoint": None if image.entrypoint is None else list(image.entrypoint),
        "OnBuild": list(image.on_build) or None,
        "Labels": dict(image.labels) or None,
    }  # fmt: skip
    if image.exposed_ports:
        found["ExposedPorts"] = dict.fromkeys(image.exposed_ports, _EMPTY)
    if image.stop_signal:
        found["StopSignal"] = image.stop_signal
    if image.shell:
        found["Shell"] = list(image.shell)
    if image.health is not None:
        found["Healthcheck"] = healthcheck(image.health)
    return found


def inspect(image: Image) -> Json:
    """``GET /images/NAME/json``."""
    given = image.config
    return {
        "Id": str(image.id),
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Parent": str(image.parent or ""),
        "Comment": given.history[-1].comment if given.history else "",
        "Created": given.created or rfc3339(image.created_ns),
        "DockerVersion": "",
        "Author": given.author,
        "Config": config(given),
        # Gone from the API since 1.45; docker-compose 1 reads the volumes of it.
        "ContainerConfig": config(given),
        "Architecture": given.architecture,
        "Variant": given.variant,
        "Os": given.os,
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": {"Name": DRIVER, "Data": {}},
        "RootFS": {"Type": "layers", "Layers": [str(digest) for digest in image.layers]},
        "Metadata": {"LastTagTime": rfc3339(0)},
    }


def summary(image: Image, containers: int = -1) -> Json:
    """One entry of ``GET /images/json``."""
    return {
        "Id": str(image.id),
        "ParentId": str(image.parent or ""),
        "RepoTags": list(image.tags),
        "RepoDigests": list(image.digests),
        "Created": image.created_ns // 10**9,
        "Size": image.size,
        "VirtualSize": image.size,
        "SharedSize": -1,
        "Labels": dict(image.config.labels) or None,
        "Containers": containers,
    }


def _seconds(text: str) -> int:
    try:
        return values.moment(text, now_ns=0) // 10**9 if text else 0
    except TareError:
        return 0  # an image may claim anything


def history(image: Image, steps: Iterable[tuple[History, int]]) -> list[Json]:
    """``GET /images/NAME/history``, newest first; *steps* come with what their layers weigh."""
    found: list[Json] = [
        {
            "Id": "<missing>",
            "Created": _seconds(step.created),
            "CreatedBy": step.created_by,
            "Tags": None,
            "Size": size,
            "Comment": step.comment,
        }
        for step, size in steps
    ] or [
        {
            "Id": "",
            "Created": image.created_ns // 10**9,
            "CreatedBy": "",
            "Tags": None,
            "Size": image.size,
            "Comment": "",
        }
    ]
    found[-1]["Id"] = str(image.id)
    found[-1]["Tags"] = list(image.tags) or None
    found.reverse()
    return found


def matches(image: Image, filters: Mapping[str, Iterable[str]]) -> bool:
    """Whether an image passes ``dangling``, ``label`` and ``reference``."""
    for value in filters.get("dangling", ()):
        if (value.lower() in ("1", "true")) == bool(image.tags):
            return False
    for value in filters.get("label", ()):
        name, equals, wanted = value.partition("=")
        found = image.config.labels.get(name)
        if found is None or (equals and found != wanted):
            return False
    patterns = tuple(filters.get("reference", ()))
    return not patterns or any(_reference(p, tag) for p in patterns for tag in image.tags)


def _reference(pattern: str, tag: str) -> bool:
    """Go's path.Match of a familiar name, with or without its tag; ``*`` stops at a slash."""
    expression = "".join(
        {"*": "[^/]*", "?": "[^/]"}.get(letter, re.escape(letter)) for letter in pattern
    )
    name = tag.rpartition(":")[0] or tag
    return any(re.fullmatch(expression, text) for text in (tag, name))


def committed(
    base: ImageConfig | None, spec: ContainerSpec, asked: ConfigBody, *, author: str, message: str
) -> ImageConfig:
    """The configuration of a commit: what the container runs with, changed as *asked*.

    The history ends with the step of the new layer; ``diff_ids`` and ``raw`` are not made here.
    """
    given = base or ImageConfig(architecture=architecture(platform.machine()), os="linux")
    command, entrypoint = words(asked.cmd), words(asked.entrypoint)
    env = merge_env(spec.process.env, values.environment(asked.env))
    volumes = dict.fromkeys((*spec.volumes, *(asked.volumes or ())))
    ports = dict.fromkeys((*spec.exposed_ports, *exposed_ports(asked.exposed_ports)))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return replace(
        given,
        created=now,
        author=author or given.author,
        entrypoint=spec.entrypoint if entrypoint is None else entrypoint,
        cmd=spec.command if command is None else command,
        env=env,
        user=values.user(asked.user or spec.process.user),
        cwd=asked.working_dir or spec.process.cwd,
        labels={**spec.labels, **(asked.labels or {})},
        volumes=tuple(container_path("volume path", path) for path in volumes),
        exposed_ports=tuple(ports),
        stop_signal=stop_signal(asked.stop_signal) if asked.stop_signal else given.stop_signal,
        health=health_check(asked.healthcheck, spec.health),
        history=(
            *given.history,
            History(
                created=now,
                created_by=" ".join(spec.process.args),
                author=author,
                comment=message,
            ),
        ),
    )
