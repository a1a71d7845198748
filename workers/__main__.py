"""`python -m workers`: one worker. Never imports torch; its runners do."""

import argparse
import logging
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import FrameType
from typing import Final

from service import logs
from service.cache import FileCache, make_cache
from service.files import FileStore
from service.queue import make_bell
from service.settings import Settings
from service.store import Database, Store
from workers.bell import make_listener
from workers.child import RUNNER
from workers.devices import find_device
from workers.reconciler import Reconciler
from workers.supervisor import Supervisor

log = logging.getLogger(__name__)

_PRUNING_SECONDS: Final = 3600.0
"""How often copies of datasets are looked through for old ones; what is too much goes with each download."""


def prune_now(cache: FileCache) -> None:
    """Prune copies of datasets; that it fails is no reason not to work."""
    try:
        cache.prune()
    except OSError as error:
        log.warning("Copies of datasets could not be pruned", extra={"error": str(error)})


def run_worker(settings: Settings, device: str, *, command: Sequence[str] = RUNNER) -> None:
    """Work until SIGTERM or SIGINT, then hand back the job that is under way, saved.

    Args:
        settings: of this process and its runners, which read the same environment.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        command: starts a runner.

    Raises:
        ValueError: there is no such device.
    """
    draining = Event()

    def drain(_signal: int, _frame: FrameType | None) -> None:
        draining.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain)
    database = Database(settings.database)
    store = Store(database, worker_timeout_seconds=settings.worker_timeout_seconds)
    supervisor = Supervisor(
        store,
        make_listener(settings, draining),
        settings,
        find_device(device, os.environ),
        draining=draining,
        command=command,
    )
    files = FileStore(settings.files)
    reconciler = Reconciler(store, files, make_bell(settings), settings, holder=supervisor.worker_id)
    cache, prune_at = make_cache(files, settings), 0.0
    left = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="reconciler") as threads:
        keeping_order = threads.submit(reconciler.run, left)

        def check() -> None:
            nonlocal prune_at
            if time.monotonic() >= prune_at:
                prune_at = time.monotonic() + _PRUNING_SECONDS
                prune_now(cache)
            if keeping_order.done():  # it ends by itself only over a mistake of ours: better to begin anew than without
                keeping_order.result()

        try:
            supervisor.run(check=check)
        finally:
            left.set()
        keeping_order.result()
    database.close()


def main() -> None:
    """Read the command line and the environment, and work."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Work on hyperdial jobs.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    arguments = parser.parse_args()
    settings = Settings()
    logs.configure(settings.log_level)
    run_worker(settings, arguments.device)


if __name__ == "__main__":
    main()
