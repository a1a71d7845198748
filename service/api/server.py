"""Serves the API by uvicorn."""

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Final

import uvicorn

from service import logs
from service.api.app import create_app
from service.api.auth import is_required
from service.api.services import Services
from service.errors import StoreUnavailable
from service.files import FileStore
from service.loopback import is_loopback
from service.queue import make_bell
from service.settings import Settings
from service.store import Database, Store
from service.store.schema import is_at_head

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 10
"""Time for requests that are being answered; event streams end at once."""


class Exposed(RuntimeError):
    """Without API keys the service may only listen where nobody else can reach it."""


def open_services(settings: Settings) -> Services:
    """Build what the API needs from the settings; connects to nothing yet."""
    database = Database(settings.database)
    return Services(
        settings=settings,
        store=Store(database, worker_timeout_seconds=settings.worker_timeout_seconds),
        files=FileStore(settings.files),
        bell=make_bell(settings),
    )


def serve(settings: Settings, *, sock: socket.socket | None = None, insecure: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; then let requests end, close event streams, and return.

    Args:
        settings: where to listen, and everything else.
        sock: a socket that listens already, in place of the settings' host and port.
        insecure: listen without API keys on an address that others can reach.

    Raises:
        Exposed: it would be reachable by strangers without a key.
    """
    if not is_required(settings) and not is_loopback(_host(settings, sock)):
        if not insecure:
            raise Exposed(
                f"without API keys {_host(settings, sock)} would be open to everybody who can reach it: set "
                "HYPERDIAL_AUTH=required, listen on 127.0.0.1, or allow it with --insecure"
            )
        log.warning("the service listens without API keys on an address that others can reach")
    logs.configure(settings.log_level)
    services = open_services(settings)
    _check_tables(services)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(services),
            host=settings.host,
            port=settings.port,
            root_path=settings.root_path,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            lifespan="on",
        )
    )
    try:
        with _terminated_in_order(), contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=None if sock is None else [sock])
    finally:
        services.store.database.close()


def _check_tables(services: Services) -> None:
    # Not a reason to give up: the migration may run just now, and /readyz keeps requests away until then.
    try:
        if not is_at_head(services.store.database):
            log.error("the tables are not of this version: run `hyperdial migrate`")
    except StoreUnavailable:
        log.warning("the database is away: requests are refused until it is back")


def _host(settings: Settings, sock: socket.socket | None) -> str:
    if sock is None or sock.family == socket.AF_UNIX:
        return settings.host
    host: str = sock.getsockname()[0]
    return host


@contextlib.contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Let this function's caller go on after SIGTERM.

    uvicorn raises the signal again when it is done, for a handler that was there before; the default one would end
    the process with an error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
