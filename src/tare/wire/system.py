"""The host, the engine and what happens: info, version, events, df. Pure."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import Final

from tare import __version__
from tare.model.record import Check, Event, Info
from tare.wire.container import DRIVER
from tare.wire.values import MACHINE_RUNTIME, rfc3339

Json = dict[str, object]

API_VERSION: Final = "1.50"
API_MINIMUM: Final = "1.24"
_GO_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


def architecture(machine: str) -> str:
    """Go's name of a machine."""
    return _GO_ARCHITECTURES.get(machine, machine)


def info(host: Info, now_ns: int) -> Json:
    """``GET /info``."""
    return {
        "ID": host.id,
        "Containers": host.containers,
        "ContainersRunning": host.running,
        "ContainersPaused": host.paused,
        "ContainersStopped": host.stopped,
        "Images": host.images,
        "Driver": DRIVER,
        "DriverStatus": [["Backing", host.storage_driver]],
        "DockerRootDir": host.state_dir,
        "SystemStatus": None,
        "Plugins": {
            "Volume": [],
            "Network": ["bridge", "host", "macvlan", "null"],
            "Authorization": None,
            "Log": ["json-file", "local", "none"],
        },
        "MemoryLimit": host.memory_limit,
        "SwapLimit": host.swap_limit,
        "KernelMemoryTCP": False,
        "CpuCfsPeriod": host.cpu_limit,
        "CpuCfsQuota": host.cpu_limit,
        "CPUShares": host.cpu_limit,
        "CPUSet": host.cpuset,
        "PidsLimit": host.pids_limit,
        "OomKillDisable": host.oom_kill_disable,
        "IPv4Forwarding": False,
        "BridgeNfIptables": False,
        "BridgeNfIp6tables": False,
        "Debug": False,
        "NFd": 0,
        "NGoroutines": 0,
        "SystemTime": rfc3339(now_ns),
        "LoggingDriver": "json-file",
        "CgroupDriver": host.cgroup_driver,
        "CgroupVersion": host.cgroup_version,
        "NEventsListener": 0,
        "KernelVersion": host.kernel,
        "OperatingSystem": host.operating_system,
        "OSVersion": host.os_version,
        "OSType": "linux",
        "Architecture": host.architecture,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "IndexConfigs": {},
            "InsecureRegistryCIDRs": [],
            "Mirrors": [],
        },
        "NCPU": host.cpus,
        "MemTotal": host.memory_total,
        "GenericResources": None,
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": host.name,
        "Labels": [],
        "ExperimentalBuild": False,
        "ServerVersion": host.version,
        "Runtimes": {"tare": {"path": "tare"}, MACHINE_RUNTIME: {"path": "tare"}},
        "DefaultRuntime": "tare",
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": False,
            "Error": "", "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": "tare-init",
        "ContainerdCommit": {"ID": "", "Expected": ""},
        "RuncCommit": {"ID": "", "Expected": ""},
        "InitCommit": {"ID": "", "Expected": ""},
        "SecurityOptions": list(host.security_options),
        "CDISpecDirs": [],
        "Warnings": list(host.warnings),
        "Tare": {
            "Rootless": host.rootless,
            "Isolations": ["container"] if host.rootless else ["container", "vm"],
        },
    }  # fmt: skip


def version() -> Json:
    """``GET /version``."""
    machine = platform.uname()
    arch = architecture(machine.machine)
    return {
        "Platform": {"Name": "tare"},
        "Components": [
            {
                "Name": "Engine",
                "Version": __version__,
                "Details": {
                    "ApiVersion": API_VERSION,
                    "MinAPIVersion": API_MINIMUM,
                    "Os": "linux",
                    "Arch": arch,
                    "KernelVersion": machine.release,
                    "GitCommit": "",
                    "GoVersion": "",
                    "BuildTime": "",
                    "Experimental": "false",
                },
            }
        ],
        "Version": __version__,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": API_MINIMUM,
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": machine.release,
        "BuildTime": "",
        "Tare": {"Python": platform.python_version()},
    }


def event(happened: Event) -> Json:
    """One line of ``GET /events``."""
    found: Json = {
        "Type": happened.type,
        "Action": happened.action,
        "Actor": {"ID": happened.id, "Attributes": dict(happened.attributes)},
        "scope": happened.scope,
        "time": happened.time_ns // 10**9,
        "timeNano": happened.time_ns,
    }
    if happened.type in ("container", "image"):
        found["status"] = happened.action
        found["id"] = happened.id
        if happened.type == "container" and "image" in happened.attributes:
            found["from"] = happened.attributes["image"]
    return found


def checks(findings: Iterable[Check]) -> list[Json]:
    """``GET /tare/doctor``."""
    return [
        {
            "check": one.check,
            "status": one.status,
            "seen": one.seen,
            "cost": one.cost,
            "remedy": one.remedy,
        }
        for one in findings
    ]
