"""What one gets without learning the strength: no penalty, a default, a grid. By scikit-learn, on the same rows."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Features, standardised by the training rows, and classes, of one part."""

    x: Floats
    y: Classes


@dataclass(frozen=True)
class Parts:
    """The rows of a job, dealt as the worker deals them."""

    train: Rows
    valid: Rows
    test: Rows


@dataclass(frozen=True)
class Outcome:
    """How good an approach is, and what it cost."""

    approach: str
    strength: str
    trainings: int
    valid_loss: float
    valid_accuracy: float
    test_loss: float
    test_accuracy: float


def without_penalty(parts: Parts) -> Outcome:
    """Train without any penalty."""
    return _outcome(parts, fit(parts.train, strength=0.0), "no penalty", "0", trainings=1)


def default(parts: Parts) -> Outcome:
    """Train with scikit-learn's default, C = 1."""
    strength = 1 / len(parts.train.y)
    return _outcome(
        parts, fit(parts.train, strength=strength), "scikit-learn's default, C = 1", f"{strength:.3g}", trainings=1
    )


def grid(parts: Parts, *, points: int, low: float, high: float) -> Outcome:
    """Train at every point of a logarithmic grid and keep the one with the lowest validation loss."""
    models = [(strength, fit(parts.train, strength=strength)) for strength in np.geomspace(low, high, points)]
    strength, best = min(models, key=lambda pair: _loss(pair[1], parts.valid))
    return _outcome(parts, best, f"best of a grid of {points}", f"{strength:.3g}", trainings=points)


def fit(rows: Rows, *, strength: float) -> LogisticRegression:
    """Train softmax regression with ½ λ ‖w‖² on the mean loss: C = 1 / (λ n)."""
    c = np.inf if strength == 0 else 1 / (strength * len(rows.y))
    with warnings.catch_warnings():
        # Without a penalty separable classes have no optimum: scikit-learn stops at max_iter and says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        with threadpool_limits(1):  # these matrices are too small to share
            return LogisticRegression(C=c, max_iter=1000).fit(rows.x, rows.y)


def _loss(model: LogisticRegression, rows: Rows) -> float:
    return float(log_loss(rows.y, model.predict_proba(rows.x), labels=model.classes_))


def _outcome(parts: Parts, model: LogisticRegression, approach: str, strength: str, *, trainings: int) -> Outcome:
    return Outcome(
        approach=approach,
        strength=strength,
        trainings=trainings,
        valid_loss=_loss(model, parts.valid),
        valid_accuracy=float(accuracy_score(parts.valid.y, model.predict(parts.valid.x))),
        test_loss=_loss(model, parts.test),
        test_accuracy=float(accuracy_score(parts.test.y, model.predict(parts.test.x))),
    )
