"""Rates: a burst, then so many in so long, for each caller by itself; Redis makes them one for all processes."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis as Client

from service.rates import LocalRates, Rate, SharedRates, read_rate, shared_rates
from service.settings import Settings
from tests.workers.fleet import Redis, eventually


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 1e6

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_a_number_in_a_period() -> None:
    assert read_rate("120/minute") == Rate(120, 60)
    assert read_rate("1/day") == Rate(1, 86_400)


@pytest.mark.parametrize(
    "text", ["", "120", "0/minute", "-1/minute", "1.5/second", "120 / minute", "5/week", "١/minute"]
)
def test_what_is_no_rate_is_refused_when_settings_are_read(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="120/minute"):
        read_rate(text)
    monkeypatch.setenv("HYPERDIAL_RATE_LIMIT", text)
    with pytest.raises(ValueError, match="120/minute"):
        Settings()


def test_a_burst_is_served_and_then_one_at_a_time() -> None:
    clock = Clock()
    rates = LocalRates(Rate(3, 60), clock=clock)
    assert [rates.count("a").remaining for _ in range(3)] == [2, 1, 0]
    for _ in range(5):  # what is refused costs nothing
        refused = rates.count("a")
        assert not refused.is_served
        assert refused.retry_seconds == pytest.approx(20)
        assert refused.full_seconds == pytest.approx(60)
    assert rates.count("b").is_served
    clock.now += 19.9
    assert not rates.count("a").is_served
    clock.now += 0.1
    assert rates.count("a").is_served
    assert not rates.count("a").is_served
    clock.now += 60.0
    assert [rates.count("a").is_served for _ in range(4)] == [True, True, True, False]


@given(
    count=st.integers(1, 50),
    period=st.sampled_from([1, 60, 3600]),
    pauses=st.lists(st.floats(0, 30), min_size=1, max_size=200),
)
def test_no_stretch_of_time_has_more_than_a_burst_and_what_came_back(
    count: int, period: int, pauses: list[float]
) -> None:
    clock = Clock(0.0)
    rates = LocalRates(Rate(count, period), clock=clock)
    # The bucket itself, counted in tokens: what the moments must come to.
    tokens, filled_at = float(count), 0.0
    for pause in pauses:
        clock.now += pause
        tokens, filled_at = min(float(count), tokens + (clock.now - filled_at) * count / period), clock.now
        verdict = rates.count("a")
        if abs(tokens - 1) < 1e-6:  # rounding decides
            tokens -= verdict.is_served
            continue
        assert verdict.is_served == (tokens > 1)
        tokens -= verdict.is_served
        if abs(tokens - round(tokens)) > 1e-6:
            assert verdict.remaining == (int(tokens) if verdict.is_served else 0)


def test_callers_that_were_quiet_for_long_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.rates._MOST_BUCKETS", 10)
    clock = Clock()
    rates = LocalRates(Rate(1, 60), clock=clock)
    for number in range(10):
        rates.count(str(number))
    clock.now += 61
    assert not any(record.levelno >= logging.WARNING for record in caplog.records)
    assert rates.count("late").is_served
    assert list(rates._full_at) == ["late"]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.kill()


def shared(server: Redis, rate: Rate, clock: Clock | None = None) -> SharedRates:
    rates = shared_rates(server.url, "test:", rate)
    if clock is not None:
        rates._clock = clock
    return rates


def test_all_processes_count_in_redis(redis: Redis) -> None:
    async def play() -> None:
        first, second = shared(redis, Rate(4, 3600)), shared(redis, Rate(4, 3600))
        found = [await rates.take("a") for rates in (first, second, first, second, first, second)]
        assert [verdict.is_served for verdict in found] == [True] * 4 + [False] * 2
        assert [verdict.remaining for verdict in found[:4]] == [3, 2, 1, 0]
        assert 890 < found[5].retry_seconds <= 900
        assert (await first.take("b")).is_served
        for rates in (first, second):
            await rates.close()

    asyncio.run(play())
    with Client.from_url(redis.url) as client:
        assert 3500 < client.ttl("test:a") <= 3600  # buckets go when they are full


def test_requests_at_the_same_moment_are_counted_one_by_one(redis: Redis) -> None:
    async def play() -> int:
        rates = shared(redis, Rate(20, 3600))
        found = await asyncio.gather(*(rates.take("a") for _ in range(50)))
        await rates.close()
        return sum(verdict.is_served for verdict in found)

    assert asyncio.run(play()) == 20


def test_what_came_back_is_served(redis: Redis) -> None:
    async def play() -> None:
        rates = shared(redis, Rate(10, 1))
        served = [(await rates.take("a")).is_served for _ in range(40)]
        assert served[:10] == [True] * 10
        refused = await rates.take("a")
        if not refused.is_served:
            await asyncio.sleep(refused.retry_seconds)
        assert (await rates.take("a")).is_served
        await rates.close()

    asyncio.run(play())


def test_without_redis_each_process_counts_for_itself_and_no_request_fails(redis: Redis) -> None:
    async def play() -> None:
        clock = Clock()
        rates = shared(redis, Rate(2, 3600), clock)
        assert (await rates.take("a")).remaining == 1
        redis.kill()
        # It begins anew: rather too lenient than in the way.
        assert [(await rates.take("a")).is_served for _ in range(3)] == [True, True, False]
        redis.start()
        assert not (await rates.take("a")).is_served  # it is not asked again at once
        clock.now += 6.0
        assert [(await rates.take("a")).is_served for _ in range(3)] == [True, True, False]
        await rates.close()

    asyncio.run(play())
    with Client.from_url(redis.url) as client:
        eventually(lambda: client.exists("test:a"))


def test_a_redis_that_does_not_answer_holds_nobody_up_for_long(redis: Redis) -> None:
    async def play() -> None:
        rates = shared(redis, Rate(2, 3600))
        redis.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(5.0):
                assert (await rates.take("a")).is_served
                assert (await rates.take("a")).is_served
        finally:
            redis.process.send_signal(signal.SIGCONT)
        await rates.close()

    asyncio.run(play())
