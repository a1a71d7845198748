"""An answer is called an optimum only if it is one."""

import json
import math
from dataclasses import replace

import pytest
import torch

from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from workers.build.linear import build_linear
from workers.build.methods import build_method
from workers.data.load import load
from workers.evidence import Evidence, examine
from workers.learn.method import Answer, run
from workers.learn.problems.linear import LinearProblem
from workers.learn.verification import Neighbour
from workers.precision import in_double
from workers.verdict import Findings, Verdict, judge


def solved(dataset: str = "wine", **spec: object) -> tuple[JobSpec, LinearProblem, Answer]:
    loss = "squared_error" if dataset == "diabetes" else "cross_entropy"
    data = {"dataset": f"builtin:{dataset}", **dict(spec.pop("data", {}))}  # type: ignore[call-overload]
    job = JobSpec.model_validate({"data": data, "loss": loss, **spec})
    loaded = load(job.data, BUILTIN_DATASETS[job.data.dataset], None, loss=job.loss, seed=job.seed)
    problem = build_linear(job, job.model, loaded, device="cpu")
    method = build_method(job, size=problem.layout.size)
    *_, (state, _) = run(method, problem, method.init(problem, seed=job.seed), max_steps=job.budget.outer_steps)
    return job, problem, method.answer(problem, state)


def evidence_of(dataset: str = "wine", **spec: object) -> Evidence:
    job, problem, answer = solved(dataset, **spec)
    return examine(problem, answer, job)


@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("split", ["holdout", "kfold"])
def test_a_converged_run_has_found_an_optimum(dataset: str, split: str) -> None:
    evidence = evidence_of(dataset, data={"split": {"kind": split}})
    found = evidence.findings
    assert evidence.verdict is Verdict.OPTIMUM, evidence.sentence
    assert found is not None
    assert found.relative_error < 1e-3
    assert [neighbour.factor for neighbour in found.neighbours] == pytest.approx([0.5, 2.0])
    assert all(neighbour.value > found.objective for neighbour in found.neighbours)
    assert "Halving or doubling the strength raises the objective" in evidence.sentence


def test_a_run_that_was_cut_short_is_still_descending() -> None:
    evidence = evidence_of(budget={"outer_steps": 1})
    assert evidence.verdict is Verdict.DESCENDING
    assert "lower next to the answer" in evidence.sentence or "still falls" in evidence.sentence
    assert evidence.findings is not None
    # Far from an optimum the check has something to hold on to: both slopes are large, and equal.
    assert evidence.findings.analytic == pytest.approx(evidence.findings.difference, rel=1e-4)
    assert abs(evidence.findings.analytic) > 1e-2 * evidence.findings.objective


def test_an_answer_next_to_the_optimum_is_not_called_one() -> None:
    job, problem, answer = solved()
    moved = Answer(answer.raw + 0.3, answer.weights)
    assert examine(problem, moved, job).verdict is Verdict.DESCENDING


def test_a_strength_that_is_pressed_against_its_bound_is_named() -> None:
    evidence = evidence_of(regularizers=[{"kind": "l2", "strength": {"init": 1.0, "low": 0.1}}])
    assert evidence.verdict is Verdict.AT_BOUND
    assert evidence.sentence.startswith("l2 lies on the lower bound")
    assert evidence.body()["at_bounds"] == [{"name": "l2", "index": None, "bound": "low"}]


def test_of_many_strengths_the_five_steepest_are_varied() -> None:
    body = evidence_of(
        "diabetes", regularizers=[{"kind": "l2", "strength": {"per": "feature"}}], budget={"outer_steps": 3}
    ).body()
    neighbours = body["neighbours"]
    assert isinstance(neighbours, list)
    places = {(entry["name"], entry["index"]) for entry in neighbours if isinstance(entry, dict)}
    assert len(places) == 5
    assert len(neighbours) == 10


def test_verification_can_be_turned_off() -> None:
    evidence = evidence_of(verify=False)
    assert evidence.body() == {
        "verdict": "not_checked",
        "sentence": "The answer was not checked, as the job asked (verify is false).",
    }


@pytest.mark.parametrize("method", ["implicit", "hoag"])
def test_an_approximate_solver_is_held_against_the_exact_one(method: str) -> None:
    evidence = evidence_of(method={"kind": method, "solver": {"kind": "identity"}}, budget={"outer_steps": 20})
    assert evidence.own is not None
    assert evidence.own.difference_norm > 0.1 * evidence.own.exact_norm
    assert "approximate solver 'identity'" in evidence.sentence
    assert evidence.findings is not None
    # The check itself is by the exact solver.
    assert evidence.findings.relative_error < 1e-3


