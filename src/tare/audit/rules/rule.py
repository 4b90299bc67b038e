"""What a rule is: its numbers in the benchmarks, its reason and its remedy. Pure.

Titles are the benchmark's own; reasons and remedies are ours, and speak of tare.
"""

from __future__ import annotations

from dataclasses import dataclass

from tare.audit.finding import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule. ``name`` never changes: waivers, baselines and SARIF go by it.

    ``ids`` are its numbers in CIS 1.2.0, 1.6.0 (1.7.0 has the same) and 1.8.0; "" is not there.
    ``level`` is the profile level (0: none), ``also`` what other tools call it.
    """

    name: str
    ids: tuple[str, str, str]
    title: str
    why: str
    remedy: str
    scope: Scope
    scored: bool = True
    level: int = 1
    also: tuple[str, ...] = ()


def cis(  # noqa: PLR0917  # a row of a table: the columns are always the same
    scope: Scope,
    ids: str,
    name: str,
    title: str,
    why: str,
    remedy: str,
    *,
    scored: bool = True,
    level: int = 1,
    also: str = "",
) -> Check:
    """A rule; *ids* are "1.2.0 [1.6.0 [1.8.0]]", each left out being like the one before it.

    ``-`` says that this benchmark does not have it.
    """
    words = ids.split()
    words += [words[-1]] * (3 - len(words))
    first, second, third = ("" if word == "-" else word for word in words)
    return Check(
        name=name,
        ids=(first, second, third),
        title=title,
        why=why,
        remedy=remedy,
        scope=scope,
        scored=scored,
        level=level,
        also=tuple(also.split()),
    )
