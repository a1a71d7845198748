"""`python -m workers.spare PARENT`: a runner that has everything imported, and waits for its one job."""

import importlib
import logging
import os
import signal
import sys
import threading
from types import ModuleType

from service import logs
from service.settings import Settings
from workers.messages import Phase
from workers.parent import Parent
from workers.processes import die_with_parent, lower_thread_priority, prefer_as_victim
from workers.tail import Tail


def main(module: str = "workers.workshop") -> None:
    """Import, wait, do one job, and end without ceremony.

    Args:
        module: what to import; its `make_runner` makes the runner.
    """
    die_with_parent(int(sys.argv[1]))
    prefer_as_victim()
    # A service manager may signal every process of a group; when this one leaves is for its supervisor to say.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = Parent()
    settings = Settings()
    logs.configure(settings.log_level)
    tail = Tail()
    logging.getLogger().addHandler(tail)
    runner = _imported_quietly(module).make_runner(settings, parent, tail)
    assignment = parent.assignment()
    if assignment is not None:
        runner.execute(assignment)
        parent.report(Phase.ENDED)
    logging.shutdown()
    os._exit(0)  # everything is on disk; taking torch apart would only take time


def _imported_quietly(name: str) -> ModuleType:
    """Import a module without slowing down the job that is under way: in a thread that gives way to all others.

    A process that lowers its own priority cannot raise it again; a thread takes its low priority with it.
    """

    def load() -> None:
        lower_thread_priority()
        importlib.import_module(name)

    thread = threading.Thread(target=load, name="import")
    thread.start()
    thread.join()
    return importlib.import_module(name)  # loaded by now, or raises here what the thread met


if __name__ == "__main__":
    main()
