"""Small problems on networks, for tests to share."""

import numpy as np
import torch

from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.training.optimizers import SGD, AbstractOptimizer
from workers.learn.training.schedule import Constant
from workers.learn.training.training import Training

KINDS = {"squared": 0, "logistic": 2, "softmax": 3}


def small_network(
    kind: str = "softmax",
    per: Per = Per.LAYER,
    *,
    widths: tuple[int, ...] = (5, 4),
    activation: Activation = Activation.TANH,
    normalization: Normalization = Normalization.NONE,
    initial: float = 0.05,
    biases: bool = False,
    batch_size: int = 16,
    n: int = 60,
    d: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> NetworkProblem:
    """Return a random problem with n rows for each part; `kind` is squared, logistic or softmax (three classes)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3 * n, d))
    outputs = max(KINDS[kind], 1)
    score = np.tanh(X @ rng.normal(size=(d, outputs))) + 0.3 * rng.normal(size=(3 * n, outputs))
    y = (
        score[:, 0]
        if kind == "squared"
        else (score[:, 0] > 0).astype(np.int64)
        if kind == "logistic"
        else score.argmax(1)
    )
    parts = [Examples(X[start : start + n], y[start : start + n]) for start in (0, n, 2 * n)]
    return network_problem(
        lambda inputs, count: mlp(
            widths, activation=activation, normalization=normalization, inputs=inputs, outputs=count
        ),
        train=parts[0],
        valid=parts[1],
        test=parts[2],
        loss="squared" if kind == "squared" else "cross_entropy",
        terms=[L2Term("l2", initial, per, 1e-8, 1e4, biases=biases)],
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        classes=KINDS[kind] or None,
    )


def training(optimizer: AbstractOptimizer | None = None) -> Training:
    """Return SGD with momentum at a constant rate, or another optimizer."""
    return Training(SGD(0.1, momentum=0.9) if optimizer is None else optimizer, Constant())


def raw_of(problem: NetworkProblem) -> torch.Tensor:
    """Return raw strengths near the initial ones, all different."""
    like = problem.train.x
    raw = problem.space.initial(like.dtype, like.device)
    return raw + torch.linspace(-0.5, 0.5, raw.numel() + 2, dtype=like.dtype, device=like.device)[1:-1]
