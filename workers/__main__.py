"""`python -m workers`: one worker. Never imports torch; its runners do."""

import argparse
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import FrameType

from service import logs
from service.files import FileStore
from service.queue import make_bell
from service.settings import Settings
from service.store import Database, Store
from workers.bell import make_listener
from workers.child import RUNNER
from workers.devices import find_device
from workers.reconciler import Reconciler
from workers.supervisor import Supervisor


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
    reconciler = Reconciler(
        store, FileStore(settings.files), make_bell(settings), settings, holder=supervisor.worker_id
    )
    left = Event()
    with ThreadPoolExecutor(1, thread_name_prefix="reconciler") as threads:
        keeping_order = threads.submit(reconciler.run, left)

        def check() -> None:
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
