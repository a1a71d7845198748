import pytest
from sqlalchemy import update

from service.errors import NotFound
from service.records import WorkerState
from service.store import NewWorker, Store
from service.store.clock import database_now
from service.tables import workers

_NEW = NewWorker(id="wk_1", host="host-a", pid=2**40, device="cuda:0", device_name="H200", version="0.1.0")


def _seen(store: Store) -> dict[str, WorkerState]:
    return {worker.id: worker.state for worker in store.workers.list(timeout_seconds=30.0)}


def _fall_silent(store: Store, seconds: float) -> None:
    with store.database.write() as connection:
        connection.execute(update(workers).values(heartbeat_at=database_now(-seconds)))


def test_a_worker_is_idle_when_it_begins_and_says_what_it_does(store: Store) -> None:
    store.workers.register(_NEW)
    (worker,) = store.workers.list(timeout_seconds=30.0)
    assert {name: getattr(worker, name) for name in vars(_NEW)} == vars(_NEW)
    assert (worker.state, worker.job_id) == (WorkerState.IDLE, None)
    store.workers.heartbeat("wk_1", state=WorkerState.BUSY, job_id="job_1")
    (busy,) = store.workers.list(timeout_seconds=30.0)
    assert (busy.state, busy.job_id, busy.started_at) == (WorkerState.BUSY, "job_1", worker.started_at)
    assert busy.heartbeat_at >= worker.heartbeat_at


def test_a_silent_worker_is_offline_until_it_is_heard_again(store: Store) -> None:
    store.workers.register(_NEW)
    _fall_silent(store, 31.0)
    assert _seen(store) == {"wk_1": WorkerState.OFFLINE}
    store.workers.heartbeat("wk_1", state=WorkerState.DRAINING, job_id=None)
    assert _seen(store) == {"wk_1": WorkerState.DRAINING}


def test_a_worker_that_left_is_offline_and_may_begin_anew(store: Store) -> None:
    store.workers.register(_NEW)
    store.workers.leave("wk_1")
    store.workers.leave("wk_1")
    store.workers.leave("wk_2")
    assert _seen(store) == {"wk_1": WorkerState.OFFLINE}
    store.workers.register(_NEW)
    assert _seen(store) == {"wk_1": WorkerState.IDLE}


def test_a_worker_that_was_forgotten_is_told_to_register_again(store: Store) -> None:
    store.workers.register(_NEW)
    _fall_silent(store, 86_400.0 * 8)
    store.workers.forget(silent_days=9.0)
    assert _seen(store) == {"wk_1": WorkerState.OFFLINE}
    store.workers.forget(silent_days=7.0)
    assert _seen(store) == {}
    with pytest.raises(NotFound):
        store.workers.heartbeat("wk_1", state=WorkerState.IDLE, job_id=None)
