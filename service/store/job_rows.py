"""Rows of jobs and points, as values."""

from datetime import datetime

from sqlalchemy import RowMapping

from service.records import (
    AttemptOutcome,
    AttemptRecord,
    Failure,
    FailureCode,
    JobRecord,
    JobStatus,
    JsonObject,
    PointRecord,
    StatusReason,
)


def rfc3339(moment: datetime) -> str:
    """Return a moment in UTC as the contract writes it, `2026-01-31T12:00:00.5Z`."""
    return moment.isoformat().replace("+00:00", "Z")


def point_json(*, step: int, attempt: int, at: datetime, elapsed_s: float, body: JsonObject) -> JsonObject:
    """Return the contract's trajectory point."""
    return {"step": step, "attempt": attempt, "at": rfc3339(at), "elapsed_s": elapsed_s, **body}


def point_record(row: RowMapping) -> PointRecord:
    """Return a row of the table of points as a value."""
    return PointRecord(
        step=row["step"], attempt=row["attempt"], at=row["at"], elapsed_s=row["elapsed_s"], body=row["body"]
    )


def failure_of(row: RowMapping, attempt: int) -> Failure | None:
    """Return the failure in a row of jobs or attempts."""
    if row["failure_code"] is None:
        return None
    return Failure(
        code=FailureCode(row["failure_code"]),
        detail=row["failure_detail"],
        attempt=attempt,
        retryable=row["failure_retryable"],
    )


def job_record(row: RowMapping, reason: StatusReason | None) -> JobRecord:
    """Return a row of the table of jobs as a value."""
    latest: JsonObject | None = row["latest"]
    return JobRecord(
        id=row["id"],
        name=row["name"],
        labels=row["labels"],
        priority=row["priority"],
        status=JobStatus(row["status"]),
        status_reason=reason,
        failure=failure_of(row, row["attempt"]),
        spec=row["spec"],
        method=row["method"],
        version=row["version"],
        attempt=row["attempt"],
        lost_attempts=row["lost_attempts"],
        max_attempts=row["max_attempts"],
        worker_id=row["worker_id"],
        steps_done=row["steps_done"],
        steps_of=row["steps_of"],
        run_seconds=row["run_seconds"],
        # The moment is the database's, and kept in a column of its own.
        latest=None if latest is None else latest | {"at": rfc3339(row["latest_at"])},
        result=row["result"],
        created_at=row["created_at"],
        queued_at=row["queued_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
    )


def attempt_record(row: RowMapping) -> AttemptRecord:
    """Return a row of the table of attempts as a value."""
    return AttemptRecord(
        number=row["number"],
        worker_id=row["worker_id"],
        host=row["host"],
        device=row["device"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        outcome=None if row["outcome"] is None else AttemptOutcome(row["outcome"]),
        failure=failure_of(row, row["number"]),
        steps_from=row["steps_from"],
        log_tail=row["log_tail"],
    )
