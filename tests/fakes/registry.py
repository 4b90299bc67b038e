"""A registry in this process that can be told to lie: small, honest unless a hook says otherwise.

It remembers every request with its headers, so that a test can see what was sent to whom. Its
honest half passes the pulls and pushes that Debian's docker-registry passes (tests/image/registry).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from aiohttp import web

from fakes import archives
from tare.image import compress
from tare.image.compress import Compression

Hook = Callable[[web.Request], Awaitable[web.StreamResponse | None]]

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_PATH: Final = re.compile(r"/v2/(.+?)/(manifests|blobs/uploads|blobs|tags)/(.*)")


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class _Sink:
    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes | memoryview, /) -> int:
        self.content += data
        return len(data)


def packed(plain: bytes, how: Compression = Compression.GZIP) -> bytes:
    """*plain* compressed."""
    sink = _Sink()
    with compress.compressor(how, sink) as out:
        out.write(plain)
    return bytes(sink.content)


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Made:
    """An image that was put into the registry."""

    manifest: bytes
    config: bytes
    blobs: list[bytes]
    layers: list[bytes]

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def id(self) -> str:
        return sha256(self.config)


@dataclass
class FakeRegistry:
    """Use it in ``with``; *host* is another name of loopback than 127.0.0.1 for a second one."""

    host_name: str = "127.0.0.1"
    password: str = ""
    tokens: bool = False
    context: ssl.SSLContext | None = None
    ranges: bool = True
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    homes: dict[str, set[str]] = field(default_factory=dict)  # of blobs that were pushed
    uploads: dict[str, bytearray] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        self._ending = asyncio.Event()
        runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, self.host_name, 0, ssl_context=self.context)
        await site.start()
        self.port = int(runner.addresses[0][1])
        self.host = f"{self.host_name}:{self.port}"
        self.release = asyncio.Event()
        """What hooks wait for that hold an answer back; set from a test by `let_go`."""
        self._ready.set()
        await self._ending.wait()
        self.release.set()
        await runner.cleanup()

    def let_go(self) -> None:
        """End the waiting of hooks."""
        self._loop.call_soon_threadsafe(self.release.set)

    def of(self, method: str, part: str) -> list[Asked]:
        """The requests of *method* whose path holds *part*."""
        return [one for one in self.asked if one.method == method and part in one.path]

    # --- content ------------------------------------------------------------------------------

    def put(self, content: bytes) -> dict[str, object]:
        """Hold a blob; the beginning of its descriptor."""
        self.blobs[sha256(content)] = content
        return {"digest": sha256(content), "size": len(content)}

    def put_manifest(self, path: str, tag: str, kind: str, document: object) -> bytes:
        """Hold a document by a tag and its digest; its bytes."""
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        for reference in (tag, sha256(raw)):
            self.manifests[path, reference] = (kind, raw)
        return raw

    def put_image(
        self,
        path: str,
        tag: str,
        layers: Sequence[bytes],
        how: Compression = Compression.GZIP,
        **settings: object,
    ) -> Made:
        """Hold an image of these archives."""
        config = archives.config(list(layers), **settings)
        blobs = [packed(layer, how) for layer in layers]
        ending = "" if how is Compression.PLAIN else f"+{how}"
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **self.put(config)},
            "layers": [{"mediaType": OCI_LAYER + ending, **self.put(blob)} for blob in blobs],
        }
        raw = self.put_manifest(path, tag, OCI_MANIFEST, manifest)
        return Made(raw, config, blobs, list(layers))

    # --- answers ------------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.BaseRequest)
        self.asked.append(
            Asked(request.method, request.path, dict(request.rel_url.query), dict(request.headers))
        )
        for hook in self.hooks:
            answer = await hook(request)  # type: ignore[arg-type]  # only what both kinds have
            if answer is not None:
                return answer
        if request.path == "/token":
            return self._token(request)
        if refusal := self._unauthorized(request):
            return refusal
        if request.path in ("/v2", "/v2/"):
            return web.json_response({})
        match = _PATH.fullmatch(request.path)
        if match is None:
            return _missing("NAME_UNKNOWN")
        path, noun, rest = match.groups()
        match noun:
            case "manifests":
                return await self._manifest(request, path, rest)
            case "blobs":
                return self._blob(request, path, rest)
            case "tags":
                tags = sorted(t for p, t in self.manifests if p == path and ":" not in t)
                return web.json_response({"name": path, "tags": tags})
            case _:
                return await self._upload(request, path, rest)

    def _token(self, request: web.BaseRequest) -> web.Response:
        if self.password and not _basic(request, self.password):
            return web.json_response({"details": "incorrect username or password"}, status=401)
        return web.json_response({"token": "token-of-" + self.host.replace(":", "-")})

    def _unauthorized(self, request: web.BaseRequest) -> web.Response | None:
        if not self.password and not self.tokens:
            return None
        told = request.headers.get("Authorization", "")
        if self.tokens:
            if told == "Bearer token-of-" + self.host.replace(":", "-"):
                return None
            challenge = f'Bearer realm="http://{self.host}/token",service="fake"'
        else:
            if _basic(request, self.password):
                return None
            challenge = 'Basic realm="fake"'
        error = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
        return web.json_response(error, status=401, headers={"WWW-Authenticate": challenge})

    async def _manifest(self, request: web.BaseRequest, path: str, ref: str) -> web.Response:
        if request.method == "PUT":
            raw = await request.read()
            kind = request.headers["Content-Type"]
            self.manifests[path, ref] = self.manifests[path, sha256(raw)] = (kind, raw)
            return web.Response(status=201, headers={"Docker-Content-Digest": sha256(raw)})
        found = self.manifests.get((path, ref))
        if found is None:
            return _missing("MANIFEST_UNKNOWN")
        headers = {"Content-Type": found[0], "Docker-Content-Digest": sha256(found[1])}
        return web.Response(body=found[1], headers=headers)

    def _blob(self, request: web.BaseRequest, path: str, digest: str) -> web.Response:
        content = self.blobs.get(digest)
        if content is None or path not in self.homes.get(digest, {path}):
            return _missing("BLOB_UNKNOWN")
        told = request.headers.get("Range", "")
        if self.ranges and told:
            start = int(told.removeprefix("bytes=").rstrip("-"))
            where = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return web.Response(body=content[start:], status=206, headers={"Content-Range": where})
        return web.Response(body=content)

    async def _upload(self, request: web.BaseRequest, path: str, rest: str) -> web.Response:
        query = request.rel_url.query
        if request.method == "POST":
            if query.get("from", "") in self.homes.get(query.get("mount", ""), ()):
                self.homes[query["mount"]].add(path)
                return web.Response(status=201)
            name = f"u{len(self.uploads)}"
            self.uploads[name] = bytearray()
            return _accepted(path, name, 0)
        content = self.uploads[rest]
        if request.method == "GET":
            return _accepted(path, rest, len(content), 204)
        if request.method == "DELETE":
            return web.Response(status=204)
        async for piece in request.content.iter_any():
            content += piece
        if request.method == "PATCH":
            return _accepted(path, rest, len(content))
        if sha256(bytes(content)) != query["digest"]:
            error = {"errors": [{"code": "DIGEST_INVALID", "message": "no"}]}
            return web.json_response(error, status=400)
        self.blobs[query["digest"]] = bytes(content)
        self.homes.setdefault(query["digest"], set()).add(path)
        return web.Response(status=201)


def _accepted(path: str, name: str, size: int, status: int = 202) -> web.Response:
    headers = {"Location": f"/v2/{path}/blobs/uploads/{name}", "Range": f"0-{max(size - 1, 0)}"}
    return web.Response(status=status, headers=headers)


def _missing(code: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": "not here"}]}, status=404)


def _basic(request: web.BaseRequest, password: str) -> bool:
    wanted = base64.b64encode(f"wolf:{password}".encode()).decode()
    return request.headers.get("Authorization") == f"Basic {wanted}"
