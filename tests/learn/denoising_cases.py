"""Small denoising problems, for tests to share."""

import numpy as np
import torch

from workers.learn.problems.denoising import DenoisingProblem
from workers.learn.problems.denoising_data import Pairs, denoising_problem, noisy
from workers.learn.regularizers.field_of_experts import FieldOfExperts
from workers.learn.regularizers.filters import cosine_filters
from workers.learn.regularizers.image import Quantity
from workers.learn.regularizers.tv import TV
from workers.learn.transforms import Identity


def scene(n: int = 2, height: int = 9, width: int = 7, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Return images in 0 … 1 with edges and slopes, [n, c, h, w]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    images = np.empty((n, channels, height, width))
    for image in images.reshape(-1, height, width):
        angle, at = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7)
        along = (np.cos(angle) * rows / height + np.sin(angle) * columns / width) % 1.0
        image[:] = 0.2 + 0.5 * (along > at) + 0.2 * rng.uniform() * rows / height
    return images


def tv(*, strength: float = 0.05, smoothing: float = 0.02, fixed: str = "") -> TV:
    """Return total variation; `fixed` names the quantity that is not learned."""
    return TV(
        Quantity("tv", strength, low=1e-6, high=1e3, fixed=fixed == "tv"),
        Quantity("tv.smoothing", smoothing, low=1e-6, high=1e1, fixed=fixed == "tv.smoothing"),
    )


def tv_problem(
    n: int = 2,
    height: int = 9,
    width: int = 7,
    channels: int = 1,
    *,
    strength: float = 0.05,
    smoothing: float = 0.02,
    fixed: str = "",
    sigma: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> DenoisingProblem:
    """Return a total variation problem on random scenes."""
    truth = scene(n, height, width, channels, seed)
    regularizer = tv(strength=strength, smoothing=smoothing, fixed=fixed)
    return denoising_problem(Pairs(noisy(truth, sigma, seed), truth), regularizer, dtype=dtype, device="cpu")


def field_of_experts(
    *, count: int = 3, size: int = 3, strength: float = 0.5, smoothing: float = 0.05, fixed: str = "", seed: int = 0
) -> FieldOfExperts:
    """Return a field of experts with unequal weights and smoothings; `fixed` names what is not learned."""
    name = "field_of_experts"
    spread = torch.linspace(0.5, 1.5, count, dtype=torch.float64)
    return FieldOfExperts(
        Quantity(name, strength, low=1e-6, high=1e3, fixed=fixed == "strength"),
        Quantity(f"{name}.weights", 0.1 * spread, (count,), low=1e-6, high=1e3, fixed=fixed == "weights"),
        Quantity(f"{name}.smoothing", smoothing * spread, (count,), low=1e-6, high=1e1, fixed=fixed == "smoothing"),
        Quantity(
            f"{name}.filters",
            cosine_filters(count, size, seed=seed),
            (count, size, size),
            Identity(),
            fixed=fixed == "filters",
        ),
    )


def expert_problem(
    n: int = 2,
    height: int = 7,
    width: int = 6,
    channels: int = 1,
    *,
    count: int = 3,
    size: int = 3,
    fixed: str = "",
    sigma: float = 0.1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> DenoisingProblem:
    """Return a field of experts on random scenes."""
    truth = scene(n, height, width, channels, seed)
    regularizer = field_of_experts(count=count, size=size, fixed=fixed, seed=seed)
    return denoising_problem(Pairs(noisy(truth, sigma, seed), truth), regularizer, dtype=dtype, device="cpu")


def raw_of(problem: DenoisingProblem) -> torch.Tensor:
    """Return the initial raw hyperparameters, [h]."""
    return problem.space.initial(problem.noisy.dtype, problem.noisy.device)
