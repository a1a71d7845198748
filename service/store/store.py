"""The store as a whole."""

from service.store.database import Database
from service.store.datasets import Datasets
from service.store.idempotency import Idempotency
from service.store.jobs import Jobs
from service.store.keys import Keys
from service.store.leases import Leases
from service.store.maintenance import Maintenance
from service.store.points import Points
from service.store.workers import Workers


class Store:
    """All that is kept, by noun. Safe to share between threads."""

    def __init__(self, database: Database, *, worker_timeout_seconds: float = 30.0) -> None:
        """Build every part on `database`.

        Args:
            database: whose schema is at the head (`service.store.schema`).
            worker_timeout_seconds: a worker silent for longer counts as offline when a job's
                `status_reason` is worked out.
        """
        self.database = database
        self.jobs = Jobs(database, worker_timeout_seconds=worker_timeout_seconds)
        self.points = Points(database)
        self.leases = Leases(database)
        self.datasets = Datasets(database)
        self.workers = Workers(database)
        self.keys = Keys(database)
        self.idempotency = Idempotency(database)
        self.maintenance = Maintenance(database)
