"""Answers kept for requests that are sent again with the same key."""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, or_, select, update

from service.errors import IdempotencyInProgress, IdempotencyMismatch
from service.identifiers import new_id
from service.records import StoredAnswer
from service.store.clock import database_now
from service.store.database import Database
from service.tables import idempotency_keys as keys


@dataclass(frozen=True)
class IdempotencyClaim:
    """The right to answer the first request with a key."""

    scope_key: str
    """Whose keys: the same key of another API key is another."""
    key: str
    token: str


class Idempotency:
    """One row a key; that it is unique decides races."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def begin(
        self, scope_key: str, key: str, fingerprint: str, *, busy_seconds: float = 60.0
    ) -> IdempotencyClaim | StoredAnswer:
        """Take a key for a request, or return what the first request with it was answered.

        Args:
            scope_key: whose keys.
            key: what the client sent, 1 to 255 characters.
            fingerprint: of method, path and body.
            busy_seconds: after so long without an answer the request is taken for dead, and its
                repetition let in.

        Raises:
            IdempotencyMismatch: the key came with another fingerprint.
            IdempotencyInProgress: the first request is being answered.
        """
        token = new_id("idem")
        until = database_now(busy_seconds)
        insertion = self._database.insert(keys).values(
            scope_key=scope_key,
            key=key,
            fingerprint=fingerprint,
            token=token,
            busy_until=until,
            created_at=database_now(),
        )
        # Without an answer and overdue: the process that took it is gone.
        taken = insertion.on_conflict_do_update(
            index_elements=[keys.c.scope_key, keys.c.key],
            set_={"token": token, "busy_until": until, "fingerprint": fingerprint},
            where=keys.c.answered_at.is_(None) & (keys.c.busy_until < database_now()),
        ).returning(keys.c.token)
        mine = [keys.c.scope_key == scope_key, keys.c.key == key]
        with self._database.write(durable=False) as connection:
            if connection.scalar(taken) is not None:
                return IdempotencyClaim(scope_key, key, token)
            row = connection.execute(select(keys).where(*mine)).mappings().first()
        if row is None:
            raise IdempotencyInProgress  # abandoned between the two statements: the next try takes it
        if row["fingerprint"] != fingerprint:
            raise IdempotencyMismatch
        if row["answered_at"] is None:
            raise IdempotencyInProgress
        return StoredAnswer(status=row["status"], headers=row["headers"], body=row["body"])

    def finish(self, claim: IdempotencyClaim, answer: StoredAnswer) -> None:
        """Store the answer of a request that made no job.

        Raises:
            IdempotencyInProgress: the request took so long that a repetition of it was let in.
        """
        with self._database.write() as connection:
            answer_once(connection, claim, answer)

    def abandon(self, claim: IdempotencyClaim) -> None:
        """Let the key go: the request was refused or failed, and may be sent again with this key."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                delete(keys).where(
                    keys.c.scope_key == claim.scope_key,
                    keys.c.key == claim.key,
                    keys.c.token == claim.token,
                    keys.c.answered_at.is_(None),
                )
            )


def answer_once(connection: Connection, claim: IdempotencyClaim, answer: StoredAnswer) -> None:
    """Store an answer within the running transaction, if the claim still stands.

    Raises:
        IdempotencyInProgress: it does not; what else the transaction did must not be.
    """
    changed = connection.execute(
        update(keys)
        .where(
            keys.c.scope_key == claim.scope_key,
            keys.c.key == claim.key,
            keys.c.token == claim.token,
            keys.c.answered_at.is_(None),
        )
        .values(answered_at=database_now(), status=answer.status, headers=dict(answer.headers), body=answer.body)
    )
    if changed.rowcount != 1:
        raise IdempotencyInProgress


def forget_answers(connection: Connection, *, hours: float) -> None:
    """Delete keys that were first used longer ago than `hours`, within the running transaction."""
    connection.execute(
        delete(keys).where(
            keys.c.created_at < database_now(-3600.0 * hours),
            or_(keys.c.answered_at.is_not(None), keys.c.busy_until < database_now()),
        )
    )
