from dataclasses import replace

import pytest

from service.errors import DatasetInUse, NotFound
from service.records import ColumnRecord, ColumnType, DatasetRecord, Failure, FailureCode, JobStatus
from service.store import NewDataset, OutboxKind, Store
from tests.service.store.samples import claimed, spec

_NEW = NewDataset(
    id="ds_1",
    name="wine",
    format="csv",
    rows=178,
    columns=(
        ColumnRecord("alcohol", ColumnType.NUMBER, (), 3, None),
        ColumnRecord("target", ColumnType.TEXT, (), 0, {"rot": 59, "weiß": 119}),
        ColumnRecord("image", ColumnType.NUMBER, (8, 8), 0, None),
    ),
    is_sparse=False,
    nonzeros=None,
    sha256="a" * 64,
    size_bytes=2**33,
    key="datasets/ds_1",
)


def test_a_dataset_comes_back_as_it_was_stored(store: Store) -> None:
    record, created = store.datasets.create(_NEW)
    assert created
    assert record == DatasetRecord(**vars(_NEW), created_at=record.created_at)
    assert store.datasets.get("ds_1") == store.datasets.by_name("wine") == record
    assert store.datasets.list(limit=5) == [record]


def test_the_same_bytes_are_the_same_dataset_in_another_format_another(store: Store) -> None:
    first, _ = store.datasets.create(_NEW)
    again, created = store.datasets.create(replace(_NEW, id="ds_2", name="other", key="datasets/ds_2"))
    assert (again, created) == (first, False)
    _, created = store.datasets.create(replace(_NEW, id="ds_3", format="npz"))
    assert created


def test_datasets_are_listed_newest_first_page_by_page(store: Store) -> None:
    for number in range(5):
        store.datasets.create(replace(_NEW, id=f"ds_{number}", sha256=str(number) * 64))
    seen: list[str] = []
    before = None
    while page := store.datasets.list(limit=2, before=before):
        seen += [record.id for record in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ["ds_4", "ds_3", "ds_2", "ds_1", "ds_0"]
    assert store.datasets.by_name("wine") == store.datasets.get("ds_4")
    assert store.datasets.by_name("beer") is None


def test_a_dataset_that_a_job_needs_is_not_deleted_unless_one_insists(store: Store) -> None:
    store.datasets.create(_NEW)
    job = store.jobs.create(spec(dataset="ds_1"))
    with pytest.raises(DatasetInUse):
        store.datasets.delete("ds_1", force=False)
    assert store.datasets.get("ds_1").id == "ds_1"
    store.jobs.request_cancel(job.id)
    assert store.datasets.delete("ds_1", force=False) == "datasets/ds_1"
    store.datasets.create(_NEW)
    store.jobs.retry(job.id)
    assert store.datasets.delete("ds_1", force=True) == "datasets/ds_1"
    for call in (store.datasets.get, lambda name: store.datasets.delete(name, force=True)):
        with pytest.raises(NotFound):
            call("ds_1")


def test_jobs_that_wait_for_a_deleted_dataset_fail_at_once_and_no_others(store: Store) -> None:
    store.datasets.create(_NEW)
    running = claimed(store, dataset="ds_1").lease.job_id
    waiting, paused = (store.jobs.create(spec(dataset="ds_1")).id for _ in range(2))
    store.jobs.request_pause(paused)
    other = store.jobs.create(spec()).id
    store.datasets.delete("ds_1", force=True)
    failed = store.jobs.get(waiting)
    assert failed.status is JobStatus.FAILED
    assert failed.ended_at is not None
    assert failed.failure == Failure(
        FailureCode.BAD_DATA, "the dataset was deleted while the job waited", attempt=0, retryable=False
    )
    assert store.jobs.events(waiting, after=0, limit=9)[-1].body["status"] == "failed"
    for job_id, status in ((running, JobStatus.RUNNING), (paused, JobStatus.PAUSED), (other, JobStatus.QUEUED)):
        assert store.jobs.get(job_id).status is status


def test_a_file_that_is_needed_again_is_not_removed(store: Store) -> None:
    def removals() -> list[str]:
        return [entry.subject for entry in store.maintenance.outbox_pending(9) if entry.kind is OutboxKind.DELETE_FILE]

    store.datasets.create(_NEW)
    store.datasets.delete("ds_1", force=False)
    assert removals() == ["datasets/ds_1"]
    store.datasets.create(_NEW)
    assert removals() == []
