import math

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.stats
import torch
from sklearn.linear_model import ARDRegression, BayesianRidge

from tests.learn.evidence_cases import (
    CPU,
    diabetes,
    evidence_problem,
    finished,
    first_case,
    numbers,
    regression,
    wide_case,
)
from tests.learn.test_methods import copied, same
from workers.learn.errors import LearnError
from workers.learn.gaussian_elbo import Posterior, divergence, gap, sweep
from workers.learn.gaussian_evidence import Bounds, Gaussians, em, log_evidence, mackay, readmitted, slope
from workers.learn.gaussian_regression import Priors, Regression, fit
from workers.learn.kappa import kappa_of
from workers.learn.method import Status, run
from workers.learn.methods.exact_evidence import ExactEvidence
from workers.learn.methods.gaussian import gaussian
from workers.learn.methods.gaussian_elbo import GaussianELBo
from workers.learn.problems.design import design
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem

FREE = Bounds.none(1)


def at(v, noise):
    return Gaussians(numbers(v), numbers(noise)[0])


def evidence_at(data, priors, point):
    return log_evidence(data, point, fit(data, priors, point.v, point.noise))


def climbed(data, priors, point, update, steps):
    for _ in range(steps):
        point = update(point, fit(data, priors, point.v, point.noise))
    return point


def test_the_full_covariance_bound_is_the_evidence():  # E1
    x, y = first_case()
    data, priors, v = regression(x, y), Priors.common(10), 0.25
    found = fit(data, priors, numbers(v), numbers(v)[0])
    exact = scipy.stats.multivariate_normal(cov=v * np.eye(40) + v * x @ x.T).logpdf(y)
    assert exact == pytest.approx(-42.848990, abs=1e-6)
    assert float(log_evidence(data, at(v, v), found)) == pytest.approx(exact, abs=1e-9)
    phi, m = torch.as_tensor(x), found.mean()[:, 0]
    posterior = torch.distributions.MultivariateNormal(m, precision_matrix=phi.T @ phi / v + torch.eye(10) / v)
    prior = torch.distributions.MultivariateNormal(torch.zeros(10).double(), v * torch.eye(10).double())
    blur = torch.trace(phi.T @ phi @ posterior.covariance_matrix)
    expected = -20 * math.log(2 * math.pi * v) - (found.residual + blur) / (2 * v)
    bound = expected - torch.distributions.kl_divergence(posterior, prior)
    assert float(bound) == pytest.approx(exact, abs=1e-9)


def test_the_gaps_of_the_smaller_families():  # E2
    x, y = first_case()
    data, priors, here = regression(x, y), Priors.common(10), at(0.25, 0.25)
    evidence = float(evidence_at(data, priors, here))
    for diagonal, expected in ((False, 0.588847), (True, 0.536031)):
        assert float(gap(data, priors, here, diagonal=diagonal)) == pytest.approx(expected, abs=1e-6)
        # One sweep finds the best q of the family; its bound at the old v and s² is the evidence less the gap.
        found = sweep(
            data, priors, here, Bounds(numbers(0.25 / (40 * 0.25)), numbers(1e9)), kappa=1.0, diagonal=diagonal
        )
        scale = found.scale if diagonal else found.scale.expand(10)
        blurred = found.found.residual + (scale * data.column_squares).sum()
        q = torch.distributions.Normal(found.found.mean()[:, 0], scale.sqrt())
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
        bound = -20 * math.log(2 * math.pi * 0.25) - blurred / 0.5 - kl
        assert float(bound) == pytest.approx(evidence - expected, abs=1e-6)


def test_three_ways_to_the_optimum_of_the_evidence():  # E3
    x, y = first_case()
    data, priors = regression(x, y), Priors.common(10)
    by_mackay = climbed(data, priors, at(0.25, 0.25), lambda p, f: mackay(data, p, f, FREE), 50)
    by_em = climbed(data, priors, at(0.25, 0.25), lambda p, f: em(data, p, f, priors, FREE), 400)

    def loss(logs):
        here = at(*np.exp(logs))
        found = fit(data, priors, here.v, here.noise)
        there = slope(data, here, found)
        return -float(log_evidence(data, here, found)), -np.array([float(there.v), float(there.noise)])

    by_lbfgs = at(*np.exp(scipy.optimize.minimize(loss, [0, 0], jac=True, tol=1e-12).x))
    for here in (by_mackay, by_em, by_lbfgs):
        found = fit(data, priors, here.v, here.noise)
        assert float(here.v) == pytest.approx(0.175110, abs=1e-6)
        assert float(here.noise) == pytest.approx(0.207124, abs=1e-6)
        assert float(log_evidence(data, here, found)) == pytest.approx(-42.325810, abs=1e-6)
        assert float(found.determined) == pytest.approx(9.6158, abs=1e-4)


