"""What an outer step of implicit differentiation costs beside plain training."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.networks_cases import Case, fashion, save
from benchmarks.networks_contests import CONTESTS
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom
from workers.learn.methods.implicit_online import ImplicitOnline

INNER_STEPS = 50
USUAL = "neumann, 5 terms"
"""What the service takes."""
PROBE_WIDTHS = (1, 13, 126, 1260)
"""Of one hidden layer: 10³, 10⁴, 10⁵ and 10⁶ weights."""


@dataclass(frozen=True)
class OuterStep:
    """What a solver costs."""

    ratio: float
    """50 training steps and an outer one, over 50 plain steps."""
    outer_ms: float
    step_ms: float
    """A training step of ours."""


def outer_steps(case: Case, *, rounds: int) -> dict[str, OuterStep]:
    """Return what each solver costs; everything in turn, so that all see the same machine; of each the median."""
    contest = CONTESTS["layers"]
    problem = contest.problem(case)
    plain = _plain_training(case, contest.model["widths"])
    solvers: dict[str, AbstractLinearSolver] = {
        "training alone": Identity(),
        "identity": Identity(),
        USUAL: Neumann(terms=5),
        "neumann, 10 terms": Neumann(terms=10),
        "cg, 5 steps": CG(max_steps=5),
        "minres, 5 steps": MINRES(max_steps=5),
        "nystrom, rank 5": Nystrom(rank=5, rho=1e-2),
    }
    implicit = next(contender for contender in contest.contenders if contender.name == "implicit")
    usual = contest.method(implicit, problem)
    assert isinstance(usual, ImplicitOnline)
    assert usual.inner_steps == INNER_STEPS
    methods = {name: replace(usual, solver=solver, burn_in=0) for name, solver in solvers.items()}
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
        name: OuterStep(median[name] / median["plain"], 1e3 * (median[name] - alone), 1e3 * alone / INNER_STEPS)
        for name in methods
    }


def written(costs: dict[str, OuterStep]) -> dict[str, dict[str, float]]:
    """Return costs as JSON keeps them."""
    return {name: asdict(cost) for name, cost in costs.items()}


def probes(folder: Path, *, seconds: float) -> list[dict[str, float]]:
    """Return what a strength for each weight takes, at four sizes."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "case.npz"
        save(fashion(folder, train=10_000, valid=50), file)
        for width in PROBE_WIDTHS:
            command = [sys.executable, "-m", "benchmarks.networks_probe", str(file), str(width)]
            line = subprocess.run([*command, str(seconds)], check=True, capture_output=True, text=True).stdout
            found.append(json.loads(line))
    return found


def _plain_training(case: Case, widths: list[int]) -> Callable[[int], None]:
    """Return ordinary torch training of the same network, with the optimizer's own weight decay."""
    sizes = [case.train.X.shape[1], *widths]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(sizes[-1], 10))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-3)
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
