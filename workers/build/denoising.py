"""Denoising problems from a specification and its images."""

from typing import assert_never

import numpy as np

from service.spec import regularizers as specs
from service.spec.hyperparameters import Positive
from service.spec.job import JobSpec
from workers.build.names import strength_names
from workers.build.precision import build_dtype
from workers.data.load_images import LoadedImages
from workers.learn.errors import LearnError
from workers.learn.problems.denoising import DenoisingProblem
from workers.learn.problems.denoising_data import Pairs, as_images, denoising_problem, noisy
from workers.learn.regularizers.field_of_experts import FieldOfExperts
from workers.learn.regularizers.filters import cosine_filters
from workers.learn.regularizers.image import AbstractImageRegularizer, Quantity
from workers.learn.regularizers.tv import TV
from workers.learn.transforms import Identity

_WEIGHT = 1.0
_WEIGHT_BOX = 1e-6, 1e3
"""Of each filter, beside the strength that all share."""


def build_denoiser(spec: JobSpec, data: LoadedImages, *, device: str) -> DenoisingProblem:
    """Return the problem of a job: all images that are not held out for testing, with noise."""
    pairs = image_pairs(spec, data, data.learned_on)
    return denoising_problem(pairs, build_image_regularizer(spec), dtype=build_dtype(spec), device=device)


def image_pairs(spec: JobSpec, data: LoadedImages, rows: np.ndarray) -> Pairs:
    """Return the images of some rows with their noise: their own, or what the seed and the row's number draw."""
    clean = as_images(data.clean[rows])
    if data.noisy is not None:
        return Pairs(as_images(data.noisy[rows]), clean)
    return Pairs(noisy(clean, data.task.noise, spec.seed, indices=rows.tolist()), clean)


def build_image_regularizer(spec: JobSpec) -> AbstractImageRegularizer:
    """Return the penalty of a denoiser."""
    (name,), (regularizer,) = strength_names(spec), spec.regularizers
    match regularizer:
        case specs.TV():
            return TV(_quantity(name, regularizer.strength), _quantity(f"{name}.smoothing", regularizer.smoothing))
        case specs.FieldOfExperts():
            count, size = regularizer.filters, regularizer.size
            low, high = _WEIGHT_BOX
            return FieldOfExperts(
                _quantity(name, regularizer.strength),
                Quantity(f"{name}.weights", _WEIGHT, (count,), low=low, high=high),
                _quantity(f"{name}.smoothing", regularizer.smoothing, (count,)),
                Quantity(
                    f"{name}.filters", cosine_filters(count, size, seed=spec.seed), (count, size, size), Identity()
                ),
            )
        case specs.L2() | specs.L2SP() | specs.L1():
            raise LearnError("no penalty on weights is one on images")
        case (
            specs.Dropout()
            | specs.InputDropout()
            | specs.LabelSmoothing()
            | specs.InputNoise()
            | specs.Augmentation()
            | specs.Cutout()
        ):
            raise LearnError("a denoiser has no training rows that noise could act on")
        case _:
            assert_never(regularizer)


def _quantity(name: str, number: Positive, shape: tuple[int, ...] = ()) -> Quantity:
    if number.fixed is not None:
        return Quantity(name, number.fixed, shape, fixed=True)
    return Quantity(name, number.init, shape, low=number.low, high=number.high)
