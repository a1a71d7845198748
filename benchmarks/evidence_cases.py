"""The data of the evidence's benchmark: one half of Fashion-MNIST learned from the other, and UCI's regressions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.networks_cases import fashion
from workers.learn.models.cnn import Block, cnn
from workers.learn.models.image_shape import ImageShape
from workers.learn.models.mlp import Activation, Normalization
from workers.learn.models.network import Network
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.problems.transfer_data import transfer_problem
from workers.learn.training.optimizers import Adam
from workers.learn.training.schedule import Cosine
from workers.learn.training.training import Training

SOURCE = (1, 3, 5, 7, 9)
"""Trousers, dresses, sandals, sneakers and boots: told apart by their outlines."""
TARGET = (0, 2, 4, 6, 8)
"""T-shirts, pullovers, coats, shirts and bags: the classes that are taken for each other."""
SIDE = 14
HIDDEN = 512
BATCH = 64
SOURCE_STEPS = 2000


@dataclass(frozen=True, eq=False)
class Transfer:
    """Two halves of Fashion-MNIST, images averaged to 14 × 14, and a CNN that knows the first."""

    given: dict[str, Tensor]
    """Parameters of the network that the first half was learned by."""
    target: Examples
    """30,000 rows of the other half."""
    test: Examples
    """Its 5,000 test rows."""
    source_accuracy: float
    """Of the network on the test rows of its own half."""


@dataclass(frozen=True, eq=False)
class Split:
    """One published split of a regression, as it is in the file."""

    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def make(inputs: int, outputs: int) -> Network:
    """Return the network: two convolutions and a wide hidden layer, 155,333 weights for five classes."""
    assert inputs == SIDE * SIDE
    return cnn(
        [Block(16, 3, 2), Block(32, 3, 2)],
        [HIDDEN],
        shape=ImageShape(SIDE, SIDE, 1),
        activation=Activation.RELU,
        normalization=Normalization.NONE,
        outputs=outputs,
    )


def transfer(folder: Path) -> Transfer:
    """Return the halves, and train the network on the first: Adam, 2,000 batches of 64."""
    case = fashion(folder, train=60_000, valid=0)
    source, target = (_half(case.train, classes) for classes in (SOURCE, TARGET))
    problem = network_problem(
        make,
        train=source,
        valid=_half(case.test, SOURCE),
        test=None,
        loss="cross_entropy",
        terms=[L2Term("l2", 1e-5)],
        batch_size=BATCH,
        dtype=torch.float32,
        device="cpu",
    )
    training = Training(Adam(1e-3), Cosine(SOURCE_STEPS), averaging=1)
    raw = problem.space.initial(torch.float32, torch.device("cpu"))
    state, _ = training.advance(problem, training.start(problem, seed=0), raw, seed=0, steps=SOURCE_STEPS)
    accuracy = problem.losses.metrics(problem.losses.outputs(state.w, problem.validation.x), problem.validation.y)
    return Transfer(problem.named_weights(state.w), target, _half(case.test, TARGET), accuracy["accuracy"])


def chosen(rows: Examples, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of n rows, equally many of each class, in two parts: four fifths and one fifth of each."""
    draws = np.random.default_rng(seed)
    inner, outer = [], []
    for number in range(len(TARGET)):
        places = draws.permutation(np.flatnonzero(rows.y == number))[: n // len(TARGET)]
        cut = len(places) * 4 // 5
        inner.append(places[:cut])
        outer.append(places[cut:])
    return draws.permutation(np.concatenate(inner)), draws.permutation(np.concatenate(outer))


def target_problem(case: Transfer, places: np.ndarray) -> NetworkProblem:
    """Return the problem of some rows of the target: L2-SP for what was given, L2 for the head, biases and all."""
    return transfer_problem(
        make,
        given=case.given,
        fresh_layers=1,
        drawn=True,
        backbone=L2Term("l2_sp", 1e-3, biases=True),
        head=L2Term("l2", 1e-3, biases=True),
        train=Examples(case.target.X[places], case.target.y[places]),
        valid=None,
        test=case.test,
        loss="cross_entropy",
        batch_size=BATCH,
        dtype=torch.float32,
        device="cpu",
        classes=len(TARGET),
    )


def regression(folder: Path, name: str, split: int, *, most: int) -> Split:
    """Return a split of a set, with at most so many of its training rows, drawn at random."""
    with np.load(folder / "uci_regression_gal_splits.npz", allow_pickle=False) as arrays:
        x, y = arrays[f"{name}__X"].astype(np.float64), arrays[f"{name}__y"].astype(np.float64)
        mask = np.unpackbits(arrays[f"{name}__test_mask"], axis=1)[split, : len(y)].astype(bool)
    rows = np.flatnonzero(~mask)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(split).choice(rows, most, replace=False))
    return Split(x[rows], y[rows], x[mask], y[mask])


def _half(rows: Examples, classes: tuple[int, ...]) -> Examples:
    """Return the rows of some classes, numbered anew, each image averaged over squares of 2 × 2."""
    places = np.flatnonzero(np.isin(rows.y, classes))
    images = rows.X[places].reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4), dtype=np.float32)
    return Examples(images.reshape(-1, SIDE * SIDE), np.searchsorted(classes, rows.y[places]))
