"""What a build fetches: files by HTTP(S) and repositories by git.

1. Addresses of the link (169.254.0.0/16, fe80::/10) and of metadata services are refused, for
   each redirect anew, and what was looked at is what is connected to (attack A38).
2. Redirects end after five; from HTTPS none leads to HTTP.
3. git is told no option by an address: its words stand behind ``--``, and references cannot
   begin with ``-``. It runs as nobody, without the host's configuration, hooks, helpers and
   local protocols.

What was fetched before is not fetched again while its server says that it is the same: by ETag or
Last-Modified, by the commit that a branch or tag names, or because ``--checksum`` names it.

Not for: registries (``image.registry``), or what becomes of the files (``adding``).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import os
import posixpath
import re
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urljoin, urlsplit

from tare.build import graph
from tare.build.context import Context
from tare.build.dockerfile import Add, proxies
from tare.build.selection import Selection, select
from tare.build.threads import in_thread
from tare.build.tree import DirectoryTree, Tree, resolve
from tare.errors import DeniedError, FailedError, InvalidError, MissingError
from tare.image.entry import Entry, Kind
from tare.kernel import files
from tare.model.ignore import IgnoreRules

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession
    from aiohttp.abc import ResolveResult

    from tare.build.executor import Builder

_REDIRECTS: Final = 5
_SECONDS: Final = 600
_NOBODY: Final = 65534
_GIT_SECONDS: Final = 1800
_DEPTH: Final = 8
_SETTLED_NS: Final = 60 * 10**9
_HEADER_MOST: Final = 1024
_PIECE: Final = 1 << 20
_MOST: Final = 1 << 40
_METADATA: Final = ipaddress.ip_address("fd00:ec2::254")
_SCP: Final = re.compile(r"[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:[^\s:].*")
_REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@=-]{0,254}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]{7,64}")
_PROTOCOLS: Final = "http:https:git:ssh"


@dataclass(slots=True)
class Fetched:
    """Files that were fetched, their digest, and how to let go of them.

    ``selection`` is None where only the digest is known: they are what they were before.
    """

    selection: Selection | None
    digest: str
    close: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What an address gave before, and how its server is asked whether it still does."""

    name: str
    digest: str
    etag: str = ""
    modified: str = ""
    """Last-Modified, where it was so long ago that a change would have moved it."""

    @property
    def question(self) -> dict[str, str]:
        """The headers that make the answer 304 if nothing changed (RFC 9110, 13.1)."""
        if self.etag:
            return {"If-None-Match": self.etag}
        return {"If-Modified-Since": self.modified} if self.modified else {}


@dataclass(frozen=True, slots=True)
class GitAddress:
    """A repository, and what of it: ``#REF:DIRECTORY`` of its address."""

    repository: str
    ref: str = ""
    directory: str = ""


def is_remote(text: str) -> bool:
    """Whether a source of ADD is fetched."""
    return is_git(text) or text.lower().startswith(("http://", "https://"))


def is_git(text: str) -> bool:
    """Whether an address is that of a git repository."""
    lower = text.lower()
    if lower.startswith(("git://", "ssh://", "git+ssh://")):
        return True
    if lower.startswith(("http://", "https://")):
        return urlsplit(text).path.endswith(".git")
    return _SCP.fullmatch(text) is not None and not lower.startswith(("http:", "https:"))


def git_address(text: str) -> GitAddress:
    """Read the address of a repository; InvalidError for one that could be an option."""
    address, _, fragment = text.partition("#")
    ref, _, directory = fragment.partition(":")
    scheme = address.partition("://")[0].lower() if "://" in address else "ssh"
    if scheme not in ("http", "https", "git", "ssh", "git+ssh"):
        raise InvalidError(f"git repositories are not fetched by {scheme}")
    if address.startswith("-") or any(c.isspace() or not c.isprintable() for c in address):
        raise InvalidError(f"no address of a git repository: {address[:200]!a}")
    if ref and (not _REF.fullmatch(ref) or ".." in ref):
        raise InvalidError(f"no name of a git branch, tag or commit: {ref[:200]!a}")
    if "\0" in directory or ".." in directory.split("/"):
        raise InvalidError(f"the directory {directory[:200]!a} leads out of the repository")
    return GitAddress(address, ref, directory.strip("/"))