@pytest.mark.parametrize(
    ("kappa", "v", "noise", "scale", "objective"),
    [(1.0, 0.173371, 0.207783, 0.005158, -42.907288), (4.0, 0.180266, 0.165743, 0.001054, -108.954923)],
)
def test_the_isotropic_bound_in_closed_form(kappa, v, noise, scale, objective):  # E4, E5
    x, y = first_case()
    data, priors = regression(x, y), Priors.common(10)
    here = at(0.25, 0.25)
    for _ in range(200):
        found = sweep(data, priors, here, FREE, kappa=kappa, diagonal=False)
        here = found.at
    values = (float(here.v), float(here.noise), float(found.scale), float(found.objective))
    assert values == pytest.approx((v, noise, scale, objective), abs=1e-6)
    phi, t = torch.as_tensor(x), torch.as_tensor(y)

    def bound(free):
        m, v, noise, scale = free[:10], free[10].exp(), free[11].exp(), free[12].exp()
        blurred = (t - phi @ m).square().sum() + scale * phi.square().sum()
        kl = 0.5 * ((m @ m + 10 * scale) / v - 10 + 10 * (v.log() - scale.log()))
        return kappa * (-20 * torch.log(2 * math.pi * noise) - blurred / (2 * noise)) - kl

    def loss(free):
        leaf = torch.tensor(free, requires_grad=True)
        value = -bound(leaf)
        value.backward()
        return float(value.detach()), leaf.grad.numpy()

    by_bfgs = scipy.optimize.minimize(loss, np.zeros(13), jac=True, method="BFGS", options={"gtol": 1e-8})
    assert -by_bfgs.fun == pytest.approx(objective, abs=1e-6)
    assert np.exp(by_bfgs.x[10:]) == pytest.approx((v, noise, scale), abs=2e-6)


def test_diabetes_has_the_evidence_of_bayesian_ridge():  # E6
    x, y = diabetes()
    problem, method = evidence_problem(x, y), ExactEvidence(tolerance=1e-12)
    state, points = finished(method, problem)
    assert points[-1].status is Status.CONVERGED
    assert points[-1].metrics["prior_variance.l2"] == pytest.approx(0.033286, abs=1e-6)
    assert points[-1].metrics["noise"] ** 2 == pytest.approx(0.494509, abs=1e-6)
    assert points[-1].metrics["log_evidence"] == pytest.approx(-485.776330, abs=1e-6)
    peer = BayesianRidge(
        alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=5000, compute_score=True, fit_intercept=False
    ).fit(x, y)
    assert points[-1].metrics["log_evidence"] == pytest.approx(peer.scores_[-1], rel=1e-12)
    assert method.answer(problem, state).weights.numpy() == pytest.approx(peer.coef_, abs=1e-7)


def test_diabetes_with_the_isotropic_bound():  # E7
    x, y = diabetes()
    _, points = finished(GaussianELBo(kappa=1.0), evidence_problem(x, y))
    last = points[-1].metrics
    assert last["prior_variance.l2"] == pytest.approx(0.029053, abs=1e-6)
    assert last["noise"] ** 2 == pytest.approx(0.495924, abs=1e-6)
    assert last["posterior_scale"] == pytest.approx(0.032868, abs=1e-6)
    assert -last["objective"] * 442 == pytest.approx(-488.6359, abs=1e-4)


def test_an_intercept_is_the_one_of_bayesian_ridge():
    x, y = diabetes()
    x, y = x + 3.0, 77.0 * y + 152.0
    peer = BayesianRidge(
        alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=5000, compute_score=True
    ).fit(x, y)
    method = ExactEvidence(tolerance=1e-12)
    for features in (x, scipy.sparse.csr_array(x)):
        problem = evidence_problem(features, y, intercept=True)
        state, points = finished(method, problem)
        named = problem.named_weights(method.answer(problem, state).weights)
        assert points[-1].metrics["log_evidence"] == pytest.approx(peer.scores_[-1], rel=1e-9)
        assert named["weight"][0].numpy() == pytest.approx(peer.coef_, rel=1e-6)
        assert float(named["bias"]) == pytest.approx(peer.intercept_, rel=1e-9)


