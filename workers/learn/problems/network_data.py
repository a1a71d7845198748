"""From arrays and settings to a network's problem."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from workers.learn.errors import LearnError
from workers.learn.losses.base import AbstractLoss
from workers.learn.losses.choice import loss_for
from workers.learn.losses.softmax import Softmax
from workers.learn.models.groups import groups
from workers.learn.models.network import Network
from workers.learn.noises.noises import Noises
from workers.learn.problems.batches import Batch
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.regularizers.l2 import L2

_NO_NOISES: Final = Noises()


def network_problem(
    make: Callable[[int, int], Network],
    *,
    train: Examples,
    valid: Examples | None,
    test: Examples | None,
    loss: str,
    terms: Sequence[L2Term],
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    classes: int | None = None,
    noises: Noises = _NO_NOISES,
) -> NetworkProblem:
    """Build a network's problem, everything moved to the device once.

    Args:
        make: returns a network for so many features and outputs.
        train: rows to train on; dense features, as those of the other parts.
        valid: rows of the outer loss.
        test: rows for reporting.
        loss: "cross_entropy" (one output for two classes, else one for each) or "squared".
        terms: penalties; biases and normalization parameters are penalised only by those with `biases`.
        batch_size: rows of a training step.
        dtype: of everything; float32 unless there is a reason.
        device: where everything lies.
        classes: number of classes, if not all of them occur among the rows.
        noises: what training steps do to rows and hidden layers.

    Raises:
        LearnError: parts that do not fit each other, the loss or the settings.
    """
    if not terms and not noises:
        raise LearnError("a network's problem needs a penalty or a noise: there would be nothing to learn")
    parts = [part for part in (train, valid, test) if part is not None]
    rule, outputs = loss_for(loss, [np.asarray(part.y) for part in parts], classes)
    where = torch.device(device)
    inputs = train.X.shape[1]
    network = make(inputs, outputs)
    rows = _batch("train", train, rule, inputs, dtype, where)
    regularizers = []
    for term in terms:
        found = groups(network, term.per, biases=term.biases)
        regularizers.append(
            L2(term.name, found.of.to(where), term.initial, found.shape, term.fixed, term.low, term.high)
        )
    return NetworkProblem(
        network=network,
        loss=rule,
        regularizers=tuple(regularizers),
        train=rows,
        valid=None if valid is None else _batch("valid", valid, rule, inputs, dtype, where),
        test=None if test is None else _batch("test", test, rule, inputs, dtype, where),
        batch_size=batch_size,
        buffers=network.initial_buffers(like=rows.x),
        noises=noises,
    )


def _batch(
    name: str, part: Examples, loss: AbstractLoss, inputs: int, dtype: torch.dtype, device: torch.device
) -> Batch:
    y = np.asarray(part.y)
    if not isinstance(part.X, np.ndarray):
        raise LearnError(f"{name}: networks take dense features; found {type(part.X).__name__}")
    if part.X.ndim != 2 or part.X.shape[0] != y.shape[0] or part.X.shape[0] == 0 or part.X.shape[1] != inputs:
        raise LearnError(f"{name}: X has shape {part.X.shape} and y {y.shape}; train has {inputs} features")
    targets = torch.as_tensor(y).to(device)
    return Batch(
        torch.as_tensor(part.X).to(dtype=dtype, device=device).contiguous(),
        targets.long() if isinstance(loss, Softmax) else targets.to(dtype),
    )
