import threading

import pytest
from sqlalchemy import update

from service.errors import IdempotencyInProgress, IdempotencyMismatch
from service.records import JobRecord, StoredAnswer
from service.store import IdempotencyClaim, Store
from service.store.clock import database_now
from service.tables import idempotency_keys
from tests.service.store.samples import spec


def _claim(store: Store, *, fingerprint: str = "f", scope: str = "key_1") -> IdempotencyClaim:
    claim = store.idempotency.begin(scope, "once", fingerprint)
    assert isinstance(claim, IdempotencyClaim)
    return claim


def _answer(job: JobRecord) -> StoredAnswer:
    return StoredAnswer(status=202, headers={"Location": f"/v1/jobs/{job.id}"}, body=f'{{"id":"{job.id}"}}')


def test_a_repetition_is_answered_as_the_first_request_was(store: Store) -> None:
    job = store.jobs.create(spec(), idempotency=_claim(store), answer=_answer)
    assert store.idempotency.begin("key_1", "once", "f") == _answer(job)
    assert len(store.jobs.list(limit=9)) == 1


def test_another_request_with_the_key_is_refused_before_and_after_the_answer(store: Store) -> None:
    claim = _claim(store)
    with pytest.raises(IdempotencyMismatch):
        store.idempotency.begin("key_1", "once", "g")
    store.jobs.create(spec(), idempotency=claim, answer=_answer)
    with pytest.raises(IdempotencyMismatch):
        store.idempotency.begin("key_1", "once", "g")


def test_the_same_key_of_somebody_else_is_another(store: Store) -> None:
    store.jobs.create(spec(), idempotency=_claim(store), answer=_answer)
    _claim(store, scope="key_2")


def test_a_request_that_is_being_answered_is_not_begun_again(store: Store) -> None:
    claim = _claim(store)
    with pytest.raises(IdempotencyInProgress):
        store.idempotency.begin("key_1", "once", "f")
    store.idempotency.abandon(claim)
    store.idempotency.finish(_claim(store), StoredAnswer(422, {}, "no"))
    assert store.idempotency.begin("key_1", "once", "f") == StoredAnswer(422, {}, "no")


def test_a_process_that_died_does_not_block_the_key_and_cannot_answer_late(store: Store) -> None:
    dead = _claim(store)
    with store.database.write() as connection:
        connection.execute(update(idempotency_keys).values(busy_until=database_now(-1.0)))
    alive = _claim(store)
    with pytest.raises(IdempotencyInProgress):
        store.jobs.create(spec(), idempotency=dead, answer=_answer)
    assert store.jobs.list(limit=9) == []
    store.idempotency.abandon(dead)
    job = store.jobs.create(spec(), idempotency=alive, answer=_answer)
    assert store.idempotency.begin("key_1", "once", "f") == _answer(job)


def test_job_and_answer_are_stored_together_or_not_at_all(store: Store) -> None:
    def no_answer(job: JobRecord) -> StoredAnswer:
        raise RuntimeError(job.id)

    claim = _claim(store)
    with pytest.raises(RuntimeError):
        store.jobs.create(spec(), idempotency=claim, answer=no_answer)
    assert store.jobs.list(limit=9) == []
    assert store.maintenance.outbox_pending(9) == []
    store.jobs.create(spec(), idempotency=claim, answer=_answer)


def test_one_of_many_at_once_begins(store: Store) -> None:
    begun: list[object] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        try:
            begun.append(store.idempotency.begin("key_1", "once", "f"))
        except IdempotencyInProgress as busy:
            begun.append(busy)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 8
    assert sum(isinstance(each, IdempotencyClaim) for each in begun) == 1
