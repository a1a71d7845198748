"""How often one caller may ask: counted where it is found out who calls, told in headers of the answer.

Source of the headers: draft-ietf-httpapi-ratelimit-headers-10.
"""

import ipaddress
import math
from typing import Final

from starlette.requests import Request

from service.api.refusals import RateExceeded
from service.api.requests import trace_of
from service.loopback import is_loopback
from service.rates import LocalRates, Rate, Rates, Verdict, read_rate, shared_rates
from service.settings import QueueKind, Settings

_DEFAULT: Final = Rate(1200, 60)
_IPV6_PREFIX: Final = 64
"""Bits of an address that name a customer; the others are the customer's to choose."""


def rate_of(settings: Settings) -> Rate | None:
    """Return the rate that one caller may ask at; None for no limit."""
    match settings.rate_limit:
        case "off":
            return None
        case "auto":
            return None if is_loopback(settings.host) else _DEFAULT
        case text:
            return read_rate(text)


def make_rates(settings: Settings) -> Rates | None:
    """Return what counts requests, shared by all API processes if they share a Redis; None for no limit."""
    rate = rate_of(settings)
    if rate is None:
        return None
    if settings.queue is QueueKind.DATABASE:
        return LocalRates(rate)
    return shared_rates(settings.redis_url.get_secret_value(), f"hyperdial:{settings.queue_name}:rate:", rate)


async def count_key(request: Request, key_id: str) -> None:
    """Count a request of an API key.

    Raises:
        RateExceeded: it is one too many.
    """
    await _count(request, f"key:{key_id}", whose="this API key")


async def count_address(request: Request) -> None:
    """Count a request of somebody without a key that is known.

    Raises:
        RateExceeded: it is one too many.
    """
    host = request.client.host if request.client is not None else ""  # none on a socket file
    await _count(request, f"address:{_customer(host)}", whose="this address")


async def _count(request: Request, who: str, *, whose: str) -> None:
    rates: Rates | None = request.app.state.rates
    if rates is None:
        return
    verdict = await rates.take(who)
    trace_of(request.scope).headers.update(_headers(verdict))
    if not verdict.is_served:
        raise RateExceeded(verdict, whose=whose)


def _headers(verdict: Verdict) -> dict[str, str]:
    rate = verdict.rate
    return {
        "RateLimit-Policy": f'"default";q={rate.count};w={rate.period_seconds}',
        "RateLimit": f'"default";r={verdict.remaining};t={math.ceil(verdict.full_seconds)}',
    }


def _customer(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_PREFIX), strict=False))
