import itertools
import math
import subprocess
import sys
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.learn.cases import named_problem, small_problem
from tests.learn.test_methods import copied, same
from workers.learn.cost import Cost
from workers.learn.errors import AllDiverged, LearnError
from workers.learn.hyperparameters import Hyperparameter, HyperparameterSpace
from workers.learn.method import Status, run
from workers.learn.methods.grid import Grid
from workers.learn.methods.implicit import Implicit
from workers.learn.methods.random_search import RandomSearch
from workers.learn.methods.tpe import TPE
from workers.learn.problems.layout import Per
from workers.learn.trainer import AbstractTrainer, ConvexTrainer, Trained
from workers.learn.transforms import Identity

SEARCHES = {
    "grid": Grid(ConvexTrainer(), points=3),
    "random": RandomSearch(ConvexTrainer()),
    "tpe": TPE(ConvexTrainer(), startup_trials=3),
}


@dataclass(frozen=True)
class Bowl(AbstractTrainer):
    """Instead of training: a parabola in `raw`, or nothing finite where `fails` says so. Keeps what it was asked."""

    center: float = -3.0
    fails: float = math.inf
    """Above this value of the first raw number training diverges."""
    asked: list = field(default_factory=list)

    def train(self, problem, raw, *, w0, seed):
        self.asked.append((raw.tolist(), None if w0 is None else float(w0[0]), seed))
        value = math.nan if float(raw[0]) > self.fails else float((raw - self.center).square().sum())
        weights = torch.full_like(problem.initial_weights(seed), float(len(self.asked)))
        return Trained(weights, value, 1, 0.0, Cost(gradients=1))


def points_of(method, problem, *, steps, seed=0):
    return [point for _, point in run(method, problem, method.init(problem, seed=seed), max_steps=steps)]


def logs_of(points):
    return np.array([np.log(p.hyperparameters["l2"].reshape(-1).numpy()) for p in points])


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_search_is_the_same_search(name, stop):
    method = SEARCHES[name]

    def problem():
        return small_problem("softmax", Per.FEATURE, n=60, d=2)

    whole = list(run(method, problem(), method.init(problem(), seed=3), max_steps=9))
    first = list(run(method, problem(), method.init(problem(), seed=3), max_steps=stop))
    rest = list(run(method, problem(), copied(first[-1][0]), max_steps=9))
    assert [p.step for _, p in first + rest] == list(range(9))
    for (state, point), (other_state, other_point) in zip(whole, first + rest, strict=True):
        assert same(state, other_state)
        assert point.valid_loss == other_point.valid_loss
        assert point.metrics == other_point.metrics
        assert torch.equal(point.hyperparameters["l2"], other_point.hyperparameters["l2"])


def test_two_processes_search_alike():
    code = (
        "from tests.learn.test_baselines import *\n"
        "for method in SEARCHES.values():\n"
        "    points = points_of(method, small_problem('logistic', Per.FEATURE, d=3), steps=8, seed=5)\n"
        "    print([p.valid_loss.hex() for p in points], logs_of(points).tobytes().hex())"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        )
        for seed in ("1", "2")
    ]
    one, two = (process.communicate()[0] for process in started)
    assert one == two
    assert len(one.splitlines()) == 3


@pytest.mark.parametrize("per", Per)
@pytest.mark.parametrize("name", ["random", "tpe"])
def test_every_granularity_is_searched_inside_its_box(name, per):
    problem = small_problem("softmax", per, n=60, d=3)
    points = points_of(SEARCHES[name], problem, steps=8)
    logs = logs_of(points)
    assert logs.shape == (8, problem.space.size)
    assert logs.min() >= math.log(1e-8) - 1e-9
    assert logs.max() <= math.log(1e4) + 1e-9
    assert len(np.unique(logs, axis=0)) == 8
    assert all(math.isnan(p.hypergradient_norm) for p in points)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_answer_is_the_best_trial_and_its_own_weights(name):
    problem = small_problem("logistic", n=80)
    method = SEARCHES[name]
    trajectory = list(run(method, problem, method.init(problem, seed=1), max_steps=9))
    answer = method.answer(problem, trajectory[-1][0])
    values = [point.valid_loss for _, point in trajectory]
    assert float(problem.oracle().outer(answer.weights, answer.raw).value) == pytest.approx(min(values), rel=1e-12)
    best = trajectory[int(np.argmin(values))][1]
    assert torch.equal(answer.raw.exp(), best.hyperparameters["l2"].reshape(-1))
    assert trajectory[-1][1].metrics["best_valid_loss"] == min(values)
    with pytest.raises(LearnError, match="no point"):
        method.answer(problem, method.init(problem, seed=0))


