"""Learned strengths of networks beside searches for them, in the same time on the same machine.

    python benchmarks/networks.py --data DIR [--out DIR] [--seconds 60] [--seeds 3] [--quick]

DIR holds fashion-mnist/. Time is processor time of one thread, which other programs disturb least. Contenders are a
table, `CONTENDERS`: each is a method, stepped until its time is up. What its answer is worth at each moment is judged
outside of its clock, on all validation and test rows.

Always exits with 0: a claim that the run does not bear out says FAIL.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from networks_cases import Case, fashion, problem_of, save
from torch import nn

from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom
from workers.learn.method import AbstractMethod, State
from workers.learn.methods.implicit_online import ImplicitOnline
from workers.learn.methods.random_search import RandomSearch
from workers.learn.methods.tpe import TPE
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.problems.network import NetworkProblem
from workers.learn.training.optimizers import Adam
from workers.learn.training.schedule import Constant
from workers.learn.training.trainer import NetworkTrainer
from workers.learn.training.training import Training

WIDTHS = (256, 256)
START = 1e-2
EPOCHS = 20
LEARNING_RATE = 1e-3
"""All four are the service's defaults but for the widths; so are the batch and the box."""
INNER_STEPS = 50
TRAINING = Training(Adam(LEARNING_RATE), Constant())
PROBE_WIDTHS = (1, 13, 126, 1260)
"""Of one hidden layer: 10³, 10⁴, 10⁵ and 10⁶ weights."""

Start = Callable[[NetworkProblem], AbstractMethod[NetworkProblem, State]]


def implicit(solver: AbstractLinearSolver) -> ImplicitOnline:
    """Return the method with a solver, and all else as it comes."""
    return ImplicitOnline(training=TRAINING, solver=solver)


def trainer(problem: NetworkProblem) -> NetworkTrainer:
    """Return what every trial is."""
    return NetworkTrainer(TRAINING, EPOCHS * problem.steps_per_epoch)


CONTENDERS: dict[str, Start] = {
    "implicit": lambda _: implicit(Neumann(terms=5)),  # type: ignore[dict-item, return-value]
    "random": lambda problem: RandomSearch(trainer(problem)),  # type: ignore[dict-item, return-value]
    "tpe": lambda problem: TPE(trainer(problem)),  # type: ignore[dict-item, return-value]
}


@dataclass(frozen=True)
class Mark:
    """What a contender would have answered after so many seconds."""

    seconds: float
    valid_loss: float
    valid_accuracy: float
    test_loss: float
    test_accuracy: float
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """One run of a contender."""

    contender: str
    seed: int
    steps: int
    marks: tuple[Mark, ...]
    retrained: tuple[Mark, ...]
    """Trained from scratch with the strengths that it answered, other seeds."""

    def at(self, seconds: float, field: str) -> float:
        """Return a field of the answer at a moment; infinite before the first."""
        found = [getattr(mark, field) for mark in self.marks if mark.seconds <= seconds]
        return float(found[-1]) if found else float("inf")


def run(name: str, start: Start, problem: NetworkProblem, *, seed: int, seconds: float, retrainings: int) -> Trace:
    """Step a contender until its time is up; judge its answer about a hundred times, outside of its clock."""
    method = start(problem)
    spent, due, steps, marks = 0.0, 0.0, 0, []
    begun = time.process_time()
    state = method.init(problem, seed=seed)
    spent += time.process_time() - begun
    while spent < seconds:
        begun = time.process_time()
        state, _ = method.step(problem, state)
        spent += time.process_time() - begun
        steps += 1
        if spent >= due:
            answer = method.answer(problem, state)
            marks.append(judged(problem, answer.weights, answer.raw, spent))
            due = spent + seconds / 100
    answer = method.answer(problem, state)
    again = [trainer(problem).train(problem, answer.raw, w0=None, seed=1000 + s) for s in range(retrainings)]
    retrained = tuple(judged(problem, one.weights, answer.raw, 0.0) for one in again)
    return Trace(name, seed, steps, tuple(marks), retrained)


def default_run(problem: NetworkProblem, *, seed: int) -> Trace:
    """Train once at the strength that everything starts from."""
    raw = problem.space.initial(torch.float32, torch.device("cpu"))
    begun = time.process_time()
    trained = trainer(problem).train(problem, raw, w0=None, seed=seed)
    return Trace("default", seed, 1, (judged(problem, trained.weights, raw, time.process_time() - begun),), ())


def judged(problem: NetworkProblem, weights: torch.Tensor, raw: torch.Tensor, seconds: float) -> Mark:
    """Return what weights are worth."""
    valid, test = (problem.evaluate(weights, part) for part in (Part.VALID, Part.TEST))
    strengths = problem.space.constrain(raw)["l2"].reshape(-1).tolist()
    return Mark(seconds, valid["loss"], valid["accuracy"], test["loss"], test["accuracy"], tuple(strengths))


