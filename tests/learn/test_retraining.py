import math

import pytest
import torch
from scipy import stats

from tests.learn.network_cases import raw_of, small_network, training
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.retraining import Sample, retrain
from workers.learn.training.trainer import NetworkTrainer

TRAINER = NetworkTrainer(training(), steps=25)


def test_each_strength_is_halved_and_doubled_with_every_seed():
    problem = small_network(per=Per.LAYER)
    raw = raw_of(problem)
    found = retrain(problem, TRAINER, raw, seeds=(4, 5, 6))
    assert [(n.name, n.factor) for n in found.neighbours] == [
        (f"l2[{place}]", factor) for place in range(3) for factor in (0.5, 2.0)
    ]
    assert found.metrics.keys() == {"train", "valid", "test"}
    alone = [TRAINER.train(problem, raw, w0=None, seed=seed) for seed in (4, 5, 6)]
    assert found.valid_loss.values == pytest.approx([one.value for one in alone], rel=1e-6)
    tested = [problem.evaluate(one.weights, Part.TEST)["accuracy"] for one in alone]
    assert found.metrics["test"]["accuracy"].values == pytest.approx(tested, abs=1e-6)
    moved = raw.clone()
    moved[2] += math.log(2.0)
    doubled = [TRAINER.train(problem, moved, w0=None, seed=seed).value for seed in (4, 5, 6)]
    assert found.neighbours[-1].valid_loss.values == pytest.approx(doubled, rel=1e-6)
    differences = [a - b.value for a, b in zip(doubled, alone, strict=True)]
    assert found.neighbours[-1].difference.values == pytest.approx(differences, abs=1e-6)
    assert found.cost.inner_iterations == 7 * 3 * 25


def test_many_strengths_are_moved_together():
    problem = small_network(per=Per.PARAMETER)
    found = retrain(problem, TRAINER, raw_of(problem), seeds=(0, 1))
    assert [(n.name, n.factor) for n in found.neighbours] == [(None, 0.5), (None, 2.0)]


def test_the_box_is_in_the_way():
    problem = small_network(per=Per.MODEL, initial=1e4)
    raw = problem.space.initial(torch.float64, torch.device("cpu"))
    found = retrain(problem, TRAINER, raw, seeds=(0, 1))
    assert [n.factor for n in found.neighbours] == [0.5]
    assert (found.at_low, found.at_high) == (0, 1)


def test_a_sample_knows_what_chance_would_do():
    assert Sample((1.0, 2.0, 3.0)).mean == 2.0
    assert Sample((1.0, 2.0, 3.0)).standard_error == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(Sample((1.0,)).standard_error)
    assert stats.ttest_1samp((-1.0, -2.0, -0.6), 0.0, alternative="less").pvalue > 0.05
    assert not Sample((-1.0, -2.0, -0.6)).is_negative
    assert stats.ttest_1samp((-1.0, -2.0, -0.7), 0.0, alternative="less").pvalue < 0.05
    assert Sample((-1.0, -2.0, -0.7)).is_negative
    assert Sample((-1.0, -1.1, -0.9)).is_negative
    assert not Sample((-1.0, 1.0, -0.1)).is_negative
    assert not Sample((-1.0,)).is_negative
    assert not Sample((math.nan, -1.0)).is_negative


def test_a_seed_without_effect_leaves_the_difference_alone():
    one, other = Sample((1.0, 5.0, 9.0)), Sample((1.5, 5.5, 9.6))
    assert one.minus(other).is_negative
