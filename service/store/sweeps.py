"""When something was last done, by the database's clock."""

from sqlalchemy import Connection, select

from service.store.clock import database_now, seconds_between
from service.store.database import Database
from service.tables import sweeps


def last(connection: Connection, name: str) -> float | None:
    """Return the seconds since `name` was noted; None when it never was."""
    return connection.scalar(select(seconds_between(sweeps.c.at, database_now())).where(sweeps.c.name == name))


def note(connection: Connection, database: Database, name: str) -> None:
    """Note that `name` was done now, within a transaction that writes."""
    statement = database.insert(sweeps).values(name=name, at=database_now())
    connection.execute(
        statement.on_conflict_do_update(index_elements=[sweeps.c.name], set_={"at": statement.excluded.at})
    )
