"""Root file systems and archives to run tests on; not for what tare makes of them.

Busybox comes from Debian's busybox-static. The Debian root is made once by mmdebstrap and kept
in a cache (``TARE_TEST_CACHE``, else the user's cache directory), as one tar.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_PASSWD: Final = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP: Final = "root:x:0:\nnogroup:x:65534:\n"


def cache_directory() -> Path:
    """Where what takes long to make is kept between sessions."""
    named = os.environ.get("TARE_TEST_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(named) if named else Path(base) / "tare-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def lay_busybox(root: Path) -> Path:
    """Fill *root* with a busybox system: applets as links, /etc/passwd, the usual directories.

    LookupError if the host has no static busybox.
    """
    program = shutil.which("busybox")
    if program is None:
        raise LookupError("busybox is not installed (Debian: busybox-static)")
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy2(program, root / "bin/busybox")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    for directory in ("sbin", "usr/bin", "usr/sbin"):
        (root / directory).symlink_to("/bin")
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    return root


def _tarred(root: Path) -> bytes:
    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = 0
        return entry

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.iterdir()):
            archive.add(path, arcname=path.name, filter=plain)
    return out.getvalue()


def docker_archive(root: Path, out: Path, tag: str, config: dict[str, object]) -> Path:
    """Write *root* as an image of one layer in the format of `docker save`, and return *out*.

    *config* is the part of the image's configuration that says how to run it (Cmd, Env, ...).
    """
    layer = _tarred(root)
    diff_id = "sha256:" + hashlib.sha256(layer).hexdigest()
    image = json.dumps(
        {
            "architecture": _MACHINES.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests"}],
        }
    ).encode()
    name = hashlib.sha256(image).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(out, "w") as archive:
        for member, content in ((name, image), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out


def debian_tar(suite: str = "bookworm") -> Path:
    """The tar of a minimal Debian, made by mmdebstrap if the cache has none.

    OSError, with what mmdebstrap said, if it could not be made.
    """
    out = cache_directory() / f"debian-{suite}-{os.uname().machine}.tar"
    with open(out.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return out
        fresh = out.with_suffix(".new.tar")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", suite, str(fresh)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            if done.returncode != 0:
                raise OSError(f"mmdebstrap: {done.stderr.strip()[-400:]}")
            fresh.rename(out)
        finally:
            fresh.unlink(missing_ok=True)
    return out
