"""Section 3 of the CIS Docker Benchmark: owners and modes of the engine's files. Pure data."""

from __future__ import annotations

from functools import partial
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check, cis

_cis = partial(cis, Scope.ENGINE)
_UNIT: Final = "Who can write the unit decides what root starts at the next boot."
_CONF: Final = "Who can write the configuration decides what the engine trusts and listens on."
_CERT: Final = "Who can change a certificate decides whom the engine takes for the registry."
_KEY: Final = "Who can read the key can be the engine to all its clients."
_SOCK: Final = "Who can write the socket can become root of the host."
_DO: Final = "`tare audit engine --fix` shows the chown and chmod, and with --yes does them."


def _owner(ids: str, name: str, what: str, why: str, *, level: int = 1) -> Check:
    return _cis(ids, name, f"Ensure that {what}", why, _DO, level=level)


CHECKS: Final[tuple[Check, ...]] = (
    _owner("3.1", "file-service-owner", "docker.service file ownership is set to root:root", _UNIT),
    _owner(
        "3.2", "file-service-mode", "docker.service file permissions are appropriately set", _UNIT
    ),
    _owner("3.3", "file-socket-unit-owner", "docker.socket file ownership is set to root:root",
           _UNIT),
    _owner("3.4", "file-socket-unit-mode",
           "docker.socket file permissions are set to 644 or more restrictive", _UNIT),
    _owner("3.5", "file-config-owner", "/etc/docker directory ownership is set to root:root",
           _CONF),
    _owner("3.6", "file-config-mode",
           "/etc/docker directory permissions are set to 755 or more restrictive", _CONF),
    _owner("3.7", "file-registry-certificate-owner",
           "registry certificate file ownership is set to root:root", _CERT),
    _owner("3.8", "file-registry-certificate-mode",
           "registry certificate file permissions are set to 444 or more restrictive", _CERT),
    _owner("3.9", "file-ca-owner", "TLS CA certificate file ownership is set to root:root", _CERT),
    _owner("3.10", "file-ca-mode",
           "TLS CA certificate file permissions are set to 444 or more restrictive", _CERT),
    _owner("3.11", "file-certificate-owner",
           "Docker server certificate file ownership is set to root:root", _CERT),
    _owner("3.12", "file-certificate-mode",
           "Docker server certificate file permissions are set to 444 or more restrictive", _CERT),
    _owner("3.13", "file-key-owner",
           "Docker server certificate key file ownership is set to root:root", _KEY),
    _owner("3.14", "file-key-mode",
           "Docker server certificate key file permissions are set to 400", _KEY),
    _owner("3.15", "file-socket-owner", "Docker socket file ownership is set to root:docker",
           _SOCK),
    _owner("3.16", "file-socket-mode",
           "Docker socket file permissions are set to 660 or more restrictive", _SOCK),
    _owner("3.17", "file-config-file-owner", "daemon.json file ownership is set to root:root",
           _CONF, level=2),
    _owner("3.18", "file-config-file-mode",
           "daemon.json file permissions are set to 644 or more restrictive", _CONF, level=2),
    _owner("3.19", "file-default-owner",
           "/etc/default/docker file ownership is set to root:root", _CONF, level=2),
    _owner("3.20 3.22", "file-sysconfig-owner",
           "the /etc/sysconfig/docker file ownership is set to root:root", _CONF, level=2),
    _owner("3.21", "file-sysconfig-mode",
           "/etc/sysconfig/docker file permissions are set to 644 or more restrictive", _CONF,
           level=2),
    _owner("3.22 3.20", "file-default-mode",
           "/etc/default/docker file permissions are set to 644 or more restrictive", _CONF,
           level=2),
    _owner("- 3.23", "file-control-socket-owner",
           "the Containerd socket file ownership is set to root:root", _SOCK),
    _owner("- 3.24", "file-control-socket-mode",
           "the Containerd socket file permissions are set to 660 or more restrictive", _SOCK),
)  # fmt: skip
