"""The jobs of the demo: three ways to learn strengths, on one data set."""

from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from service.cli.views import JobView, ResultView

SPLIT: Final[dict[str, JsonValue]] = {"kind": "holdout", "valid": 0.25, "test": 0.25}

_STEPS: Final = 1000
"""Of a training by `elbo`."""

_EPOCHS: Final = 20
_BATCHES: Final = 7
"""Of a training of the network: 899 rows in batches of 128."""


@dataclass(frozen=True)
class Demonstrated:
    """A job, and what one training of its model is."""

    family: str
    spec: dict[str, JsonValue]
    gradients: int | None
    """Of one training; None where every step of the job is a training to the end."""

    def trainings(self, job: JobView, result: ResultView) -> int:
        """What the answer cost, without the checks behind its verdict, in single trainings."""
        if self.gradients is None:
            return job.progress.step
        spent = (result.cost.gradients or 0) - (result.evidence.cost.gradients or 0)
        return max(round(spent / self.gradients), 1)


def softmax_regression(name: str, *, per: str) -> dict[str, JsonValue]:
    """A job on handwritten digits: softmax regression with a learned L2 penalty, by implicit differentiation."""
    return {
        "name": name,
        "data": {"dataset": "builtin:digits", "split": SPLIT},
        "model": {"kind": "linear"},
        "loss": "cross_entropy",
        "regularizers": [{"kind": "l2", "strength": {"init": 0.1, "low": 1e-4, "high": 10.0, "per": per}}],
        "method": {"kind": "implicit"},
        "budget": {"outer_steps": 100, "wall_seconds": 300.0, "tolerance": 1e-4},
    }


def evidence(name: str) -> dict[str, JsonValue]:
    """The same model and penalty, by the evidence: validation rows are trained on."""
    return {
        **softmax_regression(name, per="model"),
        "method": {"kind": "elbo", "training_steps": _STEPS},
        "budget": {"outer_steps": 50, "wall_seconds": 300.0},
    }


def self_tuned(name: str) -> dict[str, JsonValue]:
    """A network that learns six strengths while it is trained, once."""
    penalty: JsonValue = {"kind": "l2", "strength": {"init": 0.01, "low": 1e-6, "high": 1.0, "per": "layer"}}
    noises: list[JsonValue] = [
        {"kind": kind} for kind in ("dropout", "input_dropout", "label_smoothing", "input_noise")
    ]
    return {
        "name": name,
        "data": {"dataset": "builtin:digits", "split": SPLIT},
        "model": {"kind": "mlp", "widths": [64], "epochs": _EPOCHS},
        "regularizers": [penalty, *noises],
        "method": {"kind": "stn"},
        "budget": {"outer_steps": 100, "wall_seconds": 300.0},
    }


JOBS: Final = (
    Demonstrated("differentiated", softmax_regression("one strength for the whole model", per="model"), None),
    Demonstrated("differentiated", softmax_regression("one strength for each of ten classes", per="class"), None),
    Demonstrated("by evidence", evidence("one strength without validation rows"), _STEPS),
    Demonstrated("self-tuned", self_tuned("six strengths of a network"), _EPOCHS * _BATCHES),
)

SPECS: Final = tuple(job.spec for job in JOBS)
