"""Names of containers: which are allowed, and one for those that got none.

Not for: who holds a name (engine.store keeps that).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Final

from tare.errors import ConflictError, InvalidError

_ALLOWED: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_LONGEST: Final = 255


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES: Final = _words(
    "airy amber ample balanced bold brave brisk bright calm careful clever cosy crisp daring deft "
    "eager earnest even fair fond frank fresh frugal gentle glad golden grand handy happy hardy "
    "honest humble jolly keen kind light lively loyal lucid lucky mellow merry mild modest neat "
    "nimble noble patient plain polite proud prudent quick quiet ready rosy sharp silent simple "
    "sincere sleek snug sober solid spry steady still stout sturdy subtle sunny swift tidy tiny "
    "trim true upright vivid warm wary wise witty young zesty"
)

_NOUNS: Final = _words(
    "adler alder anchor apple aspen badger balance barge basket beacon beam birch bison bobbin "
    "bottle brook bucket buoy canoe carafe cargo cedar cellar chest cloud clover comet coral crane "
    "crate creek cup curlew cypress dinghy dolphin drum falcon ferry finch flask fox freight gauge "
    "ginkgo granary hamper harbour hazel heron ibis island jar jetty keel kettle lantern larch "
    "ledger linden lynx maple marten measure meadow mill minnow ounce otter oyster parcel pallet "
    "pear pebble pelican pigeon pine plover pond pouch quay raven reed river robin rowan sable "
    "scale sparrow spindle spruce stork swan tern thistle trunk vessel wagon walnut weight willow"
)


def checked(name: str) -> str:
    """Return *name* without its leading slash, or raise InvalidError in Docker's words."""
    bare = name[1:] if name.startswith("/") else name
    if not _ALLOWED.fullmatch(bare):
        raise InvalidError(
            f"Invalid container name ({name[:_LONGEST]}), "
            "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )
    if len(bare) > _LONGEST:
        raise InvalidError(
            f"Invalid container name: {len(bare)} characters, and at most {_LONGEST} are allowed"
        )
    return bare


def generated(taken: Callable[[str], bool], rng: random.Random | None = None) -> str:
    """A free name adjective_noun; digits are appended when the plain ones are in use."""
    dice = rng or _DICE
    for attempt in range(64):
        name = f"{dice.choice(_ADJECTIVES)}_{dice.choice(_NOUNS)}"
        if attempt >= 3:
            name += str(dice.randrange(10 ** min(2 + attempt // 8, 9)))
        if not taken(name):
            return name
    raise ConflictError("could not find a free name for the container", hint="give one by --name")


def conflict(name: str, holder: str) -> ConflictError:
    """The error for a name in use, in Docker's words."""
    return ConflictError(
        f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )


# A name is no secret; secrets' system call for each choice would buy nothing.
_DICE: Final = random.Random()  # noqa: S311
