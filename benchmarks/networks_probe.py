"""One size of network with a strength for each weight: what an outer step takes, in a process of its own.

Run by networks.py; prints one line of JSON.
"""

import gc
import json
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

from benchmarks.networks_cases import problem_of, saved
from workers.learn.linear.neumann import Neumann
from workers.learn.methods.implicit_online import ImplicitOnline
from workers.learn.outer.adam import Adam as OuterAdam
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.training.optimizers import Adam
from workers.learn.training.schedule import Constant
from workers.learn.training.training import Training

INNER = 10


def main() -> None:
    torch.set_num_threads(1)
    file, width, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    problem = problem_of(saved(file), (width,), Per.PARAMETER, initial=1e-3)
    method = ImplicitOnline(
        training=Training(Adam(1e-3), Constant(), averaging=20),
        solver=Neumann(terms=5),
        outer=OuterAdam(rate=0.1),
        inner_steps=INNER,
        burn_in=200,
    )
    gc.collect()
    watch = Watch()
    watch.start()
    state = method.init(problem, seed=0)
    spent, steps, learning, accuracy = 0.0, 0, [], 0.0
    while spent < seconds and accuracy < 1.0:
        start = time.process_time()
        alone = state.training
        method.training.advance(problem, alone, state.raw, seed=0, steps=INNER)
        middle = time.process_time()
        state, point = method.step(problem, state)
        end = time.process_time()
        spent += end - middle
        steps += 1
        if "burn_in" not in point.metrics:
            learning.append((end - middle) - (middle - start))
            accuracy = point.metrics["valid_accuracy"]
    learning.sort()
    print(
        json.dumps(
            {
                "strengths": int(state.raw.numel()),
                "outer_step_ms": 1e3 * learning[len(learning) // 2],
                "training_step_ms": 1e3 * (middle - start) / INNER,
                "memory_mib": watch.stopped() / 2**20,
                "steps": steps,
                "seconds": spent,
                "valid_accuracy": accuracy,
                "test_accuracy": problem.evaluate(state.training.average, Part.TEST)["accuracy"],
            }
        )
    )


class Watch(threading.Thread):
    """Looks every few milliseconds how much more memory is held than when it was made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self._peak = self._before
        self._over = threading.Event()

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(0.002):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def stopped(self) -> int:
        """Return the most that was held beyond the beginning, bytes."""
        self._over.set()
        self.join()
        return self._peak - self._before


if __name__ == "__main__":
    main()
