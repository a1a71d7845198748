"""Every proof in a small version, and in full for `slow`."""

import pytest

from tests.proofs import crash, families, frozen, outages, verification


def test_killed_workers_leave_no_trace_in_a_job() -> None:
    crash.prove(jobs=1, kills=2, workers=1, postgres=False, seed=0)


def test_a_frozen_worker_writes_nothing_after_another_took_its_job() -> None:
    frozen.prove(rounds=1, postgres=False)


def test_jobs_outlive_a_redis_that_is_killed_and_wiped() -> None:
    outages.redis_is_wiped(jobs=5, away_seconds=0.5, workers=1)


def test_jobs_outlive_a_postgresql_that_is_stopped_for_longer_than_a_lease() -> None:
    outages.postgres_is_away(away_seconds=5.0, lease_seconds=4.0, steps=40, workers=1)


def test_event_streams_outlive_a_restart_of_the_api() -> None:
    outages.api_is_restarted(steps=800, streams=2)


def test_clocks_that_are_off_take_no_job_away() -> None:
    outages.clocks_are_off(lease_seconds=3.0, steps=250)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("postgres", [False, True])
def test_thirty_jobs_outlive_sixty_kills(postgres: bool) -> None:
    crash.prove(jobs=30, kills=60, workers=2, postgres=postgres, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("postgres", [False, True])
def test_workers_frozen_ten_times_write_nothing_late(postgres: bool) -> None:
    frozen.prove(rounds=10, postgres=postgres)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(outages.PROOFS))
def test_outages_show_in_no_job(name: str) -> None:
    outages.PROOFS[name]()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_hypergradients_pass_every_check_that_they_owe() -> None:
    assert verification.main() == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_other_families_give_the_numbers_that_are_known() -> None:
    assert families.main() == 0
