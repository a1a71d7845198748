"""Redis rings; whatever happens to it, it only costs time."""

import json
import subprocess
import sys
import time
from threading import Event

import pytest
from redis import Redis as Client
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from service.errors import QueueUnavailable
from service.queue import RING, RedisBell, SilentBell, make_bell
from service.settings import QueueKind, Settings
from tests.workers.fleet import ROOT, Redis
from workers.bell import DeafListener, RedisListener, RefusedMessage, RingJob, make_listener

NAME = "work"


@pytest.fixture
def listener(redis_server: Redis) -> RedisListener:
    return RedisListener(redis_server.url, NAME, Event())


@pytest.fixture
def bell(redis_server: Redis) -> RedisBell:
    return RedisBell(redis_server.url, NAME)


@pytest.fixture
def client(redis_server: Redis) -> Client:
    return Client.from_url(redis_server.url)


def test_a_ring_is_heard_at_once(bell: RedisBell, listener: RedisListener) -> None:
    bell.ring()
    began = time.monotonic()
    assert listener.wait(5.0)
    assert time.monotonic() - began < 0.5
    assert not listener.wait(1.0)


def test_what_was_heard_leaves_nothing_in_redis(bell: RedisBell, listener: RedisListener, client: Client) -> None:
    for _ in range(3):
        bell.ring()
        assert listener.wait(5.0)
    assert client.keys("rq:job:*") + client.keys("rq:queue:*") == []


def test_rings_that_nobody_hears_do_not_pile_up(bell: RedisBell, client: Client) -> None:
    for _ in range(300):
        bell.ring()
    assert client.llen(f"rq:queue:{NAME}") == 256


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("os.system", ("touch owned",)), ("builtins.exec", ("import os",)), (RING, (1,)), ("workers.bell.make_bell", ())],
)
def test_a_message_may_name_nothing_but_the_bell(
    function: str, arguments: tuple[object, ...], client: Client, listener: RedisListener
) -> None:
    Queue(NAME, connection=client, serializer=JSONSerializer).enqueue(function, *arguments)
    assert not listener.wait(1.0)
    assert listener.is_listening


def test_a_message_may_name_no_callback_and_no_instance(client: Client) -> None:
    job = RingJob.create(RING, connection=client, serializer=JSONSerializer)
    job._success_callback_name = job._failure_callback_name = job._stopped_callback_name = "os.system"
    assert job.success_callback is job.failure_callback is job.stopped_callback is None
    job.instance = "text"
    with pytest.raises(RefusedMessage):
        _ = job.func


@pytest.mark.parametrize("data", [b"\x80\x04cos\nsystem\n.", b"not json", b"[1]", b"{}", b"[null, null, [], {}]"])
def test_a_malformed_message_is_refused(data: bytes, client: Client, listener: RedisListener, bell: RedisBell) -> None:
    client.hset("rq:job:x", mapping={"data": data, "created_at": "yesterday"})
    client.rpush(f"rq:queue:{NAME}", "x")
    assert not listener.wait(1.0)
    bell.ring()
    assert listener.wait(5.0)


def test_messages_are_json(bell: RedisBell, client: Client) -> None:
    bell.ring()
    job = Job.fetch(client.lrange(f"rq:queue:{NAME}", 0, 0)[0].decode(), connection=client, serializer=JSONSerializer)
    assert json.loads(job.data) == [RING, None, [], {}]


def test_a_redis_that_is_away_costs_only_the_time_between_two_looks(
    redis_server: Redis, listener: RedisListener, bell: RedisBell
) -> None:
    bell.ping()
    redis_server.kill()
    began = time.monotonic()
    assert not listener.wait(0.05)
    assert not listener.is_listening
    with pytest.raises(QueueUnavailable):
        bell.ring()
    with pytest.raises(QueueUnavailable):
        bell.ping()
    assert time.monotonic() - began < 2.0
    redis_server.start()
    bell.ring()
    assert listener.wait(5.0)
    assert listener.is_listening


def test_a_frozen_redis_does_not_hold_up_a_client(redis_server: Redis, bell: RedisBell) -> None:
    bell.ping()
    redis_server.process.send_signal(19)  # SIGSTOP
    try:
        began = time.monotonic()
        with pytest.raises(QueueUnavailable):
            bell.ring()
        assert time.monotonic() - began < 2.5  # two tries of half a second each, on a busy machine
    finally:
        redis_server.process.send_signal(18)


def test_who_leaves_waits_no_longer(redis_server: Redis) -> None:
    leaving = Event()
    leaving.set()
    began = time.monotonic()
    assert not RedisListener(redis_server.url, NAME, leaving).wait(60.0)
    assert not DeafListener(leaving).wait(60.0)
    assert time.monotonic() - began < 1.0


def test_the_settings_choose_the_bell() -> None:
    silent = Settings(queue=QueueKind.DATABASE)
    assert isinstance(make_bell(silent), SilentBell)
    assert isinstance(make_listener(silent, Event()), DeafListener)
    assert isinstance(make_bell(Settings(queue=QueueKind.REDIS)), RedisBell)
    assert isinstance(make_listener(Settings(queue=QueueKind.REDIS), Event()), RedisListener)


def test_a_worker_imports_neither_torch_nor_numpy() -> None:
    script = (
        "import sys, workers.__main__, workers.supervisor, workers.reconciler;"
        "print(sorted({'torch', 'numpy', 'scipy', 'sklearn', 'fastapi'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
