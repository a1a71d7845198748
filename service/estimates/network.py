"""What a job on a network will take."""

from collections.abc import Sequence
from typing import Final

from service.estimates.base import DENSE_FLOPS, PROCESS_BYTES, Estimate, itemsize, points
from service.network_sizes import LayerSize
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec
from service.spec.linear import DirectSolver, NeumannSolver, NystromSolver
from service.spec.methods import STN, Implicit, solver_of
from service.spec.models import Network, Transfer
from service.spec.regularizers import L2, L2SP, NOISES, Dropout, RegularizerSpec
from service.task import Task

_VECTORS: Final = 24
"""Vectors of the weights' length that are alive at once: moments, gradients, checkpoints, the linear solve."""

_PRODUCT: Final = 4.0
"""Training steps that a Hessian product takes the time of, on a batch that is larger."""

_SEEDS: Final = 3
"""Trainings from scratch at each strength that is checked."""

_RESPONSE: Final = 2.5
"""Training steps that one of a self-tuning network takes the time of."""

_USUAL_EPOCHS: Final = 20
_USUAL_BATCH: Final = 128
"""Of models whose specification has none: linear ones."""


def estimate_network(spec: JobSpec, layers: Sequence[LayerSize], task: Task) -> Estimate:
    """Count what is to be learned and guess what that takes."""
    model = spec.model
    weights = sum(layer.size for layer in layers)
    strengths = sum(network_strengths(part, _penalised(spec, part, layers)) for part in spec.regularizers)
    rows = task.rows.train + task.rows.valid + task.rows.test
    size = itemsize(spec)
    solver = solver_of(spec.method)
    memory = PROCESS_BYTES + _VECTORS * weights * size + rows * task.width * (16 + size)
    memory += 8 * min(task.rows.valid, 10_000) * sum(layer.biases for layer in layers) * size
    if isinstance(solver, NystromSolver):
        memory += 2 * solver.rank * weights * size
    if isinstance(solver, DirectSolver):
        memory += 3 * size * weights**2
    epochs = model.epochs if isinstance(model, Network) else _USUAL_EPOCHS
    batch = min(model.batch_size if isinstance(model, Network) else _USUAL_BATCH, task.rows.train)
    batches = -(-task.rows.train // batch)
    training = float(epochs * batches)
    steps = points(spec, strengths)
    trainings = float(_SEEDS * (1 + 2 * min(strengths, 5))) if spec.verify else 0.0
    match spec.method:
        case Implicit():
            products = solver.terms if isinstance(solver, NeumannSolver) else 20
            between = (spec.method.inner_steps or 1) + _PRODUCT * products + task.rows.valid / batch
            burn_in = batches if spec.method.burn_in is None else spec.method.burn_in
            taken = trainings * training + steps * between + burn_in
        case STN():
            taken = trainings * training + _RESPONSE * steps * batches
        case _:
            taken = (trainings + steps) * training
    work = sum(layer.products for layer in layers)
    return Estimate(
        strengths=strengths,
        weights=weights,
        rows=task.rows,
        folds=None,
        features=task.width,
        outputs=task.outputs,
        memory_bytes=memory,
        seconds=round(1.0 + taken * (3e-4 + 6.0 * batch * work / DENSE_FLOPS), 1),
        trajectory_points=steps,
    )


def _penalised(spec: JobSpec, regularizer: RegularizerSpec, layers: Sequence[LayerSize]) -> Sequence[LayerSize]:
    """Return the layers that a penalty is for: of a network that starts from weights, backbone or head."""
    if not isinstance(spec.model, Transfer) or spec.model.weights is None:
        return layers
    backbone = len(layers) - spec.model.fresh_layers
    return layers[:backbone] if isinstance(regularizer, L2SP) else layers[backbone:]


def network_strengths(regularizer: RegularizerSpec, layers: Sequence[LayerSize]) -> int:
    """How many numbers of a regularizer are learned. Penalties are of matrices, and with `biases` of all parameters."""
    if isinstance(regularizer, Dropout) and regularizer.strength.per is Granularity.LAYER:
        return (len(layers) - 1) * regularizer.strength.is_learned
    if isinstance(regularizer, NOISES) or not isinstance(regularizer, L2 | L2SP):
        return sum(number.is_learned for number in regularizer.numbers)
    if not regularizer.strength.is_learned:
        return 0
    biases = regularizer.biases
    match regularizer.strength.per:
        case Granularity.LAYER:
            return len(layers)
        case Granularity.TENSOR:
            extra = sum(1 + 2 * (layer.normalization > 0) for layer in layers) if biases else 0
            return len(layers) + extra
        case Granularity.PARAMETER:
            return sum(layer.size if biases else layer.weights for layer in layers)
        case Granularity.MODEL | Granularity.FEATURE | Granularity.CLASS:
            return 1
