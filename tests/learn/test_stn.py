"""Self-tuning networks where they come to rest: ridge regression, whose fixed points are known."""

import math

import numpy as np
import pytest
import torch

from tests.learn.stn_cases import Ridge
from workers.learn.method import run
from workers.learn.methods.stn import STN
from workers.learn.methods.stn_objectives import SIGMA, SelfTuning
from workers.learn.methods.stn_state import Variant
from workers.learn.outer.adam import Adam as OuterAdam
from workers.learn.problems.batches import Batch
from workers.learn.training.optimizers import Adam
from workers.learn.training.schedule import Cosine
from workers.learn.training.training import Training

# σ; for each variant log λ at rest, validation loss there, and at the best λ the cosine of response and true Jacobian.
TABLE = [
    (0.01, (-2.0217, 5.609565, 1.0000), (-2.0218, 5.609568, 1.0000)),
    (0.1, (-2.0227, 5.609565, 1.0000), (-2.0241, 5.609830, 1.0000)),
    (0.3, (-2.0296, 5.609578, 0.9993), (-2.0436, 5.611902, 0.9996)),
    (0.5, (-2.0402, 5.609635, 0.9952), (-2.0840, 5.615805, 0.9971)),
    (1.0, (-2.0477, 5.609703, 0.9511), (-2.2926, 5.630797, 0.9629)),
    (1.5, (-1.9788, 5.609954, 0.8685), (-2.6844, 5.647482, 0.8741)),
]


def fitted(ridge: Ridge, variant: Variant, sigma: float):
    return lambda lam: (ridge.centered if variant is Variant.CENTERED else ridge.classic)(lam, sigma)


@pytest.mark.parametrize(("sigma", "centered", "classic"), TABLE)
def test_fixed_points_on_ridge_are_those_of_the_table(sigma, centered, classic):
    ridge = Ridge()
    for variant, (lam, loss, cosine) in ((Variant.CENTERED, centered), (Variant.CLASSIC, classic)):
        response = fitted(ridge, variant, sigma)
        rest = ridge.rest(response)
        w, _ = response(rest)
        assert rest == pytest.approx(lam, abs=5.1e-5)
        assert ridge.valid_loss(w) == pytest.approx(loss, abs=5.1e-7)
        best = ridge.rest(ridge.exact)
        theta, jacobian = response(best)[1], ridge.exact(best)[1]
        found = theta @ jacobian / np.linalg.norm(theta) / np.linalg.norm(jacobian)
        assert found == pytest.approx(cosine, abs=5.1e-5)


@pytest.mark.parametrize(("sigma", "medians"), [(0.3, (0.008, 0.020)), (1.0, (0.073, 0.240))])
def test_the_centred_variant_is_closer_on_most_draws(sigma, medians):
    errors = np.zeros((20, 2))
    for seed in range(20):
        ridge = Ridge(seed)
        truth = ridge.rest(ridge.exact)
        for place, variant in enumerate((Variant.CENTERED, Variant.CLASSIC)):
            errors[seed, place] = abs(ridge.rest(fitted(ridge, variant, sigma)) - truth)
    assert np.median(errors, axis=0) == pytest.approx(medians, abs=6e-4)
    assert int((errors[:, 0] < errors[:, 1]).sum()) == 19


def at_rest(ridge: Ridge, variant: Variant, sigma: float, *, copies: int = 1, stretched: float = 1.0):
    """The network's own parameters at the fixed point: weights, response, h, s."""
    problem = ridge.problem(copies=copies)
    tuning = SelfTuning(problem, variant, frozenset())
    lam = ridge.rest(fitted(ridge, variant, sigma))
    w, theta = (torch.tensor(part) for part in fitted(ridge, variant, sigma)(lam))
    theta = stretched * theta
    raw = torch.tensor([lam], dtype=torch.float64)
    gates = torch.zeros(tuning.response.sizes[-1], dtype=torch.float64)
    gates[0] = 1.0
    # The classic gate opens with h itself, the centred one with its distance.
    start = w if variant is Variant.CENTERED else w - lam * theta
    return problem, tuning, start, torch.cat([theta, gates]), raw, SIGMA.inverse(torch.full_like(raw, sigma))


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_objectives_rest_where_the_closed_form_does(variant, sigma):
    def gradients(stretched: float) -> torch.Tensor:
        problem, tuning, w, theta, raw, scale = at_rest(Ridge(), variant, sigma, copies=1200, stretched=stretched)
        buffers = problem.initial_buffers()
        found = []
        for seed in range(10):
            if variant is Variant.CENTERED:
                found.append(tuning.response_gradient(w, theta, buffers, raw, scale, seed=seed, step=0))
            else:
                joint = tuning.joint_gradient(w, theta, buffers, raw, scale, seed=seed, step=0)
                found.append(torch.cat([joint.w, joint.response]))
        return torch.stack(found)

    def largest(found: torch.Tensor) -> float:
        """Mean over draws in standard errors."""
        return float((found.mean(0).abs() / (found.std(0) / math.sqrt(len(found)))).max())

    # Of 32 or 62 numbers, ten draws each: Student's t leaves about one in a thousand beyond.
    assert largest(gradients(1.0)) < 7.0
    assert largest(gradients(1.3)) > 12.0


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_the_strength_rests_there_too(variant, sigma):
    problem, tuning, w, theta, raw, scale = at_rest(Ridge(), variant, sigma)
    buffers, rows = problem.initial_buffers(), problem.validation
    here = tuning.strength_gradient(w, theta, buffers, raw, scale, rows, draws=None, entropy=0.0)
    moved = tuning.strength_gradient(1.1 * w, theta, buffers, raw, scale, rows, draws=None, entropy=0.0)
    assert abs(float(here.raw)) < 1e-10
    assert abs(float(moved.raw)) > 1e-2
    assert isinstance(rows, Batch)


def run_on_ridge(variant: Variant, sigma: float) -> float:
    """log λ where a run of the method comes to rest; sixteen copies of the rows see as many perturbations a step."""
    steps = 300
    method = STN(
        training=Training(Adam(0.02), Cosine(total=5 * 10 * steps)),
        response=Adam(0.02),
        steps=steps,
        variant=variant,
        outer=OuterAdam(rate=0.02),
        response_every=1,
        cycles=10,
        warm_up=500,
        sigma=sigma,
        learn_sigma=False,
        strength_rows=200,
    )
    problem = Ridge().problem(copies=16)
    state = method.init(problem, seed=0)
    for after, _ in run(method, problem, state, max_steps=steps):
        state = after
    return float(state.raw)


@pytest.mark.slow
@pytest.mark.parametrize("variant", Variant)
def test_a_run_comes_to_rest_near_its_own_fixed_point(variant):
    assert run_on_ridge(variant, 0.3) == pytest.approx(Ridge().rest(fitted(Ridge(), variant, 0.3)), abs=0.02)
