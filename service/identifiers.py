"""Identifiers: a prefix that says what it is, and a number that sorts by time."""

from typing import Final

import uuid_utils

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: its characters sort as their values do, and none is easily misread."""

_DIGITS: Final = 26  # 26 · 5 bits ≥ the 128 bits of a UUID


def new_id(prefix: str) -> str:
    """Return `prefix_` and 26 characters, which sort by the time of the call within a process.

    The characters are a UUID of version 7 (RFC 9562, 5.7): milliseconds first, then random bits, so
    that identifiers made on several machines never meet and sort as well as their clocks agree.
    """
    number = uuid_utils.uuid7().int
    digits = [_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_DIGITS))]
    return f"{prefix}_{''.join(digits)}"
