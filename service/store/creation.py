"""A new job, with all that comes with it."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, RowMapping, insert

from service.identifiers import new_id
from service.records import JobStatus
from service.spec.job import Device, JobSpec
from service.store.clock import database_now
from service.store.transitions import ring, status_body
from service.tables import events, job_labels, jobs

_RANKS: Final = {Device.CUDA: 0, Device.AUTO: 1, Device.CPU: 2}


def insert_job(connection: Connection, spec: JobSpec) -> RowMapping:
    """Insert a queued job with its labels, its first event and its ring; return the row."""
    job_id = new_id("job")
    now = database_now()
    statement = (
        insert(jobs)
        .values(
            id=job_id,
            name=spec.name,
            labels=dict(spec.labels),
            priority=spec.priority,
            status=JobStatus.QUEUED.value,
            spec=spec.model_dump(mode="json"),
            method=spec.method.kind,
            device=spec.resources.device.value,
            device_rank=_RANKS[spec.resources.device],
            dataset=spec.data.dataset,
            weights_dataset=spec.weights_dataset,
            version=1,
            seq=1,
            attempt=0,
            lost_attempts=0,
            max_attempts=spec.max_attempts,
            steps_done=0,
            steps_before=0,
            steps_of=spec.budget.outer_steps,
            run_seconds=0.0,
            created_at=now,
            queued_at=now,
        )
        .returning(*jobs.c)
    )
    row = connection.execute(statement).mappings().one()
    insert_labels(connection, job_id, spec.labels)
    connection.execute(
        insert(events).values(job_id=job_id, seq=row["seq"], kind="status", body=status_body(row), at=row["created_at"])
    )
    ring(connection, [job_id])
    return row


def insert_labels(connection: Connection, job_id: str, labels: Mapping[str, str]) -> None:
    """Insert the labels of a job where the search for them looks."""
    if labels:
        connection.execute(
            insert(job_labels), [{"job_id": job_id, "key": key, "value": value} for key, value in labels.items()]
        )