def test_relevance_determination_ends_where_scikit_learn_does():
    x, y = diabetes()
    peer = ARDRegression(
        alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-14, max_iter=20000, threshold_lambda=1e7
    ).fit(x, y)
    problem, method = evidence_problem(x, y, Per.FEATURE, intercept=True), ExactEvidence(tolerance=1e-10)
    state, points = finished(method, problem)
    assert points[-1].status is Status.CONVERGED
    assert method.answer(problem, state).weights[:10].numpy() == pytest.approx(peer.coef_, abs=1e-5)
    kept = peer.lambda_ < 1e7
    assert points[-1].metrics["pruned"] == 10 - kept.sum() > 0
    v = np.array([points[-1].metrics[f"prior_variance.l2.{j}"] for j in range(10)])
    assert v[kept] == pytest.approx(1 / peer.lambda_[kept], rel=1e-3)
    assert points[-1].metrics["noise"] ** -2 == pytest.approx(peer.alpha_, rel=1e-5)


def test_a_feature_that_was_left_out_wrongly_comes_back():
    x, y = diabetes()
    data, priors = regression(x, y), Priors(torch.arange(10), 10)
    v = torch.full((10,), 0.03, dtype=torch.float64)
    v[[2, 8]] = 0.0  # the two strongest
    here = Gaussians(v, numbers(0.5)[0])
    back = readmitted(data, priors, here, fit(data, priors, here.v, here.noise))
    assert torch.nonzero(back).squeeze(1).tolist() == [2, 8]
    for j in (2, 8):  # each is the maximum over its variance, the others held

        def value(log_v, j=j):
            moved = v.clone()
            moved[j] = math.exp(log_v)
            return -float(evidence_at(data, priors, Gaussians(moved, here.noise)))

        best = scipy.optimize.minimize_scalar(value, bounds=(-12, 3), method="bounded", options={"xatol": 1e-8}).x
        assert float(back[j]) == pytest.approx(math.exp(best), rel=1e-4)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_every_way_to_the_posterior_agrees(shape):
    draws = np.random.default_rng(2)
    x = draws.normal(size=shape) * (draws.random(shape) < 0.5) + 0.0
    y = draws.normal(size=(shape[0], 2))
    centered = x - x.mean(0)
    sparse = Regression(
        design(scipy.sparse.csr_array(x), dtype=torch.float64, device=CPU),
        torch.as_tensor(y),
        torch.as_tensor(x.mean(0)),
    )
    noise, groups = numbers(0.3)[0], torch.arange(shape[1]) % 3
    same_v = torch.full((3,), 0.7, dtype=torch.float64)
    v = numbers(0.7, 0.1, 0.0)
    for data in (regression(centered, y), sparse):
        one = fit(data, Priors.common(shape[1]), numbers(0.7), noise, kappa=2.0)
        three = fit(data, Priors(groups, 3), same_v, noise, kappa=2.0)
        for name in ("residual", "logdet"):
            torch.testing.assert_close(getattr(one, name), getattr(three, name))
        torch.testing.assert_close(one.mean(), three.mean())
        torch.testing.assert_close(one.squares[0], three.squares.sum())
        torch.testing.assert_close(one.determined[0], three.determined.sum())
        found = fit(data, Priors(groups, 3), v, noise)
        here = Gaussians(v, noise)
        cov = 0.3 * np.eye(shape[0]) + centered * v.numpy()[groups] @ centered.T
        expected = sum(scipy.stats.multivariate_normal(cov=cov).logpdf(y[:, c]) for c in range(2))
        assert float(log_evidence(data, here, found)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_slopes_are_those_of_central_differences(shape):
    draws = np.random.default_rng(3)
    data, priors = (
        regression(draws.normal(size=shape), draws.normal(size=shape[0])),
        Priors(torch.arange(shape[1]) % 3, 3),
    )
    logs = numbers(-1.0, 0.5, -2.0, -0.7)

    def value(logs):
        return float(evidence_at(data, priors, Gaussians(logs[:3].exp(), logs[3].exp())))

    here = Gaussians(logs[:3].exp(), logs[3].exp())
    found = slope(data, here, fit(data, priors, here.v, here.noise))
    for place, expected in enumerate([*found.v.tolist(), float(found.noise)]):
        step = torch.zeros(4).double()
        step[place] = 1e-5
        assert (value(logs + step) - value(logs - step)) / 2e-5 == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kappa", [1.0, 3.0])
@pytest.mark.parametrize("diagonal", [False, True])
def test_no_sweep_lowers_the_objective(kappa, diagonal):  # E11
    x, y = wide_case(40)
    data, priors, here = (
        regression(x, y),
        Priors(torch.arange(40) % 2, 2),
        Gaussians(numbers(0.3, 0.01), numbers(0.4)[0]),
    )
    last = -math.inf
    for _ in range(300):
        found = sweep(data, priors, here, Bounds.none(2), kappa=kappa, diagonal=diagonal)
        here = found.at
        assert float(found.objective) >= last - 1e-11
        assert bool((here.v > 0).all())
        assert float(here.noise) > 0
        assert float(divergence(data, priors, found)) >= 0.0
        last = float(found.objective)


@pytest.mark.parametrize("diagonal", [False, True])
def test_counting_data_three_times_is_having_it_three_times(diagonal):  # E12
    x, y = first_case()
    once, priors = regression(x, y), Priors.common(10)
    # Known noise: its update does not depend on kappa, so that it is held fixed by comparing one sweep.
    here = at(0.25, 0.25)
    counted = sweep(once, priors, here, FREE, kappa=3.0, diagonal=diagonal)
    for copies, agrees in ((3, True), (2, False)):
        thrice = regression(np.tile(x, (copies, 1)), np.tile(y, copies))
        replicated = sweep(thrice, priors, here, FREE, kappa=1.0, diagonal=diagonal)
        difference = abs(float(counted.objective - replicated.objective))
        assert (difference < 1e-9) is agrees
        if agrees:
            torch.testing.assert_close(counted.scale, replicated.scale, rtol=1e-12, atol=0)
            torch.testing.assert_close(counted.at.v, replicated.at.v, rtol=1e-12, atol=0)
            torch.testing.assert_close(counted.found.mean(), replicated.found.mean(), rtol=0, atol=1e-12)


def test_a_collapse_is_told():  # E13
    x, y = wide_case(160)
    problem = evidence_problem(x, y)
    state, points = finished(GaussianELBo(kappa=1.0), problem)
    last = points[-1]
    assert last.metrics["collapsed"] == 1.0
    assert last.metrics["prior_variance.l2"] == pytest.approx(0.0163, abs=1e-4)
    assert last.metrics["noise"] ** 2 == pytest.approx(2.355, abs=1e-3)
    assert 2 * last.train_loss == pytest.approx(2.196, abs=1e-3)
    assert y.var() == pytest.approx(2.499, abs=1e-3)
    values = [climber.objective for climber in state.climbers]
    assert max(values) - min(values) < 1e-4  # every start ends on the same ridge
    _, emphasised = finished(GaussianELBo(), problem)
    assert emphasised[-1].metrics["kappa"] == 8.0
    assert emphasised[-1].metrics["collapsed"] == 0.0
    assert 2 * emphasised[-1].train_loss < 1e-6


@pytest.mark.parametrize(("d", "mse"), [(10, 0.007), (20, 0.17), (40, 0.65), (80, 1.76)])
def test_how_much_the_plain_bound_underfits(d, mse):  # 5.4
    _, points = finished(GaussianELBo(kappa=1.0), evidence_problem(*wide_case(d)))
    assert 2 * points[-1].train_loss == pytest.approx(mse, rel=0.05)


METHODS = {
    "exact": (ExactEvidence(), Per.MODEL),
    "relevance": (ExactEvidence(), Per.FEATURE),
    "isotropic": (GaussianELBo(), Per.MODEL),
    "diagonal": (GaussianELBo(Posterior.DIAGONAL, kappa=2.0), Per.FEATURE),
}


@pytest.mark.parametrize(("method", "per"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_same_run(method, per, stop):
    x, y = first_case()
    one, two, three = (evidence_problem(x, y, per, intercept=True) for _ in range(3))
    whole = list(run(method, one, method.init(one, seed=0), max_steps=8))
    first = list(run(method, two, method.init(two, seed=0), max_steps=stop))
    rest = list(run(method, three, copied(first[-1][0]), max_steps=8))
    assert len(whole) == len(first) + len(rest) > stop
    for (state, point), (other, other_point) in zip(whole, first + rest, strict=True):
        assert same(state, other)
        assert point.metrics == other_point.metrics


@pytest.mark.parametrize(("method", "per"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("bounds", [{"high": 0.004}, {"low": 0.3, "high": 1e6}, {"initial": 0.02, "fixed": True}])
def test_the_answer_solves_the_problem_at_its_strengths(method, per, bounds):
    x, y = first_case()
    bounds = {"initial": bounds.get("low", bounds.get("high", 0.1)), **bounds}
    problem = evidence_problem(x + 1.0, y + 2.0, per, intercept=True, **bounds)
    state, points = finished(method, problem)
    assert points[-1].status is Status.CONVERGED
    assert all(point.valid_loss is None and math.isfinite(point.train_loss) for point in points)
    answer = method.answer(problem, state)
    inner = problem.inner(answer.weights.requires_grad_(), answer.raw)
    (gradient,) = torch.autograd.grad(inner, answer.weights)
    assert float(gradient.abs().max()) < 1e-7  # relative to weights of size one
    low, high = problem.space.bounds(torch.float64, CPU)
    assert bool(((answer.raw >= low - 1e-12) & (answer.raw <= high + 1e-12)).all())


def test_a_held_strength_is_a_constrained_optimum():
    x, y = first_case()
    held, method = 0.3, ExactEvidence(tolerance=1e-12)
    _, points = finished(method, evidence_problem(x, y, low=held, initial=held))
    data, priors = regression(x, y), Priors.common(10)

    def value(log_noise):
        noise = math.exp(log_noise)
        return -float(evidence_at(data, priors, at(noise / (40 * held), noise)))

    best = scipy.optimize.minimize_scalar(value, bounds=(-6, 3), method="bounded", options={"xatol": 1e-10})
    assert points[-1].metrics["log_evidence"] == pytest.approx(-best.fun, abs=1e-9)
    assert float(points[-1].hyperparameters["l2"]) == pytest.approx(held)


def test_two_outputs_share_the_noise_and_the_prior():
    x, y = first_case()
    pair = np.stack([y, -2.0 * y + 1.0], axis=1)
    problem, method = evidence_problem(x, pair, intercept=True), ExactEvidence(tolerance=1e-12)
    _, points = finished(method, problem)
    centered, level = x - x.mean(0), pair - pair.mean(0)
    v, noise = points[-1].metrics["prior_variance.l2"], points[-1].metrics["noise"] ** 2
    normal = scipy.stats.multivariate_normal(cov=noise * np.eye(40) + v * centered @ centered.T)
    assert points[-1].metrics["log_evidence"] == pytest.approx(normal.logpdf(level.T).sum(), rel=1e-10)
    assert points[-1].hypergradient_norm < 1e-12


def test_a_penalised_intercept_is_a_feature_of_ones():
    x, y = first_case()
    method = ExactEvidence(tolerance=1e-12)
    by_hand = evidence_problem(np.hstack([x, np.ones((40, 1))]), y)
    expected = method.answer(by_hand, finished(method, by_hand)[0])
    for features in (x, scipy.sparse.csr_array(x)):
        problem = evidence_problem(features, y, intercept=True, biases=True)
        answer = method.answer(problem, finished(method, problem)[0])
        torch.testing.assert_close(answer.weights, expected.weights)
        torch.testing.assert_close(answer.raw, expected.raw)


def test_what_the_evidence_cannot_take_is_refused():
    x, y = first_case()
    with pytest.raises(LearnError, match="closed form for the squared loss"):
        gaussian(
            linear_problem(
                LinearData(Examples(x, (y > 0).astype(int))),
                loss="cross_entropy",
                terms=[L2Term("l2", 1.0)],
                intercept=True,
                dtype=torch.float64,
                device=CPU,
            )
        )
    twice = [L2Term("l2", 1.0), L2Term("l2_2", 1.0, Per.FEATURE)]
    with pytest.raises(LearnError, match="have a prior already"):
        gaussian(
            linear_problem(
                LinearData(Examples(x, y)), loss="squared", terms=twice, intercept=True, dtype=torch.float64, device=CPU
            )
        )
    with pytest.raises(LearnError, match="share"):
        gaussian(evidence_problem(x, np.stack([y, y], axis=1), Per.CLASS))
    with pytest.raises(LearnError, match="coordinate ascent"):
        GaussianELBo(Posterior.EXACT)
    with pytest.raises(LearnError, match="positive"):
        kappa_of(0.0, weights=1, rows=1)
    problem = evidence_problem(x, y)
    for method in (ExactEvidence(), GaussianELBo()):
        with pytest.raises(LearnError, match="no point"):
            method.answer(problem, method.init(problem, seed=0))


def test_kappa_counts_the_data_once_at_least():
    assert kappa_of("auto", weights=100, rows=20) == 5.0
    assert kappa_of("auto", weights=10, rows=442) == 1.0
    assert kappa_of(0.5, weights=100, rows=20) == 0.5
