"""Section 3: owners and modes of the engine's files, and the changes that make them right.

Modes are compared bit by bit: what is allowed is a mask, so 0606 is not taken for less than 0644.
A fix is proposed only for a regular file, directory or socket that is there.

Not for: making the change (`fixing`).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tare.audit import finding
from tare.audit.finding import Evidence, Fix, Item
from tare.audit.view import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where an engine's things lie: absolute names in a `View`."""

    state: str = "/var/lib/tare"
    run: str = "/run/tare"
    config: str = "/etc/tare"
    programs: tuple[str, ...] = ("/usr/bin/tare", "/usr/bin/tared")
    package: str = ""
    interpreter: str = ""
    runtimes: tuple[str, ...] = ()  # programs that start machines
    service: tuple[str, ...] = (
        "/etc/systemd/system/tare.service",
        "/usr/lib/systemd/system/tare.service",
        "/lib/systemd/system/tare.service",
    )
    socket_unit: tuple[str, ...] = (
        "/etc/systemd/system/tare.socket",
        "/usr/lib/systemd/system/tare.socket",
        "/lib/systemd/system/tare.socket",
    )
    default: str = "/etc/default/tare"
    sysconfig: str = "/etc/sysconfig/tare"
    ca: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    owner: int = 0  # the engine's user

    @property
    def socket(self) -> str:
        """The API's socket."""
        return f"{self.run}/tare.sock"

    @property
    def control_sockets(self) -> tuple[str, ...]:
        """Those that only the engine itself uses."""
        return (f"{self.run}/keeper.sock",)

    @property
    def config_file(self) -> str:
        """The configuration."""
        return f"{self.config}/config.toml"


def owned(view: View, paths: Sequence[str], owner: int, groups: Sequence[str] = ()) -> list[Item]:
    """Whether each of *paths* that is there belongs to *owner* and one of *groups* (none: gid)."""
    found: list[Item] = []
    for path in paths:
        status = view.status(path)
        if status is None:
            continue
        user, group = view.user_name(status.st_uid), view.group_name(status.st_gid)
        wanted = view.user_name(owner)
        allowed = groups or (view.group_name(owner),)
        at = Evidence(path, f"{user}:{group}")
        if status.st_uid == owner and group in allowed:
            found.append(finding.ok(f"{path} belongs to {user}:{group}", at, subject=path))
        else:
            new = f"{owner}:{status.st_gid if group in allowed else owner}"
            fix = Fix("chown", path, f"{status.st_uid}:{status.st_gid}", new)
            found.append(
                finding.warn(
                    f"{path} belongs to {user}:{group}, not to {wanted}:{allowed[0]}", at,
                    subject=path, fix=fix,
                )
            )  # fmt: skip
    return found or [_missing(paths)]


def moded(view: View, paths: Sequence[str], mask: int) -> list[Item]:
    """Whether each of *paths* that is there has no permission beyond *mask*."""
    found: list[Item] = []
    for path in paths:
        status = view.status(path)
        if status is None:
            continue
        mode = stat.S_IMODE(status.st_mode)
        at = Evidence(path, f"{mode:04o}")
        if mode & ~mask:
            fix = Fix("chmod", path, f"{mode:04o}", f"{mode & mask:04o}")
            found.append(
                finding.warn(
                    f"{path} has the mode {mode:04o}: more than {mask:04o}", at,
                    subject=path, fix=fix,
                )
            )  # fmt: skip
        else:
            found.append(finding.ok(f"{path} has the mode {mode:04o}", at, subject=path))
    return found or [_missing(paths)]


def _missing(paths: Sequence[str]) -> Item:
    if not paths:
        return finding.inapplicable("none is configured")
    return finding.inapplicable(f"{paths[-1]} is not there")


def _certificates(view: View, places: Places) -> list[str]:
    below = (f"{places.config}/certs.d", "/etc/docker/certs.d", "/etc/containers/certs.d")
    found = [name for directory in below for name in view.files_below(directory)]
    return [name for name in found if name.endswith((".crt", ".cert", ".pem", ".ca"))]


def judge(name: str, view: View, places: Places) -> Iterable[Item]:
    """What the check *name* of section 3 says; () for one that is not of this part."""
    kind, _, what = name.removeprefix("file-").rpartition("-")
    paths, mask, groups = _subject(kind, view, places)
    if not name.startswith("file-") or mask < 0:
        return ()
    if what == "owner":
        return owned(view, paths, places.owner, groups)
    if kind == "key":
        return [_key(item) for item in moded(view, paths, mask)]
    return moded(view, paths, mask)


def _key(item: Item) -> Item:
    """0600 is the usual mode of a key: its owner could give it to himself anyway."""
    if item.fix is not None and item.fix.old == "0600":
        return finding.info(item.seen, *item.evidence, subject=item.subject)
    return item


def _subject(kind: str, view: View, places: Places) -> tuple[Sequence[str], int, Sequence[str]]:
    """The files of a kind of check, the mode they may have, the groups they may belong to."""
    match kind:
        case "service":
            return places.service, 0o644, ()
        case "socket-unit":
            return places.socket_unit, 0o644, ()
        case "config":
            return (places.config,), 0o755, ()
        case "registry-certificate":
            return _certificates(view, places), 0o444, ()
        case "ca":
            return places.ca, 0o444, ()
        case "certificate":
            return places.certificates, 0o444, ()
        case "key":
            return places.keys, 0o400, ()
        case "socket":
            return (places.socket,), 0o660, ("root", "tare", "docker")
        case "config-file":
            return (places.config_file,), 0o644, ()
        case "default":
            return (places.default,), 0o644, ()
        case "sysconfig":
            return (places.sysconfig,), 0o644, ()
        case "control-socket":
            return places.control_sockets, 0o660, ()
    return (), -1, ()
