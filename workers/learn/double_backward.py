"""Whether a network can be differentiated twice: asked once, before a run leans on it."""

from dataclasses import replace
from typing import Final

import torch

from workers.learn.errors import LearnError
from workers.learn.problems.batches import Batch
from workers.learn.problems.network import NetworkProblem
from workers.learn.verification import random_direction

_ROWS: Final = 8
_STEPS: Final = (1e-4, 1e-5, 1e-6)
_AGREEMENT: Final = 1e-3


class NoDoubleBackward(LearnError):
    """The network's gradients cannot be differentiated, which every hypergradient needs.

    A part of the module has no second derivative (fused recurrent cells, attention kernels), or hides it (a custom
    function, `detach`).
    """


def check_double_backward(problem: NetworkProblem, *, seed: int) -> None:
    """Compare a Hessian-vector product on a few rows with differences of gradients, in float64.

    Args:
        problem: what is to be trained; nothing of it is changed.
        seed: of the weights and of the direction.

    Raises:
        NoDoubleBackward: torch cannot, or what it returns is no second derivative; the message says what to do.
    """
    rows = problem.train
    few = Batch(rows.x[:_ROWS], rows.y[:_ROWS])
    tiny = replace(problem, train=few, valid=None, test=None).to(torch.float64)
    oracle, w = tiny.oracle(), tiny.initial_weights(seed)
    # Biases start at zero, where a unit that sees nothing lies on the kink of its activation.
    w = w + 0.1 * float(w.std()) * random_direction(w, seed=seed + 1) * w.numel() ** 0.5
    raw = tiny.space.initial(w.dtype, w.device)
    direction = random_direction(w, seed=seed)
    try:
        product = oracle.hvp(w, raw)(direction)
    except RuntimeError as error:  # what torch raises where a derivative is missing
        raise NoDoubleBackward(
            f"the network cannot be differentiated twice: {error}. Put the part that cannot in plain operations (on a "
            "GPU, torch.backends.cudnn.flags(enabled=False) and math attention do so), or take a method that only "
            "compares trained networks"
        ) from error
    best = min(
        float(
            torch.linalg.vector_norm(
                (oracle.inner(w + step * direction, raw).gradient - oracle.inner(w - step * direction, raw).gradient)
                / (2.0 * step)
                - product
            )
        )
        for step in _STEPS
    )
    size = float(torch.linalg.vector_norm(product))
    if not best <= _AGREEMENT * size:
        raise NoDoubleBackward(
            f"products with the network's Hessian differ from differences of its gradients by {best / size:.1g} of "
            "their size: something in the module hides its second derivative (detach, .data, a custom function "
            "marked once_differentiable) or draws noise anew at each call; rewrite it in plain operations, or take a "
            "method that only compares trained networks"
        )
