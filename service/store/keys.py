"""API keys. Only a hash of the secret is kept."""

import hashlib
import hmac
import re
import secrets
from typing import Final

from sqlalchemy import RowMapping, func, insert, or_, select, update

from service.errors import NotFound
from service.identifiers import new_id
from service.records import KeyRecord, KeyScope
from service.store.clock import database_now
from service.store.database import Database
from service.tables import api_keys

_PREFIX_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PREFIX_LENGTH: Final = 8
_SECRET_BYTES: Final = 32
_FORM: Final = re.compile(rf"hd_([{_PREFIX_ALPHABET}]{{{_PREFIX_LENGTH}}})_[A-Za-z0-9_-]{{43}}")


class Keys:
    """API keys: `hd_`, eight characters that find the row, `_`, and 256 random bits in 43 characters."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def create(self, name: str, scope: KeyScope) -> tuple[KeyRecord, str]:
        """Make a key.

        Returns:
            The key, and its secret, which is not stored and cannot be shown again.
        """
        prefix = "".join(secrets.choice(_PREFIX_ALPHABET) for _ in range(_PREFIX_LENGTH))
        secret = f"hd_{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        statement = (
            insert(api_keys)
            .values(
                id=new_id("key"),
                prefix=prefix,
                secret_sha256=_digest(secret),
                name=name,
                scope=scope.value,
                created_at=database_now(),
            )
            .returning(*api_keys.c)
        )
        with self._database.write() as connection:
            return _record(connection.execute(statement).mappings().one()), secret

    def verify(self, secret: str) -> KeyRecord | None:
        """Return the key that has this secret; None when there is none, or it was revoked.

        The time that it takes tells nothing about the stored secret. That the key was used is noted once
        a minute at most, so that verifying does not write.
        """
        form = _FORM.fullmatch(secret)
        if form is None:
            return None
        used_lately = api_keys.c.last_used_at > database_now(-60.0)
        query = select(api_keys, func.coalesce(used_lately, False).label("used_lately")).where(
            api_keys.c.prefix == form[1], api_keys.c.revoked_at.is_(None)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        # An unknown prefix costs the same comparison.
        stored = _digest("") if row is None else row["secret_sha256"]
        if not hmac.compare_digest(stored, _digest(secret)) or row is None:
            return None
        if not row["used_lately"]:
            self._note_use(row["id"])
        return _record(row)

    def list(self) -> list[KeyRecord]:
        """Return all keys, oldest first, revoked ones included."""
        with self._database.read() as connection:
            query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
            return [_record(row) for row in connection.execute(query).mappings()]

    def revoke(self, key_id: str) -> KeyRecord:
        """Make a key void at once. Again: no change.

        Raises:
            NotFound: there is no such key.
        """
        statement = (
            update(api_keys)
            .where(api_keys.c.id == key_id)
            .values(revoked_at=func.coalesce(api_keys.c.revoked_at, database_now()))
            .returning(*api_keys.c)
        )
        with self._database.write() as connection:
            row = connection.execute(statement).mappings().first()
        if row is None:
            raise NotFound("there is no such key")
        return _record(row)

    def _note_use(self, key_id: str) -> None:
        unused = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= database_now(-60.0))
        with self._database.write(durable=False) as connection:
            connection.execute(
                update(api_keys).where(api_keys.c.id == key_id, unused).values(last_used_at=database_now())
            )


def _digest(secret: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess.
    return hashlib.sha256(secret.encode()).hexdigest()


def _record(row: RowMapping) -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        name=row["name"],
        scope=KeyScope(row["scope"]),
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        revoked_at=row["revoked_at"],
    )
