"""The database's clock, the only one that leases are judged by."""

from datetime import datetime

from sqlalchemy import ColumnElement, Double, Float, cast, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.tables import UTCDateTime


class database_now(FunctionElement[datetime]):  # noqa: N801  (reads as the SQL function that it is)
    """The moment at which the database evaluates this, and `after` seconds.

    On PostgreSQL it is `clock_timestamp()`, not `now()`: a writer that waited for a lock renews its
    lease from the moment at which it got the lock. SQLite's clock has milliseconds.
    """

    type = UTCDateTime()
    inherit_cache = True
    name = "database_now"

    def __init__(self, after: ColumnElement[float] | float = 0.0) -> None:
        """Take the seconds to add, as a number or an expression over columns."""
        seconds = cast(literal(after, Float), Double) if isinstance(after, int | float) else cast(after, Double)
        FunctionElement.__init__(self, seconds)


@compiles(database_now, "postgresql")
def _now_of_postgresql(element: database_now, compiler: SQLCompiler, **_: object) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses)}))"


@compiles(database_now, "sqlite")
def _now_of_sqlite(element: database_now, compiler: SQLCompiler, **_: object) -> str:
    seconds = compiler.process(element.clauses)
    # The three zeros make it as wide as the text in which SQLAlchemy stores a moment, so that they compare.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {seconds}))"


class seconds_between(FunctionElement[float]):  # noqa: N801
    """Seconds from one moment to a later one; 0 when the clock was set back in between."""

    type = Double()
    inherit_cache = True
    name = "seconds_between"

    def __init__(self, start: ColumnElement[datetime], end: ColumnElement[datetime]) -> None:
        """Take two moments."""
        FunctionElement.__init__(self, start, end)


@compiles(seconds_between, "postgresql")
def _seconds_of_postgresql(element: seconds_between, compiler: SQLCompiler, **_: object) -> str:
    start, end = (compiler.process(clause) for clause in element.clauses)
    return f"greatest(0.0, CAST(EXTRACT(EPOCH FROM ({end} - {start})) AS DOUBLE PRECISION))"


@compiles(seconds_between, "sqlite")
def _seconds_of_sqlite(element: seconds_between, compiler: SQLCompiler, **_: object) -> str:
    start, end = (compiler.process(clause) for clause in element.clauses)
    return f"max(0.0, (julianday({end}) - julianday({start})) * 86400.0)"
