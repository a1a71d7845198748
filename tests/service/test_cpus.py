"""CPUs are counted as the kernel grants them, and shared."""

import os
from pathlib import Path

import pytest

from service.cpus import share_of_cpus, usable_cpus
from service.embedded.up import _environment
from service.settings import Settings

ALL = len(os.sched_getaffinity(0))


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    """Control groups: a container, and in it a service, to which this process belongs."""
    (tmp_path / "cgroup" / "system.slice" / "us.service").mkdir(parents=True)
    (tmp_path / "own").write_text("1:name=systemd:/other\n0::/system.slice/us.service\n")
    return tmp_path / "cgroup"


def counted(cgroups: Path, monkeypatch: pytest.MonkeyPatch, **quotas: str) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    places = {"container": cgroups, "service": cgroups / "system.slice" / "us.service"}
    for place, quota in quotas.items():
        (places[place] / "cpu.max").write_text(quota + "\n")
    return usable_cpus(cgroups=cgroups, own=cgroups.parent / "own")


@pytest.mark.parametrize(
    ("quotas", "count"),
    [
        ({}, 16),
        ({"container": "max 100000"}, 16),
        ({"container": "400000 100000"}, 4),
        ({"service": "250000 100000"}, 2),
        ({"service": "50000 100000"}, 1),
        ({"container": "300000 100000", "service": "800000 100000"}, 3),
        ({"container": "nonsense"}, 16),
        ({"container": "3200000 100000"}, 16),
    ],
)
def test_the_smallest_quota_counts(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch, quotas: dict[str, str], count: int
) -> None:
    assert counted(cgroups, monkeypatch, **quotas) == count


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(cgroups=tmp_path / "none", own=tmp_path / "none") == ALL


def test_each_worker_gets_its_part_and_one_at_least() -> None:
    assert share_of_cpus(1) == usable_cpus()
    assert share_of_cpus(10_000) == 1


def test_workers_of_one_command_share_the_cpus_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HYPERDIAL_THREADS", raising=False)
    assert _environment(Settings(), {}, workers=2)["HYPERDIAL_THREADS"] == str(share_of_cpus(2))
    assert "HYPERDIAL_THREADS" not in _environment(Settings(), {}, workers=1)
    monkeypatch.setenv("HYPERDIAL_THREADS", "7")
    assert _environment(Settings(), {}, workers=2)["HYPERDIAL_THREADS"] == "7"
