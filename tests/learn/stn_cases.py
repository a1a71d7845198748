"""Small problems for self-tuning networks, and the ridge problem whose fixed points are known."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn

from tests.learn.network_cases import small_network
from workers.learn.losses.squared import Squared
from workers.learn.models.cnn import Block, cnn
from workers.learn.models.image_shape import ImageShape
from workers.learn.models.mlp import Activation, Normalization
from workers.learn.models.network import Network, Role, Slot
from workers.learn.noises.augmentation import Brightness, Contrast, Translation
from workers.learn.noises.base import Strength
from workers.learn.noises.cutout import Cutout
from workers.learn.noises.dropout import Dropout, InputDropout
from workers.learn.noises.input_noise import InputNoise
from workers.learn.noises.label_smoothing import LabelSmoothing
from workers.learn.noises.noises import Noises
from workers.learn.problems.batches import Batch
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.regularizers.l2 import L2
from workers.learn.transforms import Interval, Softplus, Whole

IMAGE = ImageShape(6, 6, 1)


def probability(name: str, initial: float = 0.1, shape: tuple[int, ...] = ()) -> Strength:
    return Strength(name, initial, Interval(0.0, 0.9), shape)


def noisy_mlp(kind: str = "softmax", **settings) -> NetworkProblem:
    """Three strengths of L2 and five of noises on a small MLP."""
    problem = small_network(kind, **settings)
    return replace(
        problem,
        noises=Noises(
            (InputNoise(Strength("input_noise", 0.1, Softplus())), InputDropout(probability("input_dropout"))),
            Dropout(probability("dropout", shape=(2,))),
            None if kind == "squared" else LabelSmoothing(probability("label_smoothing", 0.05)),
        ),
    )


def noisy_cnn(
    normalization: Normalization = Normalization.NONE, *, n: int = 48, dtype: torch.dtype = torch.float64
) -> NetworkProblem:
    """Ten strengths and more on a small CNN, three classes of bars."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, size=3 * n)
    X = rng.normal(size=(3 * n, 6, 6))
    for row, label in enumerate(y):
        X[row, 2 * label : 2 * label + 2] += 1.0
    parts = [Examples(X[a : a + n].reshape(n, -1), y[a : a + n]) for a in (0, n, 2 * n)]
    noises = Noises(
        (
            Translation(probability("augmentation.translation"), IMAGE),
            Brightness(probability("augmentation.brightness"), IMAGE),
            Contrast(probability("augmentation.contrast"), IMAGE),
            Cutout(Strength("cutout.length", 2, Whole(0, 4)), Strength("cutout.holes", 1, Whole(0, 2)), IMAGE),
        ),
        Dropout(probability("dropout")),
        LabelSmoothing(probability("label_smoothing", 0.05)),
    )
    return network_problem(
        lambda inputs, outputs: cnn(
            [Block(4, pool=2), Block(5)],
            [6],
            shape=IMAGE,
            activation=Activation.RELU,
            normalization=normalization,
            outputs=outputs,
        ),
        train=parts[0],
        valid=parts[1],
        test=parts[2],
        loss="cross_entropy",
        terms=[L2Term("l2", 0.01, Per.LAYER, 1e-6, 1e2)],
        batch_size=16,
        dtype=dtype,
        device="cpu",
        classes=3,
        noises=noises,
    )


class Ridge:
    """1/(2n) ‖X w − y‖² + ½ e^λ ‖w‖², and where each variant comes to rest under perturbations of λ.

    Source: the moments of e^ε for Gaussian ε, in the normal equations of each variant's objective.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.RandomState(seed)
        features, n, valid = 30, 60, 200
        scale = np.linspace(2.0, 0.2, features)
        self.X, self.Xv = rng.randn(n, features) * scale, rng.randn(valid, features) * scale
        w = rng.randn(features)
        self.y, self.yv = self.X @ w + 3.0 * rng.randn(n), self.Xv @ w + 3.0 * rng.randn(valid)
        self.A, self.c = self.X.T @ self.X / n, self.X.T @ self.y / n

    def exact(self, lam: float) -> tuple[np.ndarray, np.ndarray]:
        """w* and dw*/dλ."""
        H = self.A + np.exp(lam) * np.eye(30)
        w = np.linalg.solve(H, self.c)
        return w, -np.exp(lam) * np.linalg.solve(H, w)

    def centered(self, lam: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """w0 and θ of the centred variant."""
        e, _, m1, m2 = self._moments(lam, sigma)
        w = np.linalg.solve(self.A + e * np.eye(30), self.c)
        return w, -e * m1 * np.linalg.solve(sigma**2 * self.A + e * m2 * np.eye(30), w)

    def classic(self, lam: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """w(λ) and θ of the classic variant."""
        e, m0, m1, m2 = self._moments(lam, sigma)
        eye = np.eye(30)
        both = np.block([[self.A + e * m0 * eye, e * m1 * eye], [e * m1 * eye, sigma**2 * self.A + e * m2 * eye]])
        solved = np.linalg.solve(both, np.r_[self.c, np.zeros(30)])
        return solved[:30], solved[30:]

    def rest(self, fitted) -> float:
        """The λ at which the response sees no slope; `fitted` returns w and θ."""
        return brentq(lambda lam: fitted(lam)[1] @ self.slope(fitted(lam)[0]), -4.0, 0.0, xtol=1e-13)

    def valid_loss(self, w: np.ndarray) -> float:
        return 0.5 * float(np.mean((self.Xv @ w - self.yv) ** 2))

    def slope(self, w: np.ndarray) -> np.ndarray:
        return self.Xv.T @ (self.Xv @ w - self.yv) / 200

    def problem(self, *, copies: int = 1, initial: float = -1.0) -> NetworkProblem:
        """The same as a network without hidden layers; copies of rows bring more perturbations to a step."""
        with torch.device("meta"):
            linear = nn.Linear(30, 1, bias=False)
        network = Network(
            nn.Sequential(OrderedDict([("0", linear)])), (Slot("0.weight", (1, 30), 0, Role.WEIGHT, 0.0, 0.1),), 30, 1
        )
        rule = L2("l2", torch.zeros(30, dtype=torch.long), float(np.exp(initial)), low=1e-4, high=1e3)
        train = Batch(torch.tensor(self.X).repeat(copies, 1), torch.tensor(self.y).repeat(copies)[:, None])
        valid = Batch(torch.tensor(self.Xv), torch.tensor(self.yv)[:, None])
        return NetworkProblem(
            network, Squared(), (rule,), train, valid, None, train.rows, torch.zeros(0, dtype=torch.float64)
        )

    def _moments(self, lam: float, sigma: float) -> tuple[float, float, float, float]:
        m0 = float(np.exp(sigma**2 / 2.0))
        return float(np.exp(lam)), m0, sigma**2 * m0, (sigma**2 + sigma**4) * m0
