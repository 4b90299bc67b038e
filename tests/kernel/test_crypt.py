"""Passwords against crypt(3), with vectors of others."""

from __future__ import annotations

import pytest

from tare.kernel import crypt

# From the test vectors of crypt_blowfish (public domain, Solar Designer).
VECTORS = [
    (b"U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
    (b"U*U*", "$2y$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"),
]


@pytest.mark.parametrize(("password", "known"), VECTORS)
def test_known_hashes(password: bytes, known: str) -> None:
    assert crypt.matches(password, known)
    assert not crypt.matches(password + b"x", known)


def test_a_hash_of_ours_is_salted_anew() -> None:
    salts = {crypt.bcrypt_salt(4) for _ in range(10)}
    known = crypt.hashed(b"secret", salts.pop())

    assert len(salts) == 9
    assert known is not None
    assert known.startswith("$2y$04$")
    assert len(known) == 60
    assert crypt.matches(b"secret", known)


@pytest.mark.parametrize(
    "setting", ["", "x", "*0", "$2y$99$" + "." * 22, "$nope$x", "$2y$05$\0", "ä"]
)
def test_a_setting_that_is_none_gives_no_hash(setting: str) -> None:
    assert crypt.hashed(b"secret", setting) is None
    assert not crypt.matches(b"secret", setting)


def test_a_password_with_nul_matches_nothing() -> None:
    known = crypt.hashed(b"a", crypt.bcrypt_salt(4))
    assert known is not None

    assert crypt.hashed(b"a\0b", known) is None
    assert not crypt.matches(b"a\0b", known)
