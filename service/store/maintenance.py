"""What keeps the service in order: one leader, the outbox, retention."""

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import delete, func, or_, select

from service.store import sweeps
from service.store.clock import database_now
from service.store.database import Database
from service.store.deletion import delete_jobs
from service.store.idempotency import forget_answers
from service.store.outbox import OutboxEntry, OutboxKind, give_up_files
from service.store.states import is_final, is_queued
from service.tables import jobs, leaders, outbox

_SWEEP: Final = "sweep"
_JOBS_AT_ONCE: Final = 100
"""Deleted in one transaction: their points go with them, and others wait meanwhile on SQLite."""


class Maintenance:
    """For the reconciler; one of several, by `lead`."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def lead(self, name: str, holder: str, seconds: float) -> bool:
        """Become or stay the one who does `name`, for `seconds` by the database's clock.

        Returns:
            False when another holder's time has not run out.
        """
        values = {"holder": holder, "expires_at": database_now(seconds)}
        statement = (
            self._database.insert(leaders)
            .values(name=name, **values)
            .on_conflict_do_update(
                index_elements=[leaders.c.name],
                set_=values,
                where=or_(leaders.c.holder == holder, leaders.c.expires_at < database_now()),
            )
            .returning(leaders.c.holder)
        )
        with self._database.write(durable=False) as connection:
            return connection.scalar(statement) is not None

    def resign(self, name: str, holder: str) -> None:
        """Let another lead at once. Of one who does not lead: no change."""
        with self._database.write(durable=False) as connection:
            connection.execute(delete(leaders).where(leaders.c.name == name, leaders.c.holder == holder))

    def outbox_pending(self, limit: int) -> list[OutboxEntry]:
        """Return what is to be done outside the database, oldest first."""
        query = select(outbox).where(outbox.c.kind != OutboxKind.EXPECT_FILE.value).order_by(outbox.c.id).limit(limit)
        with self._database.read() as connection:
            return [
                OutboxEntry(id=row.id, kind=OutboxKind(row.kind), subject=row.subject)
                for row in connection.execute(query)
            ]

    def outbox_done(self, ids: Collection[int]) -> None:
        """Forget what has been done. Again: no change."""
        if ids:
            with self._database.write(durable=False) as connection:
                connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))

    def give_up_files(self, seconds: float) -> list[str]:
        """Give up files that were to be stored, and are referred to by nothing `seconds` later.

        Returns:
            Their keys; the outbox has them, to be removed.
        """
        with self._database.write() as connection:
            return give_up_files(connection, seconds)

    def last_sweep(self) -> float | None:
        """Return the seconds since the last sweep, by the database's clock; None before the first."""
        with self._database.read() as connection:
            return sweeps.last(connection, _SWEEP)

    def mark_sweep(self) -> None:
        """Note that a sweep was made now."""
        with self._database.write(durable=False) as connection:
            sweeps.note(connection, self._database, _SWEEP)

    def queued_depth(self) -> int:
        """Return how many jobs could be claimed now."""
        query = select(func.count()).where(
            is_queued,
            or_(jobs.c.not_before.is_(None), jobs.c.not_before <= database_now()),
        )
        with self._database.read() as connection:
            return connection.scalar(query) or 0

    def prune(self, *, retention_days: float | None, idempotency_hours: float) -> list[str]:
        """Delete jobs that ended longer ago than `retention_days`, and old answers.

        A hundred jobs at most: call again while there are keys, or with the next sweep.

        Args:
            retention_days: None keeps jobs for ever.
            idempotency_hours: how long answers are kept.

        Returns:
            Keys of the jobs' files, to be removed now; the outbox has them too.
        """
        keys: Sequence[str] = []
        with self._database.write() as connection:
            forget_answers(connection, hours=idempotency_hours)
            if retention_days is not None:
                old = connection.scalars(
                    select(jobs.c.id)
                    .where(
                        is_final,
                        jobs.c.ended_at < database_now(-86_400.0 * retention_days),
                    )
                    .order_by(jobs.c.ended_at)
                    .limit(_JOBS_AT_ONCE)
                    .with_for_update(skip_locked=True)
                ).all()
                keys = delete_jobs(connection, old) if old else []
        return list(keys)
