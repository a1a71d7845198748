"""Jobs whose penalties leave weights out, from the specification to the result."""

import pytest

from service.admission import admit
from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from workers.learn.method import run
from workers.learn.problems.linear import LinearProblem
from workers.workshop import begin_study

LASSO = {
    "data": {"dataset": "builtin:diabetes"},
    "loss": "squared_error",
    "regularizers": [{"kind": "l1"}],
}


@pytest.mark.parametrize("method", ["implicit", "hoag", "grid"])
def test_a_lasso_is_learned_and_checked(method: str) -> None:
    spec = JobSpec.model_validate({**LASSO, "method": {"kind": method}})
    record = BUILTIN_DATASETS["builtin:diabetes"]
    assert admit(spec, record).is_admitted
    study = begin_study(spec, record, None, device="cpu")
    state = study.method.init(study.problem, seed=0)
    for after, _ in run(study.method, study.problem, state, max_steps=spec.budget.outer_steps):
        state = after
    conclusion = study.conclude(state)
    result = conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[])
    assert result["evidence"]["verdict"] == "optimum"
    assert result["evidence"]["hypergradient_check"]["relative_error"] <= 1e-3
    assert 1.0 < result["hyperparameters"]["l1"] < 20.0  # the targets have a standard deviation of 77


def test_strengths_are_announced_and_built_alike() -> None:
    record = BUILTIN_DATASETS["builtin:wine"]
    for per in ("model", "feature", "class", "parameter"):
        elastic = [{"kind": kind, "strength": {"per": per}} for kind in ("l2", "l1")]
        spec = JobSpec.model_validate({"data": {"dataset": "builtin:wine"}, "regularizers": elastic})
        estimate = admit(spec, record).estimate
        problem = begin_study(spec, record, None, device="cpu").problem
        assert isinstance(problem, LinearProblem)
        assert estimate is not None
        assert (estimate.strengths, estimate.weights) == (problem.space.size, problem.layout.size)
        assert problem.space.names == ("l2", "l1")


def test_a_start_that_leaves_no_weight_is_moved_to_one_that_does() -> None:
    record = BUILTIN_DATASETS["builtin:diabetes"]
    spec = JobSpec.model_validate(LASSO)
    problem = begin_study(spec, record, None, device="cpu").problem
    (block,) = problem.space.blocks
    assert block.high is not None
    assert block.high < 100.0
    assert float(block.initial) == pytest.approx(block.high / 10)
