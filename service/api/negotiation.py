"""Which of several forms of an answer a client wants (RFC 9110, 12.5.1)."""

import re
from collections.abc import Mapping
from typing import Final

from service.api.refusals import NotAcceptable

_RANGE: Final = re.compile(
    r"\s*(?P<type>[\w!#$&^.+*-]+)/(?P<subtype>[\w!#$&^.+*-]+)\s*(?P<parameters>(?:;[^,]*)?)", re.ASCII
)
_WEIGHT: Final = re.compile(r";\s*q\s*=\s*(?P<weight>[01](?:\.\d{0,3})?)\s*(?:;|$)", re.IGNORECASE | re.ASCII)


def best(accept: str | None, offered: Mapping[str, str]) -> str:
    """Return the value of the offered media type that the client likes most; the first one if it does not care.

    Raises:
        NotAcceptable: it likes none.
    """
    if accept is None or not accept.strip():
        return next(iter(offered.values()))
    weights = {media: _weight(accept, media) for media in offered}
    media = max(weights, key=lambda each: weights[each])
    if weights[media] <= 0:
        raise NotAcceptable(f"this can be had as {', '.join(offered)}")
    return offered[media]


def _weight(accept: str, media: str) -> float:
    """How much the client likes `media`: the most specific range that holds it says so."""
    major, _, minor = media.partition("/")
    precedence, weight = -1, 0.0
    for part in accept.split(","):
        match = _RANGE.match(part)
        if match is None or match["type"].lower() not in ("*", major) or match["subtype"].lower() not in ("*", minor):
            continue
        specific = (match["type"] != "*") + (match["subtype"] != "*")
        if specific > precedence:
            stated = _WEIGHT.search(match["parameters"])
            precedence, weight = specific, float(stated["weight"]) if stated else 1.0
    return weight
