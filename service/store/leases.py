"""Jobs, as workers hold them. Every write is fenced by the attempt, and is the heartbeat too."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    RowMapping,
    Select,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from service.records import (
    HELD,
    AttemptOutcome,
    Checkpoint,
    Claim,
    FailureCode,
    FileRecord,
    JobStatus,
    JsonObject,
    Lease,
)
from service.spec.job import Device
from service.store.clock import database_now, seconds_between
from service.store.database import Database
from service.store.outbox import forget_files
from service.store.recording import NewPoint, record
from service.store.states import is_held, is_queued
from service.store.transitions import Ending, Move, end_attempts, held_by, move, only
from service.tables import attempts, checkpoints, files, jobs, sweeps, workers

_CHECKPOINTS_KEPT: Final = 2
_LONGEST_DOUBLING: Final = 10
"""The wait after a loss stops to double at 2¹⁰ times the first."""

_SUCCEED: Final = tuple(Move(status, JobStatus.SUCCEEDED) for status in sorted(HELD))
_FAIL: Final = (
    Move(JobStatus.RUNNING, JobStatus.FAILED),
    Move(JobStatus.PAUSING, JobStatus.FAILED),
    # A cancelled job that fails while it stops is what the client asked for: cancelled.
    Move(JobStatus.CANCELLING, JobStatus.CANCELLED),
)
_RELEASE: Final = (
    Move(JobStatus.RUNNING, JobStatus.QUEUED),
    Move(JobStatus.PAUSING, JobStatus.PAUSED),
    Move(JobStatus.CANCELLING, JobStatus.CANCELLED),
)
_LOSE: Final = (
    Move(JobStatus.RUNNING, JobStatus.FAILED, when=jobs.c.lost_attempts + 1 >= jobs.c.max_attempts),
    *_RELEASE,
)


class Leases:
    """Jobs for workers: to claim, renew, record, and end."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def claim(self, worker_id: str, *, device: str, lease_seconds: float) -> Claim | None:
        """Take the next job that fits, if there is one: highest priority first, then longest waiting.

        Two workers never take the same job: the statement that chooses is the one that takes. Within a
        priority a worker with a GPU prefers jobs that need one, then those that may use one.

        Args:
            worker_id: who takes it.
            device: of the worker: `cpu`, or `cuda:N`.
            lease_seconds: how long the worker may be silent before it loses the job.
        """
        candidate = _candidate(device)
        if self._database.is_sqlite:
            # Looking first is free, whereas a transaction that writes keeps all others from writing.
            with self._database.read() as connection:
                if connection.scalar(candidate) is None:
                    return None
        with self._database.write() as connection:
            taken = move(
                connection,
                [Move(JobStatus.QUEUED, JobStatus.RUNNING)],
                jobs.c.id == candidate.with_for_update(skip_locked=True).scalar_subquery(),
                values={
                    "attempt": jobs.c.attempt + 1,
                    "worker_id": worker_id,
                    "started_at": func.coalesce(jobs.c.started_at, database_now()),
                    "held_since": database_now(),
                    "renewed_at": database_now(),
                    "lease_expires_at": database_now(lease_seconds),
                    "not_before": None,
                },
            )
            if not taken:
                return None
            row = taken[0]
            host = select(workers.c.host).where(workers.c.id == worker_id).scalar_subquery()
            connection.execute(
                insert(attempts).values(
                    job_id=row["id"],
                    number=row["attempt"],
                    worker_id=worker_id,
                    host=func.coalesce(host, ""),
                    device=device,
                    started_at=row["held_since"],
                    steps_from=row["steps_done"],
                    log_tail="",
                )
            )
            return Claim(
                lease=Lease(job_id=row["id"], attempt=row["attempt"]),
                spec=row["spec"],
                checkpoints=tuple(_checkpoints(connection, row["id"])),
                steps_done=row["steps_done"],
                run_seconds=row["run_seconds"],
            )

    def renew(self, lease: Lease, *, lease_seconds: float) -> JobStatus:
        """Give a sign of life; hear whether the job is to go on, pause or stop.

        Raises:
            LeaseLost: another attempt has begun, or the job has been taken away.
        """
        with self._database.write(durable=False) as connection:
            return JobStatus(_renewed(connection, lease, lease_seconds)["status"])

    def record(
        self, lease: Lease, points: Sequence[NewPoint], *, lease_seconds: float, logs: Sequence[str] = ()
    ) -> JobStatus:
        """Append points and lines of the log, renew the lease, hear whether to go on.

        Points that are recorded already, recomputed after a crash, are passed over, so that the same
        batch may be sent again after a `StoreUnavailable`.

        Args:
            lease: the right to write.
            points: one step after the other; the first at most one step beyond what is recorded.
            lease_seconds: until the next sign of life.
            logs: lines for people.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
            ValueError: a gap in the steps or a time that is not finite; nothing was written.
        """
        with self._database.write(durable=False) as connection:
            return record(connection, lease, points, lease_seconds=lease_seconds, logs=logs)

    def save_checkpoint(self, lease: Lease, checkpoint: Checkpoint, *, lease_seconds: float) -> list[str]:
        """Note a checkpoint whose file is in the file store, and keep the last two.

        Args:
            lease: the right to write.
            checkpoint: its key must be new; its step at most the number of points recorded.
            lease_seconds: until the next sign of life.

        Returns:
            Keys of older files, to be removed now; the outbox has them too.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
            ValueError: the checkpoint is ahead of the points, and a resumed run would leave a gap.
        """
        mine = [checkpoints.c.job_id == lease.job_id, checkpoints.c.attempt == lease.attempt]
        with self._database.write(durable=False) as connection:
            row = _renewed(connection, lease, lease_seconds)
            if checkpoint.step > row["steps_done"]:
                raise ValueError(
                    f"the checkpoint is of step {checkpoint.step}, but {row['steps_done']} points are recorded: "
                    "record first"
                )
            again = connection.scalars(
                delete(checkpoints).where(*mine, checkpoints.c.step == checkpoint.step).returning(checkpoints.c.key)
            ).all()
            connection.execute(
                insert(checkpoints).values(
                    job_id=lease.job_id,
                    attempt=lease.attempt,
                    step=checkpoint.step,
                    key=checkpoint.key,
                    sha256=checkpoint.sha256,
                )
            )
            kept = _checkpoints(connection, lease.job_id)[:_CHECKPOINTS_KEPT]
            old = connection.scalars(
                delete(checkpoints)
                .where(checkpoints.c.job_id == lease.job_id, checkpoints.c.key.not_in([each.key for each in kept]))
                .returning(checkpoints.c.key)
            ).all()
            gone = [key for key in (*again, *old) if key != checkpoint.key]
            forget_files(connection, gone)
            return gone

    def succeed(self, lease: Lease, *, result: JsonObject, files: Sequence[FileRecord], log_tail: str) -> list[str]:
        """End the job with its result; what it was to go on from is not needed any more.

        Returns:
            Keys of its checkpoints, to be removed now; the outbox has them too.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
        """
        with self._database.write() as connection:
            rows = move(connection, _SUCCEED, held_by(lease), values={"result": result})
            only(rows)
            end_attempts(connection, rows, lost=False, failure=None, log_tail=log_tail)
            _replace_files(connection, lease.job_id, files)
            keys = connection.scalars(
                delete(checkpoints).where(checkpoints.c.job_id == lease.job_id).returning(checkpoints.c.key)
            ).all()
            gone = [key for key in keys if key not in {each.key for each in files}]
            forget_files(connection, gone)
            return gone

    def fail(
        self, lease: Lease, failure_code: FailureCode, detail: str, *, retryable: bool, log_tail: str
    ) -> JobStatus:
        """End the job as failed, or as cancelled if that was asked for.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
        """
        return self._let_go(
            _FAIL, lease, failure=Ending(failure_code, detail, retryable), lost=False, log_tail=log_tail
        )

    def release(self, lease: Lease, outcome: AttemptOutcome, *, log_tail: str) -> JobStatus:
        """Hand the job back in good order.

        The status decides where it goes, for it may have changed since the worker heard of it: a running
        job is queued at once, and keeps its place; a pausing one is paused, a cancelling one cancelled.

        Args:
            lease: the right to write.
            outcome: why the worker lets go: drained, paused or cancelled.
            log_tail: the end of its log.

        Returns:
            The status that the job has now.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
            ValueError: another outcome.
        """
        if outcome not in (AttemptOutcome.DRAINED, AttemptOutcome.PAUSED, AttemptOutcome.CANCELLED):
            raise ValueError(f"a job is released as drained, paused or cancelled, not as {outcome}")
        return self._let_go(_RELEASE, lease, failure=None, lost=False, log_tail=log_tail)

    def lose(
        self,
        lease: Lease,
        detail: str,
        *,
        backoff_seconds: float,
        failure_code: FailureCode = FailureCode.WORKER_LOST,
        log_tail: str,
    ) -> JobStatus:
        """Say that the job's process died: the job waits for another attempt, or fails if it had enough.

        Args:
            lease: of the attempt that died.
            detail: how, for people.
            backoff_seconds: wait before the second attempt; doubles with every loss.
            failure_code: what it died of.
            log_tail: the end of its log.

        Returns:
            The status that the job has now.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
        """
        return self._let_go(
            _LOSE,
            lease,
            failure=Ending(failure_code, detail, retryable=True),
            lost=True,
            log_tail=log_tail,
            values=_after_loss(backoff_seconds),
        )

    def reap(self, *, lease_seconds: float, backoff_seconds: float) -> list[str]:
        """Take jobs from workers that were silent for longer than their lease.

        The database's clock decides. If this was not called for longer than a lease, the database or
        whoever calls was away, and workers had no chance to be heard: all leases are extended once
        instead, and nothing is taken.

        Args:
            lease_seconds: of the leases in use.
            backoff_seconds: as for `lose`.

        Returns:
            Ids of the jobs that were taken.
        """
        cause = Ending(FailureCode.WORKER_LOST, "the worker fell silent for longer than its lease", retryable=True)
        with self._database.write() as connection:
            if self._was_away(connection, lease_seconds):
                _extend_all(connection, lease_seconds)
                return []
            rows = move(
                connection,
                _LOSE,
                is_held,
                jobs.c.lease_expires_at < database_now(),
                values=_after_loss(backoff_seconds),
                failure=cause,
                # What it did after its last sign of life is not known and not charged.
                held_until=jobs.c.renewed_at,
            )
            end_attempts(connection, rows, lost=True, failure=cause, log_tail=None)
            return [row["id"] for row in rows]

    def extend_all(self, seconds: float) -> None:
        """Let every lease last for `seconds` from now at least: after the database was away."""
        with self._database.write() as connection:
            _extend_all(connection, seconds)

    def _let_go(
        self,
        moves: Sequence[Move],
        lease: Lease,
        *,
        failure: Ending | None,
        lost: bool,
        log_tail: str,
        values: Mapping[str, object] | None = None,
    ) -> JobStatus:
        with self._database.write() as connection:
            rows = move(connection, moves, held_by(lease), values=values, failure=failure)
            row = only(rows)
            end_attempts(connection, rows, lost=lost, failure=failure, log_tail=log_tail)
            return JobStatus(row["status"])

    def _was_away(self, connection: Connection, lease_seconds: float) -> bool:
        """Tell whether the last reaping is longer ago than a lease, and note this one."""
        name = "reap"
        silence = connection.scalar(
            select(seconds_between(sweeps.c.at, database_now())).where(sweeps.c.name == name).with_for_update()
        )
        insertion = self._database.insert(sweeps).values(name=name, at=database_now())
        connection.execute(
            insertion.on_conflict_do_update(index_elements=[sweeps.c.name], set_={"at": insertion.excluded.at})
        )
        return silence is not None and silence > lease_seconds


