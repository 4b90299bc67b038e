"""tared: puts the engine behind the API and keeps the two running.

``python -m tare.daemon [--foreground]``. One daemon for each set of paths: it holds a lock on
``RUN/daemon.lock`` as long as it lives, so a second one ends at once (exit code 75) and a dead
one, however it died, is in nobody's way. The socket is bound before the engine has looked at
what runs, so that clients wait in its queue instead of failing.

Ending stops nothing that runs: containers are the keeper's, and the next daemon adopts them.
Without ``--foreground`` it writes its log to ``RUN/daemon.log`` (rotated) and lets go of the
terminal; whoever starts it gives it a session of its own.

Not for: what the engine does (engine), and stopping containers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import grp
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tare import __version__
from tare.api.server import Server, bind
from tare.engine.engine import Engine
from tare.engine.paths import Paths
from tare.errors import FailedError, TareError
from tare.run import rootless

if TYPE_CHECKING:
    from tare.api.metrics import MetricsServer
    from tare.api.registry.server import RegistryServer

log = logging.getLogger("tare.daemon")

GROUP: Final = "tare"
ALREADY: Final = 75
_LOG_BYTES: Final = 1 << 20
_FIRST_PASSED: Final = 3  # sd_listen_fds(3)


class AlreadyRunningError(FailedError):
    """Another daemon serves these paths; that is all a client wants to know."""


def _lock(paths: Paths) -> int:
    """A descriptor that holds the engine's lock until this process ends."""
    descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise AlreadyRunningError(
            f"another daemon serves {paths.run} already", exit_code=ALREADY
        ) from error
    return descriptor


def _passed_socket() -> socket.socket | None:
    """The listening socket that systemd made, if it made one (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    passed = socket.socket(fileno=_FIRST_PASSED)
    passed.set_inheritable(False)
    passed.setblocking(False)
    return passed


def _group(paths: Paths) -> int | None:
    """The group whose members may use the system engine; None: nobody but its user."""
    if paths.rootless:
        return None
    with contextlib.suppress(KeyError):
        return grp.getgrnam(GROUP).gr_gid
    return None


def notify(state: str) -> None:
    """Tell systemd, if it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(state.encode(), address)


def _log_to(paths: Paths, *, foreground: bool) -> None:
    from logging.handlers import RotatingFileHandler

    handler: logging.Handler
    if foreground:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = RotatingFileHandler(
            paths.run / "daemon.log", maxBytes=_LOG_BYTES, backupCount=2, encoding="utf-8"
        )
        (paths.run / "daemon.log").chmod(0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _let_go_of_terminal() -> None:
    """Standard streams become /dev/null, so that whoever started us is not kept waiting."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


async def serve(paths: Paths, *, foreground: bool) -> None:
    """Open the engine and answer until a signal asks to end."""
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    group = _group(paths)
    passed = _passed_socket()
    listening = passed or bind(paths.socket, group)
    try:
        engine = Engine.open(paths)
        await engine.start()
    except BaseException:
        listening.close()
        if passed is None:
            paths.socket.unlink(missing_ok=True)
        raise
    server = Server(engine, group=group)
    registry: RegistryServer | None = None
    metrics: MetricsServer | None = None
    try:
        await server.start(listening)
        registry = await _registry(engine)
        metrics = await _metrics(engine)
        # What exists now lives as long as the daemon; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        log.info("tare %s answers on %s", __version__, paths.socket)
        notify("READY=1\nSTATUS=answering")
        if not foreground:
            _let_go_of_terminal()
        await ending.wait()
        log.info("ending; what runs goes on")
        notify("STOPPING=1")
    finally:
        if passed is None:
            # Connections from now on fail at once, so a client starts the next daemon.
            paths.socket.unlink(missing_ok=True)
        if registry is not None:
            await registry.close(2.0)
        if metrics is not None:
            await metrics.close()
        await server.close()
        await engine.close()


async def _registry(engine: Engine) -> RegistryServer | None:
    """The registry that is configured, if one is; the engine works without it too."""
    settings = engine.config.registry
    if settings is None:
        return None
    from tare.api.registry.server import RegistryServer

    for warning in settings.warnings():
        log.warning("registry: %s", warning)
    registry = RegistryServer(settings, engine.paths.state)
    try:
        await registry.start()
    except TareError as error:
        log.error("the registry is not served: %s", error)
        return None
    log.info("the registry listens on %s", ", ".join(registry.addresses))
    return registry


async def _metrics(engine: Engine) -> MetricsServer | None:
    """Figures by TCP, where that is configured; the engine works without them too."""
    if engine.config.metrics is None:
        return None
    from tare.api.metrics import MetricsServer

    server = MetricsServer(engine, *engine.config.metrics)
    try:
        host, port = await server.start()
    except OSError as error:
        log.error("metrics are not served: %s", error)
        await server.close()
        return None
    log.info("metrics are served on http://%s:%d/metrics", host, port)
    return server


def _run(arguments: argparse.Namespace) -> None:
    passed = 1 if os.environ.get("LISTEN_PID") == str(os.getpid()) else 0
    # Descriptors that leaked into us must not leak on into the keeper (attack A02).
    os.closerange(_FIRST_PASSED + passed, 1 << 20)
    os.umask(0o022)
    os.chdir("/")
    paths = Paths.detect()
    paths.prepare()
    if paths.rootless:
        rootless.enter(paths.run)
    held = _lock(paths)
    try:
        _log_to(paths, foreground=arguments.foreground)
        pid_file = paths.run / "daemon.pid"
        pid_file.write_text(f"{os.getpid()}\n", "ascii")
        try:
            asyncio.run(serve(paths, foreground=arguments.foreground))
        finally:
            pid_file.unlink(missing_ok=True)
    finally:
        os.close(held)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to end; the exit code."""
    parser = argparse.ArgumentParser(prog="tared", description="The engine's daemon.")
    parser.add_argument("--foreground", action="store_true", help="write the log to standard error")
    parser.add_argument("--version", action="version", version=f"tared {__version__}")
    arguments = parser.parse_args(argv)
    try:
        _run(arguments)
    except TareError as error:
        logging.getLogger("tare").error("%s", error)
        hint = f" ({error.hint})" if error.hint else ""
        print(f"tared: {error}{hint}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        logging.getLogger("tare").exception("the daemon ended")
        print(f"tared: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def script() -> None:
    """The ``tared`` command."""
    sys.exit(main())


if __name__ == "__main__":
    script()
