"""Which method can learn which regularizer of which model: data, not code.

The API refuses by this table, `/v1/methods` shows it, the documentation is made from it, and a test runs every
cell of it through a real worker.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from service.spec.hyperparameters import Granularity

_NOISES: Final = frozenset({"dropout", "input_dropout", "input_noise", "label_smoothing"})
_IMAGE_NOISES: Final = _NOISES | {"augmentation", "cutout"}
_TRANSFERRED: Final = frozenset({"l2", "l2_sp"})
_SEARCHED: Final[Mapping[str, frozenset[str]]] = {
    "linear": frozenset({"l1", "l2"}),
    "mlp": _NOISES | {"l2"},
    "cnn": _IMAGE_NOISES | {"l2"},
    "transfer": _TRANSFERRED,
    "denoiser": frozenset({"tv"}),
}

CAPABILITIES: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "elbo": {
        **{model: frozenset({"l2"}) for model in ("linear", "mlp", "cnn", "rff_gp")},
        "transfer": _TRANSFERRED,
    },
    "grid": _SEARCHED,
    "hoag": {"linear": frozenset({"l1", "l2"}), "denoiser": frozenset({"tv", "field_of_experts"})},
    "implicit": {
        "linear": frozenset({"l1", "l2"}),
        "mlp": frozenset({"l2"}),
        "cnn": frozenset({"l2"}),
        "transfer": _TRANSFERRED,
        "denoiser": frozenset({"tv", "field_of_experts"}),
    },
    "maid": {"linear": frozenset({"l2"}), "denoiser": frozenset({"tv", "field_of_experts"})},
    "random": _SEARCHED,
    "stn": {
        "linear": frozenset({"input_dropout", "input_noise", "l2", "label_smoothing"}),
        "mlp": _NOISES | {"l2"},
        "cnn": _IMAGE_NOISES | {"l2"},
    },
    "tpe": _SEARCHED,
}
"""method → model → regularizers that can be learned together."""

GRANULARITIES: Final[Mapping[str, frozenset[Granularity]]] = {
    "linear": frozenset({Granularity.MODEL, Granularity.FEATURE, Granularity.CLASS, Granularity.PARAMETER}),
    "mlp": frozenset({Granularity.MODEL, Granularity.LAYER, Granularity.TENSOR, Granularity.PARAMETER}),
    "cnn": frozenset({Granularity.MODEL, Granularity.LAYER, Granularity.TENSOR, Granularity.PARAMETER}),
    "transfer": frozenset({Granularity.MODEL, Granularity.LAYER, Granularity.TENSOR}),
    "rff_gp": frozenset({Granularity.MODEL}),
    "denoiser": frozenset({Granularity.MODEL}),
}
"""model → what its penalties can have a strength for."""

FOLDS: Final = frozenset({"linear"})
"""Models whose folds are solved as one batched problem."""


def refusal(method: str, model: str, regularizers: Iterable[str]) -> str | None:
    """Return why `method` cannot learn `regularizers` of `model`, naming the methods that can; None if it can."""
    wanted = frozenset(regularizers)
    if wanted <= CAPABILITIES.get(method, {}).get(model, frozenset()):
        return None
    able = sorted(name for name, models in CAPABILITIES.items() if wanted <= models.get(model, frozenset()))
    instead = f"take {' or '.join(able)}" if able else "no method can yet"
    return f"method {method!r} cannot learn {', '.join(sorted(wanted))} of model {model!r}: {instead}"