@pytest.mark.parametrize("name", SEARCHES)
def test_failed_trials_end_no_search(name):
    method = replace(SEARCHES[name], trainer=Bowl(fails=-2.0))
    problem = small_problem("logistic")
    trajectory = list(run(method, problem, method.init(problem, seed=0), max_steps=12))
    failed = [point for _, point in trajectory if math.isnan(point.valid_loss)]
    assert failed
    assert all(point.status is not Status.DIVERGED for _, point in trajectory)
    assert len(trajectory) == (3 if name == "grid" else 12)
    assert float(method.answer(problem, trajectory[-1][0]).raw[0]) <= -2.0
    # Weights of a failed trial start no other.
    broken = {index + 1 for index, (_, point) in enumerate(trajectory) if math.isnan(point.valid_loss)}
    assert not broken & {w0 for _, w0, _ in method.trainer.asked}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_in_which_all_trials_failed_has_no_answer(name):
    method = replace(SEARCHES[name], trainer=Bowl(fails=-math.inf))
    problem = small_problem("logistic")
    for state, _ in run(method, problem, method.init(problem, seed=0), max_steps=3):  # noqa: B007
        pass
    with pytest.raises(AllDiverged, match="any of 3 trials"):
        method.answer(problem, state)


class Unbounded:
    """A problem with filters beside its strengths."""

    space = HyperparameterSpace(
        (Hyperparameter("tv", 0.1, low=1e-3, high=1.0), Hyperparameter("filters", 0.5, (2, 2), Identity()))
    )

    def initial_weights(self, seed: int) -> Tensor:
        return torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize("name", SEARCHES)
def test_what_has_no_bounds_cannot_be_searched(name):
    with pytest.raises(LearnError, match="filters cannot be searched"):
        SEARCHES[name].init(Unbounded(), seed=0)


@pytest.mark.parametrize("name", SEARCHES)
def test_single_precision_stays_inside_the_box(name):
    problem = small_problem("logistic", dtype=torch.float32)
    low, high = problem.space.bounds(torch.float32, torch.device("cpu"))
    method = SEARCHES[name]
    for state, _ in run(method, problem, method.init(problem, seed=0), max_steps=4):
        assert state is not None
        previous = state.search.previous if name == "tpe" else state.previous
        assert previous.raw.dtype is torch.float32
        assert bool((previous.raw >= low).all())
        assert bool((previous.raw <= high).all())


# --- grid ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["squared", "logistic"])
def test_a_grid_finds_the_minimum_of_a_loop_over_it(kind):
    problem = small_problem(kind, n=80)
    points = points_of(Grid(ConvexTrainer(accuracy=1e-9), points=25), problem, steps=1000)
    assert len(points) == 25
    assert points[-1].status is Status.CONVERGED
    strengths = np.geomspace(1e4, 1e-8, 25)
    np.testing.assert_allclose([float(p.hyperparameters["l2"]) for p in points], strengths, rtol=1e-12)
    X, y = problem.train.design.matrix, problem.train.y.reshape(-1)
    V, t = problem.valid.design.matrix, problem.valid.y.reshape(-1)
    rows = len(y)
    for point, strength in zip(points, strengths, strict=True):
        if kind == "squared":
            ones = torch.ones(rows, 1, dtype=torch.float64)
            A = torch.cat([X, ones], 1)
            D = torch.diag(torch.tensor([strength] * X.shape[1] + [0.0], dtype=torch.float64))
            w = torch.linalg.solve(A.T @ A / rows + D, A.T @ y / rows)
            expected = float(0.5 * (V @ w[:-1] + w[-1] - t).square().mean())
        else:
            from sklearn.linear_model import LogisticRegression

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of how scikit-learn stops, which the comparison judges
                model = LogisticRegression(C=1.0 / (rows * strength), tol=1e-12, max_iter=10_000)
                probabilities = model.fit(X.numpy(), y.numpy()).predict_proba(V.numpy())
            chosen = probabilities[np.arange(len(t)), t.long().numpy()]
            expected = float(-np.log(np.maximum(chosen, 1e-300)).mean())
        if strength >= 1e-5:  # beyond, separable rows leave scikit-learn's weights where its precision ends
            assert point.valid_loss == pytest.approx(expected, rel=1e-6)


