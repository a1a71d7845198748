import re

import pytest
from sqlalchemy import select, update

from service.errors import NotFound
from service.records import KeyScope
from service.store import Store
from service.store.clock import database_now
from service.tables import api_keys


def test_a_secret_is_shown_once_and_only_its_hash_is_kept(store: Store) -> None:
    key, secret = store.keys.create("ci", KeyScope.SUBMIT)
    assert re.fullmatch(r"hd_[0-9a-z]{8}_[A-Za-z0-9_-]{43}", secret)
    assert (key.name, key.scope, key.last_used_at, key.revoked_at) == ("ci", KeyScope.SUBMIT, None, None)
    with store.database.read() as connection:
        row = connection.execute(select(api_keys)).mappings().one()
    assert secret[12:] not in repr(dict(row))


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        lambda secret: secret[:-1],
        lambda secret: secret + "x",
        lambda secret: secret.replace("hd_", "hx_"),
        lambda secret: secret.replace("_", "-"),
        lambda secret: "hd_00000000_" + secret[12:],
        lambda secret: secret + "\ud800",
        lambda secret: secret + "\x00",
        lambda _: "",
        lambda _: "hd__",
        lambda _: "hd_\x00_x",
    ],
)
def test_only_the_whole_secret_opens(store: Store, change) -> None:
    key, secret = store.keys.create("ci", KeyScope.READ)
    assert store.keys.verify(change(secret)) is None
    found = store.keys.verify(secret)
    assert found is not None
    assert found.id == key.id


def test_use_is_noted_once_a_minute(store: Store) -> None:
    _, secret = store.keys.create("ci", KeyScope.READ)
    store.keys.verify(secret)
    (first,) = store.keys.list()
    assert first.last_used_at is not None
    store.keys.verify(secret)
    assert store.keys.list() == [first]
    with store.database.write() as connection:
        connection.execute(update(api_keys).values(last_used_at=database_now(-61.0)))
    store.keys.verify(secret)
    (later,) = store.keys.list()
    assert later.last_used_at is not None
    assert later.last_used_at >= first.last_used_at


def test_a_revoked_key_is_void_for_ever(store: Store) -> None:
    key, secret = store.keys.create("ci", KeyScope.ADMIN)
    revoked = store.keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert store.keys.revoke(key.id) == revoked
    assert store.keys.verify(secret) is None
    assert store.keys.list() == [revoked]
    with pytest.raises(NotFound):
        store.keys.revoke("key_x")
