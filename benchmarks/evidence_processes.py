"""Regressions by random-feature processes, by evidence and by its bound, beside an exact process of GPyTorch."""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from benchmarks.evidence_cases import Split
from workers.learn.calibration import gaussian_calibration
from workers.learn.kappa import Kappa
from workers.learn.method import run
from workers.learn.methods.elbo import ELBo
from workers.learn.methods.feature_evidence import FeatureEvidenceMethod
from workers.learn.models.random_features import random_features_of, rff_gp
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.training.optimizers import Adam

FEATURES = 1024
MOST_STEPS = 100
"""Evaluations of an evidence."""
BOUND_STEPS = 1500
BOUND_BATCH = 128
RATES = (0.1, 0.01, 0.001, 0.0001)
STARTS = (0.5, 0.01)
"""Variances of the noise that GPyTorch's process starts from; the one that ends with more evidence is taken."""


@dataclass(frozen=True)
class Predicted:
    """What a contender is worth on one split, in the units of the file."""

    contender: str
    set: str
    split: int
    rows: int
    log_likelihood: float
    """Of a test row."""
    rmse: float
    seconds: float
    """Processor time of the fit."""
    steps: int
    """Evaluations of the evidence, or steps of the winner's training."""
    noise: float
    """Standard deviation, of standardised targets."""
    evidence: float | None
    """Log evidence of a training row, standardised; None of a bound."""
    kappa: float = 1.0


@dataclass(frozen=True, eq=False)
class Standardised:
    """A split with features and targets of mean 0 and variance 1 on the training rows, float64."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    """In the units of the file."""
    center: float
    unit: float

    @staticmethod
    def of(split: Split) -> "Standardised":
        """Return a split in standard units."""
        mean, std = split.x.mean(0), split.x.std(0)
        std = np.where(std > 0.0, std, 1.0)
        center, unit = float(split.y.mean()), float(split.y.std())
        return Standardised(
            torch.as_tensor((split.x - mean) / std),
            torch.as_tensor((split.y - center) / unit),
            torch.as_tensor((split.test_x - mean) / std),
            torch.as_tensor(split.test_y),
            center,
            unit,
        )

    def judged(self, mean: Tensor, std: Tensor) -> tuple[float, float]:
        """Return the log likelihood of a test row and the RMSE of predictions in standard units."""
        found = gaussian_calibration(self.center + self.unit * mean.double(), self.unit * std.double(), self.test_y)
        return -found.nll, found.rmse


@dataclass(frozen=True, eq=False)
class Fit:
    """Predictions for the test rows, [m], in standard units, and what they cost."""

    mean: Tensor
    std: Tensor
    steps: int
    noise: float
    evidence: float | None = None
    kappa: float = 1.0


def exact_process(data: Standardised) -> Fit:
    """Fit GPyTorch's exact process: constant mean, squared exponential with a length scale each, Gaussian noise.

    SciPy's L-BFGS-B on its marginal likelihood, dense Cholesky decompositions, float64, its own
    least noise (a variance of 1e-4), two starts.
    """
    import gpytorch  # a dependency of nothing else
    from linear_operator.utils.errors import NanError, NotPSDError

    class Process(gpytorch.models.ExactGP):
        def __init__(self, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
            super().__init__(data.x, data.y, likelihood)
            self.mean_module = gpytorch.means.ConstantMean()
            kernel = gpytorch.kernels.RBFKernel(ard_num_dims=data.x.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def fitted(noise: float) -> Fit:
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        model = Process(likelihood).double()
        model.covar_module.base_kernel.lengthscale = math.sqrt(data.x.shape[1])
        model.covar_module.outputscale, likelihood.noise = 1.0 - noise, noise
        objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        parameters = list(model.parameters())
        evaluations = 0

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal evaluations
            evaluations += 1
            torch.nn.utils.vector_to_parameters(torch.as_tensor(flat), parameters)
            model.zero_grad()
            try:
                value = -objective(model(data.x), data.y)
                value.backward()
            except (NanError, NotPSDError):
                return 1e6, np.zeros_like(flat)  # so far away that the line search comes back
            return float(value), torch.cat([one.grad.reshape(-1) for one in parameters]).numpy()

        model.train()
        likelihood.train()
        start = torch.nn.utils.parameters_to_vector(parameters).detach().numpy().copy()
        best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxfun": MOST_STEPS})
        torch.nn.utils.vector_to_parameters(torch.as_tensor(best.x), parameters)
        with torch.no_grad():
            evidence = float(objective(model(data.x), data.y))
            model.eval()
            likelihood.eval()
            found = likelihood(model(data.test_x))
            return Fit(found.mean, found.stddev, evaluations, float(likelihood.noise.sqrt()), evidence)

    dense = gpytorch.settings.max_cholesky_size(100_000)
    exactly = gpytorch.settings.fast_computations(False, False, False)
    with dense, exactly, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return max((fitted(noise) for noise in STARTS), key=lambda fit: fit.evidence)


def random_features(data: Standardised, dtype: torch.dtype) -> NetworkProblem:
    """Return the problem of the service's `rff_gp` with a length scale for each feature."""
    like = torch.zeros(0, dtype=dtype)
    return network_problem(
        lambda inputs, outputs: rff_gp(
            inputs=inputs,
            outputs=outputs,
            features=FEATURES,
            per_feature=True,
            lengthscale=math.sqrt(inputs),
            outputscale=1.0,
            seed=0,
            like=like,
        ),
        train=Examples(data.x.numpy(), data.y.numpy()),
        valid=None,
        test=None,
        loss="squared",
        terms=[L2Term("l2", 0.1)],
        batch_size=BOUND_BATCH,
        dtype=dtype,
        device="cpu",
    )


