"""What happened to a job, merged from two tables into the one order in which it happened."""

from sqlalchemy import Connection, Integer, cast, literal, null, select, union_all
from sqlalchemy.types import Double

from service.records import EventRecord
from service.store.job_rows import point_json, rfc3339
from service.tables import events, points


def events_after(connection: Connection, job_id: str, *, after: int, limit: int) -> list[EventRecord]:
    """Return up to `limit` events with numbers above `after`.

    One statement, and so one view of the database: two would let a point overtake the status before it.
    """
    told = select(
        events.c.seq,
        events.c.kind,
        events.c.at,
        events.c.body,
        cast(null(), Integer).label("step"),
        cast(null(), Integer).label("attempt"),
        cast(null(), Double).label("elapsed_s"),
    ).where(events.c.job_id == job_id, events.c.seq > after)
    recorded = select(
        points.c.seq,
        literal("point").label("kind"),
        points.c.at,
        points.c.body,
        points.c.step,
        points.c.attempt,
        points.c.elapsed_s,
    ).where(points.c.job_id == job_id, points.c.seq > after)
    # Each part limited by itself walks its index no further than needed on both databases.
    parts = [part.order_by(part.selected_columns.seq).limit(limit).subquery() for part in (told, recorded)]
    merged = union_all(*(select(part) for part in parts)).subquery()
    rows = connection.execute(select(merged).order_by(merged.c.seq).limit(limit))
    return [
        EventRecord(
            seq=row.seq,
            kind=row.kind,
            body=row.body | {"at": rfc3339(row.at)}
            if row.kind != "point"
            else point_json(step=row.step, attempt=row.attempt, at=row.at, elapsed_s=row.elapsed_s, body=row.body),
        )
        for row in rows
    ]
