"""Fashion-MNIST, and the problems that networks pose on it."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem


@dataclass(frozen=True, eq=False)
class Case:
    """Parts of the data."""

    train: Examples
    valid: Examples
    test: Examples


def fashion(folder: Path, *, train: int, valid: int, test: int = 10_000) -> Case:
    """Return a random part of the 60,000 training images, another one for validation, and the first test images."""
    where = folder / "fashion-mnist"
    X, y = _images(where / "train-images-idx3-ubyte.gz"), _numbers(where / "train-labels-idx1-ubyte.gz", 8)
    order = np.random.default_rng(0).permutation(len(y))
    some, others = order[:train], order[train : train + valid]
    T, t = _images(where / "t10k-images-idx3-ubyte.gz"), _numbers(where / "t10k-labels-idx1-ubyte.gz", 8)
    return Case(Examples(X[some], y[some]), Examples(X[others], y[others]), Examples(T[:test], t[:test]))


def save(case: Case, file: Path) -> None:
    """Write a case for another process, which need not see the rest of the data."""
    parts = {"train": case.train, "valid": case.valid, "test": case.test}
    np.savez(file, **{f"{side}_{name}": getattr(part, side) for name, part in parts.items() for side in ("X", "y")})


def saved(file: Path) -> Case:
    """Return what `save` wrote."""
    with np.load(file) as arrays:
        train, valid, test = (Examples(arrays[f"X_{name}"], arrays[f"y_{name}"]) for name in ("train", "valid", "test"))
    return Case(train, valid, test)


def problem_of(
    case: Case,
    widths: tuple[int, ...],
    per: Per,
    *,
    initial: float,
    batch_size: int = 128,
    low: float = 1e-8,
    high: float = 1e4,
) -> NetworkProblem:
    """Return an MLP with ReLU on the case, with the service's defaults for the box and the batch."""
    return network_problem(
        lambda inputs, outputs: mlp(
            widths, activation=Activation.RELU, normalization=Normalization.NONE, inputs=inputs, outputs=outputs
        ),
        train=case.train,
        valid=case.valid,
        test=case.test,
        loss="cross_entropy",
        terms=[L2Term("l2", initial, per, low, high)],
        batch_size=batch_size,
        dtype=torch.float32,
        device="cpu",
        classes=10,
    )


def _numbers(file: Path, offset: int) -> np.ndarray:
    with gzip.open(file) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=offset).astype(np.int64)


def _images(file: Path) -> np.ndarray:
    with gzip.open(file) as stream:
        pixels = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 784)
    return (pixels.astype(np.float32) / 255.0 - 0.286) / 0.353
