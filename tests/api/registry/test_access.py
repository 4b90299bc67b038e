"""Who is let in: users by password, TLS, read-only, web pages; and who waits too long."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness.registry_server import MANIFEST, Registry, command
from tare.api.registry import call, htpasswd
from tare.api.registry.call import Site
from tare.api.registry.htpasswd import Htpasswd
from tare.api.registry.server import Listener
from tare.errors import InvalidError
from tare.image.registry_store.settings import ServeSettings, parse_listen
from tare.image.registry_store.store import RegistryStore
from tare.kernel import crypt
from tare.model.distribution import ContentDigest, DistributionError

Serve = Callable[..., Registry]


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    quick = crypt.hashed(b"secret", crypt.bcrypt_salt(4))
    path.write_text(f"# people\nanna:{quick}\n")
    path.chmod(0o600)
    return path


@pytest.mark.attack("A32")
def test_only_who_proves_to_be_a_user_is_let_in(serve: Serve, users: Path) -> None:
    registry = serve(f"--htpasswd={users}")

    for path in ("/v2/", "/v2/_catalog", "/v2/x/manifests/y", "/nothing", "/v2/X"):
        stranger = registry.ask("GET", path)
        assert (stranger.status, stranger.code) == (401, "UNAUTHORIZED")
        assert stranger["WWW-Authenticate"].startswith('Basic realm="')
    for header in (
        basic("anna", "wrong"),
        basic("bert", "secret"),
        basic("anna", ""),
        basic("anna", "secret\0x"),
        "Basic !!!",
        "Basic " + "A" * 5000,
        "Bearer secret",
        basic("anna", "secret").removeprefix("Basic "),
        "",
    ):
        assert registry.ask("GET", "/v2/", Authorization=header).status == 401
    for _ in range(2):
        assert registry.ask("GET", "/v2/", Authorization=basic("anna", "secret")).status == 200
    push = registry.ask("POST", "/v2/x/blobs/uploads/", b"x" * 100_000)
    assert push.status == 401
    assert list((registry.directory / "data/uploads").iterdir()) == []
    assert "secret" not in registry.log()


def test_a_user_who_is_taken_out_is_let_in_no_more(serve: Serve, users: Path) -> None:
    registry = serve(f"--htpasswd={users}")
    before = registry.ask("GET", "/v2/", Authorization=basic("anna", "secret")).status
    htpasswd.put(users, "bert", "other")
    lines = users.read_text().splitlines()
    users.write_text("".join(f"{line}\n" for line in lines if not line.startswith("anna")))

    after = registry.ask("GET", "/v2/", Authorization=basic("anna", "secret")).status
    other = registry.ask("GET", "/v2/", Authorization=basic("bert", "other")).status

    assert (before, after, other) == (200, 401, 200)


def test_a_file_of_users_that_is_broken_meanwhile_lets_nobody_in(serve: Serve, users: Path) -> None:
    registry = serve(f"--htpasswd={users}")
    users.write_text("nonsense\n")

    answer = registry.ask("GET", "/v2/", Authorization=basic("anna", "secret"))

    assert answer.status == 401


@pytest.mark.parametrize(
    "line",
    [
        "anna",
        "anna:secret",
        "anna:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=",
        "anna:$apr1$x$y",
        "anna:$1$abcdefgh$abcdefghijklmnopqrstuv",
        "anna:$2y$31$" + "a" * 53,
        ":$2y$05$" + "a" * 53,
    ],
)
def test_a_file_with_a_hash_that_is_not_safe_is_refused(users: Path, line: str) -> None:
    users.write_text(line + "\n")

    with pytest.raises(InvalidError, match="line 1"):
        htpasswd.read(users)


def test_a_file_that_others_may_change_is_refused(users: Path) -> None:
    users.chmod(0o666)

    with pytest.raises(InvalidError, match="changed by others"):
        htpasswd.read(users)


def test_many_wrong_passwords_do_not_pile_up(users: Path) -> None:
    async def many() -> list[str]:
        checked = Htpasswd(users)
        header = basic("anna", "wrong")
        found = await asyncio.gather(
            *(checked.check(header) for _ in range(200)), return_exceptions=True
        )
        return [str(each.code) for each in found if isinstance(each, DistributionError)]

    codes = asyncio.run(many())

    assert len(codes) == 200
    assert codes.count("UNAUTHORIZED") == 64
    assert codes.count("TOOMANYREQUESTS") == 136


def test_passwd_writes_what_serve_reads(tmp_path: Path) -> None:
    path = tmp_path / "users"
    for name, password in (("anna", "one"), ("bert", "two"), ("anna", "three")):
        subprocess.run(
            command("passwd", str(path), name), input=f"{password}\n", text=True, check=True
        )

    found = htpasswd.read(path)

    assert sorted(found) == ["anna", "bert"]
    assert crypt.matches(b"three", found["anna"])
    assert crypt.matches(b"two", found["bert"])
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    try:
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"),
                *("ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
                *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
                *("-keyout", str(key), "-out", str(cert)),
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return cert, key


def test_over_tls(serve: Serve, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    registry = serve(f"--tls-cert={cert}", f"--tls-key={key}", "--no-images")
    registry.tls = ssl.create_default_context(cafile=str(cert))
    large = bytes(range(256)) * 4096 * 5

    found = registry.push_blob("tls", large)

    assert registry.url.startswith("https://")
    assert registry.ask("GET", f"/v2/tls/blobs/{found}").body == large
    part = registry.ask("GET", f"/v2/tls/blobs/{found}", Range="bytes=1048570-1048580")
    assert part.body == large[1048570:1048581]


def test_tls_that_is_old_is_refused(serve: Serve, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    registry = serve(f"--tls-cert={cert}", f"--tls-key={key}", "--no-images")
    old = ssl.create_default_context(cafile=str(cert))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    registry.tls = old

    with pytest.raises(ssl.SSLError):
        registry.ask("GET", "/v2/")


def test_read_only_means_that_nothing_changes(serve: Serve) -> None:
    registry = serve("--no-images")
    found, raw = registry.push_image("kept", "v1", b"content")
    registry.end()
    registry.options = ("--no-images", "--read-only")
    registry.start()

    for method, path in (
        ("POST", "/v2/kept/blobs/uploads/"),
        ("PUT", "/v2/kept/manifests/v2"),
        ("DELETE", "/v2/kept/manifests/v1"),
        ("DELETE", f"/v2/kept/manifests/{found}"),
    ):
        answer = registry.ask(method, path, raw, Content_Type=MANIFEST)
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")

    assert registry.ask("GET", "/v2/kept/manifests/v1").body == raw


@pytest.mark.parametrize(
    "header",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-origin"},  # a name that was bound anew to this address
    ],
)
def test_a_web_page_may_not_use_the_registry(serve: Serve, header: dict[str, str]) -> None:
    registry = serve("--no-images")

    for method, path in (("GET", "/v2/_catalog"), ("POST", "/v2/x/blobs/uploads/")):
        answer = registry.ask(method, path, None, **header)
        assert (answer.status, answer.code) == (403, "DENIED")


@asynccontextmanager
async def listening(tmp_path: Path) -> AsyncIterator[tuple[Listener, int]]:
    """A listener in this process, so that its limits can be small; and its port."""
    store = RegistryStore(tmp_path / "data")
    listener = Listener(Site(store, None, ServeSettings()), None, verbose=False)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(listener, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(60):
            yield listener, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await listener.shutdown(1)
        store.close()


def test_a_connection_on_which_no_request_begins_is_closed(tmp_path: Path) -> None:
    async def wait() -> tuple[bytes, bytes, float]:
        async with listening(tmp_path) as (listener, port):
            listener.idle_seconds = 0.3
            began = time.monotonic()
            silent, _ = await asyncio.open_connection("127.0.0.1", port)
            half, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-")
            return await silent.read(), await half.read(), time.monotonic() - began

    silent, half, waited = asyncio.run(wait())

    assert (silent, half) == (b"", b"")
    assert waited >= 0.25


def test_there_are_only_so_many_connections(tmp_path: Path) -> None:
    async def many() -> tuple[bytes, bytes, bytes]:
        async with listening(tmp_path) as (listener, port):
            listener.connections_max = 1
            first, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
            served = await first.readline()
            second, _ = await asyncio.open_connection("127.0.0.1", port)
            refused = await second.read()
            writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return served, refused, await first.read()

    served, refused, rest = asyncio.run(many())

    assert served == b"HTTP/1.1 200 OK\r\n"
    assert refused == b""
    assert rest.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.attack("A29")
def test_a_body_that_comes_too_slowly_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "PIECE_SECONDS", 0.3)

    async def slow() -> tuple[bytes, int]:
        async with listening(tmp_path) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PUT /v2/x/manifests/y HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            return await reader.readline(), len(await reader.read())

    line, rest = asyncio.run(slow())

    assert line == b"HTTP/1.1 408 Request Timeout\r\n"
    assert rest > 0


@pytest.mark.attack("A29")
def test_a_client_that_takes_nothing_of_its_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "PIECE_SECONDS", 0.3)
    content = bytes(32 << 20)

    async def deaf() -> int:
        async with listening(tmp_path) as (listener, port):
            store = listener._site.store
            upload = store.begin("x")
            upload.write(content)
            blob = store.finish(upload, ContentDigest.of(content))
            with socket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(f"GET /v2/x/blobs/{blob.digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                while len(listener._connections) == 0:
                    await asyncio.sleep(0.01)
                while len(listener._connections) > 0:
                    await asyncio.sleep(0.01)
                peer.settimeout(30)
                taken = 0
                with contextlib.suppress(ConnectionResetError):
                    while piece := peer.recv(1 << 20):
                        taken += len(piece)
                return taken

    assert asyncio.run(deaf()) < len(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("[::1]:0", ("::1", 0)),
        (":80", ("", 80)),
        ("localhost:5000", ("localhost", 5000)),
    ],
)
def test_an_address_to_listen_on(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "x", "x:", "x:99999", "::1:80", "http://x:80", "a b:1"])
def test_no_address_to_listen_on(text: str) -> None:
    with pytest.raises(InvalidError, match="not an address"):
        parse_listen(text)


def test_who_opens_the_registry_to_the_network_is_told(tmp_path: Path) -> None:
    assert ServeSettings().warnings() == []
    assert len(ServeSettings(host="0.0.0.0").warnings()) == 2
    assert "may pull" in ServeSettings(host="", read_only=True).warnings()[0]
    with pytest.raises(InvalidError):
        ServeSettings(tls_cert=tmp_path / "x")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen=nowhere"], "not an address"),
        (["--listen=127.0.0.1:0", "--tls-cert=/nowhere"], "needs its key"),
        (["--listen=127.0.0.1:0", "--tls-cert=/dev/null", "--tls-key=/dev/null"], "cannot be used"),
        (["--listen=127.0.0.1:0", "--htpasswd=/nowhere"], "cannot be read"),
        (["--listen=127.0.0.1:0", "--data=/proc/nowhere"], "cannot be served"),
        (["--listen=192.0.2.1:5"], "cannot listen on 192.0.2.1:5"),
    ],
)
def test_settings_that_can_not_be_end_it_with_a_sentence(
    tmp_path: Path, words: list[str], said: str
) -> None:
    data = [] if any("--data" in word for word in words) else [f"--data={tmp_path / 'd'}"]

    done = subprocess.run(command("serve", *words, *data), capture_output=True, text=True)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
