"""What a denoiser's specification means on its dataset. Read once, by one function, for everyone."""

import math
from dataclasses import dataclass

from service.dealing import Share
from service.records import ColumnRecord, DatasetRecord
from service.spec.data import DataSpec
from service.spec.models import Denoiser
from service.task import NUMERIC, Refusal, differ_in_size, parts_of, unknown


@dataclass(frozen=True)
class ImageTask:
    """A specification's images, every default filled in."""

    clean: ColumnRecord
    """An array of images: shape (height, width) or (height, width, 3)."""
    noisy: ColumnRecord | None
    """The same images with noise; None where noise is added."""
    noise: float
    """Standard deviation of the noise that is added; 0 where there are noisy images."""
    shape: tuple[int, ...]
    """Of one image, after cropping."""
    rows: Share
    """Images of each part."""

    @property
    def pixels(self) -> int:
        """Numbers in one image."""
        return math.prod(self.shape)


def read_image_task(data: DataSpec, dataset: DatasetRecord, model: Denoiser) -> ImageTask | list[Refusal]:
    """Read a denoiser's specification against its dataset: what it means, or all reasons why it cannot be run.

    Pure: it knows the dataset's record, not its images.
    """
    refusals: list[Refusal] = []
    columns = {column.name: column for column in dataset.columns}
    clean = columns.get(data.target)
    if clean is None:
        refusals.append(Refusal("/data/target", unknown([data.target], columns)))
    else:
        refusals += _image_refusals(clean, "/data/target")
    noisy: ColumnRecord | None = None
    if data.features is not None:
        noisy = columns.get(data.features[0])
        if noisy is None:
            refusals.append(Refusal("/data/features", unknown(data.features, columns)))
        else:
            refusals += _image_refusals(noisy, "/data/features/0")
    if refusals or clean is None:
        return refusals
    if noisy is not None and noisy.shape != clean.shape:
        detail = f"noisy images have shape {list(noisy.shape)}, clean ones {list(clean.shape)}: they must be the same"
        return [Refusal("/data/features/0", detail)]
    if model.crop is None and differ_in_size(dataset):
        detail = f"the images differ in size: say how much to take of their middle, at most {min(clean.shape[:2])}"
        return [Refusal("/model/crop", detail)]
    if model.crop is not None and model.crop > min(clean.shape[:2]):
        return [Refusal("/model/crop", f"the images are {clean.shape[0]} × {clean.shape[1]}: crop at most the lesser")]
    rows, _ = parts_of(data, dataset, columns, None, refusals, stratifiable=False)
    if refusals or rows is None:
        return refusals
    shape = clean.shape if model.crop is None else (model.crop, model.crop, *clean.shape[2:])
    noise = 0.0 if noisy is not None else 0.1 if model.noise is None else model.noise
    return ImageTask(clean, noisy, noise, shape, rows)


def _image_refusals(column: ColumnRecord, pointer: str) -> list[Refusal]:
    if column.type not in NUMERIC or not (len(column.shape) == 2 or (len(column.shape) == 3 and column.shape[2] == 3)):
        detail = (
            f"images are numbers of shape [height, width] or [height, width, 3], {column.name!r} holds "
            f"{column.type.value} of shape {list(column.shape)}: upload an array of images (npz) or zip-images"
        )
        return [Refusal(pointer, detail)]
    if min(column.shape[:2]) < 2:
        return [Refusal(pointer, f"images of {column.shape[0]} × {column.shape[1]} are too small: at least 2 × 2")]
    if column.missing:
        return [Refusal(pointer, f"{column.missing:,} images have values that are missing or not finite")]
    return []