def by_evidence(data: Standardised) -> Fit:
    """Fit random features by their exact evidence."""
    problem, method = random_features(data, torch.float64), FeatureEvidenceMethod()
    points = list(run(method, problem, method.init(problem, seed=0), max_steps=MOST_STEPS))
    best = max((point for _, point in points), key=lambda point: point.metrics["log_evidence"])
    mean, std = method.predictive(problem, points[-1][0], data.test_x)
    evidence = best.metrics["log_evidence"] / data.x.shape[0]
    return Fit(mean[:, 0], std, len(points), best.metrics["noise"], evidence)


def by_bound(kappa: Kappa) -> Callable[[Standardised], Fit]:
    """Return a contender: random features by the ELBo with one σ; Adam, four learning rates."""

    def fit(data: Standardised) -> Fit:
        problem = random_features(data, torch.float32)
        method = ELBo(
            kappa=kappa,
            candidates=tuple(Adam(rate) for rate in RATES),
            steps=BOUND_STEPS,
            steps_per_point=BOUND_STEPS,
        )
        state, _ = method.step(problem, method.init(problem, seed=0))
        found = method.found(problem, state)
        x = data.test_x.float()
        weight, bias, raw_lengthscale, raw_outputscale = problem.network.split(found.mean)
        softplus = torch.nn.functional.softplus
        phi = random_features_of(problem.network).features(x, softplus(raw_lengthscale), softplus(raw_outputscale))
        assert found.noise is not None
        # In closed form: the outputs are linear in what has a posterior.
        spread = found.scale.double().square() * phi.double().square().sum(1) + found.noise**2
        return Fit((phi @ weight.T + bias)[:, 0], spread.sqrt(), BOUND_STEPS, found.noise, kappa=found.kappa)

    return fit


CONTENDERS: dict[str, Callable[[Standardised], Fit]] = {
    "exact process (GPyTorch)": exact_process,
    "rff_gp, evidence": by_evidence,
    "rff_gp, elbo": by_bound("auto"),
    "rff_gp, elbo, κ = 1": by_bound(1.0),
}


def predicted(name: str, split: Split, *, of: str, number: int) -> Predicted:
    """Return what a contender makes of a split."""
    data = Standardised.of(split)
    begun = time.process_time()
    fit = CONTENDERS[name](data)
    seconds = time.process_time() - begun
    likelihood, rmse = data.judged(fit.mean, fit.std)
    return Predicted(
        name, of, number, len(split.y), likelihood, rmse, seconds, fit.steps, fit.noise, fit.evidence, fit.kappa
    )