def test_exact_solvers_have_no_hypergradient_of_their_own() -> None:
    for kind in ("cg", "minres", "direct"):
        assert evidence_of(method={"kind": "implicit", "solver": {"kind": kind}}).own is None


def test_evidence_is_in_float64_whatever_the_run_was_in() -> None:
    evidence = evidence_of(resources={"precision": "float32"}, budget={"tolerance": 1e-4})
    assert evidence.verdict is Verdict.OPTIMUM, evidence.sentence
    assert evidence.findings is not None
    assert evidence.findings.relative_error < 1e-3


def test_a_problem_in_float64_is_the_same_problem() -> None:
    _, problem, answer = solved(resources={"precision": "float32"}, budget={"outer_steps": 2})
    doubled, same = in_double(problem, answer)
    assert same.weights.dtype is torch.float64
    for w in (same.weights, torch.randn(same.weights.shape, generator=torch.Generator().manual_seed(0)).double()):
        single = problem.inner(w.float(), answer.raw)
        assert float(doubled.inner(w, same.raw)) == pytest.approx(float(single), rel=1e-5)
    assert in_double(doubled, same) == (doubled, same)


def test_the_same_seed_draws_the_same_direction() -> None:
    job, problem, answer = solved(
        regularizers=[{"kind": "l2", "strength": {"per": "class"}}], budget={"outer_steps": 2}
    )
    first, again = examine(problem, answer, job), examine(problem, answer, job)
    other = examine(problem, answer, job.model_copy(update={"seed": 5}))
    assert first.body() == again.body()
    assert first.findings is not None
    assert other.findings is not None
    assert first.findings.analytic != other.findings.analytic


def test_the_body_is_json_of_the_contracts_shape() -> None:
    body = evidence_of(budget={"outer_steps": 2}).body()
    assert json.loads(json.dumps(body, allow_nan=False)) == body
    assert set(body) == {
        "verdict",
        "sentence",
        "objective_at_answer",
        "projected_hypergradient_norm",
        "hypergradient_check",
        "method_hypergradient",
        "neighbours",
        "at_bounds",
        "cost",
    }
    check = body["hypergradient_check"]
    assert isinstance(check, dict)
    assert {"direction", "analytic", "central_difference", "relative_error", "step"} <= set(check)


OPTIMUM = Findings(
    objective=1.0,
    size=1.0,
    slope=1e-6,
    analytic=1e-6,
    difference=1e-6,
    uncertainty=0.0,
    neighbours=(Neighbour("l2", 0.5, 1.1, True), Neighbour("l2", 2.0, 1.05, True)),
    blocked=0,
    at_low=(),
    at_high=(),
    strengths=1,
    tolerance=1e-5,
)


@pytest.mark.parametrize(
    ("change", "verdict", "says"),
    [
        ({}, Verdict.OPTIMUM, "raises the objective by 5 % or more"),
        ({"difference": 0.2, "analytic": 0.1}, Verdict.NOT_CHECKED, "differ by 50 %"),
        ({"uncertainty": 0.1}, Verdict.NOT_CHECKED, "cannot be repeated precisely enough"),
        ({"uncertainty": math.nan}, Verdict.NOT_CHECKED, "cannot be repeated"),
        ({"objective": math.inf}, Verdict.NOT_CHECKED, "not finite"),
        ({"difference": math.nan}, Verdict.NOT_CHECKED, "not finite"),
        ({"slope": 0.1}, Verdict.DESCENDING, "still falls at the answer, by 10 %"),
        ({"objective": 1.06}, Verdict.DESCENDING, "with l2 times 2 by 1 %"),
        ({"blocked": 1, "at_high": ("l2",)}, Verdict.AT_BOUND, "l2 lies on the upper bound"),
        ({"blocked": 3, "at_high": ("l2[0]",) * 3, "at_low": ("l2[4]",), "strengths": 9}, Verdict.AT_BOUND,
         "3 of 9 strengths lie on the lower or upper bound"),
        ({"at_high": ("l2",)}, Verdict.OPTIMUM, "raises"),
        ({"neighbours": ()}, Verdict.OPTIMUM, "changes next to nothing"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_findings(change: dict[str, object], verdict: Verdict, says: str) -> None:
    given, sentence = judge(replace(OPTIMUM, **change))
    assert given is verdict
    assert says in sentence
    assert sentence.endswith(".")
