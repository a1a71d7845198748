"""The worker's end of the bell: all of RQ on this side."""

import logging
from collections.abc import Callable
from threading import Event
from typing import Final, Protocol, assert_never

from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import DequeueTimeout, DeserializationError, TimeoutFormatError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import import_attribute

from service.queue import RING, connect
from service.settings import QueueKind, Settings

log = logging.getLogger(__name__)

_ALLOWED: Final = frozenset({RING})

_MALFORMED: Final = (DeserializationError, TimeoutFormatError, ValueError, TypeError, KeyError, AttributeError)
"""What RQ raises over messages that it did not write itself."""

_LONGEST_WAIT: Final = 1
"""Seconds that a wait blocks at most, so that a worker asked to leave is not held up."""


def ring() -> None:
    """Be the function that a message names. Its arrival is the news: which job to take, the database says."""


class RefusedMessage(Exception):
    """A message on the queue named something else than the bell: it was not run."""


class RingJob(Job):
    """An RQ job that may name only the bell.

    RQ imports and calls whatever function a message names, even with JSON messages: whoever can write to
    Redis would own the worker. Everything in a message that names code is refused or ignored here.
    """

    @property
    def func(self) -> Callable[..., object]:
        """Return the bell, or refuse.

        Raises:
            RefusedMessage: the message named anything else, or came with arguments.
        """
        if self.instance is not None or self.func_name not in _ALLOWED or self.args or self.kwargs:
            raise RefusedMessage
        function: Callable[..., object] = import_attribute(self.func_name)
        return function

    @property
    def success_callback(self) -> None:
        """Nothing: a message may not name what runs after it."""

    @property
    def failure_callback(self) -> None:
        """Nothing, as above."""

    @property
    def stopped_callback(self) -> None:
        """Nothing, as above."""


class Listener(Protocol):
    """Waits for the bell."""

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, for up to `seconds` or less; return whether one came."""
        ...

    @property
    def is_listening(self) -> bool:
        """False while a ring could not be heard, so that the database must be asked more often."""
        ...


class DeafListener:
    """Hears nothing, for a queue that is the database itself."""

    def __init__(self, leaving: Event) -> None:
        """End every wait when `leaving` is set."""
        self._leaving = leaving

    def wait(self, seconds: float) -> bool:
        """Let the time pass."""
        self._leaving.wait(seconds)
        return False

    @property
    def is_listening(self) -> bool:
        """Never."""
        return False


class RedisListener:
    """Hears rings over RQ. A Redis that is away, restarted or emptied only makes it deaf for a while."""

    def __init__(self, url: str, queue_name: str, leaving: Event) -> None:
        """Connect with the first wait, not here.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            queue_name: name of the RQ queue.
            leaving: ends every wait when set.
        """
        self._redis = connect(url, connect_seconds=1.0, read_seconds=_LONGEST_WAIT + 1.0)
        self._queue = Queue(queue_name, connection=self._redis, job_class=RingJob, serializer=JSONSerializer)
        self._leaving = leaving
        self._is_listening = True

    def wait(self, seconds: float) -> bool:
        """Wait on the queue; while Redis is away, let the time pass."""
        if self._leaving.is_set():
            return False
        try:
            message = self._take(min(_LONGEST_WAIT, max(1, round(seconds))))
        except RedisError as error:
            if self._is_listening:
                log.warning("Redis was lost; jobs are found by looking for them", extra={"error": str(error)})
            self._is_listening = False
            self._leaving.wait(seconds)
            return False
        if not self._is_listening:
            log.info("Redis was found again")
        was_deaf, self._is_listening = not self._is_listening, True
        return message or was_deaf  # rings may have been missed: look once

    @property
    def is_listening(self) -> bool:
        """Whether Redis answered the last time."""
        return self._is_listening

    def _take(self, timeout_seconds: int) -> bool:
        try:
            taken = Queue.dequeue_any(
                [self._queue],
                timeout_seconds,
                connection=self._redis,
                job_class=RingJob,
                serializer=JSONSerializer,
            )
            if taken is None:
                return False
            self._forget(taken[0])
            taken[0].func()
        except DequeueTimeout:
            return False
        except (RefusedMessage, *_MALFORMED) as error:
            log.warning("A message on the queue was refused", extra={"error": type(error).__name__})
            return False
        return True

    def _forget(self, message: Job) -> None:
        # RQ moves a message to an intermediate list, so that its own workers can find what a crash left
        # there. Nothing depends on ours, and without this the list would only grow.
        with self._redis.pipeline() as pipeline:
            pipeline.delete(message.key, self._queue.intermediate_queue_key)
            pipeline.execute()


def make_listener(settings: Settings, leaving: Event) -> Listener:
    """Return the listener that the settings name."""
    match settings.queue:
        case QueueKind.REDIS:
            return RedisListener(settings.redis_url.get_secret_value(), settings.queue_name, leaving)
        case QueueKind.DATABASE:
            return DeafListener(leaving)
        case _:
            assert_never(settings.queue)
