import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from workers.learn.calibration import class_calibration, gaussian_calibration
from workers.learn.errors import LearnError


def predictions(n=500, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    y = torch.distributions.Categorical(logits=0.6 * logits).sample()
    return logits, y


def test_scores_are_those_of_scikit_learn():
    torch.manual_seed(0)
    logits, y = predictions()
    found = class_calibration(logits, y)
    p = logits.softmax(1).numpy()
    assert found.nll == pytest.approx(log_loss(y, p, labels=range(4)))
    squares = sum(brier_score_loss((y == c).numpy(), p[:, c]) for c in range(4))
    assert found.brier == pytest.approx(squares)
    assert found.accuracy == (p.argmax(1) == y.numpy()).mean()


def test_bins_are_those_of_scikit_learn_and_make_the_error():
    torch.manual_seed(0)
    logits, y = predictions()
    found = class_calibration(logits, y)
    p = logits.softmax(1).numpy()
    accuracy, confidence = calibration_curve(p.argmax(1) == y.numpy(), p.max(1), n_bins=15)
    full = [part for part in found.bins if part.count]
    assert [part.accuracy for part in full] == pytest.approx(accuracy)
    assert [part.confidence for part in full] == pytest.approx(confidence)
    assert sum(part.count for part in found.bins) == 500
    assert found.ece == pytest.approx(sum(b.count * abs(b.accuracy - b.confidence) for b in full) / 500)
    assert all(math.isnan(b.accuracy) and math.isnan(b.confidence) for b in found.bins if not b.count)
    assert all(b.low < b.confidence <= b.high for b in full)


def test_a_shift_of_logits_and_log_odds_change_nothing():
    logits, y = predictions(classes=2)
    found = class_calibration(logits, y)
    odds = class_calibration((logits[:, 1] - logits[:, 0])[:, None], y)
    shifted = class_calibration(logits + 1000.0, y)
    assert found.nll == pytest.approx(odds.nll) == pytest.approx(shifted.nll)
    assert found.ece == pytest.approx(odds.ece) == pytest.approx(shifted.ece)


def test_sure_and_right_is_perfect_and_sure_and_wrong_the_worst():
    logits = torch.tensor([[0.0, 2000.0], [0.0, 2000.0]], dtype=torch.float64)
    right = class_calibration(logits, torch.tensor([1, 1]))
    assert (right.nll, right.brier, right.ece, right.bins[-1].count) == (0.0, 0.0, 0.0, 2)
    wrong = class_calibration(logits, torch.tensor([0, 0]))
    assert (wrong.nll, wrong.brier, wrong.ece) == (2000.0, 2.0, 1.0)


def test_intervals_of_the_true_distribution_hold_what_they_say():
    draws = np.random.default_rng(0)
    mean, std = draws.normal(size=20_000), draws.uniform(0.5, 2.0, size=20_000)
    y = mean + std * draws.normal(size=20_000)
    found = gaussian_calibration(torch.as_tensor(mean), torch.as_tensor(std), torch.as_tensor(y))
    assert [c.level for c in found.coverage] == [0.5, 0.8, 0.95]
    for part in found.coverage:
        assert part.covered == pytest.approx(part.level, abs=0.01)  # three standard errors
    assert found.coverage[2].width == pytest.approx(2 * 1.959964 * std.mean())
    expected = -torch.distributions.Normal(torch.as_tensor(mean), torch.as_tensor(std)).log_prob(torch.as_tensor(y))
    assert found.nll == pytest.approx(float(expected.mean()))
    assert found.rmse == pytest.approx(math.sqrt(np.mean((y - mean) ** 2)))
    sure = gaussian_calibration(torch.as_tensor(mean), torch.as_tensor(0.1 * std), torch.as_tensor(y))
    assert all(part.covered < 0.25 for part in sure.coverage)


def test_one_deviation_serves_all_rows_and_outputs_add_up():
    y = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    found = gaussian_calibration(torch.zeros_like(y), torch.tensor(2.0), y)
    expected = -torch.distributions.Normal(0.0, 2.0).log_prob(y).sum(1).mean()
    assert found.nll == pytest.approx(float(expected))
    assert found.rmse == pytest.approx(math.sqrt(14 / 2))


@pytest.mark.parametrize(
    ("logits", "y"), [((3, 2), [0, 1]), ((2, 2), [0, 2]), ((2, 2), [-1, 0]), ((0, 2), [])], ids=str
)
def test_classes_that_do_not_fit_are_refused(logits, y):
    with pytest.raises(LearnError):
        class_calibration(torch.zeros(logits), torch.tensor(y, dtype=torch.long))


def test_deviations_that_are_none_are_refused():
    with pytest.raises(LearnError, match="positive"):
        gaussian_calibration(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    with pytest.raises(LearnError, match="one shape"):
        gaussian_calibration(torch.zeros(2), torch.ones(2), torch.zeros(3))
