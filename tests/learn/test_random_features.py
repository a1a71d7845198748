import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from tests.learn.evidence_cases import CPU, evidence_problem, finished, numbers
from tests.learn.test_methods import copied, same
from workers.learn.errors import LearnError
from workers.learn.feature_evidence import FeatureEvidence, Process
from workers.learn.method import Status, run
from workers.learn.methods.elbo import ELBo
from workers.learn.methods.feature_evidence import FeatureEvidenceMethod
from workers.learn.methods.gaussian_elbo import GaussianELBo
from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.models.random_features import RandomFeatures, random_features_of, rff_gp
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network_data import network_problem
from workers.learn.training.optimizers import Adam

LIKE = torch.zeros(0, dtype=torch.float64)


def demo():
    """E14: 20 rows of a sine."""
    draws = np.random.RandomState(42)
    x = draws.randn(20, 1)
    return x, np.sin(3 * x[:, 0]) + 0.1 * draws.randn(20)


def drawn(seed, features=1024):
    draws = np.random.RandomState(seed)
    frequencies, phases = draws.randn(features, 1), draws.uniform(0, 2 * np.pi, features)
    return RandomFeatures(torch.as_tensor(frequencies), torch.as_tensor(phases), outputs=1, scales=1)


def problem_of(x, y, *, features=64, per_feature=False, loss="squared", seed=0, terms=None, lengthscale=1.0):
    return network_problem(
        lambda i, c: rff_gp(
            inputs=i,
            outputs=c,
            features=features,
            per_feature=per_feature,
            lengthscale=lengthscale,
            outputscale=1.0,
            seed=seed,
            like=LIKE,
        ),
        train=Examples(x, y),
        valid=None,
        test=Examples(x, y),
        loss=loss,
        terms=terms or [L2Term("l2", 0.1)],
        batch_size=32,
        dtype=torch.float64,
        device=CPU,
    )


def test_features_have_the_covariance_of_the_kernel():
    module = random_features_of(
        rff_gp(
            inputs=3, outputs=1, features=200_000, per_feature=True, lengthscale=1.0, outputscale=1.0, seed=0, like=LIKE
        )
    )
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scales = numbers(0.5, 1.0, 2.0)
    phi = module.features(x, scales, numbers(1.7))
    expected = 1.7**2 * torch.exp(-0.5 * torch.cdist(x / scales, x / scales).square())
    assert float((phi @ phi.T - expected).abs().max()) < 4 * 1.7**2 / math.sqrt(200_000)


@pytest.mark.parametrize(("seed", "lengthscale"), [(0, 0.53), (1, 0.60), (2, 0.67)])
def test_the_demo_by_exact_evidence(seed, lengthscale):  # E14
    x, y = demo()
    evidence = FeatureEvidence(drawn(seed), torch.as_tensor(x), torch.as_tensor(y)[:, None], 1.0)

    def loss(logs):
        leaf = torch.tensor(logs, requires_grad=True)
        value = -evidence.conditioned(Process.of(leaf)).log_evidence
        value.backward()
        return float(value.detach()), leaf.grad.numpy()

    best = scipy.optimize.minimize(loss, [0.0, 0.0, -2.0], jac=True)
    assert math.exp(best.x[0]) == pytest.approx(lengthscale, abs=0.015)
    assert 0.5 <= math.exp(best.x[0]) <= 0.7
    assert math.exp(0.5 * best.x[2]) == pytest.approx(0.1025, abs=0.001)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_by_the_isotropic_bound(seed):  # E14
    x, y = demo()
    module = drawn(seed)

    def bound(log_scale):
        phi = module.features(torch.as_tensor(x), numbers(math.exp(log_scale)), numbers(1.0))
        _, points = finished(GaussianELBo(kappa=1.0, starts=2), evidence_problem(phi.numpy(), y))
        return -points[-1].metrics["objective"], points[-1].metrics["noise"]

    best = scipy.optimize.minimize_scalar(
        lambda z: -bound(z)[0], bounds=(math.log(0.22), math.log(0.5)), method="bounded", options={"xatol": 1e-2}
    )
    assert 0.28 <= math.exp(best.x) <= 0.35
    assert 0.45 <= bound(best.x)[1] <= 0.50