async def fetch(builder: Builder, instruction: Add, text: str, *, anew: bool = False) -> Fetched:
    """Fetch one source of an ADD; InvalidError if it is not what ``--checksum`` says.

    Without *anew* the answer may be only a digest, where what is there was fetched before.
    """
    anew = anew or builder.request.no_cache
    if is_git(text):
        return await _fetch_repository(builder, instruction, text, anew=anew)
    record = f"fetched {hashlib.sha256(text.encode()).hexdigest()}"
    known = None if anew else _recalled(builder.host.cache.digest(record), instruction.checksum)
    if known is not None and (instruction.checksum or known.question):
        same = bool(instruction.checksum)  # it is the one that is asked for: nobody need be asked
        file = None if same else await _download(builder, text, "", known)
    else:
        file = await download(builder, text, checksum=instruction.checksum)
    if file is None:
        assert known is not None
        name, content = known.name, known.digest
    else:
        name, content = file.name, file.digest
        builder.host.cache.remember(record, _recorded(file))
    builder.fetched[graph.without_password(text)] = ("sha256", content)
    # The time is not part of what it is, but its name is.
    digest = hashlib.sha256(f"{name}\n{content}".encode()).hexdigest()
    if file is None:
        return Fetched(None, digest, lambda: None)
    return Fetched(select(file.context, (name,)), digest, file.context.close)


async def _fetch_repository(
    builder: Builder, instruction: Add, text: str, *, anew: bool
) -> Fetched:
    address = git_address(text)
    rules = IgnoreRules(instruction.exclude) if instruction.exclude else None

    def record(commit: str) -> str:
        return graph.key_of(
            {
                "repository": address.repository,
                "commit": commit,
                "directory": address.directory,
                "git": str(bool(instruction.keep_git_dir)),
                "exclude": json.dumps(instruction.exclude),
            }
        )

    commit = "" if anew else await _commit_there(builder, address)
    if commit.startswith(instruction.checksum) and commit:
        digest = builder.host.cache.digest(record(commit))
        if digest is not None:
            builder.fetched[graph.without_password(address.repository)] = ("gitCommit", commit)
            return Fetched(None, digest, lambda: None)
    checkout = await clone(
        builder, address, keep_git=bool(instruction.keep_git_dir), checksum=instruction.checksum
    )
    selection = select(
        checkout.tree,
        (checkout.directory or "/",),
        excludes=lambda path: rules is not None and rules.ignores(os.fsdecode(path)),
    )
    digest = await in_thread(selection.digest)
    builder.host.cache.remember(record(checkout.commit), digest)
    return Fetched(selection, digest, checkout.close)


def _recalled(text: str | None, checksum: str) -> _Known | None:
    """What is known of an address, if it can be what *checksum* asks for."""
    known = None if text is None else _Known(**json.loads(text))
    if known is not None and checksum and checksum != f"sha256:{known.digest}":
        return None
    return known


def _recorded(file: Downloaded) -> str:
    known = {"name": file.name, "digest": file.digest}
    return json.dumps({**known, "etag": file.etag, "modified": file.modified})


# --- HTTP -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Downloaded:
    """A file that was downloaded: the only one of its context."""

    context: Context
    name: str
    digest: str
    kind: str = ""
    etag: str = ""
    modified: str = ""