def _candidate(device: str) -> Select[tuple[str]]:
    """Choose the id of the job that a worker with `device` takes next."""
    due = or_(jobs.c.not_before.is_(None), jobs.c.not_before <= database_now())
    order: list[ColumnElement[object]] = [jobs.c.queued_at, jobs.c.id]
    fits = [is_queued, due]
    if device == Device.CPU:
        fits.append(jobs.c.device != Device.CUDA.value)
    else:
        rank = {Device.CUDA.value: 0, Device.AUTO.value: 1, Device.CPU.value: 2}
        order.insert(0, case(rank, value=jobs.c.device))
    return select(jobs.c.id).where(*fits).order_by(jobs.c.priority.desc(), *order).limit(1)


def _renewed(connection: Connection, lease: Lease, lease_seconds: float) -> RowMapping:
    """Renew a lease: the first statement of every fenced write that leaves the status as it is."""
    statement = (
        update(jobs)
        .where(held_by(lease))
        .values(renewed_at=database_now(), lease_expires_at=database_now(lease_seconds))
        .returning(jobs.c.status, jobs.c.steps_done)
    )
    return only(connection.execute(statement).mappings().all())


def _checkpoints(connection: Connection, job_id: str) -> list[Checkpoint]:
    """Return the checkpoints of a job, newest first.

    The attempt comes first: one that found the newest checkpoint damaged went on from an older step.
    """
    query = (
        select(checkpoints)
        .where(checkpoints.c.job_id == job_id)
        .order_by(checkpoints.c.attempt.desc(), checkpoints.c.step.desc())
    )
    return [Checkpoint(key=row.key, sha256=row.sha256, step=row.step) for row in connection.execute(query)]


