"""Methods without validation rows from a specification."""

from typing import Final

from service.spec.job import JobSpec
from service.spec.methods import ELBo as ELBoSpec
from service.spec.models import RFFGP
from workers.learn.gaussian_elbo import Posterior
from workers.learn.methods.elbo import ELBo
from workers.learn.methods.exact_evidence import ExactEvidence
from workers.learn.methods.feature_evidence import FeatureEvidenceMethod
from workers.learn.methods.gaussian_elbo import GaussianELBo
from workers.learn.training.optimizers import SGD, AbstractOptimizer, Adam

EvidenceMethod = ExactEvidence | GaussianELBo | FeatureEvidenceMethod | ELBo
"""Each climbs an evidence, or a bound of it."""

_RATES: Final = (0.1, 0.01, 0.001, 0.0001)
_STEPS: Final = 6000


def build_evidence_method(spec: JobSpec, method: ELBoSpec) -> EvidenceMethod:
    """Return what `elbo` is for a job's model, loss and posterior: closed forms where there are any."""
    posterior, tolerance = Posterior(method.posterior.value), spec.budget.tolerance
    if spec.trains_by_steps:
        steps = _STEPS if method.training_steps is None else method.training_steps
        return ELBo(
            posterior=posterior,
            kappa=method.kappa,
            candidates=tuple(_optimizer(spec, rate) for rate in method.learning_rates or _RATES),
            steps=steps,
            steps_per_point=-(-steps // spec.budget.outer_steps),
        )
    if isinstance(spec.model, RFFGP):
        return FeatureEvidenceMethod(tolerance=tolerance)
    if posterior is Posterior.EXACT:
        return ExactEvidence(tolerance=tolerance)
    # Near the top the objective lies below it by the square of the slope.
    return GaussianELBo(posterior=posterior, kappa=method.kappa, tolerance=tolerance**2)


def _optimizer(spec: JobSpec, rate: float) -> AbstractOptimizer:
    # As in the source of the method: gradients of length scales and of weights differ by orders of magnitude.
    return Adam(rate) if isinstance(spec.model, RFFGP) else SGD(rate, momentum=0.9, nesterov=True)
