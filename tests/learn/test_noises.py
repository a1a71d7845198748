"""Noises do what they are named for, each row on its own, and nothing when it is told so."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import shift as scipy_shift

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyperparameter, HyperparameterSpace
from workers.learn.losses.logistic import Logistic
from workers.learn.losses.softmax import Softmax
from workers.learn.losses.squared import Squared
from workers.learn.models.image_shape import ImageShape
from workers.learn.noises.augmentation import Brightness, Contrast, Translation, shifted
from workers.learn.noises.base import Strength, row_values
from workers.learn.noises.cutout import Cutout
from workers.learn.noises.draws import Draws, NoiseStream
from workers.learn.noises.dropout import Dropout, InputDropout
from workers.learn.noises.input_noise import InputNoise
from workers.learn.noises.label_smoothing import LabelSmoothing
from workers.learn.noises.noises import Noises
from workers.learn.transforms import Exp, Interval, Softplus, Whole

CPU = torch.device("cpu")
IMAGE = ImageShape(6, 8, 1)
COLOUR = ImageShape(6, 8, 3)
TRANSFORMS = {
    "interval": (Interval(0.0, 0.95), 0.0, 0.95),
    "wide": (Interval(-3.0, 40.0), -3.0, 40.0),
    "softplus": (Softplus(), 0.0, 1.0),
    "softplus-above": (Softplus(2.0), 2.0, 3.0),
}


def draws(step: int = 0) -> Draws:
    return Draws(NoiseStream.TRAINING, seed=3, step=step, device=CPU)


def images(shape: ImageShape, n: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.as_tensor(np.random.default_rng(0).normal(size=(n, shape.size))).to(dtype)


def strength(name: str = "s", initial: float = 0.1, transform=None, shape=(), fixed: bool = False) -> Strength:
    return Strength(name, initial, Interval(0.0, 0.95) if transform is None else transform, shape, fixed=fixed)


def cutout(most: int = 3) -> Cutout:
    return Cutout(Strength("l", 2, Whole(0, 6)), Strength("h", 1, Whole(0, most)), IMAGE)


INPUT_NOISES = {
    "translation": lambda s: Translation(s, IMAGE),
    "brightness": lambda s: Brightness(s, IMAGE),
    "contrast": lambda s: Contrast(s, IMAGE),
    "input_noise": InputNoise,
    "input_dropout": InputDropout,
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_natural_value_comes_back_from_its_raw_one(name, dtype):
    transform, low, high = TRANSFORMS[name]
    fractions = torch.tensor([1e-6, 1e-4, 1e-2, 0.3, 0.7, 0.99, 1 - 1e-4, 1 - 1e-6], dtype=torch.float64)
    values = (low + (high - low) * fractions).to(dtype)
    back = transform(transform.inverse(values))
    # Where low is not zero, what float32 cannot hold of value − low is gone before anything is computed.
    assert ((back - values).abs() <= 1e-5 * values.abs()).all()


def test_the_inverse_softplus_is_finite_for_large_and_small_values():
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor([1e-8, 100.0, 1e4], dtype=dtype)
        raw = Softplus().inverse(values)
        assert torch.isfinite(raw).all()
        torch.testing.assert_close(Softplus()(raw), values, rtol=1e-5, atol=0.0)
    assert torch.isnan(Softplus().inverse(torch.tensor(-1.0)))
    assert Softplus().inverse(torch.tensor(0.0)) == -math.inf


@pytest.mark.parametrize("transform", [Softplus(0.5), Interval(0.0, 0.95)])
def test_derivatives_of_transforms_are_those_of_autograd(transform):
    raw = torch.linspace(-6.0, 6.0, 13, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(transform(raw).sum(), raw)
    torch.testing.assert_close(transform.derivative(raw.detach()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_whole_number_is_reached_and_comes_back_exactly(dtype):
    transform = Whole(2, 7)
    values = torch.arange(2, 8, dtype=dtype)
    assert torch.equal(transform(transform.inverse(values)), values)
    raw = torch.linspace(-40.0, 40.0, 4001, dtype=dtype)
    assert torch.equal(transform(raw).unique(), values)
    outside = transform.inverse(torch.tensor([1.0, 8.0], dtype=dtype))
    assert torch.isnan(outside).all()
    assert Hyperparameter("n", 7.0, transform=transform, low=2.0, high=7.0).raw_bounds[1] < math.inf


def test_values_of_rows_are_those_of_each_row():
    blocks = (Hyperparameter("a", 0.1), Hyperparameter("b", 0.2, (2,), Interval(0.0, 1.0)))
    space = HyperparameterSpace(blocks)
    raw = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = row_values(space, raw)
    assert values["a"].shape == (4,)
    assert values["b"].shape == (4, 2)
    for i in range(4):
        alone = space.constrain(raw[i])
        assert all(torch.equal(values[name][i], alone[name]) for name in alone)
    with pytest.raises(LearnError, match="shape"):
        row_values(space, raw[:, :2])


@pytest.mark.parametrize("name", INPUT_NOISES)
def test_a_strength_of_zero_changes_nothing(name):
    x = images(IMAGE)
    noise = INPUT_NOISES[name](strength())
    torch.testing.assert_close(noise(x, {"s": torch.zeros(5, dtype=x.dtype)}, draws()), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", INPUT_NOISES)
def test_the_same_draws_for_the_same_step_and_others_for_another(name):
    x, hyper = images(IMAGE), {"s": torch.full((5,), 0.3, dtype=torch.float64)}
    before = x.clone()
    noise = INPUT_NOISES[name](strength())
    assert torch.equal(noise(x, hyper, draws(1)), noise(x, hyper, draws(1)))
    assert not torch.equal(noise(x, hyper, draws(1)), noise(x, hyper, draws(2)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", INPUT_NOISES)
def test_each_row_has_its_own_strength(name):
    x = images(IMAGE)
    noise = INPUT_NOISES[name](strength())
    values = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=x.dtype)
    mixed = noise(x, {"s": values}, draws())
    for i in range(5):
        alike = noise(x, {"s": values[i].expand(1)}, draws())
        torch.testing.assert_close(mixed[i], alike[i])


def test_a_strength_for_all_rows_and_a_fixed_one_are_the_same():
    x, value = images(IMAGE), 0.25
    learned = InputDropout(strength())(x, {"s": torch.full((1,), value, dtype=x.dtype)}, draws())
    fixed = InputDropout(strength(initial=value, fixed=True))
    assert fixed.hyperparameters() == ()
    assert torch.equal(fixed(x, {}, draws()), learned)
    assert torch.equal(InputDropout(strength()).fixed_at({"s": torch.tensor(value)})(x, {}, draws()), learned)


def test_whole_shifts_move_pixels_and_fractions_interpolate():
    x = images(IMAGE)
    down = torch.tensor([0.0, 2.0, -1.0, 0.4, -1.7], dtype=x.dtype)
    right = torch.tensor([0.0, -3.0, 2.0, 0.0, 2.2], dtype=x.dtype)
    moved = shifted(x, IMAGE, down=down, right=right).view(-1, 6, 8)
    for i in range(5):
        expected = scipy_shift(x[i].view(6, 8).numpy(), (down[i], right[i]), order=1, mode="nearest")
        np.testing.assert_allclose(moved[i].numpy(), expected, atol=1e-12)


def test_colours_move_together():
    x = images(COLOUR)
    down, right = torch.full((5,), 1.3, dtype=x.dtype), torch.full((5,), -0.6, dtype=x.dtype)
    moved = COLOUR.planes(shifted(x, COLOUR, down=down, right=right))
    for channel in range(3):
        plane = COLOUR.planes(x)[:, channel].reshape(5, -1)
        alone = shifted(plane, IMAGE, down=down, right=right).view(5, 6, 8)
        torch.testing.assert_close(moved[:, channel], alone)


def test_translations_stay_within_their_reach():
    size, n = ImageShape(20, 20, 1), 400
    x = torch.zeros(n, 20, 20, dtype=torch.float64)
    x[:, 10, 10] = 1.0
    moved = Translation(strength(), size)(x.view(n, -1), {"s": torch.tensor([0.1], dtype=x.dtype)}, draws())
    at = torch.arange(20, dtype=x.dtype)
    down = (moved.view(n, 20, 20).sum(2) * at).sum(1) - 10.0
    assert down.abs().max() <= 2.0 + 1e-9
    assert down.std() == pytest.approx(2.0 / math.sqrt(3.0), rel=0.1)  # uniform; its error is 3 % for 400


def test_brightness_moves_all_pixels_alike_and_contrast_keeps_the_mean():
    x, hyper = images(IMAGE), {"s": torch.full((5,), 0.5, dtype=torch.float64)}
    change = Brightness(strength(), IMAGE)(x, hyper, draws()) - x
    torch.testing.assert_close(change, change[:, :1].expand_as(change))
    assert change.abs().max() <= 0.5
    other = Contrast(strength(), IMAGE)(x, hyper, draws())
    torch.testing.assert_close(other.mean(1), x.mean(1))
    factor = other.std(1) / x.std(1)
    assert ((factor >= 0.5) & (factor <= 1.5)).all()
    assert factor.std() > 0.05


def test_dropout_keeps_the_mean_and_drops_its_share():
    x = torch.ones(4000, 10, dtype=torch.float64)
    p = torch.linspace(0.1, 0.8, 4000, dtype=torch.float64)
    dropped = InputDropout(strength())(x, {"s": p}, draws())
    share = (dropped == 0).double().mean(1)
    assert float((share - p).mean()) == pytest.approx(0.0, abs=0.01)  # √(p(1 − p)/40000) = 0.0025
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.allclose(dropped[dropped > 0], (1.0 / (1.0 - p))[:, None].expand_as(x)[dropped > 0])


def test_channels_are_dropped_whole_and_layers_have_probabilities_of_their_own():
    noise = Dropout(strength(shape=(2,)))
    hyper = {"s": torch.tensor([[0.5, 0.0]], dtype=torch.float64)}
    maps = torch.ones(50, 4, 3, 3, dtype=torch.float64)
    assert noise(maps, 0, hyper, draws()).shape == (50, 4, 1, 1)
    assert set(noise(maps, 0, hyper, draws()).flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(noise(torch.ones(50, 7, dtype=torch.float64), 1, hyper, draws()), torch.ones(50, 7).double())
    alike = Dropout(strength())
    assert torch.equal(alike(maps, 1, {"s": hyper["s"][:, 0]}, draws()), noise(maps, 0, hyper, draws()))


def test_cutout_cuts_as_many_squares_of_that_size_as_it_says():
    x = torch.ones(300, IMAGE.size, dtype=torch.float64)
    for length, holes in [(0, 2), (3, 0), (1, 1), (3, 1), (2, 3), (6, 3)]:
        hyper = {"l": torch.tensor([float(length)]).double(), "h": torch.tensor([float(holes)]).double()}
        lost = (cutout()(x, hyper, draws()) == 0).sum(1)
        assert lost.max() <= holes * length**2
        if length * holes == 0:
            assert lost.max() == 0
        if length == 1 and holes == 1:
            assert torch.equal(lost, torch.ones_like(lost))
        if length == 3 and holes == 1:
            inside = cutout()(x, hyper, draws()).view(-1, 6, 8)[lost == 9]
            assert len(inside) > 100
            rows = (inside == 0).any(2).sum(1)
            assert torch.equal(rows, torch.full_like(rows, 3))
            assert (inside == 0).any(2).double().mean(0).min() > 0.2  # everywhere in the image


def test_cutout_takes_whole_numbers_for_each_row():
    x = images(IMAGE)
    holes, length = torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0]).double(), torch.tensor([3.0, 3.0, 2.0, 1.0, 0.0]).double()
    mixed = cutout()(x, {"l": length, "h": holes}, draws())
    for i in range(5):
        alike = cutout()(x, {"l": length[i : i + 1], "h": holes[i : i + 1]}, draws())
        assert torch.equal(mixed[i], alike[i])
    with pytest.raises(LearnError, match="whole number"):
        Cutout(strength(), Strength("h", 1, Whole(0, 3)), IMAGE)


@pytest.mark.parametrize("rule", [Softmax(), Logistic()])
def test_smoothed_labels_are_a_mixture_over_classes(rule):
    classes = 4 if isinstance(rule, Softmax) else 2
    z = torch.randn(6, 4 if classes == 4 else 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(6) % classes
    s = torch.linspace(0.0, 0.5, 6, dtype=torch.float64)
    found = LabelSmoothing(strength()).mean(rule, z, y, {"s": s})
    each = [rule.value(z[:, None], torch.full((6,), c)).squeeze(1) for c in range(classes)]
    expected = (1 - s) * rule.value(z[:, None], y).squeeze(1) + s * torch.stack(each).mean(0)
    torch.testing.assert_close(found, expected.mean())
    with pytest.raises(LearnError, match="cross_entropy"):
        LabelSmoothing(strength()).mean(Squared(), z, y, {"s": s})


def test_noises_that_do_not_fit_are_refused():
    noises = Noises(
        (Translation(strength("t"), IMAGE),), Dropout(strength("d", shape=(3,))), LabelSmoothing(strength("l"))
    )
    noises.check(features=48, layers=4, rule=Softmax())
    assert [block.name for block in noises.hyperparameters()] == ["t", "d", "l"]
    with pytest.raises(LearnError, match="48 features"):
        noises.check(features=47, layers=4, rule=Softmax())
    with pytest.raises(LearnError, match="2 hidden layers"):
        noises.check(features=48, layers=3, rule=Softmax())
    with pytest.raises(LearnError, match="classes"):
        noises.check(features=48, layers=4, rule=Squared())
    with pytest.raises(LearnError, match="inside its domain"):
        Strength("p", 1.2, Interval(0.0, 0.95))
    assert not Noises()
    assert Strength("l2", 0.1, Exp()).hyperparameters()[0].name == "l2"
