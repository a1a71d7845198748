"""Jobs, as clients see and steer them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, RowMapping, case, delete, func, select, update

from service.errors import NotFound, StaleVersion, StateConflict
from service.records import (
    FINAL,
    AttemptRecord,
    EventRecord,
    FileRecord,
    JobRecord,
    JobStatus,
    StoredAnswer,
)
from service.spec.job import JobSpec
from service.store.clock import database_now
from service.store.creation import insert_job, insert_labels
from service.store.database import Database
from service.store.deletion import delete_jobs
from service.store.events import events_after
from service.store.idempotency import IdempotencyClaim, answer_once
from service.store.job_rows import attempt_record, job_record
from service.store.listing import newest_first
from service.store.reasons import reasons
from service.store.transitions import Move, move
from service.tables import attempts, files, job_labels, jobs

_CANCEL: Final = (
    Move(JobStatus.QUEUED, JobStatus.CANCELLED),
    Move(JobStatus.PAUSED, JobStatus.CANCELLED),
    Move(JobStatus.RUNNING, JobStatus.CANCELLING),
    Move(JobStatus.PAUSING, JobStatus.CANCELLING),
)
_PAUSE: Final = (Move(JobStatus.QUEUED, JobStatus.PAUSED), Move(JobStatus.RUNNING, JobStatus.PAUSING))
_RESUME: Final = (Move(JobStatus.PAUSED, JobStatus.QUEUED), Move(JobStatus.PAUSING, JobStatus.RUNNING))
_RETRY: Final = (Move(JobStatus.FAILED, JobStatus.QUEUED), Move(JobStatus.CANCELLED, JobStatus.QUEUED))


class Jobs:
    """Jobs for clients: to create, find, steer and delete. Workers write through `Leases`."""

    def __init__(self, database: Database, *, worker_timeout_seconds: float) -> None:
        """Take the database, and after how long a silent worker counts as offline."""
        self._database = database
        self._worker_timeout_seconds = worker_timeout_seconds

    def create(
        self,
        spec: JobSpec,
        *,
        idempotency: IdempotencyClaim | None = None,
        answer: Callable[[JobRecord], StoredAnswer] | None = None,
    ) -> JobRecord:
        """Queue a job and leave a ring for the workers, all or nothing.

        Args:
            spec: what to run.
            idempotency: what `Idempotency.begin` returned for this request, if it carries a key.
            answer: how the request is answered; stored in the same transaction, for repetitions of it.

        Raises:
            ValueError: one of `idempotency` and `answer` without the other.
            IdempotencyInProgress: the request took so long that a repetition of it was let in.
        """
        if (idempotency is None) != (answer is None):
            raise ValueError("idempotency and answer go together: a key without an answer would not be replayed")
        with self._database.write() as connection:
            row = insert_job(connection, spec)
            record = self._record(connection, row)
            if idempotency is not None and answer is not None:
                answer_once(connection, idempotency, answer(record))
            return record

    def get(self, job_id: str) -> JobRecord:
        """Return a job.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            return self._record(connection, _row(connection, job_id))

    def versions(self, job_ids: Collection[str]) -> dict[str, int]:
        """Return the versions of those jobs that exist, in one query for all who wait."""
        if not job_ids:
            return {}
        query = select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(job_ids))
        with self._database.read() as connection:
            return {row.id: row.version for row in connection.execute(query)}

    def request_cancel(self, job_id: str) -> JobRecord:
        """Cancel a waiting job; ask the worker of a held one to stop. Again: no change.

        Raises:
            NotFound: there is no such job.
            StateConflict: it has succeeded or failed.
        """
        return self._steer(
            job_id, _CANCEL, done=frozenset({JobStatus.CANCELLING, JobStatus.CANCELLED}), verb="be cancelled"
        )

    def request_pause(self, job_id: str) -> JobRecord:
        """Take a waiting job from the queue; ask the worker of a running one to save it. Again: no change.

        Raises:
            NotFound: there is no such job.
            StateConflict: it is being cancelled, or has ended.
        """
        return self._steer(job_id, _PAUSE, done=frozenset({JobStatus.PAUSING, JobStatus.PAUSED}), verb="be paused")

    def request_resume(self, job_id: str) -> JobRecord:
        """Queue a paused job; withdraw a pause that has not been reached yet. Again: no change.

        Raises:
            NotFound: there is no such job.
            StateConflict: it is being cancelled, or has ended.
        """
        return self._steer(job_id, _RESUME, done=frozenset({JobStatus.QUEUED, JobStatus.RUNNING}), verb="be resumed")

    def retry(self, job_id: str) -> JobRecord:
        """Queue a failed or cancelled job again, from its last checkpoint and with all its time and attempts anew.

        Again: no change.

        Raises:
            NotFound: there is no such job.
            StateConflict: it is paused, being paused or cancelled, or has succeeded.
        """
        return self._steer(
            job_id,
            _RETRY,
            done=frozenset({JobStatus.QUEUED, JobStatus.RUNNING}),
            verb="be retried",
            values={"lost_attempts": 0, "run_seconds": 0.0},
        )

    def update(
        self,
        job_id: str,
        *,
        version: int,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
    ) -> JobRecord:
        """Change what may be changed of a job; None leaves a field as it is.

        Args:
            job_id: which job.
            version: of the job when it was read.
            name: for people.
            labels: all of them, in place of those it has.
            priority: higher runs earlier.

        Raises:
            NotFound: there is no such job.
            StaleVersion: the job has changed since.
        """
        given = {"name": name, "labels": None if labels is None else dict(labels), "priority": priority}
        settings = {key: value for key, value in given.items() if value is not None}
        with self._database.write() as connection:
            row = (
                connection.execute(
                    update(jobs)
                    .where(jobs.c.id == job_id, jobs.c.version == version)
                    .values(version=jobs.c.version + 1, **settings)
                    .returning(*jobs.c)
                )
                .mappings()
                .first()
            )
            if row is None:
                _row(connection, job_id)
                raise StaleVersion
            if labels is not None:
                connection.execute(delete(job_labels).where(job_labels.c.job_id == job_id))
                insert_labels(connection, job_id, labels)
            return self._record(connection, row)

    def delete(self, job_id: str) -> list[str]:
        """Delete an ended job with all that belongs to it.

        Returns:
            Keys of its files in the file store, to be removed now; the outbox has them too.

        Raises:
            NotFound: there is no such job.
            StateConflict: it has not ended.
        """
        with self._database.write() as connection:
            status = connection.scalar(select(jobs.c.status).where(jobs.c.id == job_id).with_for_update())
            if status is None:
                raise NotFound("there is no such job")
            if not JobStatus(status).is_final:
                raise StateConflict(JobStatus(status), FINAL, "be deleted")
            return delete_jobs(connection, [job_id])

    def attempts(self, job_id: str) -> list[AttemptRecord]:
        """Return who ran the job, first attempt first.

        Raises:
            NotFound: there is no such job.
        """
        query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        with self._database.read() as connection:
            _require(connection, job_id)
            return [attempt_record(row) for row in connection.execute(query).mappings()]

    def events(self, job_id: str, *, after: int, limit: int) -> list[EventRecord]:
        """Return what happened, in its order: statuses, points and lines of the log.

        Numbers grow, and what has a lower number than an event in the answer is in the answer, or was
        in one before: following the last number misses and repeats nothing.

        Args:
            job_id: which job.
            after: number of the last event that is known; 0 for all.
            limit: at most so many.

        Raises:
            NotFound: there is no such job.
        """
        with self._database.read() as connection:
            found = events_after(connection, job_id, after=after, limit=limit)
            if not found:
                _require(connection, job_id)
            return found

    def files(self, job_id: str) -> list[FileRecord]:
        """Return the files that the job made, by name.

        Raises:
            NotFound: there is no such job.
        """
        query = select(files).where(files.c.job_id == job_id).order_by(files.c.name)
        with self._database.read() as connection:
            _require(connection, job_id)
            return [
                FileRecord(name=row.name, key=row.key, sha256=row.sha256, size_bytes=row.size_bytes)
                for row in connection.execute(query)
            ]

    def counts(self) -> dict[JobStatus, int]:
        """Return how many jobs stand in each status, those without any included."""
        query = select(jobs.c.status, func.count().label("number")).group_by(jobs.c.status)
        with self._database.read() as connection:
            found = {JobStatus(row.status): row.number for row in connection.execute(query)}
        return {status: found.get(status, 0) for status in JobStatus}

    def _steer(
        self,
        job_id: str,
        moves: Sequence[Move],
        *,
        done: frozenset[JobStatus],
        verb: str,
        values: Mapping[str, object] | None = None,
    ) -> JobRecord:
        """Make one of the moves; no change when the job is where it leads, a refusal when it is elsewhere."""
        settings = dict(values or {})
        if any(each.target is JobStatus.QUEUED for each in moves):
            # Behind those that wait. A resume that only withdraws a pause does not come to the queue.
            queues = jobs.c.status.in_([each.source.value for each in moves if each.target is JobStatus.QUEUED])
            settings |= {"queued_at": case((queues, database_now()), else_=jobs.c.queued_at), "not_before": None}
        with self._database.write() as connection:
            changed = move(connection, moves, jobs.c.id == job_id, values=settings)
            row = changed[0] if changed else _row(connection, job_id)
            status = JobStatus(row["status"])
            if not changed and status not in done:
                raise StateConflict(status, done | {each.source for each in moves}, verb)
            return self._record(connection, row)

    def _record(self, connection: Connection, row: RowMapping) -> JobRecord:
        why = reasons(connection, [row], worker_timeout_seconds=self._worker_timeout_seconds)
        return job_record(row, why.get(row["id"]))

    def list(
        self,
        *,
        statuses: Sequence[JobStatus] = (),
        method: str | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        limit: int,
        before: tuple[datetime, str] | None = None,
    ) -> list[JobRecord]:
        """Return jobs, newest first.

        Args:
            statuses: any of these; empty: all.
            method: the kind of method; None: all.
            labels: all of these.
            created_after: only jobs that are younger.
            limit: at most so many.
            before: (created_at, id) of the last job of the page before; None for the first page.
        """
        query = newest_first(
            statuses=statuses, method=method, labels=labels or {}, created_after=created_after, before=before
        ).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
            why = reasons(connection, rows, worker_timeout_seconds=self._worker_timeout_seconds)
        return [job_record(row, why.get(row["id"])) for row in rows]


def _row(connection: Connection, job_id: str) -> RowMapping:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise NotFound("there is no such job")
    return row


def _require(connection: Connection, job_id: str) -> None:
    if connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id)) is None:
        raise NotFound("there is no such job")
