import dataclasses

import pytest
import torch
from torch.nn import functional

from tests.learn.network_cases import raw_of, small_network, training
from workers.learn.models.mlp import Normalization
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.training.optimizers import SGD, Adam
from workers.learn.training.schedule import Constant, Cosine
from workers.learn.training.trainer import NetworkTrainer
from workers.learn.training.training import Training

OPTIMIZERS = {
    "sgd": (SGD(0.1), lambda w: torch.optim.SGD([w], lr=0.1)),
    "momentum": (SGD(0.1, momentum=0.9), lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.9)),
    "nesterov": (
        SGD(0.1, momentum=0.9, nesterov=True),
        lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adam": (Adam(0.01), lambda w: torch.optim.Adam([w], lr=0.01)),
}


@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_are_those_of_torch(ours, theirs):
    target = torch.linspace(-2, 3, 7, dtype=torch.float64)
    w = torch.zeros(7, dtype=torch.float64)
    other = w.clone().requires_grad_()
    reference = theirs(other)
    moments = ours.start(w)
    for _ in range(30):
        gradient = (w - target) ** 3
        moments = ours.update_(moments, w, gradient, rate=ours.rate)
        other.grad = (other.detach() - target) ** 3
        reference.step()
    torch.testing.assert_close(w, other.detach(), rtol=1e-12, atol=1e-12)
    assert moments.count == 30


