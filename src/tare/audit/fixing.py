"""The changes that an audit proposes, made: modes and owners of single files, and nothing else.

1. Only what an audit of this very moment proposes is changed; no path comes from outside.
2. The file is opened without following a link in its last step, and its mode and owner must be
   those that the audit has seen.
3. The change is made on what was opened, so nobody can put another file in its place.

Not for: deciding what is right (`files`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from tare.audit.finding import Fix, Report


def proposed(report: Report) -> list[Fix]:
    """The fixes of everything that counts, each once."""
    found = (item.fix for _, item in report.findings() if item.fix is not None)
    return list(dict.fromkeys(found))


def words(fix: Fix) -> str:
    """A fix as the command that does it."""
    return f"{fix.kind} {fix.new.lstrip('0') or '0' if fix.kind == 'chmod' else fix.new} {fix.path}"


def apply(fixes: Iterable[Fix], root: Path = Path("/")) -> list[str]:
    """Make *fixes*; a sentence for each, of what was done or why not."""
    return [_apply(fix, root) for fix in fixes]


def _apply(fix: Fix, root: Path) -> str:
    path = root / fix.path.lstrip("/")
    try:
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"not done: {words(fix)}: {error.strerror}"
    try:
        status = os.fstat(handle)
        if stat.S_ISLNK(status.st_mode):
            return f"not done: {words(fix)}: it is a link"
        seen = f"{stat.S_IMODE(status.st_mode):04o}"
        if fix.kind == "chown":
            seen = f"{status.st_uid}:{status.st_gid}"
        if seen != fix.old:
            return f"not done: {words(fix)}: it was changed meanwhile ({seen}, not {fix.old})"
        # A handle of O_PATH is changed through /proc, which leads to exactly that file.
        link = f"/proc/self/fd/{handle}"
        if fix.kind == "chmod":
            os.chmod(link, int(fix.new, 8))
        else:
            user, _, group = fix.new.partition(":")
            os.chown(link, int(user), int(group))
    except (OSError, ValueError) as error:
        return f"not done: {words(fix)}: {error}"
    finally:
        os.close(handle)
    return f"done: {words(fix)}"
