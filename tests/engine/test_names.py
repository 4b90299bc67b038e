from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.engine import names
from tare.errors import InvalidError

FIRST = "abcXYZ019"
REST = FIRST + "_.-"


@given(st.text(FIRST, min_size=1, max_size=1), st.text(REST, min_size=1, max_size=80))
def test_what_docker_allows_is_kept_as_it_is(first: str, rest: str) -> None:
    assert names.checked(first + rest) == first + rest
    assert names.checked("/" + first + rest) == first + rest


@given(st.text(max_size=40))
def test_all_else_is_refused(text: str) -> None:
    bare = text.removeprefix("/") if text.startswith("/") else text
    allowed = len(bare) > 1 and bare.isascii() and bare[0].isalnum()
    allowed = allowed and all(c.isalnum() or c in "_.-" for c in bare)
    if allowed:
        assert names.checked(text) == bare
        return
    with pytest.raises(InvalidError, match="Invalid container name"):
        names.checked(text)


@pytest.mark.parametrize("name", ["", "a", "_a", "a b", "a/b", "ä1", "a\n", "//ab", "a" * 300])
def test_these_are_refused(name: str) -> None:
    with pytest.raises(InvalidError):
        names.checked(name)


@given(st.integers(0, 2**32))
def test_a_generated_name_is_valid_and_free(seed: int) -> None:
    taken = {names.generated(lambda _: False, random.Random(seed)) for _ in range(3)}

    name = names.generated(lambda n: n in taken, random.Random(seed))

    assert names.checked(name) == name
    assert name not in taken


def test_a_conflict_says_what_docker_says() -> None:
    assert str(names.conflict("web", "abc")) == (
        'Conflict. The container name "/web" is already in use by container "abc". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
