"""The datasets that ship with scikit-learn."""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from workers.data.columns import Numbers
from workers.data.errors import BadData


@dataclass(frozen=True)
class BuiltinData:
    """A dataset in full: x [n, d], y [n]."""

    x: Numbers
    y: Numbers
    feature_names: tuple[str, ...]


def load_builtin(dataset_id: str) -> BuiltinData:
    """Return the dataset that `service.builtin` describes under this id.

    Raises:
        BadData: there is none.
    """
    loaders = {
        "builtin:digits": load_digits,
        "builtin:breast_cancer": load_breast_cancer,
        "builtin:wine": load_wine,
        "builtin:diabetes": load_diabetes,
    }
    if dataset_id not in loaders:
        raise BadData(f"There is no dataset {dataset_id!r}; there are {', '.join(sorted(loaders))}.")
    bunch = loaders[dataset_id]()
    return BuiltinData(
        x=np.ascontiguousarray(bunch.data, dtype=np.float64),
        y=np.asarray(bunch.target, dtype=np.float64),
        feature_names=tuple(str(name) for name in bunch.feature_names),
    )
