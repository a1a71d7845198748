"""Settings come from the environment, and secrets also from files."""

from pathlib import Path

import pytest

from service.settings import SECRETS, Settings


def test_a_secret_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "database_url"
    file.write_text("postgresql://me:secret@db/x\n")
    monkeypatch.delenv("HYPERDIAL_DATABASE_URL", raising=False)
    monkeypatch.setenv("HYPERDIAL_DATABASE_URL_FILE", str(file))
    settings = Settings()
    assert settings.database == "postgresql://me:secret@db/x"
    assert "secret" not in repr(settings)
    assert "database_url" in settings.model_fields_set


def test_the_variable_itself_wins_over_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDIAL_REDIS_URL_FILE", str(tmp_path / "unread"))
    (tmp_path / "unread").write_text("redis://file/0")
    monkeypatch.setenv("HYPERDIAL_REDIS_URL", "redis://variable/0")
    assert Settings().redis_url.get_secret_value() == "redis://variable/0"


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDIAL_DATABASE_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="HYPERDIAL_DATABASE_URL_FILE names a file that cannot be read"):
        Settings()


def test_every_secret_can_be_given_by_a_file() -> None:
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret == set(SECRETS)
