"""Names, tags and digests as the distribution specification has them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.model.distribution import (
    Code,
    ContentDigest,
    DistributionError,
    manifest_reference,
    new_hash,
    repository_name,
)


@pytest.mark.parametrize(
    "name",
    ["a", "a/b/c/d", "a.b_c__d-e---f", "0/1", "a" * 255, "library/debian", "ghcr.io/x/y"],
)
def test_a_name_of_the_grammar(name: str) -> None:
    assert repository_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "a/", "/a", "a//b", "A", "a..b",
        "a._b", "a___b", "_a", "a_", "-a", "a-", ".", "..",
        "a/../b", "a/.", "a:b", "a@b", "a b", "a\n", "a\0", "ä", "a/b\n", "a" * 256, "a\\b", "%2e",
    ],
)  # fmt: skip
def test_a_name_outside_the_grammar(name: str) -> None:
    with pytest.raises(DistributionError) as refused:
        repository_name(name)

    assert refused.value.code is Code.NAME_INVALID
    assert refused.value.http_status == 400


@pytest.mark.parametrize("tag", ["a", "_", "1.0-rc.1", "A_b", "t" * 128])
def test_a_tag(tag: str) -> None:
    assert manifest_reference(tag) == tag


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a b", "a\n", "t" * 129, "a/b", "..", "ä"])
def test_no_tag(tag: str) -> None:
    with pytest.raises(DistributionError) as refused:
        manifest_reference(tag)

    assert refused.value.code is Code.MANIFEST_INVALID


@given(st.binary(max_size=64), st.sampled_from(["sha256", "sha512"]))
def test_a_digest_reads_back(content: bytes, algorithm: str) -> None:
    found = ContentDigest.of(content, algorithm)

    assert ContentDigest.parse(str(found)) == found
    assert found.hex == hashlib.new(algorithm, content).hexdigest()
    assert manifest_reference(str(found)) == found


@pytest.mark.attack("A30")
@pytest.mark.parametrize(
    "text",
    [
        "", ":", "sha256:", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64,
        "SHA256:" + "a" * 64, "sha512:" + "a" * 64, "sha512:" + "a" * 127, "sha1:" + "a" * 40,
        "sha256:" + "a" * 63 + "/", "sha256:../../etc/passwd", "sha256:" + "a" * 64 + "\n",
        "sha384:" + "a" * 96, " sha256:" + "a" * 64, "sha256:" + "١" * 64,
    ],
)  # fmt: skip
def test_no_digest(text: str) -> None:
    with pytest.raises(DistributionError) as refused:
        ContentDigest.parse(text)

    assert refused.value.code is Code.DIGEST_INVALID


def test_a_digest_of_another_algorithm_can_not_be_made() -> None:
    with pytest.raises(DistributionError):
        ContentDigest("md5", "a" * 64)
    with pytest.raises(DistributionError):
        ContentDigest("../x", "a" * 64)
    assert new_hash("sha512").name == "sha512"


def test_every_code_has_a_status() -> None:
    assert {code.http_status for code in Code} == {400, 401, 403, 404, 405, 429, 500}
