"""Headers that tell browsers to do nothing clever with an answer."""

from typing import Final

from starlette.datastructures import MutableHeaders

_CAUTION: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Where an endpoint sets one of these itself, its own counts."""


def caution(headers: MutableHeaders) -> None:
    """Add what is not there yet."""
    for name, value in _CAUTION.items():
        headers.setdefault(name, value)
