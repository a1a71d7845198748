"""The tables, the same on SQLite and PostgreSQL. Only `service.store` and the migrations use them."""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware moment, in UTC on the way out.

    SQLite keeps it as text of one width (`2026-01-31 12:00:00.000000`), which compares as the moments do.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse a moment without a time zone, which would mean another moment on another machine."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone: use datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give back an aware moment in UTC, whatever the session's time zone is."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Null in Python is NULL in the database, not the JSON word null.
_Json = JSON(none_as_null=True)

# SQLite numbers rows by themselves only in a column declared INTEGER.
_Serial = BigInteger().with_variant(Integer(), "sqlite")

_IS_HELD = "status IN ('running', 'pausing', 'cancelling')"

jobs: Final = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("labels", _Json, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("spec", _Json, nullable=False),
    Column("method", String(64), nullable=False),
    Column("device", String(16), nullable=False),
    # In which order a worker with a GPU takes jobs of one priority: those that need it, may use it, do not.
    Column("device_rank", SmallInteger, nullable=False),
    Column("dataset", String(128), nullable=False),
    # What a transferred model starts from; null for all others.
    Column("weights_dataset", String(128)),
    # What a client sees change: the version with everything, the number of events with every event.
    Column("version", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("lost_attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    # The lease: who holds the job, since when, until when, and the last sign of life.
    Column("worker_id", String(64)),
    Column("held_since", UTCDateTime),
    Column("renewed_at", UTCDateTime),
    Column("lease_expires_at", UTCDateTime),
    Column("steps_done", Integer, nullable=False),
    # What steps_done was before the last batch: an UPDATE can return only new values, and needs the old one.
    Column("steps_before", Integer, nullable=False),
    Column("steps_of", Integer, nullable=False),
    Column("run_seconds", Double, nullable=False),
    Column("latest", _Json),
    Column("latest_at", UTCDateTime),
    Column("result", _Json),
    Column("failure_code", String(32)),
    Column("failure_detail", Text),
    Column("failure_retryable", Boolean),
    Column("created_at", UTCDateTime, nullable=False),
    Column("queued_at", UTCDateTime),
    Column("not_before", UTCDateTime),
    Column("started_at", UTCDateTime),
    Column("ended_at", UTCDateTime),
    CheckConstraint(
        "status IN ('queued', 'running', 'pausing', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled')",
        name="status",
    ),
    # A job has a lease exactly while a worker holds it.
    CheckConstraint(f"({_IS_HELD}) = (lease_expires_at IS NOT NULL)", name="lease"),
    CheckConstraint("(status = 'failed') = (failure_code IS NOT NULL)", name="failure"),
)
Index("ix_jobs_created_at", jobs.c.created_at, jobs.c.id)
Index("ix_jobs_status", jobs.c.status, jobs.c.created_at, jobs.c.id)
Index("ix_jobs_method", jobs.c.method, jobs.c.created_at, jobs.c.id)
Index("ix_jobs_dataset", jobs.c.dataset)
Index("ix_jobs_weights_dataset", jobs.c.weights_dataset)
Index("ix_jobs_ended_at", jobs.c.ended_at)
# The orders in which jobs are claimed, without and with a GPU; they hold waiting jobs only and so stay small.
Index(
    "ix_jobs_queue",
    jobs.c.priority.desc(),
    jobs.c.queued_at,
    jobs.c.id,
    postgresql_where=text("status = 'queued'"),
    sqlite_where=text("status = 'queued'"),
)
Index(
    "ix_jobs_gpu_queue",
    jobs.c.priority.desc(),
    jobs.c.device_rank,
    jobs.c.queued_at,
    jobs.c.id,
    postgresql_where=text("status = 'queued'"),
    sqlite_where=text("status = 'queued'"),
)
# Held jobs, for the reaper. The lease itself is in no index: PostgreSQL then renews it without touching one.
Index(
    "ix_jobs_held",
    jobs.c.id,
    postgresql_where=text(_IS_HELD),
    sqlite_where=text(_IS_HELD),
)


def _job_column() -> Column[str]:
    return Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


job_labels: Final = Table(
    "job_labels",
    metadata,
    _job_column(),
    Column("key", String(64), primary_key=True),
    Column("value", String(256), nullable=False),
    Index("ix_job_labels_key_value", "key", "value", "job_id"),
    sqlite_with_rowid=False,
)

points: Final = Table(
    "points",
    metadata,
    _job_column(),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", UTCDateTime, nullable=False),
    Column("elapsed_s", Double, nullable=False),
    Column("body", _Json, nullable=False),
    UniqueConstraint("job_id", "seq"),
    CheckConstraint("step >= 0", name="step"),
    sqlite_with_rowid=False,
)

events: Final = Table(
    "events",
    metadata,
    _job_column(),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("body", _Json, nullable=False),
    Column("at", UTCDateTime, nullable=False),
    sqlite_with_rowid=False,
)

attempts: Final = Table(
    "attempts",
    metadata,
    _job_column(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", String(64), nullable=False),
    Column("host", Text, nullable=False),
    Column("device", String(64), nullable=False),
    Column("started_at", UTCDateTime, nullable=False),
    Column("ended_at", UTCDateTime),
    Column("outcome", String(16)),
    Column("failure_code", String(32)),
    Column("failure_detail", Text),
    Column("failure_retryable", Boolean),
    Column("steps_from", Integer, nullable=False),
    Column("log_tail", Text, nullable=False),
    sqlite_with_rowid=False,
)

checkpoints: Final = Table(
    "checkpoints",
    metadata,
    _job_column(),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("key", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    sqlite_with_rowid=False,
)

files: Final = Table(
    "files",
    metadata,
    _job_column(),
    Column("name", String(256), primary_key=True),
    Column("key", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

datasets: Final = Table(
    "datasets",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("format", String(32), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("columns", _Json, nullable=False),
    Column("is_sparse", Boolean, nullable=False),
    Column("nonzeros", BigInteger),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("key", Text, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    UniqueConstraint("sha256", "format"),
    Index("ix_datasets_created_at", "created_at", "id"),
    Index("ix_datasets_name", "name"),
)

workers: Final = Table(
    "workers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("device", String(64), nullable=False),
    Column("device_name", Text, nullable=False),
    Column("version", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("job_id", String(64)),
    Column("started_at", UTCDateTime, nullable=False),
    Column("heartbeat_at", UTCDateTime, nullable=False),
)

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("prefix", String(16), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Column("last_used_at", UTCDateTime),
    Column("revoked_at", UTCDateTime),
    UniqueConstraint("prefix"),
)

idempotency_keys: Final = Table(
    "idempotency_keys",
    metadata,
    Column("scope_key", String(128), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("fingerprint", String(128), nullable=False),
    # Names the request that is being answered; another that took over after an expiry has another.
    Column("token", String(64), nullable=False),
    Column("busy_until", UTCDateTime, nullable=False),
    Column("answered_at", UTCDateTime),
    Column("status", Integer),
    Column("headers", _Json),
    Column("body", Text),
    Column("created_at", UTCDateTime, nullable=False),
    Index("ix_idempotency_keys_created_at", "created_at"),
)

outbox: Final = Table(
    "outbox",
    metadata,
    Column("id", _Serial, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("subject", Text, nullable=False),
    Column("created_at", UTCDateTime, nullable=False),
    Index("ix_outbox_subject", "kind", "subject"),
    sqlite_autoincrement=True,
)

leaders: Final = Table(
    "leaders",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", String(128), nullable=False),
    Column("expires_at", UTCDateTime, nullable=False),
)

sweeps: Final = Table(
    "sweeps",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("at", UTCDateTime, nullable=False),
)
