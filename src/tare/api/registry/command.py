"""The process behind ``tare registry``: serve, gc, passwd, ls.

A registry is served by a process of its own, in the foreground, so that what strangers send is not
parsed where containers are kept; it needs no daemon, and the daemon's end does not end it. (A
daemon whose configuration says so serves one itself.) The content survives the end of either.

Not for: registries of others (``image.registry``).
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tare.api.registry import htpasswd
from tare.api.registry.server import RegistryServer
from tare.engine.paths import Paths
from tare.errors import InvalidError, MissingError, TareError
from tare.image.registry_store.collect import GRACE_SECONDS, collect
from tare.image.registry_store.engine_images import EngineImages
from tare.image.registry_store.settings import LISTEN, ServeSettings, parse_listen
from tare.image.registry_store.store import DIRECTORY, RegistryStore
from tare.model.distribution import repository_name

AUTH: Final = "TARE_REGISTRY_AUTH"
"""Carries credentials from the client to `ls`, as Docker's ``X-Registry-Auth``."""
_HOUR: Final = 3600


def main(argv: Sequence[str]) -> int:
    """Do what the words say; the exit code."""
    arguments = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    os.umask(0o077)
    try:
        return run(arguments)
    except TareError as error:
        hint = f"\n  {error.hint}" if error.hint else ""
        _say(f"tare: {error}{hint}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        _say(f"tare: {error.filename or 'registry'}: {error.strerror or error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tare registry", allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    serve = commands.add_parser("serve")
    serve.set_defaults(run=_serve)
    serve.add_argument("--listen", default=LISTEN)
    for name in ("--tls-cert", "--tls-key", "--htpasswd", "--data"):
        serve.add_argument(name, type=_path)
    for name in ("--read-only", "--no-images", "--verbose"):
        serve.add_argument(name, action="store_true")
    gc = commands.add_parser("gc")
    gc.set_defaults(run=_gc)
    gc.add_argument("--data", type=_path)
    gc.add_argument("--grace", type=int, default=int(GRACE_SECONDS) // _HOUR)
    gc.add_argument("--untagged", action="store_true")
    gc.add_argument("--dry-run", action="store_true")
    passwd = commands.add_parser("passwd")
    passwd.set_defaults(run=_passwd)
    passwd.add_argument("file", type=_path)
    passwd.add_argument("name")
    ls = commands.add_parser("ls")
    ls.set_defaults(run=_ls)
    ls.add_argument("--data", type=_path)
    ls.add_argument("repository", nargs="?", default="")
    return parser


def _path(text: str) -> Path:
    return Path(text).absolute()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


# --- serve ---------------------------------------------------------------------------------------


def _serve(arguments: argparse.Namespace) -> int:
    host, port = parse_listen(arguments.listen)
    settings = ServeSettings(
        data=arguments.data,
        host=host,
        port=port,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        htpasswd=arguments.htpasswd,
        read_only=arguments.read_only,
        images=not arguments.no_images,
    )
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    for warning in settings.warnings():
        _say(f"tare: warning: {warning}")
    asyncio.run(_serve_until_told(settings, verbose=arguments.verbose))
    return 0


async def _serve_until_told(settings: ServeSettings, *, verbose: bool) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def end() -> None:
        ending.set()
        # Who asks twice does not want to wait for answers that still run.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    server = RegistryServer(settings, Paths.detect().state, verbose=verbose)
    await server.start()
    try:
        for address in server.addresses:
            sys.stdout.write(f"listening on {address}\n")
        sys.stdout.flush()
        await ending.wait()
    finally:
        await server.close()


# --- the others ----------------------------------------------------------------------------------


def _open(arguments: argparse.Namespace) -> RegistryStore:
    """The registry's content, if there is any; MissingError if not."""
    directory: Path = arguments.data or Paths.detect().state / DIRECTORY
    if not (directory / "registry.db").exists():
        raise MissingError(
            f"there is no registry in {directory}", hint="`tare registry serve` makes one"
        )
    return RegistryStore(directory)


def _gc(arguments: argparse.Namespace) -> int:
    if arguments.grace < 0:
        raise InvalidError("--grace is a number of hours from 0 on")
    store = _open(arguments)
    try:
        found = collect(
            store,
            grace=arguments.grace * _HOUR,
            untagged=arguments.untagged,
            dry_run=arguments.dry_run,
        )
    finally:
        store.close()
    for blob in found.blobs:
        print(blob)
    done = "would be deleted" if arguments.dry_run else "deleted"
    _say(f"{found.manifests} manifests, {len(found.blobs)} blobs, {found.freed} bytes {done}")
    return 0


def _passwd(arguments: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        password = getpass.getpass(f"Password of {arguments.name}: ")
        if getpass.getpass("Again: ") != password:
            raise InvalidError("the two passwords differ")
    else:
        password = sys.stdin.readline().rstrip("\n")
    htpasswd.put(arguments.file, arguments.name, password)
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    from tare.api.registry import remote

    if remote.names_host(arguments.repository):
        header = os.environ.pop(AUTH, "")
        for line in asyncio.run(remote.listed(arguments.repository, header)):
            print(line)
        return 0
    engine = EngineImages(Paths.detect().state)
    lines: set[str] = set()
    try:
        store = _open(arguments)
    except MissingError:
        if arguments.data is not None:
            raise
        pushed: dict[str, list[str]] = {}
    else:
        pushed = {name: store.tags(name) or [] for name in store.repositories()}
        store.close()
    names = {*pushed, *engine.repositories()}
    if arguments.repository:
        name = repository_name(arguments.repository)
        if name not in names:
            raise MissingError(f"there is no repository {name}")
        names = {name}
    for name in names:
        tags = {*pushed.get(name, ()), *engine.tags(name)}
        lines.update(f"{name}:{tag}" for tag in tags)
        if not tags:
            lines.add(name)
    for line in sorted(lines):
        print(line)
    return 0
