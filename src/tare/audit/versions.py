"""Which of two versions is the newer one, by the rules of whose package it is. Pure.

- Debian: deb-version(7), as ``dpkg --compare-versions`` has it.
- Python: PEP 440. Node.js: Semantic Versioning 2.0.0, clause 11.
- Alpine: apk's package versions. Red Hat: rpm's, with epoch, ``~`` and ``^``.

A version that breaks the rules of its kind is compared all the same, by the rules that still
hold: an audit must say something of every package that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Final

_DIGITS: Final = frozenset("0123456789")
_LENGTH: Final = 512


def compare(kind: str, one: str, other: str) -> int:
    """-1, 0 or 1: *one* is older than, the same as, or newer than *other*.

    *kind* is that of a package URL: deb, pypi, npm, apk or rpm; any other compares as Debian's.
    """
    return _RULES.get(kind, debian)(one.strip()[:_LENGTH], other.strip()[:_LENGTH])


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _sign(one: object, other: object) -> int:
    return int(one > other) - int(one < other)  # type: ignore[operator]  # of one orderable kind


# --- Debian -----------------------------------------------------------------------------------


def debian(one: str, other: str) -> int:
    """deb-version(7): epoch, then upstream version, then revision."""
    first, second = _deb_parts(one), _deb_parts(other)
    if first[0] != second[0]:
        return _sign(first[0], second[0])
    return _deb_part(first[1], second[1]) or _deb_part(first[2], second[2])


def _deb_parts(text: str) -> tuple[int, str, str]:
    epoch, colon, rest = text.partition(":")
    if not colon or not _number(epoch):
        epoch, rest = "0", text
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), upstream, revision


def _deb_order(letter: str) -> int:
    """``~`` before the end, the end before letters, letters before everything else."""
    if letter == "~":
        return -1
    if letter.isascii() and letter.isalpha():
        return ord(letter)
    return ord(letter) + 256


def _deb_part(one: str, other: str) -> int:
    at, to = 0, 0
    while at < len(one) or to < len(other):
        while (at < len(one) and one[at] not in _DIGITS) or (
            to < len(other) and other[to] not in _DIGITS
        ):
            left = _deb_order(one[at]) if at < len(one) and one[at] not in _DIGITS else 0
            right = _deb_order(other[to]) if to < len(other) and other[to] not in _DIGITS else 0
            if left != right:
                return _sign(left, right)
            at, to = at + 1, to + 1
        left_end, right_end = _number_end(one, at), _number_end(other, to)
        order = _sign(int(one[at:left_end] or "0"), int(other[to:right_end] or "0"))
        if order:
            return order
        at, to = left_end, right_end
    return 0


def _number_end(text: str, at: int) -> int:
    while at < len(text) and text[at] in _DIGITS:
        at += 1
    return at


# --- Python -----------------------------------------------------------------------------------

_PEP440: Final = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>alpha|beta|preview|pre|rc|a|b|c)[-_.]?(?P<pre_n>\d*))?"
    r"(?:-(?P<post_bare>\d+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_n>\d*))?"
    r"(?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?",
    re.IGNORECASE | re.ASCII,
)
_PRE: Final = {
    "a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2,
}  # fmt: skip
_Key = tuple[object, ...]


def python(one: str, other: str) -> int:
    """PEP 440; what is no such version is older than all that are, as packaging had it."""
    first, second = _pep440(one), _pep440(other)
    if first is None or second is None:
        if first is None and second is None:
            return debian(one, other)
        return -1 if first is None else 1
    return _sign(first, second)


def _pep440(text: str) -> _Key | None:
    match = _PEP440.fullmatch(text)
    if match is None:
        return None
    release = [int(part) for part in match["release"].split(".")]
    while len(release) > 1 and release[-1] == 0:
        release.pop()
    has_post = match["post"] is not None or match["post_bare"] is not None
    post = int(match["post_n"] or match["post_bare"] or 0) if has_post else -1
    dev = (0, int(match["dev_n"] or 0)) if match["dev"] else (1, 0)
    if match["pre"]:
        pre: tuple[int, int] = (_PRE[match["pre"].lower()], int(match["pre_n"] or 0))
    elif match["dev"] and not has_post:
        pre = (-1, 0)  # 1.0.dev1 comes before 1.0a1
    else:
        pre = (3, 0)
    local = tuple(
        (1, int(part), "") if _number(part) else (0, 0, part.lower())
        for part in re.split(r"[-_.]", match["local"] or "")
        if part
    )
    return int(match["epoch"] or 0), tuple(release), pre, post, dev, bool(local), local


# --- Node.js ----------------------------------------------------------------------------------


def semantic(one: str, other: str) -> int:
    """Semantic Versioning 2.0.0, clause 11; build metadata does not count."""
    first, second = _semver(one), _semver(other)
    if first[0] != second[0]:
        return _sign(first[0], second[0])
    if not first[1] or not second[1]:  # without a pre-release it is newer
        return _sign(not first[1], not second[1])
    for left, right in zip_longest(first[1], second[1]):
        if left is None or right is None:
            return -1 if left is None else 1
        if left != right:
            if _number(left) and _number(right):
                return _sign(int(left), int(right))
            if _number(left) != _number(right):
                return -1 if _number(left) else 1
            return _sign(left, right)
    return 0


def _semver(text: str) -> tuple[tuple[int, ...], list[str]]:
    core, _, _ = text.lstrip("v=").partition("+")
    numbers, _, pre = core.partition("-")
    found = [int(part) if _number(part) else 0 for part in numbers.split(".")[:3]]
    return tuple((*found, 0, 0, 0)[:3]), [part for part in pre.split(".") if part]


# --- Alpine -----------------------------------------------------------------------------------

_APK: Final = re.compile(
    r"(?P<numbers>\d+(?:\.\d+)*)(?P<letter>[a-z]?)(?P<suffixes>(?:_[a-z]+\d*)*)"
    r"(?:~[0-9a-f]+)?(?:-r(?P<revision>\d+))?",
    re.ASCII,
)
_APK_SUFFIX: Final = {
    "alpha": -4, "beta": -3, "pre": -2, "rc": -1, "cvs": 1, "svn": 2, "git": 3, "hg": 4, "p": 5,
}  # fmt: skip


def alpine(one: str, other: str) -> int:
    """apk's order: numbers, a letter, suffixes such as _rc1 and _p1, then the revision."""
    first, second = _APK.fullmatch(one), _APK.fullmatch(other)
    if first is None or second is None:
        return debian(one, other)
    order = _apk_numbers(first["numbers"], second["numbers"]) or _sign(
        first["letter"], second["letter"]
    )
    if order:
        return order
    for left, right in zip_longest(_suffixes(first), _suffixes(second), fillvalue=(0, 0)):
        if left != right:
            return _sign(left, right)
    return _sign(int(first["revision"] or 0), int(second["revision"] or 0))


