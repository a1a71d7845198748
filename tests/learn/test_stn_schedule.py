"""The schedule that a self-tuning network carries along."""

import pytest
import torch

from tests.learn.network_cases import training
from tests.learn.stn_cases import noisy_mlp
from workers.checkpoint import Seal, dump, load
from workers.learn.linear.neumann import Neumann
from workers.learn.method import run
from workers.learn.methods import stn_schedule
from workers.learn.methods.implicit_online import ImplicitOnline
from workers.learn.methods.stn import STN
from workers.learn.methods.stn_polish import Polish
from workers.learn.methods.stn_schedule import Schedule
from workers.learn.methods.stn_state import STNState
from workers.learn.training.optimizers import Adam


def of_steps(steps: int) -> Schedule:
    """The schedule of two hyperparameters, of which the first counts steps."""
    schedule = Schedule.empty(3)
    for step in range(steps):
        pair = torch.tensor([0.0, -step], dtype=torch.float64)
        schedule = schedule.joined({"a": torch.tensor(step, dtype=torch.float64), "b": pair})
    return schedule


@pytest.mark.parametrize("steps", [0, 1, 2, 199, 200, 201, 202, 203, 400, 401, 402, 1000, 3333])
def test_a_schedule_is_evenly_thinned_and_ends_with_the_last_step(steps):
    schedule = of_steps(steps)
    points = schedule.points()
    kept = [step for step, _ in points]
    assert len(kept) <= 201
    assert len(kept) == steps or len(kept) > 100
    assert all(values == [step, 0.0, -step] for step, values in points)
    assert kept[-1:] == ([steps - 1] if steps else [])
    assert kept[:-1] == list(range(0, steps, schedule.every))[: len(kept) - 1]


def test_a_resumed_run_has_the_same_schedule(monkeypatch):
    monkeypatch.setattr(stn_schedule, "_MOST", 4)
    problem = noisy_mlp()
    polish = ImplicitOnline(training=training(Adam(1e-3)), solver=Neumann(terms=3), inner_steps=2, burn_in=0)
    method = STN(
        training=training(Adam(1e-3)), response=Adam(1e-3), steps=8, cycles=1, warm_up=0, polish=Polish(polish, 3)
    )

    def gone_on(state: STNState) -> tuple[STNState, list[list[float]]]:
        seen = []
        for after, point in run(method, problem, state, max_steps=11):
            state = after
            seen.append(torch.cat([value.reshape(-1) for value in point.hyperparameters.values()]).tolist())
        return state, seen

    start = method.init(problem, seed=0)
    whole, trajectory = gone_on(start)
    for _, middle in zip(range(7), run(method, problem, start, max_steps=11), strict=False):
        state = middle[0]
    saved = dump(state, Seal("hash", state.step, "running", 1, "cpu"))
    resumed, _ = gone_on(load(saved, STNState, spec_hash="hash", device="cpu")[0])
    assert resumed.schedule.points() == whole.schedule.points()
    assert torch.equal(resumed.training.w, whole.training.w)
    assert [step for step, _ in whole.schedule.points()] == [0, 4, 8, 10]
    assert all(values == trajectory[step] for step, values in whole.schedule.points())
    fresh = dump(start, Seal("hash", 0, "running", 1, "cpu"))
    assert load(fresh, STNState, spec_hash="hash", device="cpu")[0].schedule.points() == []
