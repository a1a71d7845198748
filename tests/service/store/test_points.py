import pytest

from service.errors import NotFound
from service.store import Store
from tests.service.store.samples import LEASE, claimed, points, spec


def test_a_trajectory_is_walked_by_its_steps(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 7), lease_seconds=LEASE)
    steps = [point.step for point in store.points.page(lease.job_id, after=None, limit=3)]
    assert steps == [0, 1, 2]
    assert [point.step for point in store.points.page(lease.job_id, after=2, limit=3)] == [3, 4, 5]
    assert [point.step for point in store.points.page(lease.job_id, after=5, limit=3)] == [6]
    assert store.points.page(lease.job_id, after=6, limit=3) == []


@pytest.mark.parametrize("count", [0, 1, 5, 6, 11])
def test_all_points_come_once_whatever_the_batch(store: Store, count: int) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, count), lease_seconds=LEASE)
    found = list(store.points.iterate(lease.job_id, batch=5))
    assert [point.step for point in found] == list(range(count))
    assert found == store.points.page(lease.job_id, after=None, limit=100)


def test_a_job_without_points_is_not_one_that_does_not_exist(store: Store) -> None:
    assert store.points.page(store.jobs.create(spec()).id, after=None, limit=3) == []
    with pytest.raises(NotFound):
        store.points.page("job_x", after=None, limit=3)
    with pytest.raises(NotFound):
        next(store.points.iterate("job_x"))
