"""Which workers are alive. The queue's own list would vanish with Redis."""

from dataclasses import dataclass

from sqlalchemy import case, delete, literal, select, update

from service.errors import NotFound
from service.records import WorkerRecord, WorkerState
from service.store.clock import database_now
from service.store.database import Database
from service.tables import workers


@dataclass(frozen=True)
class NewWorker:
    """A worker that begins; the fields are those of `WorkerRecord`."""

    id: str
    host: str
    pid: int
    device: str
    device_name: str
    version: str


class Workers:
    """Workers, alive and gone."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def register(self, new: NewWorker) -> None:
        """Note that a worker has begun, idle; the same id again: that it has begun anew."""
        values = {
            "host": new.host,
            "pid": new.pid,
            "device": new.device,
            "device_name": new.device_name,
            "version": new.version,
            "state": WorkerState.IDLE.value,
            "job_id": None,
            "started_at": database_now(),
            "heartbeat_at": database_now(),
        }
        insertion = self._database.insert(workers).values(id=new.id, **values)
        with self._database.write() as connection:
            connection.execute(insertion.on_conflict_do_update(index_elements=[workers.c.id], set_=values))

    def heartbeat(self, worker_id: str, *, state: WorkerState, job_id: str | None) -> None:
        """Note that a worker is alive, and what it is doing.

        Raises:
            NotFound: it is not registered, or was pruned after a long silence: register it again.
        """
        with self._database.write(durable=False) as connection:
            changed = connection.execute(
                update(workers)
                .where(workers.c.id == worker_id)
                .values(state=state.value, job_id=job_id, heartbeat_at=database_now())
            )
            if changed.rowcount == 0:
                raise NotFound("there is no such worker")

    def leave(self, worker_id: str) -> None:
        """Note that a worker has ended. Again, or of an unknown worker: no change."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                update(workers).where(workers.c.id == worker_id).values(state=WorkerState.OFFLINE.value, job_id=None)
            )

    def list(self, *, timeout_seconds: float) -> list[WorkerRecord]:
        """Return all workers, the last to begin first; one that was silent for longer is offline."""
        silent = workers.c.heartbeat_at < database_now(-timeout_seconds)
        state = case((silent, literal(WorkerState.OFFLINE.value)), else_=workers.c.state)
        query = select(workers, state.label("seen")).order_by(workers.c.started_at.desc(), workers.c.id)
        with self._database.read() as connection:
            return [
                WorkerRecord(
                    id=row.id,
                    host=row.host,
                    pid=row.pid,
                    device=row.device,
                    device_name=row.device_name,
                    version=row.version,
                    state=WorkerState(row.seen),
                    job_id=row.job_id,
                    started_at=row.started_at,
                    heartbeat_at=row.heartbeat_at,
                )
                for row in connection.execute(query)
            ]

    def forget(self, *, silent_days: float) -> None:
        """Delete workers that have been silent for so long."""
        with self._database.write(durable=False) as connection:
            connection.execute(delete(workers).where(workers.c.heartbeat_at < database_now(-86_400.0 * silent_days)))