def test_a_warm_path_costs_less_than_cold_trials():
    @dataclass(frozen=True)
    class Cold(AbstractTrainer):
        """Forgets what was near."""

        def train(self, problem, raw, *, w0, seed):
            return ConvexTrainer().train(problem, raw, w0=None, seed=seed)

    costs = {}
    for trainer in (ConvexTrainer(), Cold()):
        problem = named_problem("breast_cancer")
        method = Grid(trainer, points=25)
        trajectory = list(run(method, problem, method.init(problem, seed=0), max_steps=25))
        costs[type(trainer).__name__] = trajectory[-1][0].cost.gradient_equivalents
        assert trajectory[-1][1].metrics["gradient_equivalents"] == costs[type(trainer).__name__]
    assert costs["ConvexTrainer"] < 0.6 * costs["Cold"]


def test_a_grid_visits_every_point_once_and_neighbours_in_turn():
    problem = small_problem("softmax", Per.CLASS)
    trainer = Bowl()
    points = points_of(Grid(trainer, points=4), problem, steps=1000)
    assert len(points) == 64
    places = np.round((logs_of(points) - math.log(1e4)) / (math.log(1e-8) - math.log(1e4)) * 3).astype(int)
    assert places[0].tolist() == [0, 0, 0]
    assert set(map(tuple, places)) == set(itertools.product(range(4), repeat=3))
    assert (np.abs(np.diff(places, axis=0)).sum(1) == 1).all()
    for k, (_, w0, _) in enumerate(trainer.asked[1:], start=1):
        start = places[int(w0) - 1]  # the trial that left these weights
        assert np.abs(places[k] - start).sum() == 1


def test_a_grid_that_never_ends_is_not_begun():
    problem = small_problem("softmax", Per.PARAMETER)
    with pytest.raises(LearnError, match="never ends"):
        Grid(ConvexTrainer(), points=20).init(problem, seed=0)


# --- random search and TPE -------------------------------------------------------------------------------------------


def test_random_search_is_log_uniform():
    problem = small_problem("logistic", Per.FEATURE)
    logs = logs_of(points_of(RandomSearch(Bowl()), problem, steps=400))
    low, high = math.log(1e-8), math.log(1e4)
    uniform = (logs - low) / (high - low)
    for column in uniform.T:
        # Kolmogorov–Smirnov at one in a million.
        steps = np.abs(np.sort(column) - np.arange(1, 401) / 400).max()
        assert steps < 2.7 / math.sqrt(400)
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.25  # five standard errors


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_another_seed_searches_elsewhere(name):
    one, two = (
        logs_of(points_of(replace(SEARCHES[name], trainer=Bowl()), small_problem(), steps=5, seed=s)) for s in (0, 1)
    )
    assert not np.isin(one, two).any()


def test_tpe_finds_what_chance_does_not():
    problem = small_problem("logistic", Per.FEATURE, d=2)
    found = {
        type(method): np.mean([min(p.valid_loss for p in points_of(method, problem, steps=50, seed=s)) for s in (0, 1)])
        for method in (TPE(Bowl()), RandomSearch(Bowl()))
    }
    assert found[TPE] < 0.2 * found[RandomSearch]


def test_tpe_avoids_where_trials_fail():
    points = points_of(TPE(Bowl(center=-12.0, fails=-6.0)), small_problem("logistic"), steps=50)
    failed = [math.isnan(point.valid_loss) for point in points]
    assert np.mean(failed[10:]) < 0.25  # of the box it is 0.55


def test_tpe_reports_and_warns_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points_of(TPE(Bowl(), startup_trials=1), small_problem(), steps=4)
    assert capfd.readouterr() == ("", "")


def test_optuna_is_imported_by_its_own_jobs_only():
    code = (
        "import sys, workers.learn.methods.tpe, workers.learn.methods.grid, workers.learn.methods.random_search\n"
        "assert 'optuna' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "."})


def test_learning_beats_searching_where_there_are_many_strengths():
    values = {}
    for name, method in {
        "implicit": Implicit(),
        "random": RandomSearch(ConvexTrainer()),
        "tpe": TPE(ConvexTrainer()),
    }.items():
        problem = named_problem("breast_cancer", per=Per.FEATURE)
        for state, point in run(method, problem, method.init(problem, seed=0), max_steps=25):  # noqa: B007
            pass
        values[name] = (point.metrics["best_valid_loss"], state.cost.gradient_equivalents)
    assert values["implicit"][0] < min(values["random"][0], values["tpe"][0])
    assert values["implicit"][1] < min(values["random"][1], values["tpe"][1])
