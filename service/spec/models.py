"""Models that can be trained, and losses that they can be trained with."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.spec.base import SafeText, Spec, wrong_at
from service.spec.hyperparameters import Granularity
from service.spec.training import AdamOptimizer, OptimizerSpec, TrainingSchedule


class Loss(StrEnum):
    """A loss, always the mean over rows.

    `cross_entropy`: −log of the predicted probability of the true class; softmax for three or more classes, logistic
    for two. `squared_error`: half the squared difference, ½(ŷ − y)².
    """

    CROSS_ENTROPY = "cross_entropy"
    SQUARED_ERROR = "squared_error"


class LinearModel(Spec):
    """A linear model: logits or prediction = X w + b, on dense or sparse features.

    With `cross_entropy` this is logistic (two classes) or softmax regression, with `squared_error` linear
    regression. Convex, hence every answer can be checked to any accuracy. Strengths per `model`, `feature`, `class`
    or `parameter`.
    """

    kind: Literal["linear"] = "linear"
    intercept: bool = Field(default=True, description="Learn b; it is never penalised unless a penalty says so.")


class Activation(StrEnum):
    """The non-linearity between layers."""

    RELU = "relu"
    TANH = "tanh"
    GELU = "gelu"
    SILU = "silu"


class Normalization(StrEnum):
    """What stands between a layer and its activation."""

    NONE = "none"
    BATCH = "batch"
    LAYER = "layer"


Width = Annotated[int, Field(ge=1, le=65_536)]


class Network(Spec):
    """A network, trained by mini-batches; dense features only."""

    optimizer: OptimizerSpec = AdamOptimizer()
    schedule: TrainingSchedule = Field(default=TrainingSchedule.CONSTANT, strict=False)
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=128, description="Rows of a training step; at most all training rows."
    )
    epochs: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=20,
        description="Passes over the training rows of one training from scratch: a trial of `grid`, `random` and "
        "`tpe`, and each training that checks an answer.",
    )


class MLPLayers(Spec):
    """The layers of a multi-layer perceptron."""

    kind: Literal["mlp"] = "mlp"
    widths: Annotated[list[Width], Field(min_length=1, max_length=32)] = Field(
        default=[128], description="Units of each hidden layer.", examples=[[256, 128]]
    )
    activation: Activation = Field(default=Activation.RELU, strict=False)
    normalization: Normalization = Field(default=Normalization.NONE, strict=False)


class MLP(MLPLayers, Network):
    """A multi-layer perceptron, trained by mini-batches; dense features only.

    Not convex: answers are checked by training again from scratch, with several seeds. Strengths per `model`, `layer`,
    `tensor` or `parameter`.
    """


class ConvolutionNormalization(StrEnum):
    """What stands between a convolution and its activation."""

    NONE = "none"
    BATCH = "batch"


class CNNLayers(Spec):
    """The layers of a plain convolutional network: convolutions with pooling, then dense layers."""

    kind: Literal["cnn"] = "cnn"
    image: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=3)] | None = Field(
        default=None,
        description="Height, width and, if more than one, channels of the image that the features of a row are, row "
        "by row; null: the shape of the one array that is the features.",
        examples=[[8, 8]],
    )
    channels: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1, max_length=32)] = Field(
        default=[16, 32], description="Channels that each convolution gives."
    )
    kernel: Annotated[int, Field(ge=1, le=15)] = Field(
        default=3, description="Side of a convolution's square; odd, so that images keep their size."
    )
    pool: Annotated[int, Field(ge=1, le=8)] = Field(
        default=2, description="Side of the squares of which the largest value is kept after each convolution."
    )
    widths: Annotated[list[Width], Field(max_length=32)] = Field(
        default=[64], description="Units of each hidden dense layer after the convolutions."
    )
    activation: Activation = Field(default=Activation.RELU, strict=False)
    normalization: ConvolutionNormalization = Field(default=ConvolutionNormalization.NONE, strict=False)

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise wrong_at("kernel", "the kernel's side must be odd, so that images keep their size")
        return self


class CNN(CNNLayers, Network):
    """A plain convolutional network on images: convolutions with pooling, then dense layers.

    The features are one array of images, [height, width] or [height, width, channels] a row, or single columns whose
    `image` shape is given. Not convex: answers are checked by training again from scratch, with several seeds.
    Strengths per `model`, `layer`, `tensor` or `parameter`.
    """


class Transfer(Network):
    """A network that starts from uploaded weights, or a linear head on features that were computed elsewhere.

    `weights` is a dataset of format `safetensors` with the parameters of the `backbone`; its last layers start afresh
    and are the head. `l2_sp` draws the backbone to the given weights, `l2` the head to zero. Without weights and
    backbone the model is a linear map of arrays of features, trained by mini-batches. Strengths per `model`, `layer`
    or `tensor` of each part.
    """

    kind: Literal["transfer"] = "transfer"
    backbone: Annotated[MLPLayers | CNNLayers, Field(discriminator="kind")] | None = Field(
        default=None, description="The network whose weights are given, with a head for the new target; null: none."
    )
    weights: Annotated[SafeText, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="The id of an uploaded dataset of format `safetensors`, with tensors called as in a job's own "
        "weights.safetensors. Its `mean` and `scale`, if it has them, standardize the features.",
    )
    fresh_layers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="How many of the last layers start afresh: the head."
    )

    @model_validator(mode="after")
    def _head_and_backbone_fit(self) -> Self:
        if (self.backbone is None) != (self.weights is None):
            missing = "weights" if self.weights is None else "backbone"
            raise wrong_at(missing, "backbone and weights go together: give both, or neither for a linear head alone")
        hidden = self.hidden_layers
        if self.fresh_layers > max(hidden, 1):
            raise wrong_at("fresh_layers", f"the backbone has {hidden} layers before its last one: at most {hidden}")
        return self

    @property
    def hidden_layers(self) -> int:
        """Layers before the last one."""
        match self.backbone:
            case None:
                return 0
            case MLPLayers():
                return len(self.backbone.widths)
            case CNNLayers():
                return len(self.backbone.channels) + len(self.backbone.widths)

    @property
    def layers(self) -> "MLPLayers | CNNLayers | LinearModel":
        """Return what the whole network is, trained from scratch or not."""
        return LinearModel() if self.backbone is None else self.backbone


class RFFGP(Spec):
    """A Gaussian process by random Fourier features: f(x) = w · φ(x) + b, φ(x) = √(2/R) cos(F (x / ℓ) + p).

    Frequencies F and phases p are drawn once by the seed; weights ~ N(0, v) make it a process with the squared
    exponential kernel v exp(−½ ‖(x − x')/ℓ‖²) as R grows. Method `elbo` learns v, the length scales ℓ and, with
    `squared_error`, the noise. Dense features only. Source: Rahimi & Recht (2007), NeurIPS.
    """

    kind: Literal["rff_gp"] = "rff_gp"
    features: Annotated[int, Field(ge=1, le=65_536)] = Field(default=1024, description="R, the number of features.")
    lengthscales: Granularity = Field(
        default=Granularity.MODEL,
        strict=False,
        description="One length scale for the whole `model`, or one for each `feature`, which finds out how much each "
        "matters.",
    )
    initial_lengthscale: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="Where length scales start; null: the root of the number of features."
    )
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1024, description="Rows of a training step; at most all rows. The exact posterior takes all at once."
    )

    @model_validator(mode="after")
    def _per_model_or_feature(self) -> Self:
        if self.lengthscales not in (Granularity.MODEL, Granularity.FEATURE):
            raise wrong_at("lengthscales", "length scales are learned per model or per feature")
        return self


class ImagePrior(StrEnum):
    """What a denoiser takes for likely in an image."""

    TV = "tv"
    FIELD_OF_EXPERTS = "field_of_experts"


class Denoiser(Spec):
    """A variational denoiser: the image x that minimises ½‖x − y‖² + R(x) for a noisy image y.

    Nothing is trained but the strengths of R, on images whose clean version is known: those of the training and
    validation parts together; the test part is held out. `data.target` names the clean images. With `data.features`
    null, Gaussian noise of the stated standard deviation is added to them; else it names the array of noisy images.
    Pixels of integer type are divided by 255. Convex, hence every answer can be checked to any accuracy.
    """

    kind: Literal["denoiser"] = "denoiser"
    regularizer: ImagePrior = Field(
        default=ImagePrior.TV, strict=False, description="The kind of the one entry of `regularizers`."
    )
    noise: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None,
        description="Standard deviation of the noise that is added, for pixels between 0 and 1. Null: 0.1, or none "
        "where noisy images are given.",
    )
    crop: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        default=None, description="Take this many pixels square from the middle of each image; null takes it whole."
    )


ModelSpec = Annotated[LinearModel | MLP | CNN | Transfer | RFFGP | Denoiser, Field(discriminator="kind")]

NETWORKS = (MLP, CNN, Transfer)
"""Models that are trained by mini-batches, for so many steps; the others are solved to a tolerance."""
