"""Networks in the Python SDK: what ``tare network`` does, typed.

Not for: which networks a container is made with (``network=`` of create and run).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tare.client import document
from tare.client.cli.ps import filters as encoded_filters
from tare.client.document import flag, mapping, text
from tare.client.runspec import endpoint
from tare.client.transport import Daemon, segment, target

if TYPE_CHECKING:
    from tare.client.document import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSummary:
    """One line of ``tare network ls``."""

    id: str
    name: str
    driver: str
    subnets: tuple[str, ...]
    internal: bool


class Networks:
    """The networks of one engine."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def create(
        self,
        name: str,
        *,
        subnets: Sequence[str] = (),
        ipv6: bool = False,
        internal: bool = False,
        driver: str = "bridge",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Make a network and return its id; ConflictError when the name or a subnet is taken."""
        body: dict[str, Json] = {
            "Name": name,
            "Driver": driver,
            "Internal": internal,
            "EnableIPv6": ipv6,
            "IPAM": {"Config": [{"Subnet": subnet} for subnet in subnets]},
            "Options": dict(options or {}),
            "Labels": dict(labels or {}),
        }
        return text(self._daemon.call("POST", "/networks/create", body), "Id")

    def list(self, *, filters: Sequence[str] = ()) -> list[NetworkSummary]:
        """All networks, or those for which *filters* hold (``driver=bridge``)."""
        query = {"filters": encoded_filters([*filters])}
        return [
            NetworkSummary(
                id=text(each, "Id"),
                name=text(each, "Name"),
                driver=text(each, "Driver"),
                subnets=tuple(
                    text(pool, "Subnet") for pool in document.items(each, "IPAM", "Config")
                ),
                internal=flag(each, "Internal"),
            )
            for each in document.items(self._daemon.call("GET", target("/networks", query)))
        ]

    def inspect(self, name: str) -> dict[str, Json]:
        """All details, who is in it too; MissingError when it is not there."""
        return mapping(self._daemon.call("GET", f"/networks/{segment(name)}"))

    def connect(self, network: str, container: str, *, aliases: Sequence[str] = ()) -> None:
        """Put a container into a network, at once if it runs."""
        body: dict[str, Json] = {
            "Container": container,
            "EndpointConfig": endpoint(aliases=[*aliases]),
        }
        self._daemon.call("POST", f"/networks/{segment(network)}/connect", body)

    def disconnect(self, network: str, container: str) -> None:
        """Take a container out of a network, at once if it runs."""
        body: dict[str, Json] = {"Container": container}
        self._daemon.call("POST", f"/networks/{segment(network)}/disconnect", body)

    def remove(self, name: str) -> None:
        """Remove it; DeniedError when a running container is in it."""
        self._daemon.call("DELETE", f"/networks/{segment(name)}")

    def prune(self) -> tuple[str, ...]:
        """Remove those that no container is to be in; their names."""
        answer = self._daemon.call("POST", "/networks/prune")
        return tuple(document.strings(answer, "NetworksDeleted"))
