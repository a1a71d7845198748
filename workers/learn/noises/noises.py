"""All noises of a problem, in the order in which they act."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, Hyperparameter
from workers.learn.losses.base import AbstractLoss
from workers.learn.losses.logistic import Logistic
from workers.learn.losses.softmax import Softmax
from workers.learn.models.chain import Between
from workers.learn.noises.base import AbstractInputNoise, AbstractNoise, RowHyper
from workers.learn.noises.draws import Draws
from workers.learn.noises.dropout import Dropout
from workers.learn.noises.label_smoothing import LabelSmoothing


@final
@dataclass(frozen=True, eq=False)
class Noises:
    """Noises on features, one after the other; dropout inside the network; label smoothing."""

    inputs: tuple[AbstractInputNoise, ...] = ()
    dropout: Dropout | None = None
    smoothing: LabelSmoothing | None = None

    def __bool__(self) -> bool:
        return len(self._all) > 0

    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Return what is to be learned."""
        return tuple(block for noise in self._all for block in noise.hyperparameters())

    def fixed_at(self, hyper: Hyper) -> "Noises":
        """Return the noises with all strengths fixed at natural values by name."""
        return replace(
            self,
            inputs=tuple(noise.fixed_at(hyper) for noise in self.inputs),
            dropout=None if self.dropout is None else self.dropout.fixed_at(hyper),
            smoothing=None if self.smoothing is None else self.smoothing.fixed_at(hyper),
        )

    def check(self, *, features: int, layers: int, rule: AbstractLoss) -> None:
        """Raise LearnError if a noise does not fit rows of so many features, a network's layers or the loss."""
        for noise in self.inputs:
            noise.check(features)
        if self.dropout is not None and self.dropout.strength.shape not in ((), (layers - 1,)):
            raise LearnError(
                f"{self.dropout.strength.name}: one probability or one for each of {layers - 1} hidden layers; found "
                f"{self.dropout.strength.shape}"
            )
        if self.smoothing is not None and not isinstance(rule, Softmax | Logistic):
            raise LearnError("label smoothing needs classes, hence the loss 'cross_entropy'")

    def on_inputs(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """Return rows, [n, d], of the rows x [n, d]."""
        for noise in self.inputs:
            x = noise(x, hyper, draws)
        return x

    def on_hidden(self, hyper: RowHyper, draws: Draws) -> Between | None:
        """Return what the outputs of hidden layers are multiplied by; None for nothing."""
        dropout = self.dropout
        if dropout is None:
            return None
        return lambda x, layer: dropout(x, layer, hyper, draws)

    @property
    def _all(self) -> tuple[AbstractNoise, ...]:
        last = (self.dropout, self.smoothing)
        return (*self.inputs, *(noise for noise in last if noise is not None))
