"""What an operator may set, by environment variables that begin with HYPERDIAL_."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.rates import read_rate


class QueueKind(StrEnum):
    """How workers hear of new jobs."""

    REDIS = "redis"
    DATABASE = "database"


class AuthKind(StrEnum):
    """Who may call the API."""

    AUTO = "auto"
    OFF = "off"
    REQUIRED = "required"


SECRETS: Final = ("database_url", "redis_url")
"""Settings that may also be given by a file."""


RATE_WORDS: Final = ("auto", "off")


def _checked_rate(text: str) -> str:
    if text not in RATE_WORDS:
        read_rate(text)
    return text


class SecretFiles(PydanticBaseSettingsSource):
    """Reads a secret from the file that `HYPERDIAL_NAME_FILE` names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        """Return the file's content without the newline at its end, or None when no file is named."""
        del field
        file = os.environ.get(f"HYPERDIAL_{field_name.upper()}_FILE") if field_name in SECRETS else None
        if not file:
            return None, field_name, False
        try:
            return Path(file).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"HYPERDIAL_{field_name.upper()}_FILE names a file that cannot be read: {file}") from error

    def __call__(self) -> dict[str, str]:
        """Return the secrets that are given by files."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """Settings of every process; read once by an entry point and passed on.

    A secret may lie in a file, as container secrets do: `HYPERDIAL_DATABASE_URL_FILE` and `HYPERDIAL_REDIS_URL_FILE`
    name it. The variable itself, where there are both, wins.
    """

    model_config = SettingsConfigDict(env_prefix="HYPERDIAL_", frozen=True, extra="ignore")

    data_dir: Path = Field(default=Path("hyperdial-data"), description="Everything that embedded mode keeps.")
    database_url: SecretStr | None = Field(default=None, description="SQLAlchemy URL; null: SQLite in the data folder.")
    files_url: str | None = Field(
        default=None,
        description="file:///…, s3://bucket/prefix or another URL of obstore; null: the data folder.",
    )
    queue: QueueKind = Field(
        default=QueueKind.REDIS,
        description="How workers hear of jobs: rung by Redis, or looking into the database.",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="redis://, rediss:// or unix://; holds no truth."
    )
    queue_name: str = Field(default="hyperdial", description="Of the queue, where several services share a Redis.")

    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8000, description="Port that the API listens on; 0: any that is free."
    )
    root_path: str = Field(default="", description="Path prefix that a proxy strips.")
    auth: AuthKind = Field(
        default=AuthKind.AUTO, description="auto: required unless the API listens on a loopback address."
    )
    upload_limit_bytes: int = Field(default=2 * 2**30, description="Largest dataset file.")
    unpacked_limit_bytes: int = Field(default=8 * 2**30, description="Largest dataset after unpacking.")
    rate_limit: Annotated[str, AfterValidator(_checked_rate)] = Field(
        default="auto",
        description="Requests of one API key, or of one address where no keys are asked for: 120/minute (or second, "
        "hour, day), or off; auto: off on a loopback address, elsewhere 1200/minute.",
    )
    max_streams: int = Field(default=200, description="Event streams open at once, for each API process.")

    lease_seconds: float = Field(default=60.0, description="How long a silent worker keeps its job.")
    heartbeat_seconds: float = Field(default=2.0, description="How often a worker renews a lease.")
    worker_timeout_seconds: float = Field(default=30.0, description="A worker silent for longer counts as offline.")
    poll_seconds: float = Field(default=1.0, description="How often workers look for jobs without being rung.")
    sweep_seconds: float = Field(default=5.0, description="How often the reconciler looks for what was lost.")
    backoff_seconds: float = Field(default=2.0, description="Wait before a lost job's second attempt; doubles.")
    grace_seconds: float = Field(default=30.0, description="Time that a runner has to save itself.")
    checkpoint_steps: int = Field(default=10, description="A checkpoint at least every so many steps.")
    checkpoint_seconds: float = Field(default=30.0, description="A checkpoint at least so often.")
    record_seconds: float = Field(default=0.25, description="Points are recorded at most this late.")
    spool_bytes: int = Field(default=64 * 2**20, description="Points kept on disk while the database is away.")
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="CPU threads of a job; null: as many as the worker may use CPUs; `hyperdial up` gives each of N "
        "workers the Nth part of them, one at least.",
    )
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=20 * 2**30, description="Copies of remote datasets kept on a machine's disk; what is in use stays."
    )
    cache_days: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="Such a copy is removed when it was not used for so long."
    )
    memory_bytes: int | None = Field(default=None, description="Host memory that a job may use; null: no limit.")
    retention_days: float | None = Field(default=None, description="Delete ended jobs after so long; null: never.")
    idempotency_hours: float = Field(default=24.0, description="How long idempotency keys are remembered.")
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then files of secrets."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, SecretFiles(settings_cls)

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
