"""A worker whose jobs do as they are told: sleep, hang, eat memory, die. Only the mathematics is a stand-in.

What a job does is said by its labels: `pause` (seconds a step takes), `trouble` (`kill`, `hang`, `eat`, `nan`, `raise`,
`bad_data`, `swap`), `at` (the step at which it begins), `once` (only in the first attempt that gets there).

    python tests/workers/standin.py worker      a worker with such runners
    python tests/workers/standin.py PARENT      a runner
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import logs
from service.numbers import jsonable
from service.records import DatasetRecord, FileRecord, JsonObject
from service.settings import Settings
from service.spec.job import JobSpec


def make_runner(settings: Settings, parent: object, tail: object) -> object:
    """What `workers.spare` looks for."""
    # Not above: a worker must not import torch.
    from workers.runner import Runner

    return Runner(settings, parent, tail, _begin(settings.data_dir))  # type: ignore[arg-type]


def _begin(folder: Path) -> Callable[..., Any]:
    import torch
    from torch import Tensor

    from workers.data.errors import BadData
    from workers.learn.cost import Cost
    from workers.learn.method import Answer, TrajectoryPoint

    @dataclass(frozen=True)
    class WanderState:
        step: int
        cost: Cost
        x: Tensor
        sum: float

    @dataclass(frozen=True)
    class Wander:
        """x ← sin(1.3 x + noise(seed, step)): no step can be told without those before it."""

        seed: int
        labels: Mapping[str, str]
        state_type = WanderState

        def init(self, problem: object, *, seed: int) -> WanderState:
            return WanderState(0, Cost(), torch.full((16,), 0.5, dtype=torch.float64), 0.0)

        def step(self, problem: object, state: WanderState) -> tuple[WanderState, TrajectoryPoint]:
            time.sleep(float(self.labels.get("pause", "0")))
            value = math.nan if self._trouble(state.step) == "nan" else state.sum
            noise = torch.randn(16, generator=torch.Generator().manual_seed(1000 * self.seed + state.step)).double()
            x = torch.sin(1.3 * state.x + noise)
            after = WanderState(state.step + 1, state.cost + Cost(inner_iterations=1), x, state.sum + float(x.sum()))
            return after, TrajectoryPoint(
                step=state.step,
                hyperparameters={"l2": x.abs().sum()},
                train_loss=value,
                valid_loss=after.sum,
                hypergradient_norm=float(x.norm()),
                inner_iterations=1,
                inner_residual=0.0,
            )

        def answer(self, problem: object, state: WanderState) -> Answer:
            return Answer(state.x, state.x)

        def _trouble(self, step: int) -> str | None:
            trouble = self.labels.get("trouble")
            if trouble is None or step < int(self.labels.get("at", "0")):
                return None
            if "once" in self.labels:
                try:
                    (folder / f"trouble-{self.labels['once']}").touch(exist_ok=False)
                except FileExistsError:
                    return None
            match trouble:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
                case "raise":
                    raise RuntimeError("secret words of a library")
                case "eat":
                    held = []
                    while True:
                        held.append(bytearray(os.urandom(1 << 20)) * 32)
                        time.sleep(0.01)
            return trouble

    class StandIn:
        problem = None

        def __init__(self, spec: JobSpec) -> None:
            self.method = Wander(spec.seed, spec.labels)
            self._trouble = spec.labels.get("trouble")

        def point(self, point: TrajectoryPoint) -> JsonObject:
            return {"sum": jsonable(point.valid_loss), "x": jsonable(point.hypergradient_norm)}

        def conclude(self, state: WanderState) -> "End":
            return End(state, self._trouble)

    class End:
        def __init__(self, state: WanderState, trouble: str | None) -> None:
            self._state = state
            self._trouble = trouble

        def files(self) -> Mapping[str, bytes]:
            return {"weights.safetensors": self._state.x.numpy().tobytes()}

        def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
            if self._trouble == "slow_check":
                time.sleep(3600)
            return {"sum": self._state.sum.hex(), "wall_s": wall_seconds}

        def result_file(self, result: JsonObject) -> tuple[str, bytes]:
            return "result.json", json.dumps(result).encode()

    def begin(
        spec: JobSpec, dataset: DatasetRecord, path: Path | None, *, device: str, weights: Path | None = None
    ) -> StandIn:
        if spec.labels.get("trouble") == "bad_data":
            raise BadData("row 7 has no target")
        return StandIn(spec)

    return begin


def undisturbed(folder: Path, *, steps: int, seed: int) -> list[tuple[int, JsonObject]]:
    """The trajectory of a stand-in's job that nothing happens to."""
    from workers.learn.method import run

    data = {"dataset": "builtin:wine", "target": "target"}
    study = _begin(folder)(JobSpec.model_validate({"data": data, "seed": seed}), None, None, device="cpu")
    state = study.method.init(None, seed=seed)
    return [(point.step, study.point(point)) for _, point in run(study.method, None, state, max_steps=steps)]


def main() -> None:
    if sys.argv[1] == "worker":
        from workers.__main__ import run_worker

        settings = Settings()
        logs.configure(settings.log_level)
        run_worker(settings, "cpu", command=(sys.executable, __file__))
    else:
        from workers.spare import main as serve

        serve("standin")


if __name__ == "__main__":
    main()