@pytest.mark.parametrize("features", [8, 40])
def test_the_evidence_and_predictions_are_those_of_the_process(features):
    draws = np.random.default_rng(0)
    x, new = draws.normal(size=(20, 2)), draws.normal(size=(5, 2))
    y = np.stack([np.sin(x[:, 0]) + 2.0, x[:, 1]], axis=1)
    network = rff_gp(
        inputs=2, outputs=2, features=features, per_feature=True, lengthscale=1.0, outputscale=0.8, seed=3, like=LIKE
    )
    evidence = FeatureEvidence(random_features_of(network), torch.as_tensor(x), torch.as_tensor(y), 0.8)
    at = Process(numbers(0.2, -0.3), numbers(0.4)[0], numbers(-1.5)[0])
    found = evidence.conditioned(at)
    phi, phi_new = evidence.phi(evidence.x, at).numpy(), evidence.phi(torch.as_tensor(new), at).numpy()
    v, noise = math.exp(0.4), math.exp(-1.5)
    cov = noise * np.eye(20) + v * phi @ phi.T
    inverse, ones = np.linalg.inv(cov), np.ones(20)
    bias = (ones @ inverse @ y) / (ones @ inverse @ ones)
    normal = scipy.stats.multivariate_normal(cov=cov)
    assert float(found.log_evidence) == pytest.approx(normal.logpdf((y - bias).T).sum(), rel=1e-10)
    assert found.bias.numpy() == pytest.approx(bias)
    gain = v * phi_new @ phi.T @ inverse
    mean, std = evidence.predictive(torch.as_tensor(new), at)
    assert mean.numpy() == pytest.approx(bias + gain @ (y - bias))
    spread = v * phi_new @ phi_new.T - v * gain @ phi @ phi_new.T
    assert std.numpy() == pytest.approx(np.sqrt(noise + np.diag(spread)))
    fitted = phi @ found.mean.numpy() + found.bias.numpy()
    assert float(found.residual) == pytest.approx(((y - fitted) ** 2).sum())


@pytest.mark.parametrize("per_feature", [False, True])
def test_the_method_climbs_to_the_top_and_answers_with_its_posterior(per_feature):
    draws = np.random.default_rng(1)
    x = draws.normal(size=(60, 3))
    y = np.sin(2 * x[:, 0]) + 0.1 * draws.normal(size=60)
    problem, method = problem_of(x, y, per_feature=per_feature), FeatureEvidenceMethod()
    state, points = finished(method, problem, most=300)
    assert points[-1].status is Status.CONVERGED
    assert points[-1].hypergradient_norm < 1e-4
    values = [point.metrics["log_evidence"] for point in points]
    assert values[-1] >= max(values) - 1e-6
    answer = method.answer(problem, state)
    metrics = problem.evaluate(answer.weights, Part.TRAIN)
    assert metrics["loss"] == pytest.approx(points[-1].train_loss, rel=1e-3)
    # The weights are ridge regression on the features at the strength that is reported.
    w = answer.weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.inner(w, answer.raw), w)
    assert float(gradient[:65].abs().max()) < 1e-8
    if per_feature:
        scales = [points[-1].metrics[f"lengthscale.{j}"] for j in range(3)]
        assert 5 * scales[0] < min(scales[1:])  # only the first feature matters


@pytest.mark.parametrize(("noise", "expected"), [(1.0, 0.5), (0.3, 0.1), (0.02, 0.01)])
def test_it_starts_from_the_noise_with_the_most_evidence(noise, expected):
    draws = np.random.default_rng(3)
    x = draws.normal(size=(80, 1))
    y = np.sin(x[:, 0]) / np.std(np.sin(x[:, 0])) + noise * draws.normal(size=80)
    problem, method = problem_of(x, y, features=128), FeatureEvidenceMethod()
    state = method.init(problem, seed=0)
    assert math.exp(float(state.trial[-1])) == pytest.approx(expected * y.var(), rel=1e-9)