def plain_training(case: Case) -> Callable[[int], None]:
    """Return ordinary torch training of the same network, with the optimizer's own weight decay."""
    sizes = [case.train.X.shape[1], *WIDTHS]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    X, y = torch.as_tensor(case.train.X), torch.as_tensor(case.train.y)
    order = torch.randperm(len(y))

    def train(steps: int) -> None:
        for step in range(steps):
            place = (step * 128) % (len(y) - 128)
            rows = order[place : place + 128]
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X[rows]), y[rows]).backward()
            optimizer.step()

    return train


def overheads(case: Case, *, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return what 50 training steps and one outer step cost beside 50 plain ones: ratio, outer ms, step ms.

    Everything in turn, so that all see the same machine; of each the median.
    """
    problem = problem_of(case, WIDTHS, Per.LAYER, initial=START)
    plain = plain_training(case)
    solvers: dict[str, AbstractLinearSolver] = {
        "training alone": Identity(),
        "identity": Identity(),
        "neumann, 5 terms": Neumann(terms=5),
        "neumann, 10 terms": Neumann(terms=10),
        "cg, 5 steps": CG(max_steps=5),
        "minres, 5 steps": MINRES(max_steps=5),
        "nystrom, rank 5": Nystrom(rank=5, rho=1e-2),
    }
    methods = {name: replace(implicit(solver), burn_in=0) for name, solver in solvers.items()}
    states = {name: method.init(problem, seed=0) for name, method in methods.items()}
    for name, method in methods.items():
        states[name], _ = method.step(problem, states[name])  # with its measurement of the curvature
    plain(INNER_STEPS)
    times: dict[str, list[float]] = {name: [] for name in ["plain", *methods]}
    for _ in range(rounds):
        begun = time.process_time()
        plain(INNER_STEPS)
        times["plain"].append(time.process_time() - begun)
        for name, method in methods.items():
            begun = time.process_time()
            if name == "training alone":
                method.training.advance(problem, states[name].training, states[name].raw, seed=0, steps=INNER_STEPS)
            else:
                states[name], _ = method.step(problem, states[name])
            times[name].append(time.process_time() - begun)
    median = {name: float(np.median(seen)) for name, seen in times.items()}
    alone = median["training alone"]
    return {
        name: (median[name] / median["plain"], 1e3 * (median[name] - alone), 1e3 * alone / INNER_STEPS)
        for name in methods
    }


def probes(folder: Path, *, seconds: float) -> list[dict[str, float]]:
    """Return what a strength for each weight takes, at four sizes."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "case.npz"
        save(fashion(folder, train=10_000, valid=50), file)
        for width in PROBE_WIDTHS:
            command = [sys.executable, str(Path(__file__).with_name("networks_probe.py")), str(file), str(width)]
            line = subprocess.run([*command, str(seconds)], check=True, capture_output=True, text=True).stdout
            found.append(json.loads(line))
            _say(f"  {line.strip()}")
    return found


def arrival(traces: Sequence[Trace], value: float) -> float:
    """Return when the mean answer of several seeds first was as good as a value; infinite if never."""
    moments = sorted({mark.seconds for trace in traces for mark in trace.marks})
    for moment in moments:
        if np.mean([trace.at(moment, "valid_loss") for trace in traces]) <= value:
            return moment
    return float("inf")


def report(
    traces: list[Trace],
    costs: dict[str, tuple[float, float, float]],
    sizes: list[dict[str, float]],
    *,
    seconds: float,
) -> str:
    """Return the page."""
    names = list(dict.fromkeys(trace.contender for trace in traces))
    of = {name: [trace for trace in traces if trace.contender == name] for name in names}
    goal = float(np.mean([trace.marks[-1].valid_loss for trace in of["tpe"]]))
    theirs, ours = arrival(of["tpe"], goal), arrival(of["implicit"], goal)
    ratio = costs["neumann, 5 terms"][0]
    large = [size for size in sizes if size["strengths"] >= 10_000]
    worst = min(size["valid_accuracy"] for size in large)
    claims = [
        (
            "reaches TPE's final validation loss in at most a third of the time",
            f"{ours:.1f} s of {theirs:.1f} s",
            ours <= theirs / 3,
        ),
        ("an outer step every 50 steps costs at most 30 % of plain training", f"{ratio:.2f} times", ratio <= 1.3),
        (
            "a strength per weight fits 50 validation rows to 98 %",
            f"{worst:.1%} or more from 10⁴ strengths on",
            worst >= 0.98,
        ),
    ]
    lines = [
        "# Learned strengths of networks",
        "",
        f"- versions: Python {platform.python_version()}, torch {torch.__version__}; one thread, processor time",
        "- data: Fashion-MNIST, 10,000 training, 5,000 validation and 10,000 test images; an MLP with widths "
        f"{WIDTHS}, ReLU, one strength per layer",
        f"- all that is not said is the service's default: λ from 1e-8 to 1e4, at first {START}; Adam {LEARNING_RATE}, "
        f"batches of 128, {EPOCHS} epochs a trial; weights are averaged over 200 steps, in trials as in `implicit`",
        "",
        "| claim | | measured |",
        "| --- | --- | --- |",
        *(f"| {says} | {'PASS' if passes else 'FAIL'} | {measured} |" for says, measured, passes in claims),
        "",
        f"## The same {seconds:.0f} seconds",
        "",
        "Mean ± standard error over seeds. A contender's answer is the one with the lowest validation loss so far, "
        "which for `implicit` is a network that has been trained with all strengths up to then; “retrained” is that of "
        "a training from scratch with the strengths of the answer and seeds that nothing was chosen by.",
        "",
        "| contender | valid loss after "
        + " | ".join(f"{part:.0%}" for part in (0.05, 0.1, 0.2, 0.33, 1.0))
        + " | test loss | valid accuracy | test accuracy | retrained: valid loss | test loss | steps | strengths |",
        "| --- |" + " ---: |" * 12,
    ]
    for name in names:
        runs = of[name]
        curve = [_spread([run.at(part * seconds, "valid_loss") for run in runs]) for part in (0.05, 0.1, 0.2, 0.33, 1)]
        last = [run.marks[-1] for run in runs]
        again = [mark for run in runs for mark in run.retrained]
        lines.append(
            f"| {name} | "
            + " | ".join(curve)
            + f" | {_spread([m.test_loss for m in last])} | {_spread([m.valid_accuracy for m in last])}"
            + f" | {_spread([m.test_accuracy for m in last])}"
            + (
                f" | {_spread([m.valid_loss for m in again])} | {_spread([m.test_loss for m in again])}"
                if again
                else " | — | —"
            )
            + f" | {np.mean([run.steps for run in runs]):.0f} | "
            + "; ".join(" ".join(f"{value:.0e}" for value in m.strengths) for m in last)
            + " |"
        )
    lines += [
        "",
        "## What an outer step costs",
        "",
        f"Beside {INNER_STEPS} steps of ordinary torch training (`nn.Sequential`, `torch.optim.Adam` with decay); "
        "512 validation rows, Hessian of one batch of 128. A step of our training takes "
        f"{costs['identity'][2]:.2f} ms.",
        "",
        "| | 50 steps and an outer one, over 50 plain steps | the outer one, ms |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {cost[0]:.2f} | {max(cost[1], 0.0):.1f} |" for name, cost in costs.items()),
        "",
        "## A strength for each weight",
        "",
        "10,000 training rows, 50 validation rows, one hidden layer, Neumann with 5 terms, 10 training steps between "
        "outer ones; until all validation rows are right or the time is up. It shows that a million strengths can be "
        "learned, and that they then fit the validation rows: the test accuracy is what that is worth.",
        "",
        "| strengths | valid accuracy | test accuracy | outer steps | seconds | an outer step, ms "
        "| a training step, ms | memory, MiB |",
        "| ---: |" + " ---: |" * 7,
        *(
            f"| {size['strengths']:,} | {size['valid_accuracy']:.0%} | {size['test_accuracy']:.3f} | {size['steps']} "
            f"| {size['seconds']:.1f} | {size['outer_step_ms']:.1f} | {size['training_step_ms']:.2f} "
            f"| {size['memory_mib']:.0f} |"
            for size in sizes
        ),
        "",
    ]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not np.isfinite(values).all():
        return "—"
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.4f} ± {error:.4f}"


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with fashion-mnist/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of each contender and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the time and one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, seeds = (options.seconds / 10, 1) if options.quick else (options.seconds, options.seeds)
    case = fashion(options.data, train=10_000, valid=5_000)
    costs = overheads(case, rounds=5 if options.quick else 15)
    for name, cost in costs.items():
        _say(f"  {name:20} {cost[0]:.2f} of plain training, outer step {cost[1]:.1f} ms")
    sizes = probes(options.data, seconds=6.0 if options.quick else 30.0)
    problem = problem_of(case, WIDTHS, Per.LAYER, initial=START)
    traces = []
    for seed in range(seeds):
        for name in options.only:
            traces.append(run(name, CONTENDERS[name], problem, seed=seed, seconds=seconds, retrainings=2))
            last = traces[-1].marks[-1]
            _say(f"  {name} {seed}: valid {last.valid_loss:.4f} test {last.test_loss:.4f} {last.strengths}")
        traces.append(default_run(problem, seed=seed))
    page = report(traces, costs, sizes, seconds=seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "networks.md").write_text(page)
    _say(page)


if __name__ == "__main__":
    main()
