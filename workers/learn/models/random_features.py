"""Gaussian processes by random Fourier features, with learned length scales."""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.learn.errors import LearnError
from workers.learn.models.network import Network, Role, Slot


@final
class RandomFeatures(nn.Module):
    """f(x) = W φ(x) + b, with φ(x) = o √(2/R) cos(F (x / ℓ) + p).

    Frequencies F and phases p are drawn once and stay. With weights ~ N(0, v) the covariance of two outputs tends to
    v o² exp(−½ ‖(x − x')/ℓ‖²) as R grows. ℓ and o are softplus of what is trained.

    Source: Rahimi & Recht (2007), Random features for large-scale kernel machines, section 3.
    """

    def __init__(self, frequencies: Tensor, phases: Tensor, *, outputs: int, scales: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        """[R, d], of the dtype and device of the run: constants, and no buffers."""
        self.phases = phases
        """[R]."""
        self.weight = nn.Parameter(torch.empty(outputs, frequencies.shape[0], device="meta"))
        self.bias = nn.Parameter(torch.empty(outputs, device="meta"))
        self.raw_lengthscale = nn.Parameter(torch.empty(scales, device="meta"))
        self.raw_outputscale = nn.Parameter(torch.empty(1, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Return f, [n, c], of rows x [n, d]."""
        lengthscale, outputscale = functional.softplus(self.raw_lengthscale), functional.softplus(self.raw_outputscale)
        return functional.linear(self.features(x, lengthscale, outputscale), self.weight, self.bias)

    def features(self, x: Tensor, lengthscale: Tensor, outputscale: Tensor) -> Tensor:
        """Return φ, [n, R], of rows x [n, d] at ℓ, [1] or [d], and o, [1] or []."""
        frequencies, phases = self.frequencies.to(x), self.phases.to(x)
        height = math.sqrt(2.0 / phases.numel()) * outputscale
        return torch.cos((x / lengthscale) @ frequencies.T + phases) * height


def rff_gp(
    *,
    inputs: int,
    outputs: int,
    features: int,
    per_feature: bool,
    lengthscale: float,
    outputscale: float,
    seed: int,
    like: Tensor,
    level: float = 0.0,
) -> Network:
    """Return a random-feature Gaussian process as a network.

    Parameters are called `weight` [c, R], `bias` [c], which no prior is for unless biases have one and which is the
    constant mean of the process, `raw_lengthscale` [1] or [d] and `raw_outputscale` [1], which never have one. Weights
    start Gaussian with variance 1/R.

    Args:
        inputs: d.
        outputs: c.
        features: R.
        per_feature: whether each input has a length scale of its own, which is relevance determination.
        lengthscale: ℓ at the start; √d suits standardised inputs.
        outputscale: o at the start. Beside a learned prior variance it is redundant.
        seed: of frequencies and phases, which are the same on every device.
        like: has the dtype and device of the run.
        level: b at the start.

    Raises:
        LearnError: a number that is not positive.
    """
    if min(inputs, outputs, features) < 1 or min(lengthscale, outputscale) <= 0.0:
        raise LearnError("inputs, outputs, features and both scales must be positive")
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.randn(features, inputs, generator=generator, dtype=torch.float64).to(like)
    phases = (2.0 * math.pi * torch.rand(features, generator=generator, dtype=torch.float64)).to(like)
    scales = inputs if per_feature else 1
    module = RandomFeatures(frequencies, phases, outputs=outputs, scales=scales)
    slots = (
        Slot("weight", (outputs, features), 0, Role.WEIGHT, 0.0, features**-0.5),
        Slot("bias", (outputs,), 0, Role.BIAS, level, 0.0),
        Slot("raw_lengthscale", (scales,), 0, Role.KERNEL, inverse_softplus(lengthscale), 0.0),
        Slot("raw_outputscale", (1,), 0, Role.KERNEL, inverse_softplus(outputscale), 0.0),
    )
    return Network(module, slots, inputs, outputs)


def random_features_of(network: Network) -> RandomFeatures:
    """Return the feature map of a network that `rff_gp` made.

    Raises:
        LearnError: it is another network.
    """
    if not isinstance(network.module, RandomFeatures):
        raise LearnError(f"expected a random-feature Gaussian process; found {type(network.module).__name__}")
    return network.module


def inverse_softplus(value: float) -> float:
    """Return r with log(1 + eʳ) = value > 0; exact for tiny and for huge values."""
    return value + math.log(-math.expm1(-value))
