"""How large the layers of a network are on given data: counted alike by the service and, in the end, by the workers."""

from dataclasses import dataclass
from itertools import pairwise

from service.spec.models import CNNLayers, ConvolutionNormalization, LinearModel, MLPLayers, Normalization
from service.task import Refusal, Task


@dataclass(frozen=True)
class LayerSize:
    """A linear map, its bias, and its normalization."""

    weights: int
    biases: int
    normalization: int
    products: int
    """Multiplications for one row."""
    shape: tuple[int, ...]
    """Of the map's weights: outputs and inputs, or of a convolution outputs, inputs, height and width."""

    @property
    def size(self) -> int:
        """All that is trained."""
        return self.weights + self.biases + self.normalization


def image_shape(model: CNNLayers, task: Task) -> tuple[int, int, int] | Refusal:
    """Return height, width and channels of the image that a row is, or why it is none."""
    if model.image is not None:
        height, width, channels = (*model.image, 1)[:3]
        if height * width * channels != task.width:
            return Refusal(
                "/model/image",
                f"an image of shape {model.image} has {height * width * channels:,} numbers, a row of "
                f"the features {task.width:,}",
            )
    else:
        shapes = [column.shape for column in task.features]
        if len(shapes) != 1 or len(shapes[0]) not in (2, 3):
            return Refusal(
                "/model/image",
                "the features are not one array of images [height, width] or [height, width, channels]: name such an "
                "array in data.features, or give the image's shape here",
            )
        height, width, channels = (*shapes[0], 1)[:3]
    side = min(height, width)
    for place in range(len(model.channels)):
        side //= model.pool
        if side < 1:
            return Refusal("/model/pool", f"after {place + 1} poolings nothing is left of {height} × {width} pixels")
    return height, width, channels


def layer_sizes(model: MLPLayers | CNNLayers | LinearModel, task: Task) -> list[LayerSize] | Refusal:
    """Return the layers from the features to the outputs, or why the network cannot be made."""
    layers: list[LayerSize] = []
    inputs, widths, normalized = task.width, [], False
    if isinstance(model, CNNLayers):
        shape = image_shape(model, task)
        if isinstance(shape, Refusal):
            return shape
        height, width, before = shape
        is_normalized = model.normalization is not ConvolutionNormalization.NONE
        for channels in model.channels:
            weights, square = before * channels * model.kernel**2, (model.kernel, model.kernel)
            extra = 2 * channels * is_normalized
            layers.append(LayerSize(weights, channels, extra, weights * height * width, (channels, before, *square)))
            height, width, before = height // model.pool, width // model.pool, channels
        inputs, widths = height * width * before, model.widths
    elif isinstance(model, MLPLayers):
        widths, normalized = model.widths, model.normalization is not Normalization.NONE
    sizes = [inputs, *widths, task.outputs]
    for place, (before, after) in enumerate(pairwise(sizes)):
        extra = 2 * after if normalized and place < len(widths) else 0
        layers.append(LayerSize(before * after, after, extra, before * after, (after, before)))
    return layers
