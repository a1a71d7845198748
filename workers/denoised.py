"""What a denoiser leaves behind: its penalty, the images it made, and pictures of some of them."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.image_quality import quality
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.method import Answer
from workers.learn.problem import Part
from workers.learn.problems.denoising import DenoisingProblem, denoise
from workers.learn.problems.denoising_data import Pairs, on_device
from workers.learn.regularizers.field_of_experts import FieldOfExperts
from workers.learn.regularizers.image import AbstractImageRegularizer
from workers.precision import in_double
from workers.report import safetensors_file

IMAGES_FILE: Final = "denoised.npz"

_ACCURACY: Final = 1e-5
"""Proven bound on the root mean square of the final images' errors: far below what eight bits can tell."""

_MOST_RESPONSES: Final = 1 << 25
"""Numbers that one array of filter responses holds when images are denoised: 256 MiB."""

_PREVIEWS: Final = 4
_GAP: Final = 4
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The date of all members of an archive, so that equal images are equal files."""


@dataclass(frozen=True, eq=False)
class FinishedDenoiser:
    """The learned penalty at work."""

    quantities: dict[str, Tensor]
    """All that the penalty is made of, learned or fixed, float64 on the CPU."""
    metrics: dict[str, dict[str, float]]
    """Part → name → value."""
    rows: np.ndarray
    """Of the images that were kept for testing; where there are none, of those that were learned from."""
    noisy: np.ndarray
    """Those images, [n, c, h, w], float64."""
    denoised: np.ndarray
    clean: np.ndarray
    error: float
    """Proven bound on the root mean square error, over pixels, of the denoised images."""
    cost: Cost


def finish_denoiser(
    problem: DenoisingProblem, answer: Answer, rows: np.ndarray, test: Pairs | None
) -> FinishedDenoiser:
    """Denoise all images once more, in float64 and precisely, and measure them.

    Args:
        problem: the problem that the job posed.
        answer: what the method found.
        rows: of `test`, or of the problem's own images.
        test: images that were held out, with their noise; None if there are none.
    """
    problem, answer = in_double(problem, answer)
    inner = LBFGS()
    count = problem.noisy.shape[0]
    tol = _ACCURACY * problem.noisy.numel() ** 0.5 / count
    solution = inner.solve(problem.oracle(), answer.raw, answer.weights, tol=tol)
    metrics = {part.value: problem.evaluate(solution.w, part) for part in (Part.TRAIN, Part.VALID)}
    metrics[Part.VALID.value] |= _before(problem.noisy, problem.truth)
    noisy, clean, denoised = problem.noisy, problem.truth, problem.images(solution.w)
    error, cost = count * solution.gradient_norm / problem.noisy.numel() ** 0.5, solution.cost
    if test is not None:
        noisy, clean = (
            on_device(images, dtype=torch.float64, device=problem.noisy.device) for images in (test.noisy, test.truth)
        )
        batch = max(1, _MOST_RESPONSES // (noisy[0].numel() * _maps(problem.regularizer)))
        found = denoise(problem, answer.raw, noisy, inner=inner, tol=_ACCURACY, batch=batch)
        denoised, error, cost = found.images, found.error, cost + found.cost
        loss = 0.5 * float((denoised - clean).square().sum()) / noisy.shape[0]
        metrics[Part.TEST.value] = {"loss": loss, **quality(denoised, clean), **_before(noisy, clean)}
    hyper = problem.space.constrain(answer.raw)
    values = {each.name: each.value(hyper, answer.raw) for each in problem.regularizer.quantities()}
    return FinishedDenoiser(
        quantities={name: value.detach().double().cpu().contiguous() for name, value in values.items()},
        metrics=metrics,
        rows=rows,
        noisy=noisy.cpu().numpy(),
        denoised=denoised.cpu().numpy(),
        clean=clean.cpu().numpy(),
        error=error,
        cost=cost,
    )


def penalty_file(regularizer: AbstractImageRegularizer, model: FinishedDenoiser) -> bytes:
    """`weights.safetensors`: all that is needed to denoise other images; the metadata have the formula."""
    field = isinstance(regularizer, FieldOfExperts)
    penalty = (
        "strength * sum_k weights[k] * sum_pixels sqrt(correlate(x, filters[k])^2 + smoothing[k]^2); "
        "x is continued by its mirror image beyond the border, (s - 1) // 2 pixels before and s // 2 after"
        if field
        else "strength * sum over differences d of vertical and horizontal neighbours of sqrt(d^2 + smoothing^2)"
    )
    named = ("strength", "weights", "smoothing", "filters") if field else ("strength", "smoothing")
    tensors = {
        name: model.quantities[quantity.name] for name, quantity in zip(named, regularizer.quantities(), strict=True)
    }
    metadata = {
        "format": "hyperdial/denoiser/1",
        "denoised": "argmin_x 1/2 |x - y|^2 + penalty(x), pixels between 0 and 1, channels each by itself",
        "penalty": penalty,
    }
    return safetensors_file(tensors, metadata)


def images_file(model: FinishedDenoiser) -> bytes:
    """`denoised.npz`: `denoised` and `noisy`, float32 [n, h, w] or [n, h, w, 3], and `rows` of the dataset, [n]."""
    arrays = {
        "denoised": _channels_last(model.denoised).astype(np.float32),
        "noisy": _channels_last(model.noisy).astype(np.float32),
        "rows": model.rows.astype(np.int64),
    }
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue())
    return sink.getvalue()


def preview_files(model: FinishedDenoiser) -> Mapping[str, bytes]:
    """`preview-ROW.png` of the first images: noisy, denoised and clean side by side."""
    files = {}
    for place, row in enumerate(model.rows[:_PREVIEWS].tolist()):
        panels = [_channels_last(images[place : place + 1])[0] for images in (model.noisy, model.denoised, model.clean)]
        gap = np.ones((panels[0].shape[0], _GAP, *panels[0].shape[2:]))
        beside = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
        sink = io.BytesIO()
        Image.fromarray(np.rint(beside.clip(0.0, 1.0) * 255.0).astype(np.uint8)).save(sink, "PNG")
        files[f"preview-{row}.png"] = sink.getvalue()
    return files


def _before(noisy: Tensor, clean: Tensor) -> dict[str, float]:
    return {f"noisy_{name}": value for name, value in quality(noisy, clean).items()}


def _maps(regularizer: AbstractImageRegularizer) -> int:
    return regularizer.filters.shape[0] if isinstance(regularizer, FieldOfExperts) else 2


def _channels_last(images: np.ndarray) -> np.ndarray:
    """Return [n, h, w] for one channel, [n, h, w, c] for several."""
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)
