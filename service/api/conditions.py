"""ETags and preferences: what a client says about the version it has, and how long it would wait."""

import re
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Header, Query

from service.api.refusals import PreconditionRequired
from service.errors import StaleVersion

LONGEST_WAIT_SECONDS: Final = 60
"""Longer waits meet the timeouts of proxies."""

_ENTITY_TAG: Final = re.compile(r'(?P<weak>W/)?"(?P<opaque>[\x21\x23-\x7e\x80-\xff]*)"', re.ASCII)
_WAIT: Final = re.compile(r'(?:^|[,;\s])wait\s*=\s*"?(?P<seconds>\d{1,9})"?(?=\s*(?:[,;]|$))', re.IGNORECASE | re.ASCII)
_VERSION: Final = re.compile(r"[1-9]\d{0,17}|0", re.ASCII)

IfNoneMatch = Annotated[
    str | None, Header(description="ETags that the client has; 304 when one of them is current.", examples=['"7"'])
]
IfMatch = Annotated[str | None, Header(description="The ETag of what is to be changed.", examples=['"7"'])]
Prefer = Annotated[
    str | None,
    Header(description=f"`wait=N`: hold the answer back for up to N seconds, {LONGEST_WAIT_SECONDS} at most."),
]
WaitQuery = Annotated[
    int | None, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="The same as `Prefer: wait=N`.", examples=[30])
]


def etag(version: int | str) -> str:
    """The entity tag of a version, or of a hash."""
    return f'"{version}"'


def is_current(if_none_match: str | None, tag: str) -> bool:
    """Tell whether the client already has what `tag` names (RFC 9110, 13.1.2: the weak comparison)."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return any(f'"{match["opaque"]}"' == tag for match in _ENTITY_TAG.finditer(if_none_match))


def named_version(if_match: str | None) -> int | None:
    """The one version that a change is meant for; None for `*`, whichever is current.

    Raises:
        PreconditionRequired: the client did not say.
        StaleVersion: what it said is no version of ours.
    """
    if if_match is None:
        raise PreconditionRequired
    if if_match.strip() == "*":
        return None
    tags = list(_ENTITY_TAG.finditer(if_match))
    if len(tags) != 1 or tags[0]["weak"] is not None or not _VERSION.fullmatch(tags[0]["opaque"]):
        raise StaleVersion
    return int(tags[0]["opaque"])


@dataclass(frozen=True)
class Wait:
    """How long a client would wait for an answer that says more."""

    seconds: int
    is_preferred: bool
    """True when it said so by `Prefer`, and is to be told that it was heard."""

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {"Preference-Applied": f"wait={self.seconds}"} if self.is_preferred else {}


def asked_wait(prefer: str | None, query: int | None) -> Wait:
    """Read how long the client would wait: 0 seconds when it did not say so in words that are known (RFC 7240)."""
    if query is not None:
        return Wait(query, is_preferred=False)
    match = _WAIT.search(prefer or "")
    if match is None:
        return Wait(0, is_preferred=False)
    return Wait(min(int(match["seconds"]), LONGEST_WAIT_SECONDS), is_preferred=True)
