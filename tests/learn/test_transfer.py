import math

import numpy as np
import pytest
import torch

from tests.learn.evidence_cases import CPU, finished
from workers.learn.errors import LearnError
from workers.learn.methods.elbo import ELBo
from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.models.transfer import transferred
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network_data import network_problem
from workers.learn.problems.transfer_data import transfer_problem
from workers.learn.training.optimizers import SGD
from workers.learn.training.schedule import Constant
from workers.learn.training.training import Training

LIKE = torch.zeros(0, dtype=torch.float64)


def make(inputs, outputs, normalization=Normalization.BATCH):
    return mlp([8, 6], activation=Activation.TANH, normalization=normalization, inputs=inputs, outputs=outputs)


def source(normalization=Normalization.BATCH):
    """Weights of a network with another head, as a safetensors file has them."""
    network = make(4, 7, normalization)
    w = network.initial(5, like=LIKE) + 0.1
    named = network.named(w, network.initial_buffers(like=LIKE))
    return {**named, "0.norm.num_batches_tracked": torch.tensor(3)}


def rows(n=50):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(n, 4))
    return Examples(x, (np.sin(2 * x) @ draws.normal(size=(4, 3))).argmax(1))


def problem_of(*, drawn=True, head=None, normalization=Normalization.BATCH, given=None, per=Per.MODEL, biases=False):
    backbone, head = L2Term("l2_sp", 0.3, per, biases=biases), head or L2Term("l2", 0.02)
    return penalised(backbone, head, drawn=drawn, normalization=normalization, given=given)


def penalised(backbone, head, *, drawn=True, normalization=Normalization.BATCH, given=None):
    return transfer_problem(
        lambda i, c: make(i, c, normalization),
        given=source(normalization) if given is None else given,
        fresh_layers=1,
        drawn=drawn,
        backbone=backbone,
        head=head,
        train=rows(),
        valid=None,
        test=None,
        loss="cross_entropy",
        batch_size=16,
        dtype=torch.float64,
        device=CPU,
    )


@pytest.mark.parametrize("drawn", [False, True])
def test_it_starts_from_the_given_weights_with_a_fresh_head(drawn):
    problem, given = problem_of(drawn=drawn), source()
    w = problem.initial_weights(3)
    named = problem.named_weights(w)
    for name, tensor in named.items():
        if name.startswith(("0.", "1.")) and "running" not in name:
            torch.testing.assert_close(tensor, given[name])
    again, other = (problem.named_weights(problem.initial_weights(seed))["2.linear.weight"] for seed in (3, 4))
    assert torch.equal(again, named["2.linear.weight"])
    assert not torch.equal(other, named["2.linear.weight"])
    assert 0.1 < float(again.std()) < 1.0


def test_l2_on_its_weights_is_l2_around_the_given_ones():
    problem, given = problem_of(), source()
    generator = torch.Generator().manual_seed(0)
    w = problem.initial_weights(3) + 0.2 * torch.randn(problem.network.size, generator=generator, dtype=torch.float64)
    hyper = problem.space.constrain(problem.space.initial(torch.float64, CPU))
    named = problem.network.named(w, problem.buffers)
    x, y = problem.train.x, problem.train.y
    data = problem.losses.of(problem.network.evaluated(problem.network.split(w), problem.buffers, x), y)
    expected = data + 0.5 * 0.02 * named["2.linear.weight"].square().sum()
    for layer in ("0", "1"):
        name = f"{layer}.linear.weight"
        expected = expected + 0.5 * 0.3 * (named[name] - given[name]).square().sum()
    torch.testing.assert_close(problem.inner_loss(w, hyper), expected)
    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.inner_loss(leaf, hyper), leaf)
    found = problem.oracle().inner(w, problem.space.initial(torch.float64, CPU))
    torch.testing.assert_close(found.gradient, gradient)


def test_its_hessian_products_are_differences_of_gradients():
    problem = problem_of()
    generator = torch.Generator().manual_seed(1)
    w, v = (torch.randn(problem.network.size, generator=generator, dtype=torch.float64) for _ in range(2))
    oracle, raw = problem.oracle(), problem.space.initial(torch.float64, CPU)
    after, before = (oracle.inner(w + sign * 1e-6 * v, raw).gradient for sign in (1.0, -1.0))
    # Truncation (1e-6)² ‖v‖³ and rounding 1e-16 / 1e-6: both about 1e-9.
    torch.testing.assert_close(oracle.hvp(w, raw)(v), (after - before) / 2e-6, rtol=0.0, atol=1e-8)