def test_a_training_step_is_a_step_on_the_penalised_batch_loss():
    problem = small_network("softmax", Per.TENSOR, batch_size=16)
    raw, rule = raw_of(problem), Training(SGD(0.1), Constant())
    state = rule.start(problem, seed=3)
    w = state.w.clone().requires_grad_()
    for step in range(3):
        batch = problem.batch(3, step)
        z = problem.network.evaluated(problem.network.split(w), problem.buffers, batch.x)
        penalty = problem.regularizers[0](w, problem.space.constrain(raw))
        (gradient,) = torch.autograd.grad(functional.cross_entropy(z, batch.y) + penalty, w)
        w = (w - 0.1 * gradient).detach().requires_grad_()
    after, _ = rule.advance(problem, state, raw, seed=3, steps=3)
    torch.testing.assert_close(after.w, w.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize("optimizer", [SGD(0.1, momentum=0.9), Adam(0.01)], ids=["sgd", "adam"])
def test_training_in_pieces_is_training_at_once_and_changes_no_state(optimizer, normalization):
    problem = small_network(normalization=normalization)
    raw, rule = raw_of(problem), Training(optimizer, Cosine(40))
    start = rule.start(problem, seed=1)
    kept = start.w.clone(), start.moments.first.clone(), start.buffers.clone()
    whole, loss = rule.advance(problem, start, raw, seed=1, steps=12)
    first, loss1 = rule.advance(problem, start, raw, seed=1, steps=5)
    middle = first.w.clone()
    rest, loss2 = rule.advance(problem, first, raw, seed=1, steps=7)
    assert torch.equal(rest.w, whole.w)
    assert torch.equal(rest.buffers, whole.buffers)
    assert torch.equal(rest.moments.first, whole.moments.first)
    assert float(loss) == pytest.approx((5 * float(loss1) + 7 * float(loss2)) / 12)
    assert torch.equal(first.w, middle)
    for a, b in zip(kept, (start.w, start.moments.first, start.buffers), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize("kind", ["squared", "logistic", "softmax"])
def test_networks_side_by_side_are_networks_one_by_one(kind, normalization):
    problem = small_network(kind, normalization=normalization)
    raw = raw_of(problem)
    raws, seeds = torch.stack([raw, raw + 1, raw - 1, raw]), (0, 0, 5, 2)
    rule = Training(Adam(0.01), Cosine(30))
    together, losses = rule.advance_together(problem, rule.start_together(problem, seeds), raws, seeds=seeds, steps=10)
    for place, (one, seed) in enumerate(zip(raws, seeds, strict=True)):
        alone, loss = rule.advance(problem, rule.start(problem, seed=seed), one, seed=seed, steps=10)
        torch.testing.assert_close(together.w[place], alone.w, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.buffers[place], alone.buffers, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(losses[place], loss)


@pytest.mark.parametrize("steps", [100, 4000])
def test_the_average_leaves_the_beginning_behind(steps):
    problem = small_network()
    rule = Training(SGD(1e-3), Constant())
    state, _ = rule.advance(problem, rule.start(problem, seed=0), raw_of(problem), seed=0, steps=steps)
    early, _ = rule.advance(problem, rule.start(problem, seed=0), raw_of(problem), seed=0, steps=steps // 2)
    moved = float((state.w - early.w).norm())
    # an exponential average over n steps of a straight line lies n steps behind its end; here n is a tenth at most
    assert 0.0 < float((state.average - state.w).norm()) < 0.3 * moved
    as_it_is = Training(SGD(1e-3), Constant(), averaging=1)
    last, _ = as_it_is.advance(problem, as_it_is.start(problem, seed=0), raw_of(problem), seed=0, steps=20)
    assert torch.equal(last.average, last.w)


def test_a_cosine_falls_from_one_to_zero():
    schedule = Cosine(10)
    factors = [schedule.factor(step) for step in range(12)]
    assert factors[0] == 1.0
    assert factors[5] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert factors[10] == factors[11] == 0.0
    assert Constant().factor(1000) == 1.0


@pytest.mark.parametrize("normalization", list(Normalization))
def test_a_trainer_depends_on_strengths_and_seed_alone(normalization):
    problem = small_network(normalization=normalization)
    trainer, raw = NetworkTrainer(training(), steps=40), raw_of(problem)
    one = trainer.train(problem, raw, w0=None, seed=1)
    again = trainer.train(problem, raw, w0=torch.zeros_like(one.weights), seed=1)
    assert torch.equal(one.weights, again.weights)
    assert one.value == again.value == problem.evaluate(one.weights, Part.VALID)["loss"]
    assert one.iterations == 40
    assert trainer.train(problem, raw, w0=None, seed=2).value != one.value
    assert trainer.train(problem, raw + 1, w0=None, seed=1).value != one.value
    start = problem.evaluate(problem.initial_weights(1), Part.TRAIN)["loss"]
    assert problem.evaluate(one.weights, Part.TRAIN)["loss"] < start


def test_many_small_networks_share_their_steps():
    problem = small_network()
    trainer, raw = NetworkTrainer(training(), steps=20), raw_of(problem)
    raws, seeds = [raw + shift for shift in (-1.0, 0.0, 1.0) for _ in range(2)], [0, 1] * 3
    found = trainer.train_all(problem, raws, seeds=seeds)
    for one, strengths, seed in zip(found, raws, seeds, strict=True):
        alone = trainer.train(problem, strengths, w0=None, seed=seed)
        assert one.value == pytest.approx(alone.value, rel=1e-8)
        assert one.residual == pytest.approx(alone.residual, rel=1e-6)
        assert one.cost == alone.cost


def test_training_that_breaks_down_says_so():
    problem = small_network()
    broken = NetworkTrainer(Training(SGD(1e200), Constant()), steps=20)
    assert not broken.train(problem, raw_of(problem), w0=None, seed=0).value < 1e3


def test_statistics_follow_the_training():
    problem = small_network(normalization=Normalization.BATCH)
    rule = training(SGD(1e-6))
    state, _ = rule.advance(problem, rule.start(problem, seed=0), raw_of(problem), seed=0, steps=200)
    exact = dataclasses.replace(state, buffers=problem.statistics(state.w))
    # batches of 16: their variance has an error of 1/√(8·10) where the last ten or so count
    torch.testing.assert_close(state.buffers, exact.buffers, rtol=0.3, atol=0.15)


@pytest.mark.gpu
@pytest.mark.parametrize("normalization", list(Normalization))
def test_a_gpu_trains_what_the_cpu_trains(normalization):
    found = {}
    for device in ("cpu", "cuda"):
        problem = small_network(normalization=normalization, device=device)
        state, _ = training().advance(problem, training().start(problem, seed=0), raw_of(problem), seed=0, steps=10)
        together = NetworkTrainer(training(), steps=10).train_all(problem, [raw_of(problem)] * 2, seeds=[0, 1])
        found[device] = state.w.cpu(), together[0].weights.cpu(), together[1].weights.cpu()
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
