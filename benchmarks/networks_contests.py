"""What is learned, and by whom: problems and methods as a client of the service would ask for them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.networks_cases import Case
from service.dealing import Share
from service.records import ColumnRecord, ColumnType
from service.spec.job import JobSpec
from service.spec.models import CNN, MLP
from service.task import Task
from workers.build.networks import build_network, build_network_method, build_trainer
from workers.data.load import LoadedData
from workers.data.splits import Parts
from workers.learn.method import AbstractMethod, State
from workers.learn.problems.network import NetworkProblem
from workers.learn.training.trainer import NetworkTrainer

Settings = dict[str, Any]
"""A part of a specification, as JSON has it. What is not said is the service's default."""

PENALTIES: list[Settings] = [{"kind": "l2", "strength": {"per": "layer"}}]
NOISES: list[Settings] = [
    {"kind": "dropout", "strength": {"per": "layer"}},
    {"kind": "input_dropout"},
    {"kind": "label_smoothing"},
    {"kind": "input_noise"},
]
IMAGE_NOISES: list[Settings] = [{"kind": "augmentation"}, {"kind": "cutout"}]


@dataclass(frozen=True)
class Contender:
    """A method."""

    name: str
    method: Settings
    is_ours: bool = False
    fixes_noises: bool = False
    """Learns penalties only, with all noises as strong as at the start."""
    outer_steps: int = 1_000_000
    """What the client asks for; more than there is time for, unless it is said."""


@dataclass(frozen=True)
class Contest:
    """What is to be learned, and who tries."""

    title: str
    model: Settings
    regularizers: list[Settings]
    seconds: float
    """Processor time that each contender has."""
    train: int
    """Rows."""
    valid: int
    test: int
    strengths: str
    """What is learned, in words."""
    retrains: bool
    """Whether answers are trained again from scratch."""
    contenders: tuple[Contender, ...]

    def problem(self, case: Case) -> NetworkProblem:
        """Return the problem that all contenders have."""
        spec = self._spec(self.regularizers, {"kind": "random"})
        return build_network(spec, _network(spec), _loaded(case), None, device="cpu")

    def trainer(self, problem: NetworkProblem) -> NetworkTrainer:
        """Return what every trial is, and the one training that is made without any search."""
        return build_trainer(_network(self._spec(self.regularizers, {"kind": "random"})), problem)

    def seen(self, contender: Contender, problem: NetworkProblem) -> NetworkProblem:
        """Return the problem as a contender takes it."""
        if not contender.fixes_noises:
            return problem
        start = problem.space.initial(torch.float64, torch.device("cpu"))
        return replace(problem, noises=problem.noises.fixed_at(problem.space.constrain(start)))

    def method(self, contender: Contender, problem: NetworkProblem) -> AbstractMethod[NetworkProblem, State]:
        """Return a contender's method for its problem."""
        learned = PENALTIES if contender.fixes_noises else self.regularizers
        spec = self._spec(learned, contender.method, outer_steps=contender.outer_steps)
        return build_network_method(spec, _network(spec), problem)  # type: ignore[return-value]

    def _spec(self, regularizers: list[Settings], method: Settings, *, outer_steps: int = 1) -> JobSpec:
        return JobSpec.model_validate(
            {
                "data": {"dataset": "fashion-mnist"},
                "model": self.model,
                "regularizers": regularizers,
                "method": method,
                "budget": {"outer_steps": outer_steps},
            }
        )


SLOWER: Settings = {
    "solver": {"kind": "neumann", "terms": 10, "damping": 1e-3},
    "step": {"kind": "adam", "learning_rate": 0.05},
}
"""Half the default's rate, and twice its terms."""
_SEARCHES = (Contender("random", {"kind": "random"}), Contender("tpe", {"kind": "tpe"}))
MLP_SPEC: Settings = {"kind": "mlp", "widths": [128, 128]}
CNN_SPEC: Settings = {"kind": "cnn", "image": [28, 28], "channels": [8, 16], "widths": [32]}
PASSES = {"mlp": 54, "cnn": 28}
"""Over the training rows, of self-tuning networks: as many as take nearly the time that everyone has."""


def _self_tuning(passes: int) -> tuple[Contender, ...]:
    return (
        *(
            Contender(f"stn, {variant}", {"kind": "stn", "variant": variant}, is_ours=True, outer_steps=passes)
            for variant in ("centered", "classic")
        ),
        Contender("implicit", {"kind": "implicit"}, is_ours=True, fixes_noises=True),
        *_SEARCHES,
    )


CONTESTS: dict[str, Contest] = {
    "layers": Contest(
        "An MLP: a strength per layer",
        MLP_SPEC,
        PENALTIES,
        40.0,
        10_000,
        5_000,
        10_000,
        "3 strengths",
        True,
        (
            Contender("implicit", {"kind": "implicit"}, is_ours=True),
            Contender("implicit, rate 0.05, 10 terms", {"kind": "implicit", **SLOWER}, is_ours=True),
            *_SEARCHES,
        ),
    ),
    "mlp": Contest(
        "An MLP: all that is done to train it",
        MLP_SPEC,
        [*PENALTIES, *NOISES],
        30.0,
        10_000,
        5_000,
        10_000,
        "8 strengths: l2 and dropout per layer, input dropout, label smoothing, input noise",
        False,
        _self_tuning(PASSES["mlp"]),
    ),
    "cnn": Contest(
        "A CNN: all that is done to train it, and to its images",
        CNN_SPEC,
        [*PENALTIES, *NOISES, *IMAGE_NOISES],
        30.0,
        4_000,
        2_000,
        4_000,
        "15 strengths: those, and translation, brightness, contrast, length and holes of cutouts",
        False,
        _self_tuning(PASSES["cnn"]),
    ),
}


def _network(spec: JobSpec) -> MLP | CNN:
    assert isinstance(spec.model, MLP | CNN)
    return spec.model


def _loaded(case: Case) -> LoadedData:
    """Return a case as a worker has it when it has read a dataset."""
    sizes = [len(part.y) for part in (case.train, case.valid, case.test)]
    ends = np.cumsum(sizes)
    train, valid, test = (np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))
    pixels = ColumnRecord("image", ColumnType.NUMBER, (28, 28), 0, None)
    label = ColumnRecord("label", ColumnType.INTEGER, (), 0, None)
    labels = tuple(str(number) for number in range(10))
    return LoadedData(
        Task((pixels,), label, labels, is_stratified=False, rows=Share(*sizes), folds=None),
        np.concatenate([case.train.X, case.valid.X, case.test.X]),
        np.concatenate([case.train.y, case.valid.y, case.test.y]),
        Parts(train, valid, test, None),
        None,
    )
