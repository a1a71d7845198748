"""A database that nobody has migrated is away, not broken."""

from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.store import Database, Store


def test_a_database_without_tables_says_what_to_do(tmp_path: Path):
    store = Store(Database(f"sqlite:///{tmp_path / 'empty.sqlite'}"))
    with pytest.raises(StoreUnavailable, match="hyperdial migrate"):
        store.jobs.counts()
