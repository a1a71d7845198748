import copy
import dataclasses
import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.learn.network_cases import raw_of, small_network
from workers.learn.autograd_oracle import AutogradOracle
from workers.learn.double_backward import NoDoubleBackward, check_double_backward
from workers.learn.errors import LearnError
from workers.learn.models.groups import groups
from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.models.network import Network, Role, Slot
from workers.learn.problem import Part
from workers.learn.problems import network_loss
from workers.learn.problems.batches import Stream, random_indices, training_indices
from workers.learn.problems.layout import Per
from workers.learn.regularizers.l2 import L2

CPU = torch.device("cpu")
GRANULARITIES = [Per.MODEL, Per.LAYER, Per.TENSOR, Per.PARAMETER]


def plain_module(problem, widths, activation, normalization, w, buffers):
    """Return an ordinary torch module with the same values."""
    norms = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    sizes = [problem.network.inputs, *widths, problem.network.outputs]
    layers = []
    for layer, (before, after) in enumerate(itertools.pairwise(sizes)):
        parts = [("linear", nn.Linear(before, after))]
        if layer < len(widths):
            parts += [("norm", norms[normalization](after))] if normalization != "none" else []
            parts += [
                ("activation", {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}[activation]())
            ]
        layers.append(nn.Sequential(OrderedDict(parts)))
    module = nn.Sequential(*layers).double()
    values = {name: value.clone() for name, value in problem.network.named(w, buffers).items()}
    missing = module.load_state_dict(values, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    assert not missing.unexpected_keys
    return module


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("normalization", list(Normalization))
def test_an_mlp_is_what_torch_builds_by_hand(activation, normalization):
    problem = small_network(activation=activation, normalization=normalization, widths=(5, 4))
    w = problem.initial_weights(3) + 0.1
    buffers = problem.initial_buffers() + 0.3
    module = plain_module(problem, (5, 4), activation.value, normalization.value, w, buffers)
    x = problem.train.x
    parameters = problem.network.split(w)
    torch.testing.assert_close(problem.network.evaluated(parameters, buffers, x), module.eval()(x))
    outputs, fresh = problem.network.trained(parameters, buffers, x)
    torch.testing.assert_close(outputs, module.train()(x))
    moved = {name: value for name, value in module.named_buffers() if not name.endswith("num_batches_tracked")}
    for name, value in moved.items():
        torch.testing.assert_close(problem.network.named(w, fresh)[name], value)


def test_a_training_pass_leaves_the_statistics_it_was_handed_alone():
    problem = small_network(normalization=Normalization.BATCH)
    buffers = problem.initial_buffers()
    kept, module = buffers.clone(), copy.deepcopy(problem.network.module)
    found = problem.losses.training_gradient(problem.initial_weights(0), buffers, problem.batch(0, 0))
    assert torch.equal(buffers, kept)
    assert not torch.equal(found.buffers, kept)
    assert [name for name, _ in module.named_buffers()] == [name for name, _ in problem.network.module.named_buffers()]
    assert all(part.device.type == "meta" for part in problem.network.module.state_dict().values())


def test_statistics_are_those_of_the_training_rows():
    problem = small_network(normalization=Normalization.BATCH, widths=(5,))
    w = problem.initial_weights(0)
    named = problem.named_weights(w)
    hidden = functional.linear(problem.train.x, named["0.linear.weight"], named["0.linear.bias"])
    torch.testing.assert_close(named["0.norm.running_mean"], hidden.mean(0))
    torch.testing.assert_close(named["0.norm.running_var"], hidden.var(0))


def test_weights_start_the_same_for_a_seed_and_with_the_variance_of_he():
    network = mlp([400], activation=Activation.RELU, normalization=Normalization.NONE, inputs=300, outputs=2)
    like = torch.zeros(0, dtype=torch.float32)
    w = network.initial(5, like=like)
    assert torch.equal(w, network.initial(5, like=like))
    assert not torch.equal(w, network.initial(6, like=like))
    first, bias, *_ = network.split(w)
    assert float(first.var()) == pytest.approx(2 / 300, rel=0.02)
    assert float(bias.abs().max()) == 0.0


@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("per", GRANULARITIES)
def test_groups_are_a_partition_and_leave_out_what_nobody_penalises(per, biases, normalization):
    network = mlp([5, 4], activation=Activation.RELU, normalization=normalization, inputs=3, outputs=2)
    found = groups(network, per, biases=biases)
    size = max(math.prod(found.shape), 1)
    free = torch.cat(
        [torch.full((n,), slot.role is not Role.WEIGHT) for slot, n in zip(network.slots, network.sizes, strict=True)]
    )
    assert torch.equal(found.of == size, free & torch.tensor(not biases))
    assert sorted(set(found.of.tolist()) - {size}) == list(range(size))
    matrices = 3
    expected = {
        Per.MODEL: 1,
        Per.LAYER: matrices,
        Per.TENSOR: len(network.slots) if biases else matrices,
        Per.PARAMETER: network.size if biases else 3 * 5 + 5 * 4 + 4 * 2,
    }
    assert size == expected[per]
    assert len(found.names) == (size if per in (Per.LAYER, Per.TENSOR) else 0)
    if per is Per.LAYER:
        layers = torch.cat([torch.full((n,), s.layer) for s, n in zip(network.slots, network.sizes, strict=True)])
        assert torch.equal(found.of[found.of < size], layers[found.of < size])


def test_strengths_per_feature_are_refused():
    with pytest.raises(LearnError, match="take model, layer, tensor or parameter"):
        small_network(per=Per.FEATURE)


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order():
    rows, size = 53, 10
    seen = [training_indices(rows, size, seed=1, step=step, device=CPU) for step in range(10)]
    first, second = torch.cat(seen[:5]), torch.cat(seen[5:])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 50
    assert not torch.equal(first, second)
    again = training_indices(rows, size, seed=1, step=7, device=CPU)
    assert torch.equal(again, seen[7])
    assert not torch.equal(training_indices(rows, size, seed=2, step=7, device=CPU), again)
    assert training_indices(rows, 53, seed=1, step=0, device=CPU) is None


def test_rows_drawn_for_a_solve_differ_from_step_to_step_and_side_to_side():
    drawn = {
        (stream, step): tuple(random_indices(1000, 20, stream=stream, seed=0, step=step, device=CPU).tolist())
        for stream in (Stream.INNER, Stream.OUTER)
        for step in range(5)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert all(len(set(rows)) == 20 for rows in drawn.values())
    assert random_indices(20, 20, stream=Stream.INNER, seed=0, step=0, device=CPU) is None


@pytest.mark.parametrize("kind", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("normalization", list(Normalization))
@pytest.mark.parametrize("per", GRANULARITIES)
def test_closed_forms_are_what_autograd_finds(kind, normalization, per):
    problem = small_network(kind, per, normalization=normalization, biases=per is Per.TENSOR)
    ours, theirs = problem.oracle(), AutogradOracle(problem)
    w, raw = problem.initial_weights(1) + 0.05, raw_of(problem)
    v = torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(0))
    direction = torch.linspace(-1, 1, raw.numel(), dtype=raw.dtype)
    for side in ("inner", "outer"):
        a, b = getattr(ours, side)(w, raw), getattr(theirs, side)(w, raw)
        torch.testing.assert_close(a.value, b.value)
        torch.testing.assert_close(a.gradient, b.gradient)
    torch.testing.assert_close(ours.hvp(w, raw)(v), theirs.hvp(w, raw)(v))
    torch.testing.assert_close(ours.inner(w, raw).gradient, theirs.inner(w, raw).gradient)  # from the graph of hvp
    torch.testing.assert_close(ours.cross(w, raw, v), theirs.cross(w, raw, v))
    torch.testing.assert_close(ours.cross_forward(w, raw, direction), theirs.cross_forward(w, raw, direction))
    columns = torch.stack([theirs.cross_forward(w, raw, unit) for unit in torch.eye(raw.numel(), dtype=raw.dtype)])
    assert float(torch.linalg.matrix_norm(columns, 2)) <= ours.cross_norm(w, raw) * (1 + 1e-12)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("normalization", list(Normalization))
def test_products_are_symmetric_repeatable_and_differences_of_gradients(activation, normalization):
    problem = small_network(activation=activation, normalization=normalization)
    oracle, w, raw = problem.oracle(), problem.initial_weights(2), raw_of(problem)
    generator = torch.Generator().manual_seed(1)
    u, v, off = (torch.randn(w.shape, dtype=w.dtype, generator=generator) for _ in range(3))
    w = w + 0.1 * off  # with biases of zero, units that see nothing lie on the kink of relu
    product = oracle.hvp(w, raw)
    assert torch.equal(product(v), product(v))
    size = float(product(v).norm() * u.norm())
    assert abs(float(u @ product(v) - v @ product(u))) <= 1e-12 * size
    step = 1e-6
    difference = (oracle.inner(w + step * v, raw).gradient - oracle.inner(w - step * v, raw).gradient) / (2 * step)
    assert float((difference - product(v)).norm()) <= 1e-6 * float(product(v).norm())


def test_noise_is_drawn_once_for_all_products_of_a_solve():
    problem = small_network()
    noisy = noisy_network()
    problem = with_network(problem, noisy)
    w, raw = problem.initial_weights(0), raw_of(problem)
    product = problem.oracle().hvp(w, raw)
    v, u = torch.ones_like(w), torch.linspace(-1, 1, w.numel(), dtype=w.dtype)
    assert torch.equal(product(v), product(v))
    assert float((u @ product(v) - v @ product(u)).abs()) < 1e-12
    assert not torch.equal(problem.oracle().hvp(w, raw)(v), product(v))  # another solve draws anew


class Noise(nn.Module):
    """Multiplicative noise, in training and evaluation alike."""

    def forward(self, x):
        return x * (1 + 0.3 * torch.randn_like(x))


class Cut(nn.Module):
    """A part whose second derivative is hidden: the gate is right to first order only."""

    def forward(self, x):
        gate = torch.sigmoid(x.detach())
        return x * gate


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


class OnceDifferentiable(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def noisy_network(part=None):
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), part or Noise(), nn.Linear(6, 3))
    slots = tuple(
        Slot(name, tuple(p.shape), i // 2, Role.WEIGHT if p.ndim == 2 else Role.BIAS, 0.0, 0.5)
        for i, (name, p) in enumerate(module.named_parameters())
    )
    return Network(module, slots, 3, 3)


def with_network(problem, network):
    found = groups(network, Per.LAYER, biases=False)
    return dataclasses.replace(problem, network=network, regularizers=(L2("l2", found.of, 0.05, found.shape),))


@pytest.mark.parametrize("part", [Cut(), OnceDifferentiable(), Noise()], ids=["detach", "once", "noise"])
def test_what_cannot_be_differentiated_twice_is_found_at_the_start(part):
    problem = with_network(small_network(), noisy_network(part))
    with pytest.raises(NoDoubleBackward, match="only compares trained networks"):
        check_double_backward(problem, seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("normalization", list(Normalization))
def test_mlps_can_be_differentiated_twice(activation, normalization, dtype):
    for seed in range(5):
        check_double_backward(small_network(activation=activation, normalization=normalization, dtype=dtype), seed=seed)


def test_rows_in_chunks_give_the_same_numbers(monkeypatch):
    problem = small_network(n=50)
    w, raw = problem.initial_weights(0), raw_of(problem)
    v = torch.linspace(-1, 1, w.numel(), dtype=w.dtype)
    whole = problem.oracle()
    expected = whole.inner(w, raw), whole.outer(w, raw), whole.hvp(w, raw)(v), problem.evaluate(w, Part.VALID)
    monkeypatch.setattr(network_loss, "_CHUNK", 7)
    cut = problem.oracle()
    torch.testing.assert_close(cut.inner(w, raw).gradient, expected[0].gradient)
    torch.testing.assert_close(cut.inner(w, raw).value, expected[0].value)
    torch.testing.assert_close(cut.outer(w, raw).gradient, expected[1].gradient)
    torch.testing.assert_close(cut.hvp(w, raw)(v), expected[2])
    assert problem.evaluate(w, Part.VALID) == pytest.approx(expected[3])
    assert cut.outer_metrics(w) == pytest.approx(expected[3])


def test_metrics_are_those_of_the_outputs():
    problem = small_network("softmax")
    w = problem.initial_weights(0)
    z = problem.losses.outputs(w, problem.test.x)
    found = problem.evaluate(w, Part.TEST)
    assert found["loss"] == pytest.approx(float(functional.cross_entropy(z, problem.test.y)))
    assert found["accuracy"] == pytest.approx(float((z.argmax(1) == problem.test.y).double().mean()))
    assert problem.parts() == frozenset(Part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "rows or more"),
        ({"batch_size": 1, "normalization": Normalization.BATCH}, "batches of 2 rows or more"),
        ({"widths": (0,)}, "must be positive"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(LearnError, match=message):
        small_network(**change)


def test_a_batch_of_fewer_rows_than_asked_for_is_all_rows():
    problem = small_network(n=12, batch_size=100)
    assert problem.batch(0, 5) is problem.train
    assert problem.steps_per_epoch == 1
    assert np.array_equal(problem.batches((0, 1), 0).y[1], problem.train.y)
