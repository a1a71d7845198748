"""Requests that are sent again: the store decides which of them is the first."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

from fastapi import Header
from pydantic import JsonValue
from starlette.responses import Response

from service.api.answers import JSON
from service.api.auth import Caller
from service.api.refusals import BadIdempotencyKey
from service.records import StoredAnswer
from service.store import Store
from service.store.idempotency import IdempotencyClaim

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="Chosen by the client, new for each thing it wants done: a request that is sent again with the "
        "same key and body gets the first one's answer. 1 to 255 visible ASCII characters.",
        examples=["5b1f6c9e-0f3b-4d0c-9a1e-6b1f2f0c7a11"],
    ),
]

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


def fingerprint(method: str, path: str, body: JsonValue) -> str:
    """What must be the same when a key is used again; the spelling of the JSON may differ."""
    content = json.dumps([method, path, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


@contextmanager
def first_time(
    store: Store, caller: Caller, key: str | None, print_: str
) -> Iterator[IdempotencyClaim | StoredAnswer | None]:
    """Give the right to answer a request with `key`, the answer that it had before, or None without a key.

    A request that is refused or fails inside lets its key go, and may be sent again.

    Raises:
        BadIdempotencyKey, IdempotencyMismatch, IdempotencyInProgress: the key cannot be used.
    """
    if key is None:
        yield None
        return
    if not _KEY.fullmatch(key):
        raise BadIdempotencyKey
    found = store.idempotency.begin(caller.key_id or "anonymous", key, print_)
    try:
        yield found
    except BaseException:
        if isinstance(found, IdempotencyClaim):
            store.idempotency.abandon(found)
        raise


def replay(stored: StoredAnswer) -> Response:
    """The answer that the first request had, marked as such."""
    return Response(stored.body, stored.status, {**stored.headers, "Idempotency-Replayed": "true"}, JSON)
