"""Datasets that are there from the start, because they ship with a dependency of the workers."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from service.records import ColumnRecord, ColumnType, DatasetRecord

_CANCER: Final = tuple(
    f"{prefix}{quantity}{suffix}"
    for prefix, suffix in (("mean ", ""), ("", " error"), ("worst ", ""))
    for quantity in (
        "radius",
        "texture",
        "perimeter",
        "area",
        "smoothness",
        "compactness",
        "concavity",
        "concave points",
        "symmetry",
        "fractal dimension",
    )
)
_WINE: Final = (
    "alcohol",
    "malic_acid",
    "ash",
    "alcalinity_of_ash",
    "magnesium",
    "total_phenols",
    "flavanoids",
    "nonflavanoid_phenols",
    "proanthocyanins",
    "color_intensity",
    "hue",
    "od280/od315_of_diluted_wines",
    "proline",
)
_DIGITS: Final = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
_DIABETES: Final = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


def _dataset(name: str, features: tuple[str, ...], *, rows: int, classes: tuple[int, ...] | None) -> DatasetRecord:
    columns = [
        ColumnRecord(name=feature, type=ColumnType.NUMBER, shape=(), missing=0, values=None) for feature in features
    ]
    counts = None if classes is None else {str(label): count for label, count in enumerate(classes)}
    kind = ColumnType.NUMBER if classes is None else ColumnType.INTEGER
    columns.append(ColumnRecord(name="target", type=kind, shape=(), missing=0, values=counts))
    return DatasetRecord(
        id=f"builtin:{name}",
        name=name,
        format="builtin",
        rows=rows,
        columns=tuple(columns),
        is_sparse=False,
        nonzeros=None,
        sha256="",
        size_bytes=8 * rows * (len(features) + 1),
        key="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


BUILTIN_DATASETS: Final[Mapping[str, DatasetRecord]] = {
    dataset.id: dataset
    for dataset in (
        _dataset("breast_cancer", _CANCER, rows=569, classes=(212, 357)),
        _dataset("diabetes", _DIABETES, rows=442, classes=None),
        _dataset("digits", _DIGITS, rows=1797, classes=(178, 182, 177, 183, 181, 182, 181, 179, 174, 180)),
        _dataset("wine", _WINE, rows=178, classes=(59, 71, 48)),
    )
}
"""By id, `builtin:…`. They have no file: `key` and `sha256` are empty; `workers.data.builtin` loads them."""


def builtin_dataset(dataset_id: str) -> DatasetRecord | None:
    """The dataset of this id, if it ships with the service."""
    return BUILTIN_DATASETS.get(dataset_id)
