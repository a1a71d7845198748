import dataclasses
import math

import numpy as np
import pytest
import scipy.sparse
import torch

from tests.learn.evidence_cases import CPU, diabetes, evidence_problem, finished, first_case, numbers
from tests.learn.test_methods import copied, same
from workers.learn.errors import AllDiverged, LearnError
from workers.learn.gaussian_elbo import Posterior
from workers.learn.gaussian_evidence import Bounds
from workers.learn.method import Status, run
from workers.learn.methods.elbo import ELBo
from workers.learn.methods.gaussian_elbo import GaussianELBo
from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem
from workers.learn.problems.network_data import network_problem
from workers.learn.training.optimizers import SGD, Adam
from workers.learn.variational.divergence import Prior, inverse_softplus, softplus
from workers.learn.variational.partition import Partition
from workers.learn.variational.weight_noise import selection_noise, weight_noise


def network(
    per: Per = Per.LAYER,
    *,
    loss: str = "cross_entropy",
    biases: bool = False,
    normalization: Normalization = Normalization.NONE,
    dtype: torch.dtype = torch.float64,
    n: int = 60,
    terms: tuple[L2Term, ...] | None = None,
):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(n, 5))
    score = np.sin(2.0 * x) @ draws.normal(size=(5, 3)) + 0.1 * draws.normal(size=(n, 3))
    y = score.argmax(1) if loss == "cross_entropy" else score[:, 0]
    return network_problem(
        lambda i, c: mlp([6], activation=Activation.TANH, normalization=normalization, inputs=i, outputs=c),
        train=Examples(x, y),
        valid=None,
        test=None,
        loss=loss,
        terms=terms or [L2Term("l2", 0.1, per, biases=biases)],
        batch_size=16,
        dtype=dtype,
        device=CPU,
    )


def classes(n: int = 80, *, sparse: bool = False, per: Per = Per.MODEL):
    draws = np.random.default_rng(1)
    x = draws.normal(size=(n, 4)) * (draws.random((n, 4)) < 0.7)
    y = (x @ draws.normal(size=(4, 3)) + 0.3 * draws.normal(size=(n, 3))).argmax(1)
    return linear_problem(
        LinearData(Examples(scipy.sparse.csr_array(x) if sparse else x, y)),
        loss="cross_entropy",
        terms=[L2Term("l2", 0.1, per)],
        intercept=True,
        dtype=torch.float64,
        device=CPU,
    )


PROBLEMS = {
    "network": network,
    "network-biases": lambda: network(biases=True, per=Per.TENSOR),
    "network-parameter": lambda: network(Per.PARAMETER),
    "network-regression": lambda: network(loss="squared"),
    "network-batch": lambda: network(normalization=Normalization.BATCH),
    "linear": classes,
    "linear-class": lambda: classes(per=Per.CLASS),
    "linear-sparse": lambda: classes(sparse=True),
    "linear-regression": lambda: evidence_problem(*first_case(), intercept=True),
}
SHORT = {"steps": 60, "steps_per_point": 15, "batch_size": 16, "initial_scale": 0.05}


def shaken(objective, state, seed=3):
    """Return variables away from where everything starts, all candidates alike."""
    generator = torch.Generator().manual_seed(seed)
    one = state.variables[0]
    return (one + 0.3 * torch.randn(one.shape, generator=generator, dtype=one.dtype))[None].repeat(2, 1)


