"""The static table of built-in datasets says what scikit-learn has."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from service.builtin import BUILTIN_DATASETS, builtin_dataset
from service.records import ColumnType
from workers.data.builtin import load_builtin
from workers.data.errors import BadData

LOADERS = {
    "builtin:breast_cancer": load_breast_cancer,
    "builtin:diabetes": load_diabetes,
    "builtin:digits": load_digits,
    "builtin:wine": load_wine,
}


def test_the_table_has_these_datasets() -> None:
    assert set(BUILTIN_DATASETS) == set(LOADERS)


@pytest.mark.parametrize("dataset_id", LOADERS)
def test_a_record_says_what_scikit_learn_has(dataset_id: str) -> None:
    record, bunch = BUILTIN_DATASETS[dataset_id], LOADERS[dataset_id]()
    *features, target = record.columns
    assert record.id == dataset_id
    assert record.rows == bunch.data.shape[0]
    assert [column.name for column in features] == [str(name) for name in bunch.feature_names]
    assert np.isfinite(bunch.data).all()
    assert target.name == "target"
    if target.type is ColumnType.INTEGER:
        labels, counts = np.unique(bunch.target, return_counts=True)
        assert target.values == {str(label): int(count) for label, count in zip(labels, counts, strict=True)}
    else:
        assert dataset_id == "builtin:diabetes"
        assert target.values is None


@pytest.mark.parametrize("dataset_id", LOADERS)
def test_the_workers_load_what_the_record_names(dataset_id: str) -> None:
    loaded, bunch = load_builtin(dataset_id), LOADERS[dataset_id]()
    np.testing.assert_array_equal(loaded.x, bunch.data)
    np.testing.assert_array_equal(loaded.y, bunch.target)
    assert loaded.feature_names == tuple(column.name for column in BUILTIN_DATASETS[dataset_id].columns[:-1])


def test_an_unknown_dataset_is_none() -> None:
    assert builtin_dataset("builtin:boston") is None
    with pytest.raises(BadData, match="builtin:wine"):
        load_builtin("builtin:boston")
