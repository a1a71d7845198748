"""A job sees the numbers that were uploaded, whatever file they came in."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import dump_svmlight_file, load_digits, load_svmlight_file

from service.builtin import BUILTIN_DATASETS
from service.records import DatasetRecord
from service.spec.data import DataSpec
from service.spec.models import Loss
from workers.data.describe import describe
from workers.data.load import BadData, LoadedData, feature_names, load

FILES = Path(__file__).parent / "files"
LIMIT = 1 << 24
HOLDOUT = {"kind": "holdout", "valid": 0.25, "test": 0.25}


def record_of(path: Path, kind: str) -> DatasetRecord:
    found = describe(path, kind, limit_bytes=LIMIT)
    return DatasetRecord(
        id="ds_1",
        name=path.name,
        format=kind,
        rows=found.rows,
        columns=tuple(found.columns),
        is_sparse=found.is_sparse,
        nonzeros=found.nonzeros,
        sha256="0" * 64,
        size_bytes=path.stat().st_size,
        key="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def loaded(path: Path, kind: str, *, loss: str = "cross_entropy", seed: int = 0, **data: object) -> LoadedData:
    spec = DataSpec.model_validate({"dataset": "ds_1", "standardize": False, **data})
    return load(spec, record_of(path, kind), path, loss=Loss(loss), seed=seed)


def test_a_csv_is_loaded_with_booleans_as_numbers_and_texts_as_classes() -> None:
    data = loaded(FILES / "plants.csv", "csv", target="species", split={"kind": "column", "column": "part"})
    assert data.class_names == ("ash", "elm", "höllentanne")
    assert list(feature_names(data.task)) == ["height", "leaves", "flowers"]
    expected = np.array([[10 + i * 0.5, i % 7, i % 2] for i in range(24)])
    np.testing.assert_array_equal(data.x, expected)
    np.testing.assert_array_equal(data.y, np.arange(24) % 3)
    assert data.parts.valid is not None
    assert data.parts.valid.tolist() == list(range(1, 24, 4))


def test_named_features_come_in_the_order_that_they_are_named_in() -> None:
    data = loaded(
        FILES / "plants.csv", "csv", target="height", features=["flowers", "leaves"], loss="squared_error",
    )  # fmt: skip
    np.testing.assert_array_equal(data.x, np.array([[i % 2, i % 7] for i in range(24)]))
    assert data.class_names is None
    assert data.y[:2].tolist() == [10.0, 10.5]


def test_a_boolean_target_has_the_classes_false_and_true() -> None:
    data = loaded(FILES / "plants.csv", "csv", target="flowers", split=HOLDOUT)
    assert data.class_names == ("false", "true")
    np.testing.assert_array_equal(data.y, np.arange(24) % 2)


def test_arrays_of_an_npz_become_columns() -> None:
    data = loaded(FILES / "plants.npz", "npz", target="y")
    assert list(feature_names(data.task)) == ["X[0]", "X[1]", "X[2]", "X[3]", "weight"]
    expected = np.column_stack([np.arange(40.0).reshape(10, 4) / 8, np.arange(10)])
    np.testing.assert_array_equal(data.x, expected)
    np.testing.assert_array_equal(data.y, np.arange(10) % 2)


def test_fortran_order_big_endian_and_several_dimensions_are_read_right(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).normal(size=(12, 2, 3))
    np.savez(
        tmp_path / "a.npz",
        cube=np.asfortranarray(cube.astype(">f4")),
        y=np.arange(12) % 2 == 0,
        big=np.arange(12, dtype=">i2"),
    )
    data = loaded(tmp_path / "a.npz", "npz", target="y")
    assert next(iter(feature_names(data.task))) == "cube[0,0]"
    expected = np.column_stack([cube.astype(np.float32).reshape(12, 6), np.arange(12)])
    np.testing.assert_array_equal(data.x, expected)
    assert data.class_names == ("false", "true")


def test_svmlight_stays_sparse_and_reads_as_scikit_learn_reads_it() -> None:
    data = loaded(FILES / "plants.svm", "svmlight")
    expected, labels = load_svmlight_file(str(FILES / "plants.svm"))
    assert isinstance(data.x, scipy.sparse.csr_array)
    np.testing.assert_array_equal(data.x.toarray(), expected.toarray())
    assert data.class_names == ("-1", "1")
    np.testing.assert_array_equal(data.y, labels > 0)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(3, 30),
    columns=st.integers(1, 12),
    density=st.floats(0.05, 1.0),
    zero_based=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_sparse_matrix_survives_svmlight(
    tmp_path: Path, rows: int, columns: int, density: float, zero_based: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    dense = generator.normal(size=(rows, columns)) * (generator.random((rows, columns)) < density)
    dense[0, 0] = dense[1, -1] = 1.5
    labels = generator.normal(size=rows)
    path = tmp_path / "a.svm"
    with path.open("wb") as stream:
        dump_svmlight_file(dense, labels, stream, zero_based=zero_based)
    data = loaded(path, "svmlight", loss="squared_error")
    assert isinstance(data.x, scipy.sparse.csr_array)
    # scikit-learn writes 16 digits
    np.testing.assert_allclose(data.x.toarray(), dense, rtol=1e-14)
    np.testing.assert_allclose(data.y, labels, rtol=1e-14)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_the_same_numbers_are_loaded_from_every_format(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(0)
    columns = {f"x{i}": generator.normal(size=50) for i in range(3)} | {"target": generator.integers(0, 3, 50)}
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.table(columns), path, row_group_size=7)
    else:
        np.savez(path, **columns)
    data = loaded(path, kind)
    np.testing.assert_array_equal(data.x, np.column_stack([columns[f"x{i}"] for i in range(3)]))
    np.testing.assert_array_equal(data.y, columns["target"])


def test_a_builtin_dataset_is_split_and_standardised() -> None:
    spec = DataSpec.model_validate({"dataset": "builtin:digits"})
    data = load(spec, BUILTIN_DATASETS["builtin:digits"], None, loss=Loss.CROSS_ENTROPY, seed=3)
    assert isinstance(data.x, np.ndarray)
    assert data.scaler is not None
    raw = load_digits().data
    np.testing.assert_allclose(data.x * data.scaler.scale + data.scaler.mean, raw, atol=1e-12)
    trained = data.x[data.parts.train]
    np.testing.assert_allclose(trained.mean(0), 0.0, atol=1e-13)
    assert {round(spread, 12) for spread in trained.std(0)} == {0.0, 1.0}
    counts = [np.bincount(data.y[part]) for part in (data.parts.train, data.parts.valid, data.parts.test)]
    np.testing.assert_allclose(counts[0] / counts[0].sum(), counts[2] / counts[2].sum(), atol=0.01)


def test_with_folds_every_row_but_the_tested_sets_the_scale() -> None:
    spec = DataSpec.model_validate({"dataset": "builtin:wine", "split": {"kind": "kfold", "folds": 3}})
    data = load(spec, BUILTIN_DATASETS["builtin:wine"], None, loss=Loss.CROSS_ENTROPY, seed=0)
    assert isinstance(data.x, np.ndarray)
    assert data.parts.fold is not None
    assert data.parts.fold.size == data.parts.train.size
    np.testing.assert_allclose(data.x[data.parts.train].mean(0), 0.0, atol=1e-13)


def test_a_file_that_is_not_what_its_record_says_is_refused(tmp_path: Path) -> None:
    record = record_of(FILES / "plants.csv", "csv")
    spec = DataSpec.model_validate({"dataset": "ds_1", "target": "species", "features": ["height", "leaves"]})
    good = (FILES / "plants.csv").read_text()
    changed = [
        good.rsplit("\n", 2)[0] + "\n",  # a row less
        good + "1,2,true,elm,test\n",  # a row more
        good.replace("ash", "oak", 1),  # another class
        good.replace("10.0,", "ten,", 1),  # no number
        good.replace("10.0,", "NA,", 1),  # a missing value
    ]
    for text in changed:
        assert text != good
        path = tmp_path / "a.csv"
        path.write_text(text)
        with pytest.raises(BadData, match=r"upload|missing"):
            load(spec, record, path, loss=Loss.CROSS_ENTROPY, seed=0)


def test_what_admission_refuses_loading_refuses_too() -> None:
    spec = DataSpec.model_validate({"dataset": "ds_1", "target": "height"})
    with pytest.raises(BadData, match="/data/target: cross_entropy needs classes"):
        load(spec, record_of(FILES / "plants.csv", "csv"), FILES / "plants.csv", loss=Loss.CROSS_ENTROPY, seed=0)