def refuse_address(address: str, host: str) -> None:
    """DeniedError for an address that no build has business with."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        raise FailedError(f"{host} has no usable address") from None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_link_local or found.is_multicast or found.is_unspecified or found == _METADATA:
        raise DeniedError(
            f"{host} is {found}: builds do not fetch from there",
            hint="link-local addresses are those of the host's own services",
        )


def _session() -> ClientSession:
    import aiohttp
    from aiohttp.abc import AbstractResolver

    class Resolver(AbstractResolver):
        """Looks names up, and gives out only what may be connected to."""

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            """The addresses of *host*."""
            loop = asyncio.get_running_loop()
            answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
            found: list[ResolveResult] = []
            for kind, _, proto, _, place in answers:
                address = str(place[0])
                refuse_address(address, host)
                found.append(
                    {
                        "hostname": host,
                        "host": address,
                        "port": port,
                        "family": kind,
                        "proto": proto,
                        "flags": socket.AI_NUMERICHOST,
                    }
                )
            return found

        async def close(self) -> None:
            """Nothing is held."""

    connector = aiohttp.TCPConnector(resolver=Resolver(), force_close=True)
    timeout = aiohttp.ClientTimeout(total=_SECONDS, connect=30)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidError(f"cannot fetch {graph.without_password(url)[:200]}: not HTTP or HTTPS")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(parts.hostname)
        refuse_address(parts.hostname, parts.hostname)


async def download(builder: Builder, url: str, *, checksum: str = "") -> Downloaded:
    """Download one file; MissingError, FailedError or InvalidError when that does not go well."""
    file = await _download(builder, url, checksum, None)
    assert file is not None
    return file


async def _download(
    builder: Builder, url: str, checksum: str, known: _Known | None
) -> Downloaded | None:
    """The same; None if it is still what is *known* of it."""
    import aiohttp

    shown = graph.without_password(url)
    context = Context(builder.host.cache.temporary)
    try:
        async with (
            _session() as session,
            contextlib.aclosing(_answers(session, url, builder, known)) as answers,
        ):
            async for response in answers:
                if known is not None and response.status == 304:
                    context.close()
                    return None
                return await _received(context, response, url, checksum)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        context.close()
        raise FailedError(f"cannot fetch {shown}: {error or type(error).__name__}") from error
    except BaseException:
        context.close()
        raise
    context.close()
    raise FailedError(f"cannot fetch {shown}: too many redirects")


async def _answers(
    session: ClientSession, url: str, builder: Builder, known: _Known | None
) -> AsyncGenerator[ClientResponse, None]:
    """The one answer that is no redirect."""
    told = proxies(builder.request.build_args)
    # Compressed on its way, it would not be the file that its digest is of.
    headers = {"Accept-Encoding": "identity"} | (known.question if known is not None else {})
    for _ in range(_REDIRECTS + 1):
        _check_url(url)
        proxy = told.get(f"{urlsplit(url).scheme}_proxy") or None
        async with session.get(
            url, allow_redirects=False, proxy=proxy, headers=headers
        ) as response:
            if response.status not in (301, 302, 303, 307, 308):
                yield response
                return
            following = urljoin(url, response.headers.get("Location", ""))
        if url.startswith("https:") and not following.startswith("https:"):
            raise DeniedError(f"{graph.without_password(url)} redirects from HTTPS to HTTP")
        url = following


async def _received(
    context: Context, response: ClientResponse, url: str, checksum: str
) -> Downloaded:
    shown = graph.without_password(url)
    if response.status == 404:
        raise MissingError(f"cannot fetch {shown}: 404 Not Found")
    if response.status != 200:
        raise FailedError(f"cannot fetch {shown}: {response.status} {response.reason}")
    name = _file_name(response, url)
    mtime_ns = 0
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        stamp = parsedate_to_datetime(response.headers.get("Last-Modified", ""))
        mtime_ns = max(int(stamp.timestamp()), 0) * 10**9
    spool = context.receiving(Entry(os.fsencode(name), Kind.FILE, mode=0o600, mtime_ns=mtime_ns))
    async for piece in response.content.iter_chunked(_PIECE):
        spool.write(piece)
    digest = spool.finish()
    if checksum and checksum != f"sha256:{digest}":
        raise InvalidError(
            f"{shown} is not what it should be: its digest is sha256:{digest}, expected {checksum}"
        )
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    # Seconds are what Last-Modified counts in: what changed just now may change unseen.
    settled = 0 < mtime_ns < time.time_ns() - _SETTLED_NS
    return Downloaded(
        context,
        name,
        digest,
        kind,
        etag=response.headers.get("ETag", "")[:_HEADER_MOST],
        modified=response.headers.get("Last-Modified", "") if settled else "",
    )


def _file_name(response: ClientResponse, url: str) -> str:
    """What the file is called: as the server says, else as the address ends."""
    disposition = response.content_disposition
    told = disposition.filename if disposition is not None else None
    for text in (told or "", unquote(urlsplit(url).path)):
        name = posixpath.basename(text.replace("\\", "/"))
        if name not in ("", ".", "..") and name.isprintable() and len(name.encode()) < 256:
            return name
    return "download"


# --- git ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Checkout:
    """A clone that is checked out; ``tree`` shows it from ``directory`` on."""

    tree: Tree
    directory: str
    commit: str
    place: Path
    root: DirectoryTree = field(repr=False)

    def close(self) -> None:
        """Delete it."""
        self.root.close()
        shutil.rmtree(self.place, ignore_errors=True)


async def clone(
    builder: Builder, address: GitAddress, *, keep_git: bool = False, checksum: str = ""
) -> Checkout:
    """Clone as little as is needed and check it out; FailedError with what git said."""
    git = _git_program()
    await _check_host(address.repository)
    # Not below the state directory: git runs as nobody, who may not pass through that.
    place = Path(tempfile.mkdtemp(prefix=builder.host.cache.public_prefix))
    try:
        root = await _checked_out(git, place, address, keep_git=keep_git)
        commit = root[1]
        if checksum and not (_HEX.fullmatch(checksum) and commit.startswith(checksum)):
            raise InvalidError(
                f"{graph.without_password(address.repository)} is at {commit}, expected {checksum}"
            )
        handle = os.open(root[0], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    builder.fetched[graph.without_password(address.repository)] = ("gitCommit", commit)
    tree = DirectoryTree(handle, owned=False)
    checkout = Checkout(tree, address.directory, commit, place, tree)
    found = resolve(tree.node, os.fsencode(address.directory))
    if found is None:
        checkout.close()
        raise MissingError(f"the repository has no directory {address.directory!r}")
    return checkout


@contextlib.contextmanager
def subtree(checkout: Checkout) -> Iterator[Tree]:
    """The directory of a checkout that was asked for, as a tree of its own."""
    tree = checkout.root
    place = resolve(tree.node, os.fsencode(checkout.directory))
    node = tree.node(place) if place is not None else None
    if place is None or node is None or node.kind is not Kind.DIR:
        raise MissingError(f"{checkout.directory!r} is no directory of the repository")
    handle = files.open_beneath(tree.root, place or b".", os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.closing(DirectoryTree(handle, owned=False)) as below:
        yield below


async def _check_host(repository: str) -> None:
    host = urlsplit(repository).hostname if "://" in repository else None
    if host is None:
        host = repository.partition("@")[2].partition(":")[0]
    if not host:
        raise InvalidError(f"no address of a git repository: {repository[:200]!a}")
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError as error:
        raise FailedError(f"cannot find the host {host}: {error.strerror}") from error
    for answer in answers:
        refuse_address(str(answer[4][0]), host)


def _git_program() -> str:
    git = shutil.which("git")
    if git is None:
        raise FailedError(
            "git is not installed: a repository cannot be fetched", hint="apt-get install git"
        )
    return git


def _git_at(git: str, place: Path) -> tuple[Path, _Git]:
    """An empty directory below *place* for a repository, and git that works in it."""
    work, home = place / "work", place / "home"
    for path in (work, home):
        path.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(path, _NOBODY, _NOBODY)
    if os.geteuid() == 0:
        place.chmod(0o711)
    return work, _Git(git, work, home)


async def _commit_there(builder: Builder, address: GitAddress) -> str:
    """The commit that the repository has under the name that is asked for; "" if it is unclear."""
    ref = address.ref or "HEAD"
    if _COMMIT.fullmatch(ref):
        return ref
    git = _git_program()
    await _check_host(address.repository)
    place = Path(tempfile.mkdtemp(prefix=builder.host.cache.public_prefix))
    try:
        _, run = _git_at(git, place)
        told = await run("ls-remote", "--quiet", "--", address.repository, ref, f"{ref}^{{}}")
    except FailedError:
        return ""  # fetching will say what is wrong
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found = {name: commit for commit, _, name in (x.partition("\t") for x in told.splitlines())}
    for name in (ref, f"refs/{ref}", f"refs/tags/{ref}", f"refs/heads/{ref}"):  # as git fetch does
        commit = found.get(f"{name}^{{}}") or found.get(name, "")
        if _COMMIT.fullmatch(commit):
            return commit
    return ""


async def _checked_out(
    git: str, place: Path, address: GitAddress, *, keep_git: bool
) -> tuple[Path, str]:
    """Fetch the one commit, check it out; the directory and the commit's id."""
    work, run = _git_at(git, place)
    await run("init", "--quiet", "--template=", ".")
    ref = address.ref or "HEAD"
    try:
        await run("fetch", "--quiet", "--depth=1", "--no-tags", "--", address.repository, ref)
    except FailedError:
        # Servers that speak of no single commit, or not of shallow clones: everything then.
        wanted = "+refs/heads/*:refs/remotes/origin/*"
        await run("fetch", "--quiet", "--tags", "--", address.repository, wanted)
        await run("update-ref", "FETCH_HEAD", await _known_ref(run, ref))
    await run("checkout", "--quiet", "--detach", "FETCH_HEAD")
    commit = (await run("rev-parse", "--verify", "HEAD")).strip()
    await run("remote", "add", "--", "origin", address.repository)
    await _submodules(run, work, _DEPTH)
    if not keep_git:
        for found in (*work.rglob(".git"),):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)
    return work, commit


