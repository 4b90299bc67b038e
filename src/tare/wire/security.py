"""The walls: capabilities and ``--security-opt`` to `Security`.

Pure. An option that nobody knows is refused: a wall that was asked for and silently not built
would be worse than an error. The options are listed in docs/api-extensions.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from tare.errors import InvalidError
from tare.model.spec import Security, SecurityProfile
from tare.wire.body import HostConfig, words
from tare.wire.values import checked_text

CAPABILITIES: Final = frozenset(
    [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYSLOG",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "WAKE_ALARM",
    ]
)
_FAMILY: Final = re.compile(r"[a-z][a-z0-9_]{0,15}")
_SECCOMP_LIMIT: Final = 1 << 20
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def capabilities(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Capability names without ``CAP_``, upper case, each once; an unknown one is refused."""
    found: dict[str, None] = {}
    for name in names or ():
        word = name.upper().removeprefix("CAP_")
        if word != "ALL" and word not in CAPABILITIES:
            raise InvalidError(f"invalid capability: unknown capability: {name[:60]!r}")
        found[word] = None
    return tuple(found)


@dataclass
class _Options:
    """What the options seen so far add up to."""

    profile: SecurityProfile = SecurityProfile.STANDARD
    no_new_privileges: bool | None = None
    seccomp: str = ""
    abi_ia32: bool = False
    unconfined_paths: bool = False
    families: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _boolean(option: str, value: str) -> bool:
    if value not in _BOOLEANS:
        raise InvalidError(f"invalid --security-opt {option}: {value[:40]!r} is not true or false")
    return _BOOLEANS[value]


def _take(options: _Options, name: str, value: str, text: str) -> None:
    """Add one option; InvalidError when nobody knows it."""
    match name:
        case "seccomp" | "tare.seccomp":
            checked_text("seccomp profile", value, limit=_SECCOMP_LIMIT)
            if value not in ("unconfined", "compat", "builtin") and not value.lstrip().startswith(
                "{"
            ):
                raise InvalidError(
                    "invalid --security-opt seccomp: the JSON text of a profile, unconfined or"
                    " compat is expected"
                )
            options.seccomp = "" if value == "builtin" else value
        case "apparmor" | "label":
            if value not in ("unconfined", "disable"):
                options.warnings.append(
                    f"--security-opt {name}={value[:80]} has no effect: this engine loads no"
                    f" {'AppArmor profile' if name == 'apparmor' else 'SELinux label'}"
                )
        case "systempaths" if value == "unconfined":
            options.unconfined_paths = True
        case "socket":
            families = [family.lower().removeprefix("af_") for family in value.split(",")]
            if not all(_FAMILY.fullmatch(family) for family in families):
                raise InvalidError(f"invalid --security-opt socket: {value[:80]!r}")
            options.families += families
        case "abi" if value == "ia32":
            options.abi_ia32 = True
        case "tare.profile" if value in set(SecurityProfile):
            options.profile = SecurityProfile(value)
        case "tare.read-only":
            _boolean(name, value)
        case _:
            raise InvalidError(
                f"invalid --security-opt: {text[:80]!r}",
                hint="known: no-new-privileges, seccomp, apparmor, label, systempaths=unconfined,"
                " socket=FAMILY, abi=ia32, tare.profile=standard|docker-compat|hardened",
            )


def _read(texts: list[str] | None) -> _Options:
    options = _Options()
    for text in texts or ():
        if text == "no-new-privileges":
            options.no_new_privileges = True
            continue
        # Docker's own order: '=' is the separator, ':' the old one.
        name, separator, value = text.partition("=" if "=" in text.split(":", 1)[0] else ":")
        if not separator:
            raise InvalidError(f"invalid --security-opt: {text[:80]!r}")
        if name == "no-new-privileges":
            options.no_new_privileges = _boolean(name, value)
        else:
            _take(options, name, value, text)
    return options


def security(host: HostConfig) -> tuple[Security, list[str]]:
    """The walls asked for, and warnings of those that cannot be built here."""
    options = _read(host.security_opt)
    paths = (host.masked_paths, host.readonly_paths)
    for path in (path for given in paths if given for path in given):
        checked_text("masked or read-only path", path, limit=4096)
        if not path.startswith("/"):
            raise InvalidError(f"masked and read-only paths are absolute: {path[:80]!r}")
    walls = Security(
        profile=options.profile,
        privileged=bool(host.privileged),
        cap_add=capabilities(words(host.cap_add)),
        cap_drop=capabilities(words(host.cap_drop)),
        no_new_privileges=options.no_new_privileges,
        seccomp=options.seccomp,
        abi_ia32=options.abi_ia32,
        socket_families=tuple(dict.fromkeys(options.families)),
        # The docker client turns systempaths=unconfined into two empty lists.
        unconfined_paths=options.unconfined_paths or paths == ([], []),
        masked_paths=None if host.masked_paths is None else tuple(host.masked_paths),
        readonly_paths=None if host.readonly_paths is None else tuple(host.readonly_paths),
        options=tuple(host.security_opt or ()),
    )
    return walls, options.warnings
