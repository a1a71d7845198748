"""What a training step under the evidence's objective costs beside a plain one; run as a program: in memory.

    python -m benchmarks.evidence_overheads MODEL WAY

prints one line of JSON: how much more memory a process holds at most while it trains.
"""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from benchmarks.evidence_cases import HIDDEN, SIDE, make
from benchmarks.networks_probe import Watch
from workers.learn.methods.elbo import ELBo
from workers.learn.models.cnn import ToPlanes
from workers.learn.models.image_shape import ImageShape
from workers.learn.models.mlp import Activation, Normalization, mlp
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.training.optimizers import SGD
from workers.learn.training.schedule import Constant
from workers.learn.training.training import Training

INNER_STEPS = 50
ROWS = 10_000
RATE = 0.01
WIDTHS = (256, 256)
MODELS = ("mlp", "cnn")
WAYS = ("plain", "ours", "elbo", "elbo, four rates")
Train = Callable[[], None]
"""Trains for another fifty steps."""


@dataclass(frozen=True)
class Overhead:
    """Of one way to train one model."""

    model: str
    way: str
    weights: int
    step_ms: float
    """A step; for four rates: a step of all four."""
    ratio: float
    """Over a plain step."""
    memory_mib: float
    """Held at most beyond the data, in a process of its own."""


def overheads(*, rounds: int) -> list[Overhead]:
    """Return what steps cost: everything in turn, so that all see the same machine; of each the median."""
    found = []
    for model in MODELS:
        problem = problem_of(model)
        trainings = {way: training(model, way, problem) for way in WAYS}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for train in trainings.values():
            train()
        for _ in range(rounds):
            for way, train in trainings.items():
                begun = time.process_time()
                train()
                times[way].append(time.process_time() - begun)
        step = {way: float(np.median(seen)) / INNER_STEPS for way, seen in times.items()}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.evidence_overheads", model, way]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            memory = json.loads(line)["memory_mib"]
            found.append(Overhead(model, way, problem.network.size, 1e3 * step[way], step[way] / step["plain"], memory))
    return found


def problem_of(model: str) -> NetworkProblem:
    """Return a problem of the size of Fashion-MNIST, or of the transfer; what is in its rows does not matter."""
    draws = np.random.default_rng(0)
    features, classes = (784, 10) if model == "mlp" else (SIDE * SIDE, 5)
    return network_problem(
        make
        if model == "cnn"
        else lambda inputs, outputs: mlp(
            WIDTHS, activation=Activation.RELU, normalization=Normalization.NONE, inputs=inputs, outputs=outputs
        ),
        train=Examples(draws.normal(size=(ROWS, features)).astype(np.float32), draws.integers(0, classes, ROWS)),
        valid=None,
        test=None,
        loss="cross_entropy",
        terms=[L2Term("l2", 1e-3, biases=True)],
        batch_size=128 if model == "mlp" else 64,
        dtype=torch.float32,
        device="cpu",
        classes=classes,
    )


def training(model: str, way: str, problem: NetworkProblem) -> Train:
    """Return one way to train."""
    match way:
        case "plain":
            return _plain(model, problem)
        case "ours":
            return _ours(problem)
        case "elbo":
            return _evidence(problem, (RATE,))
        case _:
            return _evidence(problem, (RATE, RATE / 2, RATE / 4, RATE / 8))


def _plain(model: str, problem: NetworkProblem) -> Train:
    """Return ordinary torch training: a module, and an optimizer with its own weight decay."""
    if model == "mlp":
        layers = [part for sizes in pairwise((784, *WIDTHS)) for part in (nn.Linear(*sizes), nn.ReLU())]
        module = nn.Sequential(*layers, nn.Linear(WIDTHS[-1], 10))
    else:
        module = nn.Sequential(
            ToPlanes(ImageShape(SIDE, SIDE, 1)),  # torch is faster on this layout than on one of its own
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 5)),
        )
    assert sum(one.numel() for one in module.parameters()) == problem.network.size
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=1e-3)
    done = 0

    def train() -> None:
        nonlocal done
        for step in range(done, done + INNER_STEPS):
            rows = problem.batch(0, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(rows.x), rows.y).backward()
            optimizer.step()
        done += INNER_STEPS

    return train


def _ours(problem: NetworkProblem) -> Train:
    """Return training as searches have it: a penalty with a given strength."""
    method = Training(SGD(RATE, 0.9, nesterov=True), Constant())
    raw = problem.space.initial(torch.float32, torch.device("cpu"))
    state = method.start(problem, seed=0)

    def train() -> None:
        nonlocal state
        state, _ = method.advance(problem, state, raw, seed=0, steps=INNER_STEPS)

    return train


def _evidence(problem: NetworkProblem, rates: tuple[float, ...]) -> Train:
    method = ELBo(
        candidates=tuple(SGD(rate, 0.9, nesterov=True) for rate in rates),
        steps=1_000_000,
        steps_per_point=INNER_STEPS,
    )
    state = method.init(problem, seed=0)

    def train() -> None:
        nonlocal state
        state, _ = method.step(problem, state)

    return train


def main() -> None:
    torch.set_num_threads(1)
    model, way = sys.argv[1:]
    problem = problem_of(model)
    tiny = nn.Linear(1, 1)
    tiny(torch.zeros(1, 1)).sum().backward()
    torch.optim.SGD(tiny.parameters(), lr=0.1).step()  # which imports much when it is first used
    gc.collect()
    watch = Watch()
    watch.start()
    train = training(model, way, problem)
    train()
    train()
    print(json.dumps({"memory_mib": watch.stopped() / 2**20}))


if __name__ == "__main__":
    main()