def _replace_files(connection: Connection, job_id: str, made: Sequence[FileRecord]) -> None:
    connection.execute(delete(files).where(files.c.job_id == job_id))
    if made:
        connection.execute(
            insert(files),
            [
                {
                    "job_id": job_id,
                    "name": each.name,
                    "key": each.key,
                    "sha256": each.sha256,
                    "size_bytes": each.size_bytes,
                }
                for each in made
            ],
        )


def _after_loss(backoff_seconds: float) -> dict[str, object]:
    doublings = case((jobs.c.lost_attempts < _LONGEST_DOUBLING, jobs.c.lost_attempts), else_=_LONGEST_DOUBLING)
    wait = literal(backoff_seconds, Double) * cast(literal(1).bitwise_lshift(doublings), Double)
    requeued = and_(jobs.c.status == JobStatus.RUNNING.value, jobs.c.lost_attempts + 1 < jobs.c.max_attempts)
    return {
        "lost_attempts": jobs.c.lost_attempts + 1,
        "not_before": case((requeued, database_now(wait)), else_=jobs.c.not_before),
    }


def _extend_all(connection: Connection, seconds: float) -> None:
    connection.execute(
        update(jobs)
        .where(is_held, jobs.c.lease_expires_at < database_now(seconds))
        .values(lease_expires_at=database_now(seconds))
    )
