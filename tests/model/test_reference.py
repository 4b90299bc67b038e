"""Image names against the published vectors of the distribution grammar, and their laws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError
from tare.model.digest import Digest
from tare.model.reference import Reference

HEX = "ab" * 32
VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "reference.jsonl").read_text().splitlines()
]
# The program that made the vectors was built without any digest algorithm, so it refused every
# digest. What those names have to give is said by their digests alone.
NO_ALGORITHM = "unsupported digest algorithm"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["q"]["s"][:60])
def test_a_name_parses_as_the_reference_implementation_does(vector: dict[str, Any]) -> None:
    text, want = vector["q"]["s"], vector["want"]
    if want.get("err") == NO_ALGORITHM:
        if re.search(r"@sha256:[0-9a-f]{64}$", text):
            assert str(Reference.parse(text).digest) == text.rpartition("@")[2]
            return
        with pytest.raises(InvalidError, match="digest"):
            Reference.parse(text)
        return
    if "err" in want:
        with pytest.raises(InvalidError, match="^" + re.escape(want["err"])):
            Reference.parse(text)
        return

    parsed = Reference.parse(text)

    ok = want["ok"]
    assert parsed.domain == ok["domain"]
    assert parsed.path == ok["path"]
    assert str(parsed) == ok["string"]
    assert parsed.familiar == ok["familiar"]
    assert (parsed.tag or "") == ok.get("tag", "")
    assert str(parsed.with_default_tag()) == ok["withDefaultTag"]


def test_a_digest_is_part_of_a_name() -> None:
    parsed = Reference.parse(f"debian:12@sha256:{HEX}")

    assert parsed == Reference("docker.io", "library/debian", "12", Digest(HEX))
    assert parsed.familiar == f"debian:12@sha256:{HEX}"
    assert parsed.with_default_tag() is parsed


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:" + HEX.upper(),
        "SHA256:" + HEX,
        "sha256:" + HEX[:-1],
        "sha1:" + HEX[:40],
        "sha256:../../" + HEX,
        "md5:" + HEX[:32],
        "sha512:" + HEX * 2,
        "sha256:" + HEX + "0",
    ],
)
@pytest.mark.attack("A30")
def test_only_a_whole_lower_case_sha256_is_a_digest(digest: str) -> None:
    with pytest.raises(InvalidError):
        Reference.parse(f"debian@{digest}")


@pytest.mark.parametrize(
    "text",
    [
        "débian",
        "debian\n",
        "debian\x00",
        "deb\u200bian",
        "docker.io\u2044x",
        "a@b@sha256:" + HEX,
        "a" * 5000,
        "x:" + "t" * 129,
        "debian ",
        " debian",
        "debian:a b",
        "debian:",
        "x/../y",
        "http://x/y",
        "a:b:c",
    ],
)
@pytest.mark.attack("A36")
def test_what_only_looks_like_a_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match=r"invalid|must"):
        Reference.parse(text)


def test_an_error_names_what_was_typed_without_its_control_characters() -> None:
    with pytest.raises(InvalidError) as caught:
        Reference.parse("a\x1b[31m/b")

    assert "\x1b" not in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_parses_or_is_refused_and_never_breaks(text: str) -> None:
    try:
        parsed = Reference.parse(text)
    except InvalidError:
        return

    assert Reference.parse(str(parsed)) == parsed
    assert Reference.parse(parsed.familiar) == parsed


COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+)?", fullmatch=True)


@given(
    st.lists(COMPONENT.map(lambda c: c[:20].strip("._-") or "a"), min_size=1, max_size=4),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
)
def test_the_short_and_the_full_form_are_the_same_name(parts: list[str], tag: str | None) -> None:
    text = "example.com/" + "/".join(parts) + (f":{tag}" if tag else "")
    parsed = Reference.parse(text)

    assert str(parsed) == text
    assert Reference.parse(parsed.familiar) == parsed


def test_a_tag_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidError, match="invalid tag format"):
        Reference.parse("debian").with_tag("a/b")