async def _submodules(run: _Git, work: Path, depth: int) -> None:
    """Fetch the submodules, each only from where a build may fetch; and theirs."""
    modules = work / ".gitmodules"
    if not modules.is_file() or modules.is_symlink():
        return
    if depth == 0:
        raise InvalidError(f"the repository has submodules nested deeper than {_DEPTH}")
    here = run.at(work)
    told = await here("config", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.url$")
    for line in told.splitlines():
        url = line.partition(" ")[2].strip()
        if not url.startswith(("./", "../")):  # those are of the host that was checked already
            await _check_host(git_address(url.partition("#")[0]).repository)
    try:
        await here("submodule", "--quiet", "update", "--init", "--depth=1")
    except FailedError:
        await here("submodule", "--quiet", "update", "--init", "--no-recommend-shallow")
    paths = await here("config", "--file", ".gitmodules", "--get-regexp", r"^submodule\..*\.path$")
    for line in paths.splitlines():
        below = line.partition(" ")[2].strip()
        if ".." in below.split("/") or below.startswith("/"):
            raise InvalidError(f"the repository has a submodule at {below[:200]!a}")
        await _submodules(run, work / below, depth - 1)


async def _known_ref(run: _Git, ref: str) -> str:
    for candidate in (f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref):
        with contextlib.suppress(FailedError):
            return (
                await run("rev-parse", "--verify", "--quiet", f"{candidate}^{{commit}}")
            ).strip()
    raise MissingError(f"the repository has no branch, tag or commit {ref!r}")


class _Git:
    """git as nobody, who has no configuration, no helpers and no terminal."""

    def __init__(self, program: str, work: Path, home: Path) -> None:
        self._program = program
        self._work = work
        self._home = home
        self._environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": os.fspath(home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
            "GIT_PROTOCOL_FROM_USER": "0",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oClearAllForwardings=yes",
        }

    def at(self, work: Path) -> _Git:
        """The same, in another directory."""
        return _Git(self._program, work, self._home)

    async def __call__(self, *words: str) -> str:
        options = ["-c", "core.hooksPath=/dev/null", "-c", "protocol.file.allow=never"]
        options += ["-c", "protocol.ext.allow=never", "-c", "credential.helper="]
        options += ["-c", "core.symlinks=true", "-c", "core.fsmonitor=false"]
        options += ["-c", "advice.detachedHead=false", "-c", "http.followRedirects=false"]
        identity = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            self._program,
            *options,
            *words,
            cwd=self._work,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            umask=0o022,
            **(identity if os.geteuid() == 0 else {}),  # type: ignore[arg-type]  # Popen's own
        )
        try:
            async with asyncio.timeout(_GIT_SECONDS):
                out, told = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        if process.returncode:
            said = graph.without_password(told.decode("utf-8", "replace").strip())[-500:]
            raise FailedError(f"git {words[0]}: {said or f'exit code {process.returncode}'}")
        return out.decode("utf-8", "replace")