def by_hand(problem, method, objective, variables, *, step, plug_in=True, detach=False, factor=1.0):
    """Return the objective at the draw and the rows of a step, differentiable, written as in the paper."""
    p, s = objective.size, objective.scales
    mean, raw, rest = variables[:p], variables[p : p + s], variables[p + s :]
    of = objective.priors.of
    inside = of < objective.priors.size
    scale = softplus(raw).expand(p)
    draw = torch.where(inside, weight_noise(p, seed=0, step=step, like=variables.detach()), 0.0)
    w = mean + scale * draw
    rows, n = objective.rows, objective.rows.count
    if hasattr(problem, "network"):
        batch = problem.batch(0, step)
        outputs, _ = problem.network.trained(problem.network.split(w), problem.initial_buffers(), batch.x)
        loss = problem.loss.value(outputs[:, None], batch.y).mean()
    else:
        from workers.learn.problems.batches import training_indices

        design, y = problem.train.design, problem.train.y
        size = n if design.is_sparse else method.batch_size
        chosen = training_indices(n, size, seed=0, step=step, device=CPU)
        x = design.matrix.to_dense() if design.is_sparse else design.matrix
        x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
        coefficients, intercept = problem.layout.split(w)
        z = problem.layout.add_intercepts((x @ coefficients).view(x.shape[0], 1, -1), intercept)
        loss = problem.loss.value(z, y).mean()
    if rows.targets is not None:
        log_noise = rest[0]
        loss = loss / (2 * log_noise).exp() + objective.outputs * (log_noise + 0.5 * math.log(2 * math.pi))
    kl = 0.0
    for group in range(objective.priors.size):
        m, sigma = mean[of == group], scale[of == group]
        v = (m.square() + sigma.square()).mean()
        v = (v.detach() if detach else v) * factor
        kl = kl + 0.5 * ((m.square() + sigma.square()) / v - 1.0 + v.log() - 2.0 * sigma.log()).sum()
    return loss + kl / (method_kappa(objective) * n)


def method_kappa(objective):
    return objective.kappa


@pytest.mark.parametrize("posterior", [Posterior.ISOTROPIC, Posterior.DIAGONAL])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_step_follows_the_gradient_of_the_objective(name, posterior):
    problem = PROBLEMS[name]()
    method = ELBo(posterior, kappa=2.0, candidates=(SGD(0.1), SGD(0.01)), **SHORT)
    state, objective = method.init(problem, seed=0), method._objective(problem)
    variables = shaken(objective, state)
    found = objective.slope(variables, state.buffers, objective.workspace(variables), seed=0, step=5)
    leaf = variables[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(by_hand(problem, method, objective, leaf, step=5), leaf)
    for row in found.gradient:
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-11)


def test_the_prior_variance_may_be_held_while_differentiating():  # E9
    problem, method = network(), ELBo(kappa=2.0, **SHORT)
    state, objective = method.init(problem, seed=0), method._objective(problem)
    leaf = shaken(objective, state)[0].clone().requires_grad_()

    def gradient(**how):
        return torch.autograd.grad(by_hand(problem, method, objective, leaf, step=1, **how), leaf)[0]

    torch.testing.assert_close(gradient(detach=False), gradient(detach=True), rtol=1e-10, atol=1e-12)
    # Control: away from its optimum, holding it would be another gradient.
    off = (gradient(detach=False, factor=1.3) - gradient(detach=True, factor=1.3)).norm() / gradient().norm()
    assert float(off) > 1e-3


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_stable_divergence_is_the_generic_one(diagonal):  # E10
    generator = torch.Generator().manual_seed(0)
    of = torch.tensor([0] * 7 + [2] * 3 + [1] * 10)  # two groups, and three weights without a prior
    mean = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    shape = (2, 20) if diagonal else (2, 1)
    scale = 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    for partition in (Partition(of, 2), scattered(of)):
        found = Prior(partition, Bounds.none(2), 7.0).divergence(mean, scale, None)
        for k in range(2):
            total = 0.0
            for group in range(2):
                m, s = mean[k, of == group], scale[k].expand(20)[of == group]
                v = (m.square() + s.square()).mean()
                assert float(found.variance[k, group]) == pytest.approx(float(v), rel=1e-12)
                q, p = torch.distributions.Normal(m, s), torch.distributions.Normal(0.0, v.sqrt())
                total += float(torch.distributions.kl_divergence(q, p).sum())
            assert float(found.value[k]) == pytest.approx(total, rel=1e-10)


def scattered(of):
    """Return the partition of the same weights without its shortcut for stretches of one group."""
    partition = Partition(of, 2)
    partition.__dict__["runs"] = None
    return partition


