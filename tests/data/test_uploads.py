"""The service looks into files through a limited process, and survives whatever becomes of it."""

import os
from pathlib import Path

import pytest

from service.builtin import BUILTIN_DATASETS
from service.inspection import (
    DatasetFormat,
    InspectionLimits,
    UnusableFile,
    inspect,
    preview,
    preview_builtin,
)
from service.records import ColumnType

FILES = Path(__file__).parent / "files"
LIMITS = InspectionLimits(unpacked_bytes=1 << 23, memory_bytes=4 << 30, cpu_seconds=60, wall_seconds=90.0)


def test_a_file_is_described_by_another_process() -> None:
    found = inspect(FILES / "plants.csv", DatasetFormat.CSV, limits=LIMITS)
    assert found.rows == 24
    assert [column.name for column in found.columns] == ["height", "leaves", "flowers", "species", "part"]
    assert found.columns[3].type is ColumnType.TEXT
    assert found.columns[3].values == {"ash": 8, "elm": 8, "höllentanne": 8}


def test_a_refusal_comes_back_as_its_sentence() -> None:
    with pytest.raises(UnusableFile, match="Row 3") as refusal:
        inspect(FILES / "ragged.csv", DatasetFormat.CSV, limits=LIMITS)
    assert "Traceback" not in refusal.value.detail


def test_a_limit_too_small_to_start_with_is_a_refusal_not_a_crash_of_the_service() -> None:
    limits = InspectionLimits(memory_bytes=60 << 20, cpu_seconds=60)
    with pytest.raises(UnusableFile, match="GiB of memory"):
        inspect(FILES / "plants.csv", DatasetFormat.CSV, limits=limits)


def test_a_file_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one_line.svm"
    path.write_bytes(b"1 " + b"1:1 " * 8_000_000)
    limits = InspectionLimits(memory_bytes=500 << 20, cpu_seconds=60)
    with pytest.raises(UnusableFile, match="memory"):
        inspect(path, DatasetFormat.SVMLIGHT, limits=limits)


def test_a_reader_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(UnusableFile, match=r"longer than 0\.05 s"):
        inspect(FILES / "plants.csv", DatasetFormat.CSV, limits=InspectionLimits(wall_seconds=0.05))


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="could not be read"):
        inspect(tmp_path / "absent.csv", DatasetFormat.CSV, limits=LIMITS)


def test_no_secret_reaches_the_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERDIAL_REDIS_URL", "redis://:secret@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    from service.inspection import _environment

    given = _environment()
    assert "secret" not in "".join(given.values())
    assert not any(name.startswith(("HYPERDIAL_", "AWS_")) for name in given)
    assert given["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("name", "kind", "columns", "first"),
    [
        ("plants.csv", DatasetFormat.CSV, ["height", "leaves", "flowers", "species", "part"], "10.0"),
        ("plants.npz", DatasetFormat.NPZ, ["X[0]", "X[1]", "X[2]", "X[3]", "y", "weight"], 0),
        ("plants.svm", DatasetFormat.SVMLIGHT, ["target", "features"], -1),
        ("plants.parquet", DatasetFormat.PARQUET, ["x", "n", "ok", "s"], 1.5),
    ],
)
def test_the_first_rows_are_shown(name: str, kind: DatasetFormat, columns: list[str], first: object) -> None:
    shown = preview(FILES / name, kind, rows=2, limits=LIMITS)
    assert shown["columns"] == columns
    rows = shown["rows"]
    assert isinstance(rows, list)
    assert len(rows) == 2
    assert isinstance(rows[0], list)
    assert rows[0][0] == first


def test_the_first_rows_of_a_builtin_dataset_are_shown_and_wide_ones_are_cut() -> None:
    shown = preview_builtin("builtin:digits", rows=3, limits=LIMITS)
    assert shown["columns_left_out"] == 65 - 50
    assert isinstance(shown["rows"], list)
    assert len(shown["rows"]) == 3
    assert "builtin:digits" in BUILTIN_DATASETS
