"""Noises from a specification."""

from collections.abc import Sequence
from typing import Final, assert_never

from service.spec import regularizers as specs
from service.spec.hyperparameters import Amount, Count, Granularity
from service.spec.job import JobSpec
from workers.learn.errors import LearnError
from workers.learn.models.image_shape import ImageShape
from workers.learn.noises.augmentation import Brightness, Contrast, Translation
from workers.learn.noises.base import AbstractInputNoise, Strength
from workers.learn.noises.cutout import Cutout
from workers.learn.noises.dropout import Dropout, InputDropout
from workers.learn.noises.input_noise import InputNoise
from workers.learn.noises.label_smoothing import LabelSmoothing
from workers.learn.noises.noises import Noises
from workers.learn.transforms import Interval, Whole

_EDGE: Final = 1e-3
"""Of an interval, what is left between its ends and the box: on its ends the derivative is lost."""


def build_noises(spec: JobSpec, *, layers: int, image: ImageShape | None) -> Noises:
    """Return what training does to rows and hidden layers, in the order of the specification.

    Args:
        spec: the job.
        layers: linear maps of the network.
        image: what a row of features is, if it is an image.
    """
    inputs: list[AbstractInputNoise] = []
    dropout: Dropout | None = None
    smoothing: LabelSmoothing | None = None
    for noise in spec.regularizers:
        match noise:
            case specs.Dropout():
                shape = (layers - 1,) if noise.strength.per is Granularity.LAYER else ()
                dropout = Dropout(_amount("dropout", noise.strength, shape))
            case specs.InputDropout():
                inputs.append(InputDropout(_amount("input_dropout", noise.strength)))
            case specs.LabelSmoothing():
                smoothing = LabelSmoothing(_amount("label_smoothing", noise.strength))
            case specs.InputNoise():
                inputs.append(InputNoise(_amount("input_noise", noise.strength)))
            case specs.Augmentation():
                inputs += _augmentation(noise, _required(image))
            case specs.Cutout():
                length, holes = _count("cutout.length", noise.length), _count("cutout.holes", noise.holes)
                inputs.append(Cutout(length, holes, _required(image)))
            case specs.L2() | specs.L2SP() | specs.L1() | specs.TV() | specs.FieldOfExperts():
                pass  # penalties
            case _:
                assert_never(noise)
    return Noises(tuple(inputs), dropout, smoothing)


def _augmentation(noise: specs.Augmentation, image: ImageShape) -> Sequence[AbstractInputNoise]:
    found: list[AbstractInputNoise] = []
    if noise.translation is not None:
        found.append(Translation(_amount("augmentation.translation", noise.translation), image))
    if noise.brightness is not None:
        found.append(Brightness(_amount("augmentation.brightness", noise.brightness), image))
    if noise.contrast is not None:
        found.append(Contrast(_amount("augmentation.contrast", noise.contrast), image))
    return found


def _amount(name: str, amount: Amount, shape: tuple[int, ...] = ()) -> Strength:
    domain = Interval(amount.low, amount.high)
    if amount.fixed is not None:
        # A constant may lie on or beyond the ends of what would have been learned.
        return Strength(name, amount.fixed, Interval(-1.0, 2.0 * max(amount.fixed, 1.0)), shape, fixed=True)
    edge = min(_EDGE * (amount.high - amount.low), amount.init - amount.low, amount.high - amount.init)
    return Strength(name, amount.init, domain, shape, low=amount.low + edge, high=amount.high - edge)


def _count(name: str, count: Count) -> Strength:
    if count.fixed is not None:
        return Strength(name, float(count.fixed), Whole(0, max(count.fixed, 1)), fixed=True)
    return Strength(name, float(count.init), Whole(count.low, count.high), low=float(count.low), high=float(count.high))


def _required(image: ImageShape | None) -> ImageShape:
    if image is None:
        raise LearnError("images can only be augmented where rows are images")
    return image
