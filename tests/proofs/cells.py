"""A small job for every cell of the table of capabilities: made from the table and from the unions of the contract."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, get_args

import numpy as np
from pydantic import JsonValue, ValidationError
from safetensors.numpy import save

from service.spec.capabilities import CAPABILITIES, FOLDS, GRANULARITIES
from service.spec.job import JobSpec
from service.spec.linear import EXACT_SOLVERS, LinearSolverSpec
from service.spec.methods import MethodSpec

Body = dict[str, JsonValue]

IMAGES: Final = "images"
"""Stands for the id of the dataset that `small_images` makes."""

WEIGHTS: Final = "weights"
"""Stands for the id of the dataset that `small_weights` makes."""

_WINE: Final[Body] = {"dataset": "builtin:wine"}

_DATA: Final[Mapping[str, Body]] = {
    "cnn": {"dataset": "builtin:digits"},
    "denoiser": {"dataset": IMAGES, "target": "clean"},
}
"""What models learn from that cannot learn from rows of numbers."""

_MODELS: Final[Mapping[str, Body]] = {
    "mlp": {"widths": [6], "activation": "tanh", "batch_size": 32, "epochs": 3},
    "rff_gp": {"features": 20},
    "transfer": {"batch_size": 32, "epochs": 3},
    # Without pooling, whose kinks would hide a hypergradient from central differences.
    "cnn": {
        "image": [8, 8],
        "channels": [1],
        "pool": 1,
        "widths": [3],
        "activation": "tanh",
        "batch_size": 128,
        "epochs": 1,
    },
}

_BACKBONE: Final[Body] = {"kind": "mlp", "widths": [6], "activation": "tanh"}
"""What `small_weights` are the weights of, for rows of wine."""

_BOX: Final[Body] = {"init": 0.02, "low": 1e-3, "high": 1.0}
_SMOOTHING: Final[Body] = {"init": 0.05, "low": 1e-2, "high": 0.5}

_REGULARIZERS: Final[Mapping[str, Body]] = {
    "l1": {"strength": {"init": 0.005, "low": 1e-3, "high": 0.02}},
    "l2": {"strength": _BOX},
    "l2_sp": {"strength": _BOX},
    "tv": {"strength": _BOX, "smoothing": _SMOOTHING},
    "field_of_experts": {"filters": 2, "size": 3, "strength": _BOX, "smoothing": _SMOOTHING},
}

_METHODS: Final[Mapping[str, Body]] = {
    "elbo": {"training_steps": 60},
    "grid": {"points": 2},
    "tpe": {"startup_trials": 1},
}
"""Settings that make jobs small. Kinds that are in none of these tables come with the defaults of the contract."""

_STEPS: Final = 3
"""Of each job: too few to come near an optimum, where a hypergradient is small and an error relative to it is not."""


@dataclass(frozen=True)
class Cell:
    """One thing that the service says it can do."""

    method: str
    model: str
    regularizer: str
    per: str = "model"
    split: str = "holdout"
    solver: str | None = None
    """None: what the contract takes by default."""
    precision: str = "float64"
    steps: int = _STEPS
    posterior: str | None = None
    """Of `elbo` on numbers, which has closed forms; None: on classes, as the contract has it."""

    def __str__(self) -> str:
        """Return the parts that are not the usual ones after the three that name the cell."""
        more = (self.per if self.per != "model" else "", self.split if self.split != "holdout" else "", self.solver)
        precision = self.precision if self.precision != "float64" else ""
        return "-".join(
            part for part in (self.method, self.model, self.regularizer, *more, precision, self.posterior) if part
        )

    def body(self, *, images: str = IMAGES, weights: str = WEIGHTS) -> Body:
        """Return the job as a client says it; `images` and `weights` are the ids of such datasets."""
        data = {**_DATA.get(self.model, _WINE), "split": {"kind": self.split}}
        if data["dataset"] == IMAGES:
            data["dataset"] = images
        model: Body = {"kind": self.model, **_MODELS.get(self.model, {})}
        if self.model == "denoiser":
            model["regularizer"] = self.regularizer
        regularizer: Body = {"kind": self.regularizer, **_REGULARIZERS.get(self.regularizer, {})}
        regularizers: list[JsonValue] = [regularizer]
        if self.regularizer == "l2_sp":
            model |= {"backbone": _BACKBONE, "weights": weights}
            # Of a head without any penalty there may be no minimiser.
            regularizers.append({"kind": "l2", "strength": {"fixed": 0.02}})
        if self.per != "model":
            regularizer["strength"] = {**_mapping(regularizer.get("strength")), "per": self.per}
        method: Body = {"kind": self.method, **_METHODS.get(self.method, {})}
        if self.solver is not None:
            method["solver"] = {"kind": self.solver, **({"rank": 5} if self.solver == "nystrom" else {})}
        if self.posterior is not None:
            data = {"dataset": "builtin:diabetes"}
            by_steps = self.posterior != "exact" and self.model != "linear"
            method = {"kind": self.method, "posterior": self.posterior, **({"training_steps": 60} if by_steps else {})}
        steps = max(self.steps, 2**3) if self.method == "grid" else self.steps
        return {
            "data": data,
            "model": model,
            "loss": "cross_entropy" if self.posterior is None and self.model != "denoiser" else "squared_error",
            "regularizers": regularizers,
            "method": method,
            "budget": {"outer_steps": steps},
            "resources": {"precision": self.precision},
        }


def cells() -> Iterator[Cell]:
    """Return every cell of model × regularizer × method that the table allows."""
    for method, models in CAPABILITIES.items():
        for model, regularizers in models.items():
            for regularizer in sorted(regularizers):
                yield Cell(method, model, regularizer)


def more_cells() -> Iterator[Cell]:
    """Return each cell with everything else that the contract allows of it: granularities, folds, solvers, float32."""
    for cell in cells():
        if _has_granularity(cell):
            for per in sorted(GRANULARITIES[cell.model]):
                # A grid over many strengths has too many points.
                finer = replace(cell, per=str(per))
                if per != "model" and (cell.method != "grid" or per in ("class", "layer")) and _is_accepted(finer):
                    yield finer
        if cell.model in FOLDS and _is_accepted(replace(cell, split="kfold")):
            yield replace(cell, split="kfold")
        # Those rows are no images, and given weights are for others.
        if cell.method == "elbo" and cell.model != "cnn" and cell.regularizer != "l2_sp":
            yield from filter(
                _is_accepted, (replace(cell, posterior=kind) for kind in ("isotropic", "diagonal", "exact"))
            )
        yield from (replace(cell, solver=kind) for kind in _solvers(cell))
        yield replace(cell, precision="float32")


def methods() -> tuple[str, ...]:
    """Return the kinds of all methods of the contract."""
    return tuple(str(method.model_fields["kind"].default) for method in get_args(get_args(MethodSpec)[0]))


def small_images() -> bytes:
    """Return an archive of twelve images of 10 × 10 pixels, with edges at all angles, as NPZ."""
    rows, columns = np.mgrid[0:10, 0:10] / 10.0
    angles = np.linspace(0.0, np.pi, 12, endpoint=False)
    along = np.cos(angles)[:, None, None] * (rows - 0.5) + np.sin(angles)[:, None, None] * (columns - 0.5)
    images = 0.2 + 0.5 * (along > 0.05) + 0.2 * rows
    file = io.BytesIO()
    np.savez(file, clean=images)
    return file.getvalue()


def small_weights() -> bytes:
    """Return weights that a network on the 13 features of wine may start from, as safetensors."""
    draws = np.random.default_rng(0)
    return save({"0.linear.weight": 0.3 * draws.normal(size=(6, 13)), "0.linear.bias": np.zeros(6)})


def _mapping(value: JsonValue) -> Body:
    return value if isinstance(value, dict) else {}


def _solvers(cell: Cell) -> Iterator[str]:
    """Return the kinds of solver that a client may choose for the method, without the default one."""
    spec = JobSpec.model_validate(cell.body())
    default = getattr(spec.method, "solver", None)
    if default is None:
        return
    exact = {solver.model_fields["kind"].default for solver in EXACT_SOLVERS}
    for solver in get_args(get_args(LinearSolverSpec)[0]):
        kind = str(solver.model_fields["kind"].default)
        # An approximate solver of a convex problem is a thing of `implicit`.
        if kind != default.kind and (cell.method == "implicit" or kind in exact):
            yield kind


def _is_accepted(cell: Cell) -> bool:
    try:
        JobSpec.model_validate(cell.body())
    except ValidationError:
        return False
    return True


def _has_granularity(cell: Cell) -> bool:
    regularizer = JobSpec.model_validate(cell.body()).regularizers[0]
    return hasattr(getattr(regularizer, "strength", None), "per")
