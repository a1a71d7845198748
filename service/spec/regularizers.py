"""Regularizers whose strengths can be learned."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.spec.base import Spec, wrong_at
from service.spec.hyperparameters import (
    Amount,
    Count,
    DropoutProbability,
    ImagePriorStrength,
    Length,
    Positive,
    Probability,
    Shift,
    Smear,
    Smoothing,
    SparseStrength,
    Spread,
    Strength,
)


class L2(Spec):
    """Weight decay: adds ½ Σ_j λ_g(j) w_j² to the mean training loss, where g(j) is the group of weight j.

    With C of scikit-learn's LogisticRegression, λ = 1 / (C n) for n training rows.
    Source: Hoerl & Kennard (1970), "Ridge regression".
    """

    kind: Literal["l2"] = "l2"
    strength: Strength = Strength()
    biases: bool = Field(default=False, description="Penalise the intercepts too.")

    @property
    def numbers(self) -> tuple[Positive, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class L2SP(Spec):
    """Weight decay towards the weights that a backbone starts from: adds ½ Σ_j λ_g(j) (w_j − w⁰_j)² to the mean loss.

    The sum is over the backbone alone; the head, which starts afresh, has an `l2`. Only for `transfer`.
    Source: Li, Grandvalet & Davoine (2018), "Explicit inductive bias for transfer learning with convolutional
    networks", equation (2).
    """

    kind: Literal["l2_sp"] = "l2_sp"
    strength: Strength = Strength()
    biases: bool = Field(default=False, description="Draw biases and normalizations too.")

    @property
    def numbers(self) -> tuple[Positive, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class L1(Spec):
    """Sparsity: adds Σ_j λ_g(j) |w_j| to the mean training loss, which makes weights exactly zero.

    Intercepts are not in it. With `squared_error` this is the lasso and λ the `alpha` of scikit-learn's Lasso; beside
    an `l2` it is the elastic net. Strengths above which no weight is left are cut off from the box.
    Source: Tibshirani (1996), "Regression shrinkage and selection via the lasso".
    """

    kind: Literal["l1"] = "l1"
    strength: SparseStrength = SparseStrength()

    @property
    def numbers(self) -> tuple[Positive, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class TV(Spec):
    """Total variation: adds λ Σ_pixels √(∂_h x² + ν²) + √(∂_v x² + ν²) to ½‖x − y‖² of each image.

    Learned are λ, `tv`, and ν, `tv.smoothing`. Sums over pixels, so that λ does not depend on an image's size.
    Source: Rudin, Osher & Fatemi (1992); smoothed as in Salehi et al. (2023).
    """

    kind: Literal["tv"] = "tv"
    strength: ImagePriorStrength = ImagePriorStrength()
    smoothing: Smoothing = Smoothing()

    @property
    def numbers(self) -> tuple[Positive, ...]:
        """All that can be learned or fixed."""
        return (self.strength, self.smoothing)


class FieldOfExperts(Spec):
    """Learned filters: adds λ Σ_k w_k Σ_pixels √((f_k ∗ x)² + ν_k²) to ½‖x − y‖² of each image.

    Learned are λ, `field_of_experts`; the weights w, `.weights`; the smoothings ν, `.smoothing`; and the filters f
    themselves, `.filters`, which start near a cosine basis without its constant. Source: Roth & Black (2009); convex
    potentials and parametrisation as in Salehi et al. (2023).
    """

    kind: Literal["field_of_experts"] = "field_of_experts"
    filters: Annotated[int, Field(ge=1, le=256)] = Field(default=24, description="k, the number of filters.")
    size: Annotated[int, Field(ge=2, le=15)] = Field(default=5, description="Pixels of a filter's side.")
    strength: ImagePriorStrength = ImagePriorStrength()
    smoothing: Smoothing = Smoothing()

    @property
    def numbers(self) -> tuple[Positive, ...]:
        """All that can be learned or fixed, beside the weights and the filters, which always are learned."""
        return (self.strength, self.smoothing)

    @model_validator(mode="after")
    def _has_what_it_learns(self) -> Self:
        if not self.strength.is_learned or not self.smoothing.is_learned:
            field = "smoothing" if self.strength.is_learned else "strength"
            raise wrong_at(f"{field}/fixed", "a field of experts is learned as a whole: leave out fixed")
        return self


class Dropout(Spec):
    """Dropout before every linear map but the first: of units, and of whole channels of images.

    Source: Srivastava et al. (2014), "Dropout: a simple way to prevent neural networks from overfitting".
    """

    kind: Literal["dropout"] = "dropout"
    strength: DropoutProbability = DropoutProbability()

    @property
    def numbers(self) -> tuple[Amount, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class InputDropout(Spec):
    """Dropout of features: each is set to zero with this probability, and the others grow in proportion.

    Source: Srivastava et al. (2014), section 4, for dropout of visible units.
    """

    kind: Literal["input_dropout"] = "input_dropout"
    strength: Probability = Probability()

    @property
    def numbers(self) -> tuple[Amount, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class LabelSmoothing(Spec):
    """Targets that give this much of the true class's probability to all classes alike.

    Source: Szegedy et al. (2016), "Rethinking the Inception architecture".
    """

    kind: Literal["label_smoothing"] = "label_smoothing"
    strength: Smear = Smear()

    @property
    def numbers(self) -> tuple[Amount, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class InputNoise(Spec):
    """Gaussian noise on the features, of this standard deviation. Source: Bishop (1995)."""

    kind: Literal["input_noise"] = "input_noise"
    strength: Spread = Spread()

    @property
    def numbers(self) -> tuple[Amount, ...]:
        """All that can be learned or fixed."""
        return (self.strength,)


class Augmentation(Spec):
    """Random changes of training images, of learned size: null leaves one out.

    `translation`: up to this fraction of each side; `brightness`: one number up to b added to all pixels, in
    the units of the features; `contrast`: a factor between 1 − c and 1 + c on differences from the image's mean.
    Source: Krizhevsky, Sutskever & Hinton (2012), section 4.1, for moved images and changed intensities.
    """

    kind: Literal["augmentation"] = "augmentation"
    translation: Shift | None = Shift()
    brightness: Amount | None = Amount()
    contrast: Amount | None = Amount()

    @property
    def numbers(self) -> tuple[Amount, ...]:
        """All that can be learned or fixed."""
        return tuple(number for number in (self.translation, self.brightness, self.contrast) if number is not None)

    @model_validator(mode="after")
    def _something_is_augmented(self) -> Self:
        if not self.numbers:
            raise wrong_at("translation", "nothing is augmented: take one of translation, brightness and contrast")
        return self


class Cutout(Spec):
    """Squares of training images set to zero: how many, and how long their sides are. Both are whole numbers.

    Source: DeVries & Taylor (2017), "Improved regularization of convolutional neural networks with cutout".
    """

    kind: Literal["cutout"] = "cutout"
    length: Length = Length()
    holes: Count = Count()

    @property
    def numbers(self) -> tuple[Count, ...]:
        """All that can be learned or fixed."""
        return (self.length, self.holes)


NoiseSpec = Dropout | InputDropout | LabelSmoothing | InputNoise | Augmentation | Cutout

NOISES = (Dropout, InputDropout, LabelSmoothing, InputNoise, Augmentation, Cutout)
"""Regularizers that act by chance on training rows; the others are penalties."""

RegularizerSpec = Annotated[
    L2 | L2SP | L1 | TV | FieldOfExperts | Dropout | InputDropout | LabelSmoothing | InputNoise | Augmentation | Cutout,
    Field(discriminator="kind"),
]
