"""A pass over the training rows, plain and self-tuning: what it costs."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.networks_cases import Case, save
from benchmarks.networks_contests import Contest
from workers.learn.methods.stn import STN
from workers.learn.noises.noises import Noises
from workers.learn.problems.network import NetworkProblem

Pass = Callable[[], None]


def passes(contest: Contest, problem: NetworkProblem) -> dict[str, Pass]:
    """Return a pass of each kind; each call goes on where the last one ended.

    A step of a self-tuning network is all of it: training, its response, its strengths, and a look at all validation
    rows at the end, which plain training does without.
    """
    found: dict[str, Pass] = {
        "plain": _plain(contest, problem),
        "plain, no noise": _plain(contest, replace(problem, noises=Noises())),
    }
    for contender in contest.contenders:
        method = contest.method(contender, problem) if contender.method["kind"] == "stn" else None
        if isinstance(method, STN):
            found[contender.name] = _self_tuning(replace(method, warm_up=0), problem)
    return found


def epochs(name: str, contest: Contest, case: Case, *, rounds: int) -> dict[str, dict[str, float]]:
    """Return seconds and memory of each kind of pass: the median of several, everything in turn."""
    kinds = passes(contest, contest.problem(case))
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for each in range(rounds + 1):
        for kind, one in kinds.items():
            begun = time.process_time()
            one()
            if each > 0:
                times[kind].append(time.process_time() - begun)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "case.npz"
        save(case, file)
        memory = {kind: _memory(file, name, kind) for kind in kinds}
    return {kind: {"seconds": float(np.median(times[kind])), "memory_mib": memory[kind]} for kind in kinds}


def _memory(file: Path, name: str, kind: str) -> float:
    command = [sys.executable, "-m", "benchmarks.networks_memory", str(file), name, kind]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(line)["memory_mib"])


def _plain(contest: Contest, problem: NetworkProblem) -> Pass:
    training = contest.trainer(problem).training
    raw = problem.space.initial(torch.float32, torch.device("cpu"))
    state = training.start(problem, seed=0)

    def one() -> None:
        nonlocal state
        state, _ = training.advance(problem, state, raw, seed=0, steps=problem.steps_per_epoch)

    return one


def _self_tuning(method: STN, problem: NetworkProblem) -> Pass:
    state = method.init(problem, seed=0)

    def one() -> None:
        nonlocal state
        state, _ = method.step(problem, state)

    return one
