"""Which version is newer: dpkg itself is asked, packaging, and the examples of the rules."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from harness.needs import needs
from tare.audit import versions

_PART = st.text("0123456789abz.+~-", max_size=8)
_DEB = st.builds(
    lambda epoch, first, rest: f"{epoch}{first}{rest}",
    st.sampled_from(("", "0:", "1:", "12:")),
    st.sampled_from("0123456789"),
    _PART,
).filter(lambda text: not text.endswith("-"))
_PEP440 = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(("", "1!", "v")),
    st.sampled_from(("0", "1", "1.0", "1.0.0", "1.10", "1.2", "2024.1")),
    st.sampled_from(("", "a1", ".beta.2", "rc", "-c1", "_pre3")),
    st.sampled_from(("", ".post1", "-2", "rev3", "-r4")),
    st.sampled_from(("", ".dev0", "dev", "-dev3")),
    st.sampled_from(("", "+local", "+1.a", "+1-2")),
)


DEBIAN = (
    "1.0", "1.0-1", "1.0-1+b1", "1.0~rc1-1", "1.0+dfsg-1", "1:0.9", "1.0.1", "1.0a",
    "1.0-1~bpo12+1",
)  # fmt: skip


def _dpkg(one: str, other: str) -> int:
    def holds(relation: str) -> bool:
        # --force-bad-version is for what dpkg only warns of.
        done = subprocess.run(
            ["dpkg", "--compare-versions", one, relation, other], capture_output=True, check=False
        )
        return done.returncode == 0

    return -1 if holds("lt") else 1 if holds("gt") else 0


@pytest.mark.parametrize(
    ("one", "other"),
    list(itertools.combinations(DEBIAN, 2)),
)  # fmt: skip
def test_versions_that_debian_has_are_in_dpkgs_order(one: str, other: str) -> None:
    needs("dpkg")

    assert versions.compare("deb", one, other) == _dpkg(one, other)
    assert versions.compare("deb", other, one) == -versions.compare("deb", one, other)


@given(_DEB, _DEB)
@settings(max_examples=150, deadline=None)
def test_any_two_versions_are_in_dpkgs_order(one: str, other: str) -> None:
    needs("dpkg")

    assert versions.compare("deb", one, other) == _dpkg(one, other)


@given(_PEP440, _PEP440)
@settings(max_examples=400, deadline=None)
def test_versions_of_python_are_in_the_order_of_packaging(one: str, other: str) -> None:
    first, second = Version(one), Version(other)

    expected = (first > second) - (first < second)
    assert versions.compare("pypi", one, other) == expected


ORDERED = {
    # semver.org, clause 11
    "npm": [
        "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
        "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0",
    ],
    # apk's own test suite has pairs like these
    "apk": [
        "0.9", "1.0_alpha1", "1.0_beta2", "1.0_pre1", "1.0_rc1", "1.0", "1.0-r1", "1.0_p1", "1.0a",
        "1.0.1", "1.2", "1.10", "2.0",
    ],
    # rpm's rpmvercmp
    "rpm": [
        "1.0~rc1", "1.0", "1.0^git1", "1.0^git2", "1.0a", "1.0.1", "1.2", "1.10", "2.0-1", "2.0-2",
        "1:0.1",
    ],
    "pypi": ["1.0.dev1", "1.0a1", "1.0b1", "1.0rc1", "1.0", "1.0.post1", "1.1", "1!0.1"],
    "deb": ["1.0~~", "1.0~", "1.0", "1.0a", "1.0.1", "1.10", "1:0.1"],
}  # fmt: skip


@pytest.mark.parametrize("kind", ORDERED)
def test_examples_of_the_rules_are_in_their_order(kind: str) -> None:
    for (at, one), (to, other) in itertools.product(enumerate(ORDERED[kind]), repeat=2):
        expected = (at > to) - (at < to)
        assert versions.compare(kind, one, other) == expected, (one, other)


def test_what_does_not_count_makes_no_difference() -> None:
    same = [
        ("npm", "1.0.0+build1", "v1.0.0+build2"),
        ("pypi", "1.0", "1.0.0"),
        ("pypi", "1.0-RC1", "1.0rc1"),
        ("deb", "0:1.0", "1.0"),
        ("deb", "1.0", "1.0-0"),
        ("rpm", "1.0-1", "1.0"),
    ]

    assert [versions.compare(*one) for one in same] == [0] * len(same)


@given(
    st.sampled_from(("deb", "pypi", "npm", "apk", "rpm", "gem")),
    st.text(max_size=20),
    st.text(max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_anything_can_be_compared_and_one_way_only(kind: str, one: str, other: str) -> None:
    assert versions.compare(kind, one, other) == -versions.compare(kind, other, one)
    assert versions.compare(kind, one, one) == 0
