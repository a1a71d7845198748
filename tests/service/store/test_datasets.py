import threading
from dataclasses import replace

import pytest

from service.errors import DatasetInUse, FileForgotten, NotFound
from service.records import ColumnRecord, ColumnType, DatasetRecord, Failure, FailureCode, JobStatus
from service.store import NewDataset, OutboxKind, Store
from tests.service.store.samples import claimed, spec, uploaded

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
    record, created = uploaded(store, _NEW)
    assert created
    assert record == DatasetRecord(**vars(_NEW), created_at=record.created_at)
    assert store.datasets.get("ds_1") == store.datasets.by_name("wine") == record
    assert store.datasets.list(limit=5) == [record]


def test_the_same_bytes_are_the_same_dataset_in_another_format_another(store: Store) -> None:
    first, _ = uploaded(store, _NEW)
    again, created = uploaded(store, replace(_NEW, id="ds_2", name="other", key="datasets/ds_2"))
    assert (again, created) == (first, False)
    _, created = uploaded(store, replace(_NEW, id="ds_3", format="npz"))
    assert created


def test_datasets_are_listed_newest_first_page_by_page(store: Store) -> None:
    for number in range(5):
        uploaded(store, replace(_NEW, id=f"ds_{number}", sha256=str(number) * 64))
    seen: list[str] = []
    before = None
    while page := store.datasets.list(limit=2, before=before):
        seen += [record.id for record in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ["ds_4", "ds_3", "ds_2", "ds_1", "ds_0"]
    assert store.datasets.by_name("wine") == store.datasets.get("ds_4")
    assert store.datasets.by_name("beer") is None


def test_a_dataset_that_a_job_needs_is_not_deleted_unless_one_insists(store: Store) -> None:
    uploaded(store, _NEW)
    job = store.jobs.create(spec(dataset="ds_1"))
    with pytest.raises(DatasetInUse):
        store.datasets.delete("ds_1", force=False)
    assert store.datasets.get("ds_1").id == "ds_1"
    store.jobs.request_cancel(job.id)
    assert store.datasets.delete("ds_1", force=False) == "datasets/ds_1"
    uploaded(store, replace(_NEW, key="datasets/anew"))
    store.jobs.retry(job.id)
    assert store.datasets.delete("ds_1", force=True) == "datasets/anew"
    for call in (store.datasets.get, lambda name: store.datasets.delete(name, force=True)):
        with pytest.raises(NotFound):
            call("ds_1")


def test_jobs_that_wait_for_a_deleted_dataset_fail_at_once_and_no_others(store: Store) -> None:
    uploaded(store, _NEW)
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


def removals(store: Store) -> list[str]:
    return [entry.subject for entry in store.maintenance.outbox_pending(9) if entry.kind is OutboxKind.DELETE_FILE]


def test_a_file_that_no_dataset_came_to_name_is_given_up_after_its_time(store: Store) -> None:
    store.datasets.expect_file("datasets/killed")
    uploaded(store, _NEW)
    assert removals(store) == []
    assert store.maintenance.give_up_files(3600.0) == []
    assert store.maintenance.give_up_files(-1.0) == ["datasets/killed"]
    assert removals(store) == ["datasets/killed"]
    assert store.maintenance.give_up_files(-1.0) == []


def test_who_comes_too_late_to_name_a_file_is_told(store: Store) -> None:
    store.datasets.expect_file(_NEW.key)
    store.maintenance.give_up_files(-1.0)
    with pytest.raises(FileForgotten):
        store.datasets.create(_NEW)
    with pytest.raises(NotFound):
        store.datasets.get("ds_1")
    assert removals(store) == [_NEW.key]


def test_the_file_of_a_second_upload_of_the_same_bytes_is_removed(store: Store) -> None:
    first, _ = uploaded(store, _NEW)
    again, _ = uploaded(store, replace(_NEW, id="ds_2", key="datasets/ds_2"))
    assert again == first == store.datasets.by_content(_NEW.sha256, "csv")
    assert store.datasets.by_content(_NEW.sha256, "npz") is None
    assert removals(store) == ["datasets/ds_2"]


def test_a_dataset_whose_file_was_lost_moves_to_the_one_that_came_again(store: Store) -> None:
    first, _ = uploaded(store, _NEW)
    moved, is_new = uploaded(store, replace(_NEW, id="ds_2", key="datasets/ds_2"), lost=first.key)
    assert (moved, is_new) == (replace(first, key="datasets/ds_2"), False)
    # Two noticed the loss: the second of them finds that it has been mended.
    again, _ = uploaded(store, replace(_NEW, id="ds_3", key="datasets/ds_3"), lost=first.key)
    assert again == moved
    assert removals(store) == [first.key, "datasets/ds_3"]


def test_files_are_given_up_or_named_never_both(store: Store) -> None:
    named: list[str] = []
    refused: list[str] = []

    def upload(worker: int) -> None:
        for number in range(15):
            name = f"{worker}-{number}"
            key = f"datasets/{name}"
            store.datasets.expect_file(key)
            try:
                store.datasets.create(replace(_NEW, id=f"ds_{name}", sha256=name, key=key))
            except FileForgotten:
                refused.append(key)
            else:
                named.append(key)

    given_up: list[str] = []
    ending = threading.Event()

    def give_up() -> None:
        while not ending.is_set():
            given_up.extend(store.maintenance.give_up_files(0.0))

    threads = [threading.Thread(target=upload, args=(worker,)) for worker in range(3)]
    reaper = threading.Thread(target=give_up)
    for thread in (*threads, reaper):
        thread.start()
    for thread in threads:
        thread.join()
    ending.set()
    reaper.join()
    assert sorted(given_up) == sorted(refused)
    assert len(named) + len(refused) == 45
    assert {record.key for record in store.datasets.list(limit=99)} == set(named)
