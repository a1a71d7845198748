"""What Prometheus may ask of an API process: its own requests, and the state of all jobs and workers."""

import logging
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import Final, final

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from service.errors import StoreUnavailable
from service.records import JobStatus, WorkerRecord, WorkerState

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@final
class Metrics:
    """The measurements of one process, in a registry of their own: nothing is global."""

    def __init__(
        self, *, job_counts: Callable[[], Mapping[JobStatus, int]], workers: Callable[[], Iterable[WorkerRecord]]
    ) -> None:
        """Take what is asked of the database whenever the measurements are read."""
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "hyperdial_http_request_seconds",
            "Time to the first byte of an answer; event streams and long polls are left out.",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._streams = Gauge("hyperdial_event_streams", "Event streams that are open.", registry=self._registry)
        self._registry.register(_Stored(job_counts, workers))

    def observe(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request under its route's template."""
        self._latency.labels(method, route, str(status)).observe(seconds)

    def set_streams(self, count: int) -> None:
        """Say how many event streams are open."""
        self._streams.set(count)

    def exposition(self) -> bytes:
        """All measurements in Prometheus' text format."""
        return generate_latest(self._registry)


@final
class _Stored(Collector):
    """Measurements that are read from the database when they are asked for."""

    def __init__(
        self, job_counts: Callable[[], Mapping[JobStatus, int]], workers: Callable[[], Iterable[WorkerRecord]]
    ) -> None:
        self._job_counts = job_counts
        self._workers = workers

    def describe(self) -> Iterable[Metric]:
        """Nothing: otherwise registering would already ask the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Read jobs and workers; while the database is away, say only that."""
        try:
            counts, states = self._job_counts(), Tally(worker.state for worker in self._workers())
        except StoreUnavailable:
            log.warning("measurements could not be read from the database")
            yield GaugeMetricFamily("hyperdial_database_up", "Whether the database answers.", value=0)
            return
        yield GaugeMetricFamily("hyperdial_database_up", "Whether the database answers.", value=1)
        jobs = GaugeMetricFamily("hyperdial_jobs", "Jobs in the database.", labels=("status",))
        for status in JobStatus:
            jobs.add_metric((status.value,), counts.get(status, 0))
        yield jobs
        workers = GaugeMetricFamily("hyperdial_workers", "Workers, by what they do.", labels=("state",))
        for state in WorkerState:
            workers.add_metric((state.value,), states[state])
        yield workers
