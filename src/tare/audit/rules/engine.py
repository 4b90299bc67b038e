"""Sections 2, 6, 7 and 8 of the CIS Docker Benchmark, and tare's own on the engine. Pure data."""

from __future__ import annotations

from functools import partial
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check, cis

_cis = partial(cis, Scope.ENGINE)
_own = partial(cis, Scope.ENGINE, level=0)
_NO_SWARM: Final = "A swarm's managers and keys would have to be guarded; tare has no swarm."
_NOTHING: Final = "Nothing is to be done."


def _swarm(ids: str, name: str, title: str, *, scored: bool = True) -> Check:
    return _cis(ids, f"swarm-{name}", title, _NO_SWARM, _NOTHING, scored=scored)


def _enterprise(ids: str, name: str, title: str, *, scored: bool = True) -> Check:
    why = "It is about Docker Enterprise, a product that is no longer sold."
    return _cis(f"{ids} {ids} -", f"enterprise-{name}", title, why, _NOTHING, scored=scored)


CHECKS: Final[tuple[Check, ...]] = (
    _cis(
        "- 2.1", "engine-rootless",
        "Run the Docker daemon as a non-root user, if possible",
        "What breaks out of a container of an ordinary user's engine is that user, not root.",
        "Run tare as the user whose containers they are: docs/rootless.md.",
        scored=False,
    ),
    _cis(
        "2.1 2.2", "engine-icc",
        "Ensure network traffic is restricted between containers on the default bridge",
        "Containers of strangers that reach each other attack each other.",
        "Leave icc = false in [network] of config.toml (the default).",
    ),
    _cis(
        "2.2 2.3", "engine-log-level",
        "Ensure the logging level is set to 'info'",
        "Less leaves out what is needed afterwards, more writes down what is nobody's business.",
        "Run the daemon with its own log level, which is info.",
    ),
    _cis(
        "2.3 2.4", "engine-firewall",
        "Ensure Docker is allowed to make changes to iptables",
        "Without the engine's rules every container reaches every other, and from outside what was "
        "never published.",
        "Install nftables, and let nothing else flush the engine's tables; the engine puts them "
        "back when something does.",
    ),
    _cis(
        "2.4 2.5", "engine-insecure-registries",
        "Ensure insecure registries are not used",
        "Without TLS everybody on the way sees the credentials and may send another image.",
        "Take insecure = true and http:// mirrors out of [registries] in config.toml; give the "
        "registry a certificate and name its authority as ca.",
    ),
    _cis(
        "2.5 2.6", "engine-aufs",
        "Ensure aufs storage driver is not used",
        "aufs was never part of Linux and is not maintained.",
        _NOTHING,
    ),
    _cis(
        "- - 2.7", "engine-devicemapper",
        "Ensure devicemapper storage driver is not used",
        "devicemapper was given up by Docker and is not maintained.",
        _NOTHING,
    ),
    _cis(
        "2.6 2.7 2.8", "engine-tls",
        "Ensure TLS authentication for Docker daemon is configured",
        "Who reaches an API without authentication over a network is root of the host.",
        "Serve the API on its unix socket only, or by TLS with client certificates.",
    ),
    _cis(
        "2.7 2.8 2.9", "engine-ulimits",
        "Ensure the default ulimit is configured appropriately",
        "A container without limits on descriptors can use up the host's.",
        "Set --ulimit where a program needs more than the engine's defaults.",
        scored=False,
    ),
    _cis(
        "2.8 2.9 2.10", "engine-user-namespaces",
        "Enable user namespace support",
        "With ids of its own, root in a container owns nothing on the host.",
        "Let the kernel have user namespaces (sysctl user.max_user_namespaces) and do not run with "
        "--userns host.",
        level=2,
    ),
    _cis(
        "2.9 2.10 2.11", "engine-cgroup",
        "Ensure the default cgroup usage has been confirmed",
        "A parent group that was set elsewhere takes containers out of the limits meant for them.",
        "Leave TARE_CGROUP_PARENT unset, or set it on purpose.",
        level=2,
    ),
    _cis(
        "2.10 2.11 2.12", "engine-base-size",
        "Ensure base device size is not changed until needed",
        "It is a setting of the devicemapper driver, which tare does not have.",
        _NOTHING, level=2,
    ),
    _cis(
        "2.11 2.12 2.13", "engine-authorization",
        "Ensure that authorization for Docker client commands is enabled",
        "Whoever may connect may do everything: start privileged containers, read all volumes.",
        "Keep the socket's group empty, so that only root may connect, and give users engines of "
        "their own.",
        level=2,
    ),
    _cis(
        "2.12 2.13 2.14", "engine-logging",
        "Ensure centralized and remote logging is configured",
        "Who takes over a host deletes the logs that are on it.",
        "Forward the containers' logs (`tare logs -f`) and the daemon's with the log service of "
        "the host.",
        level=2,
    ),
    _cis(
        "2.13 2.15 2.16", "engine-live-restore",
        "Ensure live restore is Enabled",
        "Containers that end with the daemon make every update of it an outage.",
        _NOTHING,
    ),
    _cis(
        "2.14 2.16 2.17", "engine-userland-proxy",
        "Ensure Userland Proxy is Disabled",
        "A proxy for each port is a process of root's more that reads what strangers send.",
        _NOTHING,
    ),
    _cis(
        "2.15 2.17 2.18", "engine-seccomp",
        "Ensure that a daemon-wide custom seccomp profile is applied if appropriate",
        "The profile for all containers should be the one that was chosen.",
        "tare's own is stricter than Docker's; --security-opt seccomp=FILE gives a container "
        "another.",
        scored=False, level=2,
    ),
    _cis(
        "2.16 2.18 2.19", "engine-experimental",
        "Ensure that experimental features are not implemented in production",
        "What is not finished has not been attacked long enough.",
        _NOTHING,
    ),
    _cis(
        "2.17 2.14 2.15", "engine-new-privileges",
        "Ensure containers are restricted from acquiring new privileges",
        "Setuid programs of an image give more than the container was started with.",
        "Leave the default, which is on.",
    ),
    _cis(
        "6.1", "engine-image-sprawl",
        "Ensure that image sprawl is avoided",
        "An old image that nobody updates is run again one day.",
        "tare image prune -a",
        scored=False,
    ),
    _cis(
        "6.2", "engine-container-sprawl",
        "Ensure that container sprawl is avoided",
        "Containers that nobody remembers keep data, names and networks.",
        "tare container prune",
        scored=False,
    ),
    _cis(
        "7.1 5.1", "swarm-enabled",
        "Ensure swarm mode is not Enabled, if not needed",
        "A swarm opens ports and gives other hosts power over this one.",
        _NOTHING,
    ),
    _swarm("7.2 7.1", "managers",
           "Ensure that the minimum number of manager nodes have been created in a swarm"),
    _swarm("7.3 7.2", "interface",
           "Ensure that swarm services are bound to a specific host interface"),
    _swarm("7.4 7.3", "overlay", "Ensure that all Docker swarm overlay networks are encrypted"),
    _swarm("7.5 7.4", "secrets",
           "Ensure that Docker's secret management commands are used for managing secrets in a "
           "swarm cluster", scored=False),
    _swarm("7.6 7.5", "auto-lock", "Ensure that swarm manager is run in auto-lock mode"),
    _swarm("7.7 7.6", "lock-key",
           "Ensure that the swarm manager auto-lock key is rotated periodically", scored=False),
    _swarm("7.8 7.7", "node-certificates",
           "Ensure that node certificates are rotated as appropriate", scored=False),
    _swarm("7.9 7.8", "ca", "Ensure that CA certificates are rotated as appropriate",
           scored=False),
    _swarm("7.10 7.9", "planes",
           "Ensure that management plane traffic is separated from data plane traffic",
           scored=False),
    _enterprise("8.1.1", "ldap", "Configure the LDAP authentication service"),
    _enterprise("8.1.2", "certificates", "Use external certificates"),
    _enterprise("8.1.3", "bundles",
                "Enforce the use of client certificate bundles for unprivileged users",
                scored=False),
    _enterprise("8.1.4", "roles",
                "Configure applicable cluster role-based access control policies", scored=False),
    _enterprise("8.1.5", "signed", "Enable signed image enforcement"),
    _enterprise("8.1.6", "sessions",
                "Set the Per-User Session Limit to a value of '3' or lower"),
    _enterprise("8.1.7", "lifetime",
                "Set the 'Lifetime Minutes' and 'Renewal Threshold Minutes' values to '15' or "
                "lower and '0' respectively"),
    _enterprise("8.2.1", "scanning", "Enable image vulnerability scanning"),
    _own(
        "T.2.1", "engine-private-directories",
        "Ensure that the engine's directories are closed to others",
        "What containers write, with setuid files of root, would be open to every user of the "
        "host.",
        "`tare audit engine --fix` shows the chmod.",
    ),
    _own(
        "T.2.2", "engine-publish-address",
        "Ensure that ports are published on loopback unless an address is named",
        "-p 8080:80 on all addresses is the most common way to show a database to the world.",
        'Leave publish out of [network] in config.toml, or say publish = "127.0.0.1".',
    ),
    _own(
        "T.2.3", "engine-listeners",
        "Ensure that what the daemon serves by TCP is on loopback, or has TLS and passwords",
        "A registry that everybody may push to is where the next image comes from.",
        "Set tls-cert, tls-key and htpasswd in [registry] of config.toml, and listen on loopback "
        "in [metrics].",
    ),
    _own(
        "T.2.4", "engine-ledger", "Ensure that the ledger of what was done is whole",
        "An entry that was changed or taken out is what somebody wanted to hide.",
        "tare ledger verify names the place; compare with an export kept elsewhere.",
    ),
)  # fmt: skip
