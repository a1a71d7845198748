"""Which loss a kind of targets takes, and how many outputs it needs."""

from collections.abc import Sequence

import numpy as np

from workers.learn.errors import LearnError
from workers.learn.losses.base import AbstractLoss
from workers.learn.losses.logistic import Logistic
from workers.learn.losses.softmax import Softmax
from workers.learn.losses.squared import Squared


def loss_for(name: str, targets: Sequence[np.ndarray], classes: int | None) -> tuple[AbstractLoss, int]:
    """Return the loss and the number of a model's outputs.

    Args:
        name: "cross_entropy" (one output for two classes, else one for each) or "squared" (½ ‖z − y‖²).
        targets: those of every part: numbers [n] or [n, c], or class numbers [n] from 0 on.
        classes: C, if not all of them occur among the targets.

    Raises:
        LearnError: an unknown name, or targets that are no class numbers.
    """
    if name == "squared":
        return Squared(), 1 if targets[0].ndim == 1 else targets[0].shape[1]
    if name != "cross_entropy":
        raise LearnError(f"there is no loss {name!r}; there are 'cross_entropy' and 'squared'")
    found = np.unique(np.concatenate([part.reshape(-1) for part in targets]))
    if not np.array_equal(found, np.round(found)) or found[0] < 0:
        raise LearnError("class numbers must be whole and start at 0")
    count = int(found[-1]) + 1 if classes is None else classes
    if count <= found[-1] or count < 2:
        raise LearnError(f"found class number {int(found[-1])}, but there are {count} classes; at least 2 needed")
    return (Logistic(), 1) if count == 2 else (Softmax(), count)