def test_the_divergence_keeps_its_digits_where_nothing_was_learned():
    partition = Partition(torch.zeros(100_000, dtype=torch.long), 1)
    mean = torch.full((1, 100_000), 1e-9)
    found = Prior(partition, Bounds.none(1), 1.0).divergence(mean, torch.tensor([[1e-4]]), None)
    ratio = (float(np.float32(1e-9)) / float(np.float32(1e-4))) ** 2
    assert float(found.value) == pytest.approx(0.5 * 100_000 * ratio, rel=1e-9)  # in float32 it would be zero


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_strength_that_a_bound_holds_ties_the_variance_to_the_noise(diagonal):
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    raw = torch.randn((1, 12) if diagonal else (1, 1), generator=generator, dtype=torch.float64)
    partition = Partition(torch.arange(12) // 4, 3)
    prior = Prior(partition, Bounds(numbers(1e-30, 5.0, 0.02), numbers(1e30, 1e30, 0.02)), 3.0)
    log_noise, step = numbers(0.3), 1e-5
    mean.requires_grad_()
    scale = softplus(raw).detach().requires_grad_()
    found = prior.divergence(mean, scale, (2.0 * log_noise).exp())
    strengths = prior.strengths(found.variance.detach(), (2.0 * log_noise).exp())[0]
    assert float(strengths[1]) == pytest.approx(5.0)
    assert float(strengths[2]) == pytest.approx(0.02)
    by_mean, by_scale = torch.autograd.grad(found.value.sum() / 3.0, (mean, scale))
    mean, scale = mean.detach(), scale.detach()
    ends = [prior.divergence(mean, scale, (2.0 * (log_noise + move)).exp()).value for move in (step, -step)]
    by_noise = (ends[0] - ends[1]) / (2.0 * step * 3.0)
    slope = prior.slope(mean, scale, (2.0 * log_noise).exp())
    torch.testing.assert_close(partition.spread(slope.by_mean, outside=0.0) * mean, by_mean)
    torch.testing.assert_close(slope.by_scale, by_scale)
    torch.testing.assert_close(slope.by_log_noise, by_noise)


def test_the_average_of_steps_is_the_closed_form():  # E8
    x, y = first_case()
    problem, method = evidence_problem(x, y), ELBo(kappa=3.0, candidates=(SGD(0.1),), **SHORT | {"batch_size": 40})
    state, objective = method.init(problem, seed=0), method._objective(problem)
    variables = shaken(objective, state)[:1]
    workspace = objective.workspace(variables)
    draws = torch.stack(
        [
            objective.slope(variables, state.buffers, workspace, seed=11, step=step).gradient[0].clone()
            for step in range(10_000)
        ]
    )
    leaf = variables[0].clone().requires_grad_()
    m, scale, log_noise = leaf[:10], softplus(leaf[10]), leaf[11]
    phi, t, noise = torch.as_tensor(x), torch.as_tensor(y), (2 * leaf[11]).exp()
    blurred = (t - phi @ m).square().sum() + scale.square() * phi.square().sum()
    kl = 5.0 * torch.log1p(m.square().sum() / (10 * scale.square()))
    value = blurred / (2 * 40 * noise) + log_noise + 0.5 * math.log(2 * math.pi) + kl / (3.0 * 40)
    (expected,) = torch.autograd.grad(value, leaf)
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 100.0)
    assert float(error.max()) < 3.0
    assert float(draws.std(0)[10]) > 0.0


def test_noise_is_standard_normal_and_a_function_of_seed_and_step():
    like = torch.zeros(0, dtype=torch.float64)
    steps = torch.stack([weight_noise(500, seed=4, step=step, like=like) for step in range(400)])
    assert torch.equal(steps[37], weight_noise(500, seed=4, step=37, like=like).clone())
    assert not torch.equal(steps[37], weight_noise(500, seed=5, step=37, like=like))
    assert abs(float(steps.mean())) < 5 / math.sqrt(steps.numel())
    assert float(steps.var()) == pytest.approx(1.0, abs=0.02)
    # Neither weights of one step nor one weight at different steps go together.
    across = torch.corrcoef(steps)[~torch.eye(400, dtype=torch.bool)]
    assert float(across.square().mean()) == pytest.approx(1 / 500, rel=0.1)
    assert torch.equal(selection_noise(9, seed=4, sample=1, like=like), selection_noise(9, seed=4, sample=1, like=like))