def test_without_the_pull_it_is_the_plain_problem_from_another_start():
    given = source(Normalization.NONE)
    zero = problem_of(drawn=False, normalization=Normalization.NONE)
    plain = network_problem(
        lambda i, c: make(i, c, Normalization.NONE),
        train=rows(),
        valid=None,
        test=None,
        loss="cross_entropy",
        terms=[L2Term("l2", 0.3)],
        batch_size=16,
        dtype=torch.float64,
        device=CPU,
    )
    w = zero.initial_weights(0)
    hyper = {"l2": torch.tensor(0.3).double(), "l2_sp": torch.tensor(0.3).double()}
    torch.testing.assert_close(zero.inner_loss(w, hyper), plain.inner_loss(w, hyper))
    torch.testing.assert_close(zero.named_weights(w)["0.linear.weight"], given["0.linear.weight"])


def test_plain_training_with_a_strong_pull_stays_where_it_was():
    problem, given = problem_of(), source()
    training = Training(SGD(0.02), Constant())
    raw = torch.log(torch.tensor([30.0, 1e-4], dtype=torch.float64))
    start = training.start(problem, seed=0)
    state, _ = training.advance(problem, start, raw, seed=0, steps=300)
    named = problem.named_weights(state.w)
    assert float((named["0.linear.weight"] - given["0.linear.weight"]).abs().max()) < 0.02
    losses = [problem.evaluate(w, Part.TRAIN)["loss"] for w in (start.w, state.w)]
    assert losses[1] < losses[0] - 0.1  # by its head


def test_the_bound_learns_a_variance_each_for_backbone_and_head():
    problem = problem_of(biases=True, head=L2Term("l2", 0.02, biases=True))
    method = ELBo(candidates=(SGD(0.1, 0.9, nesterov=True),), steps=400, steps_per_point=400)
    state, points = finished(method, problem)
    last = points[-1].metrics
    assert math.isfinite(last["objective"])
    assert set(points[-1].hyperparameters) == {"l2_sp", "l2"}
    found = method.found(problem, state)
    named = problem.named_weights(found.mean)
    given = source()
    moved, counted = 0.0, 0
    for slot in problem.network.slots:
        if slot.layer < 2:
            moved += float((named[slot.name] - given[slot.name]).square().sum())
            counted += named[slot.name].numel()
    expected = moved / counted + float(found.scale) ** 2
    assert last["prior_variance.l2_sp"] == pytest.approx(expected, rel=1e-9)
    assert last["prior_variance.l2"] != last["prior_variance.l2_sp"]


def test_per_layer_strengths_are_numbered_within_their_part():
    problem = problem_of(per=Per.LAYER)
    assert [(block.name, block.shape) for block in problem.space.blocks] == [("l2_sp", (2,)), ("l2", ())]
    backbone, head = problem.regularizers
    assert sorted(set(backbone.groups.tolist())) == [0, 1, 2]
    assert int((head.groups == 0).sum()) == 3 * 6


def test_a_part_may_go_without_a_penalty():
    both = problem_of()
    for place, terms in enumerate([(L2Term("l2_sp", 0.3), None), (None, L2Term("l2", 0.02))]):
        (alone,) = penalised(*terms).regularizers
        assert torch.equal(alone.groups, both.regularizers[place].groups)
        assert alone.name == both.regularizers[place].name
    with pytest.raises(LearnError, match="nothing to learn"):
        penalised(None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("0.linear.bias"), "lack 0.linear.bias"),
        (lambda given: given.update({"0.linear.weight": torch.zeros(3, 3)}), "has shape"),
        (lambda given: given.update({"0.linear.bias": torch.full((8,), math.nan)}), "not finite"),
        (lambda given: given.update({"extra": torch.zeros(1)}), "no parameters"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    given = source()
    change(given)
    with pytest.raises(LearnError, match=message):
        problem_of(given=given)


@pytest.mark.parametrize("head", [0, 3])
def test_a_head_must_leave_a_backbone(head):
    with pytest.raises(LearnError, match="start afresh"):
        transferred(make(4, 3), source(), head=head, drawn=True, like=LIKE)