def _apk_numbers(one: str, other: str) -> int:
    for at, (left, right) in enumerate(zip_longest(one.split("."), other.split("."))):
        if left is None or right is None:
            return -1 if left is None else 1
        # After the first, a number with a leading zero is a fraction.
        if at and (left.startswith("0") or right.startswith("0")):
            order = _sign(left.rstrip("0"), right.rstrip("0")) if left != right else 0
        else:
            order = _sign(int(left), int(right))
        if order:
            return order
    return 0


def _suffixes(match: re.Match[str]) -> list[tuple[int, int]]:
    found = []
    for part in match["suffixes"].split("_")[1:]:
        name = part.rstrip("0123456789")
        found.append((_APK_SUFFIX.get(name, 0), int(part[len(name) :] or 0)))
    return found


# --- Red Hat ----------------------------------------------------------------------------------

_RPM: Final = re.compile(r"[0-9]+|[a-zA-Z]+|~|\^")


def rpm(one: str, other: str) -> int:
    """rpm's order: epoch, version, release."""
    first, second = _rpm_parts(one), _rpm_parts(other)
    if first[0] != second[0]:
        return _sign(first[0], second[0])
    order = _rpm_part(first[1], second[1])
    # A version without a release stands for all of its releases.
    return order or (_rpm_part(first[2], second[2]) if first[2] and second[2] else 0)


def _rpm_parts(text: str) -> tuple[int, str, str]:
    epoch, colon, rest = text.partition(":")
    if not colon or not _number(epoch):
        epoch, rest = "0", text
    version, _, release = rest.partition("-")
    return int(epoch), version, release


def _rpm_part(one: str, other: str) -> int:
    for left, right in zip_longest(_RPM.findall(one), _RPM.findall(other), fillvalue=""):
        if left == right:
            continue
        if "~" in (left, right):
            return -1 if left == "~" else 1
        if "^" in (left, right):
            # With nothing against it ^ is newer, against anything else older.
            return (1 if left == "^" else -1) if "" in (left, right) else -1 if left == "^" else 1
        if not left or not right:
            return -1 if not left else 1
        if _number(left) and _number(right):
            if int(left) != int(right):
                return _sign(int(left), int(right))
        elif _number(left) != _number(right):
            return 1 if _number(left) else -1
        else:
            return _sign(left, right)
    return 0


_RULES: Final[Mapping[str, Callable[[str, str], int]]] = {
    "deb": debian,
    "pypi": python,
    "npm": semantic,
    "apk": alpine,
    "rpm": rpm,
}
