"""Cursors: where a list goes on, good only for the filters that it was made with."""

import base64
import binascii
import hashlib
import re
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from service.api.refusals import BadCursor

LONGEST: Final = 512
_ID: Final = re.compile(r"[A-Za-z0-9_:]{1,64}", re.ASCII)

Before = tuple[datetime, str]
"""Creation and id of the last object that was seen: the list goes on with older ones."""


class _Content(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    created_at: datetime
    id: str
    filters: str


def encode(before: Before, filters: Hashable) -> str:
    """The cursor that goes on after `before` in a list with `filters`."""
    content = _Content(created_at=before[0], id=before[1], filters=_digest(filters))
    return base64.urlsafe_b64encode(content.model_dump_json().encode()).decode().rstrip("=")


def decode(cursor: str | None, filters: Hashable) -> Before | None:
    """Where the list goes on.

    Raises:
        BadCursor: it is none of ours, or was made with other filters.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        content = _Content.model_validate_json(text)
    except (binascii.Error, ValueError, ValidationError) as error:
        raise BadCursor from error
    if content.filters != _digest(filters) or content.created_at.tzinfo is None or not _ID.fullmatch(content.id):
        raise BadCursor
    try:
        return content.created_at.astimezone(UTC), content.id
    except OverflowError as error:  # a moment at the very edge of the calendar
        raise BadCursor from error


def _digest(filters: Hashable) -> str:
    return hashlib.sha256(repr(filters).encode("utf-8", "backslashreplace")).hexdigest()[:16]
