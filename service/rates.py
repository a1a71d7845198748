"""How often somebody may ask: a token bucket for each caller, in Redis where there is one, else in this process.

A bucket holds as many requests as the rate allows in its period, and fills at that rate: whoever was quiet may send a
burst. It is kept as one moment, the one at which it will be full again; each request moves that moment on by the time
that one request takes to come back, and one that would move it further than a period away is refused. That is the
Generic Cell Rate Algorithm (ITU-T I.371, annex A), which needs neither a timer nor a list of requests.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

_PERIODS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_RATE: Final = re.compile(rf"(?P<count>[1-9]\d{{0,8}})/(?P<period>{'|'.join(_PERIODS)})", re.ASCII)

_MOST_BUCKETS: Final = 50_000
"""In one process; buckets that are full again are forgotten before there are more."""

_REDIS_SECONDS: Final = 0.2
"""How long a request may be held up by a Redis that does not answer."""

_AWAY_SECONDS: Final = 5.0
"""How long it is not asked again then."""


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds."""

    count: int
    period_seconds: int


def read_rate(text: str) -> Rate:
    """Read `120/minute`.

    Raises:
        ValueError: it is no rate.
    """
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"a rate is a number, a slash and one of {', '.join(_PERIODS)}, as in 120/minute")
    return Rate(int(match["count"]), _PERIODS[match["period"]])


@dataclass(frozen=True)
class Verdict:
    """Whether a request may be served, and what is left."""

    rate: Rate
    is_served: bool
    remaining: int
    """Requests that may follow at once."""
    full_seconds: float
    """Until the bucket is full again, if none follows."""
    retry_seconds: float
    """Until a refused request would be served; 0 for one that is."""

    @classmethod
    def of(cls, rate: Rate, filling_seconds: float) -> "Verdict":
        """Return the verdict on a request after which the bucket would take so long to be full again."""
        cost = rate.period_seconds / rate.count
        # Half a microsecond for the rounding of moments: the last request of a burst is not refused for it.
        excess = filling_seconds - rate.period_seconds
        if excess > 5e-7:
            left = filling_seconds - cost
            return cls(rate, is_served=False, remaining=0, full_seconds=left, retry_seconds=excess)
        remaining = max(0, math.floor(-excess / cost + 1e-6))
        return cls(rate, is_served=True, remaining=remaining, full_seconds=filling_seconds, retry_seconds=0.0)


class Rates(Protocol):
    """Says of each request whether it may be served."""

    async def take(self, who: str) -> Verdict:
        """Count a request of `who`; one that is refused costs nothing. Never fails."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@final
class LocalRates:
    """Buckets of this process."""

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the rate of every caller."""
        self._rate = rate
        self._clock = clock
        self._cost = rate.period_seconds / rate.count
        self._lock = threading.Lock()
        self._full_at: dict[str, float] = {}

    async def take(self, who: str) -> Verdict:
        """Count a request."""
        return self.count(who)

    def count(self, who: str) -> Verdict:
        """Count a request."""
        with self._lock:
            now = self._clock()
            full_at = max(now, self._full_at.get(who, now)) + self._cost
            verdict = Verdict.of(self._rate, full_at - now)
            if verdict.is_served:
                if who not in self._full_at and len(self._full_at) >= _MOST_BUCKETS:
                    self._forget(now)
                self._full_at[who] = full_at
            return verdict

    async def close(self) -> None:
        """Nothing to let go of."""

    def _forget(self, now: float) -> None:
        self._full_at = {who: full_at for who, full_at in self._full_at.items() if full_at > now}
        if len(self._full_at) >= _MOST_BUCKETS:
            # More callers than a limit for each of them can help against.
            log.warning("Rate limits were forgotten: too many callers at once", extra={"callers": len(self._full_at)})
            self._full_at.clear()


_COUNT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, period = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = math.max(now, tonumber(redis.call('GET', KEYS[1]) or now)) + cost
local filling = full_at - now
if filling <= period + 0.5 then
    redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', math.ceil(filling / 1000))
end
return string.format('%.3f', filling)
"""
"""Redis' own clock, in microseconds, counts for all; a full bucket is no key."""


@final
class SharedRates:
    """Buckets in Redis, the same for all API processes; while it is away, each process counts for itself."""

    def __init__(self, redis: "Redis", prefix: str, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a client that fails fast, and what its keys begin with; connect with the first request, not here."""
        self._redis = redis
        self._prefix = prefix
        self._rate = rate
        self._clock = clock
        self._local = LocalRates(rate, clock=clock)
        self._count = redis.register_script(_COUNT)
        self._away_until = -math.inf

    async def take(self, who: str) -> Verdict:
        """Count a request, in Redis if it answers in time."""
        from redis.exceptions import RedisError

        if self._clock() < self._away_until:
            return self._local.count(who)
        period = 1_000_000 * self._rate.period_seconds
        try:
            filling = await self._count(keys=[self._prefix + who], args=[period / self._rate.count, period])
        except (RedisError, OSError) as error:
            if self._away_until == -math.inf:
                log.warning("Redis is away: rates are limited by each process", extra={"error": type(error).__name__})
            self._away_until = self._clock() + _AWAY_SECONDS
            return self._local.count(who)
        self._away_until = -math.inf
        return Verdict.of(self._rate, float(filling) / 1_000_000)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def shared_rates(url: str, prefix: str, rate: Rate) -> SharedRates:
    """Return buckets in the Redis at `url`."""
    # Here, not above: most API processes limit no rates, and need no client of their own.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    client = Redis.from_url(
        url,
        socket_connect_timeout=_REDIS_SECONDS,
        socket_timeout=_REDIS_SECONDS,
        # Once more at once: after a restart of Redis the first use of a pooled connection finds it closed.
        retry=Retry(NoBackoff(), retries=1),
        client_name="hyperdial",
    )
    return SharedRates(client, prefix, rate)
