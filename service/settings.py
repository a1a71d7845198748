"""What an operator may set, by environment variables that begin with HYPERDIAL_."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class QueueKind(StrEnum):
    """How workers hear of new jobs."""

    REDIS = "redis"
    DATABASE = "database"


class AuthKind(StrEnum):
    """Who may call the API."""

    AUTO = "auto"
    OFF = "off"
    REQUIRED = "required"


class Settings(BaseSettings):
    """Settings of every process; read once by an entry point and passed on.

    `NAME_FILE` beside any secret names a file to read it from, as container secrets do it.
    """

    model_config = SettingsConfigDict(env_prefix="HYPERDIAL_", frozen=True, extra="ignore")

    data_dir: Path = Field(default=Path("hyperdial-data"), description="Everything that embedded mode keeps.")
    database_url: SecretStr | None = Field(default=None, description="SQLAlchemy URL; null: SQLite in the data folder.")
    files_url: str | None = Field(
        default=None,
        description="file:///…, s3://bucket/prefix or another URL of obstore; null: the data folder.",
    )
    queue: QueueKind = QueueKind.REDIS
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    queue_name: str = "hyperdial"

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    root_path: str = Field(default="", description="Path prefix that a proxy strips.")
    auth: AuthKind = Field(
        default=AuthKind.AUTO, description="auto: required unless the API listens on a loopback address."
    )
    upload_limit_bytes: int = Field(default=2 * 2**30, description="Largest dataset file.")
    unpacked_limit_bytes: int = Field(default=8 * 2**30, description="Largest dataset after unpacking.")
    max_streams: int = Field(default=200, description="Event streams open at once, for each API process.")

    lease_seconds: float = Field(default=60.0, description="How long a silent worker keeps its job.")
    heartbeat_seconds: float = Field(default=2.0, description="How often a worker renews a lease.")
    worker_timeout_seconds: float = Field(default=30.0, description="A worker silent for longer counts as offline.")
    poll_seconds: float = Field(default=1.0, description="How often workers look for jobs without being rung.")
    sweep_seconds: float = Field(default=5.0, description="How often the reconciler looks for what was lost.")
    backoff_seconds: float = Field(default=2.0, description="Wait before a lost job's second attempt; doubles.")
    grace_seconds: float = Field(default=30.0, description="Time that a runner has to save itself.")
    checkpoint_steps: int = 10
    checkpoint_seconds: float = 30.0
    record_seconds: float = Field(default=0.25, description="Points are recorded at most this late.")
    spool_bytes: int = Field(default=64 * 2**20, description="Points kept on disk while the database is away.")
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="CPU threads of a job; null: as many as the worker may use."
    )
    memory_bytes: int | None = Field(default=None, description="Host memory that a job may use; null: no limit.")
    retention_days: float | None = Field(default=None, description="Delete ended jobs after so long; null: never.")
    idempotency_hours: float = 24.0
    log_level: str = "INFO"

    @property
    def database(self) -> str:
        """The database's SQLAlchemy URL."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'hyperdial.sqlite').absolute()}"

    @property
    def files(self) -> str:
        """The file store's URL."""
        return self.files_url or (self.data_dir / "files").absolute().as_uri()