@pytest.mark.parametrize("posterior", [Posterior.ISOTROPIC, Posterior.DIAGONAL])
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_resumed_run_is_the_same_run(name, posterior):
    method = ELBo(posterior, candidates=(SGD(0.1, 0.9, nesterov=True), Adam(0.01)), **SHORT)
    one, two, three = (PROBLEMS[name]() for _ in range(3))
    whole = list(run(method, one, method.init(one, seed=3), max_steps=9))
    first = list(run(method, two, method.init(two, seed=3), max_steps=2))
    kept = copied(first[-1][0])
    rest = list(run(method, three, first[-1][0], max_steps=9))
    assert same(kept, first[-1][0])  # a step changes nothing of the state that it was handed
    assert [point.status for _, point in whole] == [Status.RUNNING] * 3 + [Status.CONVERGED]
    for (state, point), (other, other_point) in zip(whole, first + rest, strict=True):
        assert same(state, other)
        assert point.metrics == other_point.metrics
        assert point.valid_loss is None
        assert math.isfinite(point.train_loss)


@pytest.mark.parametrize("name", ["network", "network-batch", "linear", "linear-regression"])
def test_candidates_do_not_know_of_each_other(name):
    candidates = (SGD(0.3, 0.9, nesterov=True), Adam(0.05), SGD(0.01))
    problem = PROBLEMS[name]()
    together, _ = finished(ELBo(candidates=candidates, **SHORT), problem)
    for k, candidate in enumerate(candidates):
        alone, _ = finished(ELBo(candidates=(candidate,), **SHORT), problem)
        torch.testing.assert_close(alone.variables[0], together.variables[k], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(alone.scores[0], together.scores[k], rtol=1e-9, atol=1e-11)


def test_a_candidate_that_breaks_down_does_not_win_and_harms_nobody():
    problem = network(dtype=torch.float32)
    wild, tame = SGD(1e30), SGD(0.1)
    both, points = finished(ELBo(candidates=(wild, tame), **SHORT), problem)
    alone, _ = finished(ELBo(candidates=(tame,), **SHORT), problem)
    assert torch.equal(both.variables[1], alone.variables[0])
    assert points[-1].metrics["learning_rate"] == 0.1
    assert points[-1].status is Status.CONVERGED
    lost = ELBo(candidates=(wild,), **SHORT)
    state, points = finished(lost, problem)
    assert points[-1].status is Status.DIVERGED
    with pytest.raises(AllDiverged):
        lost.answer(problem, state)


def test_the_lowest_objective_wins_and_is_the_same_for_the_same_candidate():
    problem = network()
    method = ELBo(candidates=(SGD(0.001), SGD(0.1, 0.9, nesterov=True), SGD(0.1, 0.9, nesterov=True)), **SHORT)
    state, points = finished(method, problem)
    scores = state.scores.tolist()
    assert scores[1] == scores[2] < scores[0]
    assert points[-1].metrics["objective"] == scores[1]
    answer = method.answer(problem, state)
    assert torch.equal(answer.weights, state.variables[1, : answer.weights.numel()])
    torch.testing.assert_close(
        problem.space.constrain(answer.raw)["l2"], points[-1].hyperparameters["l2"], rtol=1e-12, atol=0
    )


def test_sampling_finds_what_the_closed_form_finds():
    x, y = diabetes()
    problem = evidence_problem(x, y)
    for posterior in (Posterior.ISOTROPIC, Posterior.DIAGONAL):
        _, exact = finished(GaussianELBo(posterior, kappa=1.0), problem)
        candidates = (Adam(0.03),)
        sampled = ELBo(posterior, kappa=1.0, candidates=candidates, steps=3000, steps_per_point=3000, batch_size=442)
        _, points = finished(sampled, problem)
        for name in ("objective", "noise", "prior_variance.l2", "posterior_scale"):
            assert points[-1].metrics[name] == pytest.approx(exact[-1].metrics[name], rel=0.03), name
        assert float(points[-1].hyperparameters["l2"]) == pytest.approx(
            float(exact[-1].hyperparameters["l2"]), rel=0.05
        )


def test_at_the_strength_the_mean_is_stationary_for_the_blurred_penalised_loss():
    problem = classes()
    method = ELBo(kappa=50.0, candidates=(Adam(0.05),), steps=3000, steps_per_point=3000, batch_size=80)
    state, points = finished(method, problem)
    lam, found = float(points[-1].hyperparameters["l2"]), method.found(problem, state)
    assert lam == pytest.approx(1.0 / (50.0 * 80 * points[-1].metrics["prior_variance.l2"]), rel=1e-6)
    d = problem.layout.coefficients
    draws = torch.randn(4000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, w = method._objective(problem).rows, found.mean.repeat(4000, 1)
    w[:, :d] += found.scale * draws
    slopes = torch.empty_like(w)
    rows.gradients_(slopes, w, w.new_zeros(4000, 0), seed=0, step=0)
    pulled = -float(slopes.mean(0)[:d] @ found.mean[:d] / found.mean[:d].square().sum())
    assert pulled == pytest.approx(lam, rel=0.1)  # as near as the last steps come


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_bounds_and_fixed_strengths_are_kept(loss):
    term = L2Term("l2", 0.02, Per.LAYER, low=0.01, high=0.03)
    _, points = finished(ELBo(candidates=(SGD(0.1, 0.9),), **SHORT), network(loss=loss, terms=(term,)))
    for point in points:
        assert bool(((point.hyperparameters["l2"] >= 0.01 - 1e-9) & (point.hyperparameters["l2"] <= 0.03 + 1e-9)).all())
    fixed = network(loss=loss, terms=(dataclasses.replace(term, fixed=True, low=None, high=None),))
    method = ELBo(candidates=(SGD(0.1, 0.9),), **SHORT)
    state, points = finished(method, fixed)
    assert points[-1].hyperparameters == {}
    assert method.found(fixed, state).strengths.tolist() == pytest.approx([0.02, 0.02])


def test_kappa_is_weights_with_a_prior_by_rows():
    problem = network(n=20)
    _, points = finished(ELBo(candidates=(SGD(0.1),), **SHORT), problem)
    assert points[0].metrics["kappa"] == (5 * 6 + 6 * 3) / 20
    _, points = finished(ELBo(candidates=(SGD(0.1),), **SHORT), network(n=60))
    assert points[0].metrics["kappa"] == 1.0


def test_the_first_objective_is_that_of_the_start():
    problem = network()
    method = ELBo(candidates=(SGD(0.0),), **SHORT | {"initial_scale": 1e-4})
    state, points = finished(method, problem)
    w = problem.initial_weights(0)
    expected = problem.evaluate(w, Part.TRAIN)["loss"]
    found = method.found(problem, state)
    assert points[-1].metrics["objective"] == pytest.approx(expected + found.divergence / (found.kappa * 60), rel=1e-4)


def test_inverse_softplus_is_exact_at_both_ends():  # S1
    values = numbers(1e-8, 1e-4, 1.0, 100.0, 1e6)
    torch.testing.assert_close(softplus(inverse_softplus(values)), values, rtol=1e-7, atol=0.0)
    assert bool(torch.isfinite(inverse_softplus(values.float())).all())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(LearnError, match="exact posterior"):
        ELBo(Posterior.EXACT)
    with pytest.raises(LearnError, match="candidate"):
        ELBo(candidates=())
    problem = network()
    method = ELBo(**SHORT)
    with pytest.raises(LearnError, match="no point"):
        method.answer(problem, method.init(problem, seed=0))
