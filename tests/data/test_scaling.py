"""Features are scaled by their training rows, without a trap for constants and large means."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.preprocessing import StandardScaler

from workers.data.errors import BadData
from workers.data.scaling import scaled, standardized

TRAIN = np.arange(0, 60, 2)


def test_training_rows_get_mean_zero_and_variance_one() -> None:
    x = np.random.default_rng(0).normal(3.0, 5.0, (60, 4))
    expected = StandardScaler().fit(x[TRAIN])
    z, scaler = standardized(x.copy(), TRAIN)
    np.testing.assert_allclose(z, expected.transform(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(z[TRAIN].mean(0), 0.0, atol=1e-14)
    np.testing.assert_allclose((x - scaler.mean) / scaler.scale, z, rtol=1e-14, atol=1e-14)


def test_no_second_copy_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    whole, _ = standardized(x.copy(), TRAIN)
    monkeypatch.setattr("workers.data.scaling._BLOCK", 8)  # two rows at once
    given = x.copy()
    z, _ = standardized(given, TRAIN)
    assert z is given
    np.testing.assert_allclose(z, whole, rtol=1e-12, atol=1e-13)


def test_a_constant_feature_keeps_its_scale() -> None:
    x = np.full((60, 3), 0.1)
    x[:, 1] = 1e8 / 3
    x[:, 2] = 0.0
    z, scaler = standardized(x, TRAIN)
    assert scaler.scale.tolist() == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(z, 0.0, atol=1e-7)


def test_a_large_mean_does_not_drown_a_small_spread() -> None:
    x = 1e9 + np.random.default_rng(0).normal(size=(60, 1))
    z, _ = standardized(x, TRAIN)
    assert z[TRAIN].std() == pytest.approx(1.0, abs=1e-6)


def test_values_whose_variance_overflows_are_refused() -> None:
    with pytest.raises(BadData, match="scale them down"):
        standardized(np.linspace(-1e200, 1e200, 60)[:, None], TRAIN)


def test_sparse_features_are_scaled_and_stay_sparse() -> None:
    dense = np.random.default_rng(0).normal(size=(60, 5)) * (np.random.default_rng(1).random((60, 5)) < 0.3)
    dense[:, 4] = 0.0
    x = scipy.sparse.csr_array(dense)
    expected = StandardScaler(with_mean=False).fit(dense[TRAIN])
    z, scaler = scaled(x, TRAIN)
    assert z.nnz == x.nnz
    np.testing.assert_allclose(z.toarray(), expected.transform(dense), rtol=1e-12)
    assert scaler.mean.tolist() == [0.0] * 5
    assert scaler.scale[4] == 1.0