def test_a_resumed_run_is_the_same_run():
    x, y = demo()
    method = FeatureEvidenceMethod()
    whole = list(run(method, one := problem_of(x, y), method.init(one, seed=0), max_steps=9))
    first = list(run(method, two := problem_of(x, y), method.init(two, seed=0), max_steps=4))
    rest = list(run(method, problem_of(x, y), copied(first[-1][0]), max_steps=9))
    assert len(whole) == len(first + rest) == 9
    for (state, point), (other, other_point) in zip(whole, first + rest, strict=True):
        assert same(state, other)
        assert point.metrics == other_point.metrics


def test_the_bound_learns_length_scales_of_a_regression_by_gradient():
    draws = np.random.default_rng(1)
    x = draws.normal(size=(200, 2))
    y = np.sin(2 * x[:, 0]) + 0.1 * draws.normal(size=200)
    problem = problem_of(x, y, features=128, per_feature=True)
    method = ELBo(kappa=1.0, candidates=(Adam(0.03),), steps=1500, steps_per_point=1500, initial_scale=0.01)
    state, points = finished(method, problem)
    answer = method.answer(problem, state)
    scales = torch.nn.functional.softplus(problem.network.split(answer.weights)[2])
    assert float(scales[1]) > 1.5 * float(scales[0])
    assert problem.evaluate(answer.weights, Part.TEST)["r2"] > 0.9
    assert points[-1].metrics["noise"] < 0.5
    assert method._objective(problem).prior.partition.members == 128  # kernel and bias have no prior


def test_a_classification_separates_rings():
    draws = np.random.default_rng(2)
    x = draws.normal(size=(300, 2))
    y = (np.linalg.norm(x, axis=1) > 1.1).astype(np.int64)
    problem = problem_of(x, y, features=128, loss="cross_entropy")
    method = ELBo(kappa=4.0, candidates=(Adam(0.03),), steps=800, steps_per_point=800)
    state, _ = finished(method, problem)
    assert problem.evaluate(method.answer(problem, state).weights, Part.TRAIN)["accuracy"] > 0.95


@pytest.mark.parametrize("term", [L2Term("l2", 0.1, fixed=True), L2Term("l2", 0.1, low=0.1, high=1.0)])
def test_the_strength_stays_in_its_box_and_all_else_goes_with_it(term):
    method, problem = FeatureEvidenceMethod(tolerance=1e-9), problem_of(*demo(), terms=[term])
    state, points = finished(method, problem)
    at = method.found(problem, state)
    # The free optimum is at a weaker one.
    assert float((at.log_noise - at.log_variance).exp()) / problem.train.rows == pytest.approx(0.1)
    assert points[-1].hypergradient_norm < 1e-6
    value, slope = method.profile(problem, state, newton_steps=2)
    steps = [problem_of(*demo(), terms=[L2Term("l2", 0.1 * math.exp(h), fixed=True)]) for h in (-1e-3, 1e-3)]
    below, above = (method.profile(one, finished(method, one)[0], newton_steps=2)[0] for one in steps)
    assert slope > 0.0
    assert (above - below) / 2e-3 == pytest.approx(slope, rel=1e-5)
    assert below < value < above


def test_what_it_cannot_do_is_refused():
    x, y = demo()
    method = FeatureEvidenceMethod()
    classes = problem_of(x, (y > 0).astype(int), loss="cross_entropy")
    with pytest.raises(LearnError, match="squared loss"):
        method.init(classes, seed=0)
    with pytest.raises(LearnError, match="one prior"):
        method.init(problem_of(x, y, terms=[L2Term("l2", 0.1, Per.PARAMETER)]), seed=0)
    network = mlp([2], activation=Activation.RELU, normalization=Normalization.NONE, inputs=1, outputs=1)
    with pytest.raises(LearnError, match="random-feature"):
        random_features_of(network)
    with pytest.raises(LearnError, match="positive"):
        rff_gp(inputs=1, outputs=1, features=4, per_feature=False, lengthscale=0.0, outputscale=1.0, seed=0, like=LIKE)
    problem = problem_of(x, y)
    with pytest.raises(LearnError, match="no point"):
        method.answer(problem, method.init(problem, seed=0))
