"""Which stages a target needs, what a key is made of, and why a step runs again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.build import graph
from tare.build.dockerfile import base_of, parse
from tare.errors import InvalidError
from tare.model.digest import Digest

FILE = b"""\
FROM busybox AS a
FROM a AS b
RUN --mount=type=bind,from=c,target=/c true
FROM busybox AS c
FROM scratch AS d
COPY --from=a /x /x
COPY --from=busybox /y /y
FROM b AS e
COPY --from=3 /x /x
FROM scratch AS unused
"""


def planned(target: str) -> graph.Plan:
    dockerfile = parse(FILE)
    return graph.plan(dockerfile, target, lambda stage: base_of(stage, {}))


@pytest.mark.parametrize(
    ("target", "stages"),
    [("a", [0]), ("b", [0, 1]), ("d", [0, 3]), ("e", [0, 1, 3, 4]), ("", [5]), ("3", [0, 3])],
)
def test_a_target_needs_only_what_it_uses(target: str, stages: list[int]) -> None:
    assert list(planned(target).stages) == stages


def test_a_stage_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(InvalidError, match="none") as raised:
        planned("none")

    assert "a, b, c" in raised.value.hint


def test_images_are_those_that_stages_start_from() -> None:
    assert planned("e").images == ("busybox",)


@given(st.dictionaries(st.text(), st.text(), max_size=5), st.text(), st.text())
def test_any_part_changes_the_key(parts: dict[str, str], name: str, value: str) -> None:
    other = {**parts, name: value}

    assert (graph.key_of(parts) == graph.key_of(other)) == (parts == other)


def test_layers_in_another_order_are_another_chain() -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")

    assert len({graph.chain(c) for c in ((), (one,), (one, two), (two, one))}) == 4


def test_reasons_name_what_changed() -> None:
    old = {"base": "1", "arg A": "1", "env B": "1", "files": "1", "mount /m": "1"}
    new = {"base": "2", "arg A": "2", "env C": "1", "files": "2", "mount /m": "2"}

    assert graph.reasons(old, new) == [
        "what is below it changed",
        "ARG A changed",
        "ENV B is gone",
        "ENV C is new",
        "files changed",
        "what is mounted at /m changed",
    ]
    assert graph.reasons(old, old) == []


def test_files_are_named_as_far_as_that_helps() -> None:
    old = {str(number): "1" for number in range(9)}

    found = graph.changed_files(old, {"0": "2", "n": "1"})

    assert found.startswith("0 changed, n is new, 1 is gone")
    assert found.endswith("and 5 more")


def test_an_address_loses_its_password() -> None:
    assert graph.without_password("https://u:p@h/x?a=b@c") == "https://h/x?a=b@c"
    assert graph.without_password("git@github.com:a/b.git") == "git@github.com:a/b.git"
