"""Every check of `tare.build.checks` as a rule of the audit. Pure data.

Their numbers are their names, ``T.D.RootUser``, which are also those of ``# check=skip=NAME``.
"""

from __future__ import annotations

import re
from typing import Final

from tare.audit.finding import Scope
from tare.audit.rules.rule import Check
from tare.build.checks import RULES

_SEVERE: Final = frozenset((
    "SecretsUsedInArgOrEnv", "SecretFileCopied", "EmptyPassword",
))  # fmt: skip
_SECURITY: Final = frozenset((
    "UntaggedBaseImage", "RootUser", "SudoUsed", "DownloadWithoutChecksum", "DownloadPipedToShell",
    "VerificationDisabled", "SshServer", "SetuidFile", "DuplicateUserId", "UpdateAlone",
    "DistributionUpgrade", "WorldWritableFile", "VolumeOnSystemDirectory", "WholeStageCopied",
))  # fmt: skip
_ALSO: Final = {
    "RootUser": ("CIS-4.1", "DL3002", "DS-0002"),
    "UntaggedBaseImage": ("DL3006", "DL3007", "DS-0001"),
    "SecretsUsedInArgOrEnv": ("CIS-4.10", "DL3064", "DS-0031"),
    "SecretFileCopied": ("CIS-4.10", "CIS-DI-0010"),
    "SudoUsed": ("DL3004", "DS-0010"),
    "UpdateAlone": ("CIS-4.7", "DS-0017"),
    "DistributionUpgrade": ("DS-0024",),
    "HealthcheckMissing": ("CIS-4.6", "DL3057", "DS-0026"),
    "SetuidFile": ("CIS-4.8",),
    "VerificationDisabled": ("CIS-4.11",),
    "SshServer": ("DS-0004",),
}


def severe(rule: str) -> bool:
    """Whether what *rule* finds gives a secret or an account away."""
    return rule in _SEVERE


def matters(rule: str) -> bool:
    """Whether it is about security, and not about style."""
    return rule in _SECURITY or rule in _SEVERE


def name_of(rule: str) -> str:
    """The audit's name of a rule: dockerfile-root-user."""
    return "dockerfile" + re.sub(r"[A-Z]+", lambda m: "-" + m[0].lower(), rule)


def _check(rule: str, text: str) -> Check:
    number = f"T.D.{rule}"
    return Check(
        name=name_of(rule),
        ids=(number, number, number),
        title=text,
        why=text,
        remedy=f"Change the line, or say why not: # check=skip={rule}",
        scope=Scope.DOCKERFILE,
        scored=matters(rule),
        level=0,
        also=_ALSO.get(rule, ()),
    )


_UNREADABLE: Final = Check(
    name="dockerfile-unreadable",
    ids=("T.D.Unreadable",) * 3,
    title="A Dockerfile that cannot be read cannot be built",
    why="The builder stops at this line.",
    remedy="Correct the line.",
    scope=Scope.DOCKERFILE,
    level=0,
)
_ADD: Final = Check(
    name="dockerfile-add",
    ids=("T.D.AddInsteadOfCopy",) * 3,
    title="COPY should be used where nothing is fetched or unpacked",
    why="ADD unpacks archives and fetches from the network, which is seldom meant.",
    remedy="Write COPY.",
    scope=Scope.DOCKERFILE,
    level=0,
    also=("CIS-4.9", "DL3020", "DS-0005"),
)
CHECKS: Final[tuple[Check, ...]] = (
    _UNREADABLE,
    _ADD,
    *(_check(rule, text) for rule, text in RULES.items()),
)
