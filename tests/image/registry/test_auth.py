"""Challenges, tokens and credentials in their many forms; to whom they go: tests/security."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tare.errors import FailedError, InvalidError, TareError
from tare.image.registry import credentials
from tare.image.registry.auth import Access, Challenge, challenges
from tare.image.registry.credentials import Credentials
from tare.image.registry.settings import (
    HUB,
    HostSettings,
    Mirror,
    Settings,
    check_host,
    is_loopback,
)

BASE = URL("https://registry.example")


class TokenServer:
    """Gives one answer, and remembers who asked."""

    def __init__(self, answer: bytes = b'{"token":"t"}') -> None:
        self.answer = answer
        self.asked: list[tuple[URL, str, bytes | None]] = []

    async def __call__(self, url: URL, *, authorization: str, form: bytes | None) -> bytes:
        self.asked.append((url, authorization, form))
        return self.answer


def answered(
    server: TokenServer,
    header: str,
    who: Credentials | None = None,
    scope: str = "repository:a:pull",
    base: URL = BASE,
) -> str:
    """The Authorization that a challenge leads to; "" when there is none."""

    async def work() -> str:
        access = Access(base, Settings(), who, server)
        return access.header(scope) if await access.answer(header, scope) else ""

    return asyncio.run(work())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Basic", [Challenge("basic", {})]),
        ('Basic realm="x"', [Challenge("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://a/t",service=b , scope="r:a:pull,push"',
            [
                Challenge(
                    "bearer", {"realm": "https://a/t", "service": "b", "scope": "r:a:pull,push"}
                )
            ],
        ),
        (
            'Negotiate, Basic realm="a \\"b\\"", Bearer realm="c"',
            [
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": 'a "b"'}),
                Challenge("bearer", {"realm": "c"}),
            ],
        ),
        ("=====", []),
    ],
)
def test_challenges_are_read(header: str, expected: list[Challenge]) -> None:
    assert challenges(header) == expected


@given(st.text(max_size=200))
def test_any_header_is_read_or_left(header: str) -> None:
    assert isinstance(challenges(header), list)


def test_a_token_is_asked_for_with_what_the_challenge_says() -> None:
    server = TokenServer()
    header = 'Bearer realm="https://registry.example/t?x=1",service="s",scope="repository:a:pull"'

    assert answered(server, header, Credentials(username="u", password="p")) == "Bearer t"

    url, authorization, form = server.asked[0]
    assert dict(url.query) == {
        "x": "1", "service": "s", "scope": "repository:a:pull", "account": "u",
    }  # fmt: skip
    assert authorization == "Basic " + base64.b64encode(b"u:p").decode()
    assert form is None


def test_two_scopes_are_two_parameters() -> None:
    server = TokenServer()
    scope = "repository:a:pull,push repository:b:pull"

    answered(server, 'Bearer realm="https://registry.example/t"', scope=scope)

    assert server.asked[0][0].query.getall("scope") == scope.split()


def test_an_identity_token_is_sent_in_a_form() -> None:
    server = TokenServer(b'{"access_token":"t","expires_in":300}')
    who = Credentials(identity_token="secret")

    assert answered(server, 'Bearer realm="https://registry.example/t",service="s"', who)

    url, authorization, form = server.asked[0]
    assert (authorization, str(url)) == ("", "https://registry.example/t")
    assert form is not None
    assert b"grant_type=refresh_token" in form
    assert b"refresh_token=secret" in form


def test_a_registry_token_is_used_as_it_is() -> None:
    access = Access(BASE, Settings(), Credentials(registry_token="r"), TokenServer())

    assert access.header("any") == "Bearer r"


def test_docker_hub_has_a_token_server_of_its_own() -> None:
    server = TokenServer()
    header = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'

    assert answered(server, header, Credentials(username="u"), base=URL(f"https://{HUB}"))


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"{}", b'{"token":""}', b'{"token":"a\\nb"}', b'{"token":5}', b'{"token":"a b"}'],
)
def test_an_answer_without_a_token_is_an_error(answer: bytes) -> None:
    with pytest.raises((FailedError, InvalidError), match=r"token server registry\.example"):
        answered(TokenServer(answer), 'Bearer realm="https://registry.example/t"')


def test_basic_is_said_once() -> None:
    who = Credentials(username="u", password="p")

    async def work() -> list[bool]:
        access = Access(BASE, Settings(), who, TokenServer())
        return [await access.answer('Basic realm="x"', "s") for _ in range(2)]

    assert asyncio.run(work()) == [True, False]
    assert answered(TokenServer(), 'Basic realm="x"') == ""


# --- what clients send ----------------------------------------------------------------------------


def packed(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()


def test_the_header_of_docker_clients_is_read() -> None:
    told = {"username": "u", "password": "p", "serveraddress": "a.example", "email": "x"}
    expected = Credentials(username="u", password="p", server="a.example")

    for header in (
        packed(told),
        packed(told).rstrip("="),
        packed(told).translate({45: 43, 95: 47}),
    ):
        assert credentials.from_header(header) == expected
    assert credentials.from_header(packed({"auth": base64.b64encode(b"u:p:q").decode()})) == (
        Credentials(username="u", password="p:q")
    )
    for nobody in ("", packed({}), packed(None)):
        assert not credentials.from_header(nobody)


@pytest.mark.parametrize(
    "header",
    ["%", "e30x", packed([]), packed({"username": 5}), packed({"username": "a\r\nX: y"}),
     packed({"auth": "%"}), "A" * 200_000, packed({"registrytoken": "a\nb"})],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(header: str) -> None:
    with pytest.raises(InvalidError):
        credentials.from_header(header)


@given(st.text(max_size=300))
def test_any_header_is_credentials_or_an_error(header: str) -> None:
    try:
        credentials.from_header(header)
    except TareError:
        pass


@pytest.mark.parametrize(
    ("server", "host", "meant"),
    [
        ("", "a.example", True),
        ("a.example", "a.example", True),
        ("https://a.example/v1/", "a.example", True),
        ("https://index.docker.io/v1/", HUB, True),
        ("docker.io", HUB, True),
        ("a.example", "b.example", False),
        ("a.example", "a.example:5000", False),
        ("https://index.docker.io/v1/", "docker.io.evil.example", False),
    ],
)
def test_credentials_are_for_one_host(server: str, host: str, meant: bool) -> None:
    who = Credentials(username="u", server=server)

    assert (who.meant_for(host) is who) is meant


# --- hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1:5000", True),
        ("127.255.0.9", True),
        ("[::1]:5000", True),
        ("::1", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("0.0.0.0:5000", False),
        ("[::]:5000", False),
        ("2130706433", False),
        ("registry.example", False),
    ],
)
def test_loopback_is_a_name_or_an_address(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "a:99999", "a:0", "http://a", "-a", "a@b", "[x]"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidError, match="not the name of a registry"):
        check_host(host)


def test_settings_are_of_the_host_they_name() -> None:
    mirror = Mirror(host="mirror.example:80", scheme="http")
    settings = Settings(
        hosts={"docker.io": HostSettings(mirrors=(mirror,)), "a:1": HostSettings(insecure=True)}
    )

    assert settings.of(HUB).mirrors == (mirror,)
    assert settings.insecure("a:1")
    assert not settings.insecure("a:2")
    assert settings.insecure("mirror.example:80")
    assert not settings.insecure(HUB)
