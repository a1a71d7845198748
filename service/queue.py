"""The bell that wakes workers: all of RQ on the service's side.

The database holds every job; a message on the queue only says "there is work", not which. It may be
lost, doubled or late without harm: workers also look for themselves, and the reconciler rings again.
"""

from typing import Final, Protocol, assert_never

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue
from rq.serializers import JSONSerializer

from service.errors import QueueUnavailable
from service.settings import QueueKind, Settings

RING: Final = "workers.bell.ring"
"""The one function that a message may name; given as a string, so that no worker code is imported here."""

_ENOUGH_RINGS: Final = 256
"""Messages that wait at most: while nobody listens, more of them would say nothing new."""

_RING_TTL_SECONDS: Final = 3600


class Bell(Protocol):
    """Tells idle workers that there is work."""

    def ring(self) -> None:
        """Wake one idle worker.

        Raises:
            QueueUnavailable: nobody was woken; workers will find the job by themselves.
        """
        ...

    def ping(self) -> None:
        """Return if the queue answers.

        Raises:
            QueueUnavailable: it does not.
        """
        ...


class SilentBell:
    """No bell at all: workers look into the database every `poll_seconds`."""

    def ring(self) -> None:
        """Do nothing."""

    def ping(self) -> None:
        """Do nothing: the database is checked elsewhere."""


class RedisBell:
    """A bell by RQ on Redis. Messages are JSON, never pickle."""

    def __init__(self, url: str, queue_name: str, *, timeout_seconds: float = 0.5) -> None:
        """Connect with the first ring, not here.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            queue_name: name of the RQ queue.
            timeout_seconds: how long a caller, usually a client's request, may be held up by a Redis
                that is away.
        """
        self._redis = connect(url, connect_seconds=timeout_seconds, read_seconds=timeout_seconds)
        self._queue = Queue(queue_name, connection=self._redis, serializer=JSONSerializer)

    def ring(self) -> None:
        """Put one message on the queue, unless plenty are waiting already."""
        try:
            if self._queue.count >= _ENOUGH_RINGS:
                return
            self._queue.enqueue(
                RING,
                job_timeout=-1,  # budgets are ours: RQ would raise from a signal handler, anywhere
                result_ttl=0,
                failure_ttl=60,
                ttl=_RING_TTL_SECONDS,
            )
        except RedisError as error:
            raise QueueUnavailable from error

    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        try:
            self._redis.ping()
        except RedisError as error:
            raise QueueUnavailable from error


def connect(url: str, *, connect_seconds: float, read_seconds: float) -> Redis:
    """Return a client that fails fast instead of waiting for a Redis that is away.

    It tries once more at once, because the first use of a pooled connection after a restart of Redis
    always finds it closed.
    """
    return Redis.from_url(
        url,
        socket_connect_timeout=connect_seconds,
        socket_timeout=read_seconds,
        retry=Retry(NoBackoff(), retries=1),
        client_name="hyperdial",
    )


def make_bell(settings: Settings) -> Bell:
    """Return the bell that the settings name."""
    match settings.queue:
        case QueueKind.REDIS:
            return RedisBell(settings.redis_url.get_secret_value(), settings.queue_name)
        case QueueKind.DATABASE:
            return SilentBell()
        case _:
            assert_never(settings.queue)
