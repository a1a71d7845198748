"""The objectives of self-tuning networks: responses, gates, penalties and gradients against what they stand for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import jvp
from torch.nn import functional

from tests.learn.network_cases import small_network
from tests.learn.stn_cases import noisy_cnn, noisy_mlp
from workers.learn.errors import LearnError
from workers.learn.methods.stn_objectives import SIGMA, SelfTuning, entropy_of
from workers.learn.methods.stn_state import Variant
from workers.learn.models.chain import Chain, by_batch, by_statistics, plain
from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.noises.base import row_values
from workers.learn.noises.draws import Draws, NoiseStream
from workers.learn.noises.noises import Noises
from workers.learn.problems.layout import Per

CPU = torch.device("cpu")
# What torch loads at the first `jvp` uses something of its own that it no longer recommends.
JVP = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
PROBLEMS = {
    "mlp": lambda: noisy_mlp(),
    "mlp-batch": lambda: noisy_mlp(normalization=Normalization.BATCH, activation=Activation.GELU),
    "mlp-layer": lambda: noisy_mlp(normalization=Normalization.LAYER, activation=Activation.RELU),
    "mlp-silu": lambda: noisy_mlp(activation=Activation.SILU),
    "cnn": lambda: noisy_cnn(),
    "cnn-batch": lambda: noisy_cnn(Normalization.BATCH),
}
NO_NOISE = {"mlp": lambda: small_network(), "linear": lambda: small_network("squared", widths=())}


class Case:
    """A network with a response that is not zero, statistics that are not those of a start, and rows perturbed."""

    def __init__(self, problem, variant: Variant = Variant.CENTERED, shared: frozenset[str] = frozenset()) -> None:
        generator = torch.Generator().manual_seed(1)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.problem = problem
        self.tuning = SelfTuning(problem, variant, shared)
        self.response = self.tuning.response
        self.w = problem.initial_weights(0)
        self.theta = 0.3 * random(self.response.size)
        self.buffers = problem.initial_buffers() + 0.2 * random(problem.network.buffer_size).abs()
        self.raw = problem.space.initial(torch.float64, CPU)
        self.scale = SIGMA.inverse(torch.full_like(self.raw, 0.4))
        self.batch = problem.batch(0, 0)
        self.rows = self.raw + 0.4 * random(self.batch.rows, self.raw.numel())
        self.parameters = problem.network.split(self.w)

    @property
    def d(self) -> torch.Tensor:
        return self.rows if self.tuning.variant is Variant.CLASSIC else self.rows - self.raw

    def gated(self, theta: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        responses = self.response.split(theta)
        linear = self.response.gated(self.parameters, responses, self.response.gates(responses, d))
        return self.problem.chain.forward(
            self.batch.x, linear, by_statistics(self.parameters, self.buffers), between=None
        )

    def linearised(self, theta: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        responses = self.response.split(theta)
        gates = self.response.gates(responses, d)
        return self.response.linearised(
            self.batch.x, self.parameters, responses, gates, buffers=self.buffers, between=None
        )


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_chain_is_the_network(name):
    case = Case(PROBLEMS[name]())
    network, chain = case.problem.network, case.problem.chain
    outputs = chain.forward(case.batch.x, plain(case.parameters), by_statistics(case.parameters, case.buffers), None)
    torch.testing.assert_close(outputs, network.evaluated(case.parameters, case.buffers, case.batch.x))
    fresh = case.buffers.clone()
    outputs = chain.forward(case.batch.x, plain(case.parameters), by_batch(case.parameters, fresh), None)
    expected, buffers = network.trained(case.parameters, case.buffers, case.batch.x)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(fresh, buffers)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_row_sees_the_weights_of_its_own_perturbation(name):
    case = Case(PROBLEMS[name]())
    outputs = case.gated(case.theta, case.d)
    for i in range(case.batch.rows):
        weights = case.response.weights_at(case.w, case.theta, case.d[i])
        alone = case.problem.network.evaluated(
            case.problem.network.split(weights), case.buffers, case.batch.x[i : i + 1]
        )
        torch.testing.assert_close(outputs[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_perturbation_for_all_rows_moves_the_weights_themselves(name):
    case = Case(PROBLEMS[name]())
    one = case.d[:1]
    torch.testing.assert_close(
        case.gated(case.theta, one), case.gated(case.theta, one.expand(case.batch.rows, -1)), rtol=1e-9, atol=1e-9
    )


@JVP
@pytest.mark.parametrize("name", PROBLEMS)
def test_outputs_to_first_order_are_those_of_jvp_differences_and_double_backward(name):
    case = Case(PROBLEMS[name]())
    found = case.linearised(case.theta, case.d)
    zero = torch.zeros_like(case.d)
    value, tangent = jvp(lambda d: case.gated(case.theta, d), (zero,), (case.d,))
    torch.testing.assert_close(found, value + tangent, rtol=1e-10, atol=1e-10)

    step = 1e-6
    ahead, behind = (case.gated(case.theta, sign * step * case.d) for sign in (1.0, -1.0))
    # A ReLU whose kink lies within the step is off by more than the square of it.
    torch.testing.assert_close(found - value, (ahead - behind) / (2.0 * step), rtol=1e-5, atol=1e-6)

    d = zero.clone().requires_grad_()
    v = torch.zeros_like(value, requires_grad=True)
    (backward,) = torch.autograd.grad(case.gated(case.theta, d), d, v, create_graph=True)
    (twice,) = torch.autograd.grad(backward, v, case.d)
    torch.testing.assert_close(found - value, twice, rtol=1e-9, atol=1e-9)


@JVP
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_through_first_order_outputs_are_those_through_jvp(name):
    case = Case(PROBLEMS[name]())
    theta = case.theta.clone().requires_grad_()
    (found,) = torch.autograd.grad(case.linearised(theta, case.d).square().sum(), theta)
    value, tangent = jvp(lambda d: case.gated(theta, d), (torch.zeros_like(case.d),), (case.d,))
    (expected,) = torch.autograd.grad((value + tangent).square().sum(), theta)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("per", [Per.MODEL, Per.LAYER, Per.TENSOR])
def test_the_penalty_is_the_mean_of_those_of_the_rows_weights(per, biases):
    case = Case(small_network(per=per, biases=biases, normalization=Normalization.BATCH))
    theta, w = case.theta.clone().requires_grad_(), case.w.clone().requires_grad_()
    responses = case.response.split(theta)
    gates = case.response.gates(responses, case.d)
    hyper = row_values(case.problem.space, case.rows)
    found = case.tuning.penalty(case.problem.network.split(w), case.response, responses, gates, hyper)
    each = []
    for i in range(case.batch.rows):
        weights = case.response.weights_at(w, theta, case.d[i])
        strengths = case.problem.space.constrain(case.rows[i])
        each.append(sum(rule(weights, strengths) for rule in case.problem.regularizers))
    expected = torch.stack(each).mean()
    torch.testing.assert_close(found, expected)
    for a, b in zip(torch.autograd.grad(found, [w, theta]), torch.autograd.grad(expected, [w, theta]), strict=True):
        torch.testing.assert_close(a, b)


def test_strengths_within_a_tensor_are_refused():
    with pytest.raises(LearnError, match="per model, layer or tensor"):
        _ = SelfTuning(small_network(per=Per.PARAMETER), Variant.CENTERED, frozenset()).penalty


@pytest.mark.parametrize("name", NO_NOISE)
def test_the_classic_gradient_is_that_of_the_mean_over_rows_with_weights_of_their_own(name):
    case = Case(NO_NOISE[name](), Variant.CLASSIC)
    rows = case.tuning.perturbed(
        case.raw, case.scale, case.batch.rows, Draws(NoiseStream.PERTURBATION, seed=5, step=0, device=CPU)
    )
    batch = case.problem.batch(5, 0)
    w, theta = case.w.clone().requires_grad_(), case.theta.clone().requires_grad_()
    losses = []
    for i in range(batch.rows):
        weights = case.response.weights_at(w, theta, rows[i])
        outputs = case.problem.network.evaluated(case.problem.network.split(weights), case.buffers, batch.x[i : i + 1])
        strengths = case.problem.space.constrain(rows[i])
        penalty = sum(rule(weights, strengths) for rule in case.problem.regularizers)
        losses.append(case.problem.losses.of(outputs, batch.y[i : i + 1]) + penalty)
    of_w, of_theta = torch.autograd.grad(torch.stack(losses).mean(), [w, theta])
    found = case.tuning.joint_gradient(case.w, case.theta, case.buffers, case.raw, case.scale, seed=5, step=0)
    torch.testing.assert_close(found.w, of_w)
    torch.testing.assert_close(found.response, of_theta)


def test_a_shared_hyperparameter_is_one_number_a_batch_and_another_in_the_next():
    case = Case(noisy_mlp(), shared=frozenset({"l2", "input_dropout"}))
    names = case.problem.space.scalar_names()
    first, second = (
        case.tuning.perturbed(case.raw, case.scale, 16, Draws(NoiseStream.PERTURBATION, seed=0, step=k, device=CPU))
        for k in (0, 1)
    )
    for j, name in enumerate(names):
        is_shared = name.startswith(("l2", "input_dropout"))
        assert (len(first[:, j].unique()) == 1) == is_shared
        assert not torch.equal(first[:, j], second[:, j])
    with pytest.raises(LearnError, match="no hyperparameter"):
        SelfTuning(case.problem, Variant.CENTERED, frozenset({"momentum"}))


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("is_perturbed", [False, True])
def test_the_validation_loss_depends_on_hyperparameters_through_gates_alone(variant, is_perturbed):
    case = Case(noisy_cnn(), variant)
    closed = case.theta.clone()
    closed[-case.response.sizes[-1] :] = 0.0
    draws = Draws(NoiseStream.VALIDATION, seed=0, step=0, device=CPU) if is_perturbed else None
    for theta, is_zero in ((closed, True), (case.theta, False)):
        found = case.tuning.strength_gradient(
            case.w, theta, case.buffers, case.raw, case.scale, case.problem.validation, draws=draws, entropy=0.0
        )
        assert bool((found.raw == 0.0).all()) == is_zero
    assert bool((found.scale == 0.0).all()) == (not is_perturbed)


@pytest.mark.parametrize("variant", Variant)
def test_the_strength_gradient_is_the_slope_of_the_validation_loss_of_responding_weights(variant):
    case = Case(noisy_mlp(), variant)
    found = case.tuning.strength_gradient(
        case.w, case.theta, case.buffers, case.raw, case.scale, case.problem.validation, draws=None, entropy=0.0
    )

    def loss(raw: torch.Tensor) -> float:
        weights = case.tuning.weights(case.w, case.theta, case.raw, raw)
        return float(case.problem.losses.mean(case.problem.network.split(weights), case.problem.validation))

    assert float(found.value) == pytest.approx(loss(case.raw))
    for j in range(case.raw.numel()):
        moved = torch.zeros_like(case.raw)
        moved[j] = 1e-6
        slope = (loss(case.raw + moved) - loss(case.raw - moved)) / 2e-6
        assert float(found.raw[j]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_centred_outputs_at_the_current_hyperparameters_know_nothing_of_the_response():
    case = Case(noisy_cnn(Normalization.BATCH))
    zero = torch.zeros_like(case.d)
    plainly = case.problem.network.evaluated(case.parameters, case.buffers, case.batch.x)
    for theta in (case.theta, 2.0 * case.theta):
        assert torch.equal(case.gated(theta, zero), plainly)
        assert torch.equal(case.linearised(theta, zero), plainly)
        assert torch.equal(case.tuning.weights(case.w, theta, case.raw, case.raw), case.w)


def test_the_response_step_leaves_weights_and_statistics_alone():
    case = Case(noisy_cnn(Normalization.BATCH))
    before = case.w.clone(), case.theta.clone(), case.buffers.clone()
    gradient = case.tuning.response_gradient(case.w, case.theta, case.buffers, case.raw, case.scale, seed=0, step=0)
    assert gradient.shape == case.theta.shape
    assert float(gradient.abs().max()) > 0.0
    for now, then in zip((case.w, case.theta, case.buffers), before, strict=True):
        assert torch.equal(now, then)
    assert not case.w.requires_grad


def test_a_response_that_starts_at_zero_learns_its_gates_first():
    case = Case(noisy_mlp())
    start = case.response.initial(0, is_zero=True, like=case.w)
    gates = case.response.sizes[-1]
    gradient = case.tuning.response_gradient(case.w, start, case.buffers, case.raw, case.scale, seed=0, step=0)
    assert float(start[-gates:].abs().max()) == 0.0
    assert float(gradient[:-gates].abs().max()) == 0.0
    assert float(gradient[-gates:].abs().max()) > 0.0


def test_the_entropy_is_that_of_the_perturbations_and_so_is_its_slope():
    scale = torch.tensor([-2.0, 0.3, 1.5], dtype=torch.float64, requires_grad=True)
    sigma = SIGMA(scale)
    expected = sum(torch.distributions.Normal(0.0, s).entropy() for s in sigma)
    torch.testing.assert_close(entropy_of(scale), expected)
    (slope,) = torch.autograd.grad(0.01 * entropy_of(scale), scale)
    torch.testing.assert_close(slope, 0.01 * torch.sigmoid(scale.detach()) / functional.softplus(scale.detach()))


def test_the_best_response_of_a_two_layer_linear_network_is_row_gating():
    # y = sᵀ Q x with the Jacobian penalty e^λ ‖Qᵀ s‖²: the gates σ(2 log d − λ) on the principal components.
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(40, 6)), rng.normal(size=40)
    U, d, Vt = np.linalg.svd(X, full_matrices=False)
    network = mlp([6], activation=Activation.TANH, normalization=Normalization.NONE, inputs=6, outputs=1)
    problem = replace(small_network("squared", d=6), network=network, noises=Noises())
    chain = Chain.of(network)
    response = SelfTuning(replace(problem, regularizers=_six(problem)), Variant.CLASSIC, frozenset()).response
    theta = torch.zeros(response.size, dtype=torch.float64)
    parts = response.split(theta)
    parts.maps[0].weight.copy_(torch.tensor(Vt))
    parts.gates[:6] = torch.eye(6)
    s0 = torch.tensor((U.T @ t) / d)
    for lam in (-2.0, 0.0, 3.0, 5.0):
        gate = torch.sigmoid(torch.tensor(2.0 * np.log(d) - lam))
        w = response.weights_at(torch.zeros(network.size, dtype=torch.float64), theta, gate)
        rows = network.split(w)[chain.maps[0].slots[0]]
        ridge = np.linalg.solve(X.T @ X + math.exp(lam) * np.eye(6), X.T @ t)
        assert np.abs((s0 @ rows).numpy() - ridge).max() < 1e-12


def _six(problem):
    from workers.learn.regularizers.l2 import L2

    size = mlp([6], activation=Activation.TANH, normalization=Normalization.NONE, inputs=6, outputs=1).size
    groups = torch.arange(size).clamp(max=6)
    return (L2("six", groups, 0.1, (6,)),)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_a_response_fitted_to_a_quadratic_is_exact_for_any_perturbation(sigma):
    # ½ (w − B λ − c)ᵀ A (w − B λ − c): the fitted w0 + θ ε has no residual anywhere, so it is w* and dw*/dλ.
    rng = np.random.default_rng(0)
    root, B, c = rng.normal(size=(5, 5)), rng.normal(size=(5, 2)), rng.normal(size=5)
    A = root @ root.T + np.eye(5)
    lam, noise = np.array([0.3, -0.7]), sigma * rng.normal(size=(50, 2))
    features = np.c_[np.ones(50), noise]
    targets = (lam + noise) @ B.T + c
    whitened = np.linalg.cholesky(A).T
    fitted = np.linalg.lstsq(features, targets @ whitened.T, rcond=None)[0] @ np.linalg.inv(whitened.T)
    np.testing.assert_allclose(fitted[0], B @ lam + c, atol=1e-10)
    np.testing.assert_allclose(fitted[1:].T, B, atol=1e-10)
