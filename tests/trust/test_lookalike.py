"""Look-alikes: generated misspellings of every official name, and names that must stay quiet."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.errors import InvalidError
from tare.model.reference import Reference
from tare.trust.known import ARCHIVED, OFFICIAL, PUBLISHERS, REGISTRIES
from tare.trust.lookalike import Level, described, distance, look

KEYBOARD = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok",
    "o": "ipl", "p": "ol", "a": "qsz", "s": "awdx", "d": "sefc", "f": "drgv", "g": "fthb",
    "h": "gyjn", "j": "hukm", "k": "jil", "l": "ko", "z": "asx", "x": "zsdc", "c": "xdfv",
    "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk", "-": "0p",
}  # fmt: skip
NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")


def misspellings(name: str) -> Iterator[str]:
    """The typo model of USENIX Security 2022: one slip of the fingers."""
    for i, letter in enumerate(name):
        yield name[:i] + name[i + 1 :]
        yield name[:i] + letter + name[i:]
        for near in KEYBOARD.get(letter, ""):
            yield name[:i] + near + name[i + 1 :]
            yield name[:i] + near + name[i:]
        if i:
            yield name[: i - 1] + letter + name[i - 1] + name[i + 1 :]


def warned(text: str) -> bool:
    return any(one.level is Level.WARNING for one in look(Reference.parse(text)))


@pytest.mark.attack("A36")
def test_misspelled_official_names_are_noticed() -> None:
    known = OFFICIAL | ARCHIVED
    squats = {s for name in OFFICIAL for s in misspellings(name)} - known
    squats = {s for s in squats if NAME.fullmatch(s)}

    missed = sorted(s for s in squats if not warned(s))

    assert len(squats) > 4000
    assert len(missed) / len(squats) <= 0.05, missed[:50]


@pytest.mark.attack("A36")
def test_known_names_never_warn() -> None:
    names = [*OFFICIAL, *ARCHIVED, *(f"{p}/{r}" for p in PUBLISHERS for r in ("app", "nginx"))]
    names += [f"{host}/team/app" for host in REGISTRIES]
    assert len(PUBLISHERS) >= 200

    assert [name for name in names if warned(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "registry.example/team/app", "localhost:5000/alpin", "127.0.0.1:5000/debain",
        "[::1]:5000/x", "registry:5000/x", "europe-docker.pkg.dev/a/b/c", "eu.gcr.io/a/b",
        "1234.dkr.ecr.eu-west-1.amazonaws.com/x", "harbor.corp.example/docker.io/library/debian",
        "acme/billing", "acme/web", "someone/dotfiles",
    ],
)  # fmt: skip
def test_ordinary_names_of_ones_own_do_not_warn(name: str) -> None:
    assert not warned(name)


@pytest.mark.attack("A36")
@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("gchr.io", "ghcr.io"), ("ghrc.io", "ghcr.io"), ("docker.oi", "docker.io"),
        ("qauy.io", "quay.io"), ("dokcer.io", "docker.io"), ("docker.io.evil.tld", "docker.io"),
        ("d0cker.io", "docker.io"), ("ghcr.com", "ghcr.io"),
        ("registry-1docker.io", "registry-1.docker.io"),
        ("mcr.rnicrosoft.com", "mcr.microsoft.com"),
        ("ghcr.io.attacker.example:443", "ghcr.io"), ("xn--dcker-jua.io", ""),
    ],
)  # fmt: skip
def test_registries_that_resemble_others_are_named(host: str, meant: str) -> None:
    found = look(Reference.parse(f"{host}/team/app"))

    assert [one.level for one in found] == [Level.WARNING]
    assert found[0].host
    assert found[0].meant == meant


def test_a_registry_that_was_configured_is_meant() -> None:
    assert look(Reference.parse("gchr.io/x/y"), hosts=("gchr.io",)) == []


@pytest.mark.attack("A36")
@pytest.mark.parametrize(
    "name",
    [
        "ubunut", "alpine-official/x", "1ibrary/debian", "library1/debian", "docker123/ngnix",
        "someone/ngnix", "someone/pyth0n", "someone/python3", "someone/alpine2", "bitnani/redis",
        "hashlcorp/vault", "grafanna/loki", "official-debian", "debian-latest", "docker-nginx",
        "someone/ubuntu-data", "rnysql", "liberary/debian", "libary/debian",
    ],
)  # fmt: skip
def test_imitations_warn(name: str) -> None:
    assert warned(name)


def test_what_was_official_says_what_to_use() -> None:
    [found] = look(Reference.parse("centos:7"))

    assert (found.level, "almalinux" in found.text) == (Level.NOTICE, True)
    assert described(Reference.parse("debian")) == "an official image of Docker Hub"
    assert described(Reference.parse("someone/debian")) == ""


@pytest.mark.attack("A36")
@pytest.mark.parametrize(
    "text",
    [
        "\u0430lpine", "al\u200bpine", "alpine\u202e", "Alpine", "docker.io/Library/x",
        "a@b@sha256", "x" * 300, "a//b", "a/../b", "-a", "a:b:c",
    ],
)  # fmt: skip
def test_names_outside_the_grammar_are_no_names(text: str) -> None:
    with pytest.raises(InvalidError):
        Reference.parse(text)


@given(one=st.text("abcd-", max_size=8), other=st.text("abcd-", max_size=8))
def test_the_distance_is_one(one: str, other: str) -> None:
    assert distance(one, other) == distance(other, one)
    assert (distance(one, other) == 0) == (one == other)
    assert distance(one, other) <= max(len(one), len(other))


@given(text=st.from_regex(NAME, fullmatch=True).filter(lambda t: len(t) < 80))
def test_any_name_is_looked_at(text: str) -> None:
    look(Reference.parse(f"docker.io/a/{text}"))
    look(Reference.parse(f"{re.sub('[._-]+', '', text)}.example/a"))
