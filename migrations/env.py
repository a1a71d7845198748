"""Run by Alembic: for `service.store.schema`, which brings a connection, or for its command line."""

from typing import Literal

from alembic import context
from sqlalchemy import Connection

from service.settings import Settings
from service.store.database import Database
from service.tables import UTCDateTime, metadata


def render(kind: str, item: object, _: object) -> str | Literal[False]:
    """Write our type of moments as the plain one: migrations outlive the code of their day."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UTCDateTime) else False


def run(connection: Connection) -> None:
    """Run the migrations that Alembic was asked for, in the transaction of `connection` if it has one."""
    # SQLite can alter little: batches copy a table into its new form.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        compare_type=True,
        render_item=render,
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
elif context.is_offline_mode():
    raise SystemExit("migrations look at the database that they change: leave out --sql")
else:
    with Database(Settings().database).migrate() as own:
        run(own)
