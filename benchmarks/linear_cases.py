"""The three data sets of the linear benchmark, split the same way every time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.datasets import load_digits

from workers.learn.problems.linear_data import Examples, LinearData

SEED = 0


@dataclass(frozen=True)
class Effort:
    """How much is spent on what is not the method: a large case takes hours otherwise."""

    searches: int
    """Iterations of the judge's search for the best known of many strengths, from each start."""
    starts: int
    trials: int
    """Of TPE; none where it is left out."""
    extras: bool
    """Whether HOAG and other starts are run too, and every answer is judged instead of the last ones."""
    colds: float
    """Single trainings that a gradient method may cost before it is stopped."""
    beaten: float
    """A grid is stopped when it has cost so many times what our answer did."""
    best: float | None = None
    """The best single strength, as a whole run of the judge found it once; None to look for it."""


FULL = Effort(searches=100, starts=2, trials=50, extras=True, colds=100.0, beaten=math.inf)
LEAN = Effort(searches=10, starts=1, trials=0, extras=False, colds=10.0, beaten=2.5, best=4.224e-7)


@dataclass(frozen=True, eq=False)
class Case:
    """Examples in three parts, and what may be said of their strengths."""

    name: str
    train: Examples
    valid: Examples
    test: Examples
    classes: int
    granularities: tuple[str, ...]
    """`per` of the penalty: one strength, and the finer ones that differ from it."""
    effort: Effort = FULL

    @property
    def data(self) -> LinearData:
        """All three parts."""
        return LinearData(self.train, self.valid, self.test)

    @property
    def rows(self) -> int:
        """n, the number of training rows."""
        return int(self.train.X.shape[0])

    @property
    def box(self) -> tuple[float, float]:
        """Strengths that correspond to C = 1e4 … 1e-4, the range of scikit-learn's LogisticRegressionCV.

        With a mean loss over n rows C = 1/(n λ).
        """
        return 1e-4 / self.rows, 1e4 / self.rows


def digits() -> Case:
    """1797 images of 8 x 8 in 10 classes, standardised on the training rows: 898, 450 and 449 rows."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(y))
    train, valid, test = np.split(order, [898, 1348])
    scale = X[train].std(0)
    X = (X - X[train].mean(0)) / np.where(scale == 0, 1.0, scale)
    parts = [Examples(X[rows], y[rows]) for rows in (train, valid, test)]
    return Case("digits", *parts, classes=10, granularities=("model", "class", "feature"))


def a9a(folder: Path) -> Case:
    """32 561 adults with 123 binary features, half of them held out; the 16 281 published test rows."""
    with np.load(folder / "a9a.npz", allow_pickle=False) as z:
        X, X_test = _csr(z, "Xtr"), _csr(z, "Xte")
        y, y_test = (z["y_train"] + 1) // 2, (z["y_test"] + 1) // 2
    train, valid = _halves(len(y))
    parts = (Examples(X[train], y[train]), Examples(X[valid], y[valid]), Examples(X_test, y_test))
    # two classes have one output: a strength for each class is one strength
    return Case("a9a", *parts, classes=2, granularities=("model", "feature"))


def twenty_news(folder: Path) -> Case:
    """11 314 posts in 20 classes as tf-idf of 39 423 words, half held out; idf of the training half only."""
    with np.load(folder / "20news_stripped_mindf2_counts.npz", allow_pickle=False) as z:
        counts, counts_test = _csr(z, "Xtr"), _csr(z, "Xte")
        y, y_test = z["y_train"].astype(np.int64), z["y_test"].astype(np.int64)
    train, valid = _halves(len(y))
    found = np.bincount(counts[train].indices, minlength=counts.shape[1])
    idf = sp.diags_array(np.log((1 + len(train)) / (1 + found)) + 1)

    def weighted(rows: sp.csr_matrix) -> sp.csr_matrix:
        X = rows @ idf
        length = np.sqrt(np.asarray(X.multiply(X).sum(1)).ravel())
        return sp.csr_matrix(sp.diags_array(1 / np.maximum(length, 1e-12)) @ X)

    parts = (
        Examples(weighted(counts[train]), y[train]),
        Examples(weighted(counts[valid]), y[valid]),
        Examples(weighted(counts_test), y_test),
    )
    return Case("20newsgroups", *parts, classes=20, granularities=("model", "class", "feature"), effort=LEAN)


def cases(folder: Path | None) -> list[Callable[[], Case]]:
    """Return what loads each case: digits alone without a folder."""
    if folder is None:
        return [digits]
    return [digits, lambda: a9a(folder), lambda: twenty_news(folder)]


def _halves(n: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(SEED).permutation(n)
    return order[: n // 2], order[n // 2 :]


def _csr(z: np.lib.npyio.NpzFile, prefix: str) -> sp.csr_matrix:
    starts = z[f"{prefix}_indptr"]
    data, indices = z[f"{prefix}_data"].astype(np.float64), z[f"{prefix}_indices"].astype(np.int32)
    return sp.csr_matrix((data, indices, starts), shape=(len(starts) - 1, int(z["n_features"])))
