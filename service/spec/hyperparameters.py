"""What a client may say of a strength: where it starts, where it may go, how many there are."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from service.spec.base import Spec, wrong_at


class Granularity(StrEnum):
    """What a regularizer has a strength of its own for."""

    MODEL = "model"
    LAYER = "layer"
    TENSOR = "tensor"
    FEATURE = "feature"
    CLASS = "class"
    PARAMETER = "parameter"


SMALLEST_STRENGTH = 1e-12
LARGEST_STRENGTH = 1e12

Strength_ = Annotated[float, Field(ge=SMALLEST_STRENGTH, le=LARGEST_STRENGTH)]


class Positive(Spec):
    """A positive number that is learned in a box, or kept constant when `fixed` is given."""

    init: Strength_ = Field(default=1e-2, description="Where learning starts.", examples=[0.01])
    low: Strength_ = Field(default=1e-8, description="The smallest value that may be learned.")
    high: Strength_ = Field(default=1e4, description="The largest value that may be learned.")
    fixed: Annotated[float, Field(ge=0, le=LARGEST_STRENGTH)] | None = Field(
        default=None, description="Keep the number at this value instead of learning it."
    )

    @property
    def is_learned(self) -> bool:
        """True unless the number is kept constant."""
        return self.fixed is None

    @model_validator(mode="after")
    def _box_holds_the_start(self) -> Self:
        if self.fixed is not None:
            given = sorted({"init", "low", "high"} & self.model_fields_set)
            if any(getattr(self, name) != type(self).model_fields[name].default for name in given):
                raise wrong_at(given[0], f"a fixed strength is not learned: leave out {', '.join(given)}")
            return self
        if self.low > self.high:
            raise wrong_at("low", f"low ({self.low:g}) must not be above high ({self.high:g})")
        if not self.low <= self.init <= self.high:
            raise wrong_at("init", f"init ({self.init:g}) must lie between low ({self.low:g}) and high ({self.high:g})")
        return self


class Strength(Positive):
    """A strength that is learned in a box, or kept constant when `fixed` is given."""

    per: Granularity = Field(
        default=Granularity.MODEL,
        strict=False,
        description="One strength for the whole model, or one for each of these. Which a model takes: see the model.",
    )


class SparseStrength(Strength):
    """A strength of absolute values. Above some strength no weight is left; where that is depends on the data."""

    init: Strength_ = Field(
        default=1e4,
        description="Where learning starts, but at most at a tenth of the strength that leaves no weight.",
    )


class ImagePriorStrength(Positive):
    """The weight of an image prior beside ½‖x − y‖², for pixels between 0 and 1."""

    low: Strength_ = Field(default=1e-6, description="The smallest value that may be learned.")
    high: Strength_ = Field(default=1e2, description="The largest value that may be learned.")


class Smoothing(Positive):
    """ν of √(t² + ν²), which rounds off |t| at 0: below it differences are noise, above it edges."""

    low: Strength_ = Field(default=1e-4, description="The smallest value that may be learned.")
    high: Strength_ = Field(default=1.0, description="The largest value that may be learned.")
    fixed: Annotated[float, Field(gt=0, le=LARGEST_STRENGTH)] | None = Field(
        default=None, description="Keep the number at this value instead of learning it."
    )


class Amount(Spec):
    """A number strictly between two bounds that is learned, or kept constant when `fixed` is given."""

    init: Annotated[float, Field(ge=0, le=1e6)] = Field(default=0.1, description="Where learning starts.")
    low: Annotated[float, Field(ge=0, le=1e6)] = Field(default=0.0, description="Learned values stay above this.")
    high: Annotated[float, Field(gt=0, le=1e6)] = Field(default=1.0, description="Learned values stay below this.")
    fixed: Annotated[float, Field(ge=0, le=1e6)] | None = Field(
        default=None, description="Keep the number at this value instead of learning it."
    )

    @property
    def is_learned(self) -> bool:
        """True unless the number is kept constant."""
        return self.fixed is None

    @model_validator(mode="after")
    def _interval_holds_the_start(self) -> Self:
        if self.fixed is not None:
            given = sorted({"init", "low", "high"} & self.model_fields_set)
            if any(getattr(self, name) != type(self).model_fields[name].default for name in given):
                raise wrong_at(given[0], f"a fixed strength is not learned: leave out {', '.join(given)}")
            return self
        if not self.low < self.init < self.high:
            raise wrong_at(
                "init",
                f"init ({self.init:g}) must lie strictly between low ({self.low:g}) and high ({self.high:g})",
            )
        return self


Unit = Annotated[float, Field(ge=0, lt=1)]


class Probability(Amount):
    """A probability that is learned between bounds, or kept constant."""

    init: Unit = Field(default=0.1, description="Where learning starts.")
    high: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.9, description="Learned values stay below this.")
    fixed: Unit | None = Field(default=None, description="Keep the probability at this value.")


class DropoutProbability(Probability):
    """A probability that is learned between bounds, or kept constant."""

    per: Granularity = Field(
        default=Granularity.MODEL,
        strict=False,
        description="One probability for the whole `model`, or one for each hidden `layer`.",
    )

    @model_validator(mode="after")
    def _per_model_or_layer(self) -> Self:
        if self.per not in (Granularity.MODEL, Granularity.LAYER):
            raise wrong_at("per", "dropout is learned per model or per layer")
        return self


class Smear(Amount):
    """A probability mass that is taken from the true class, learned between bounds, or kept constant."""

    init: Unit = Field(default=0.05, description="Where learning starts.")
    high: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="Learned values stay below this.")
    fixed: Unit | None = Field(default=None, description="Keep it at this value.")


class Spread(Amount):
    """A standard deviation in units of the standardised features, learned between bounds, or kept constant."""

    high: Annotated[float, Field(gt=0, le=1e6)] = Field(default=2.0, description="Learned values stay below this.")


class Shift(Amount):
    """A fraction of an image's side, learned between bounds, or kept constant."""

    init: Unit = Field(default=0.05, description="Where learning starts.")
    high: Annotated[float, Field(gt=0, le=0.5)] = Field(default=0.5, description="Learned values stay below this.")
    fixed: Annotated[float, Field(ge=0, le=0.5)] | None = Field(default=None, description="Keep it at this value.")


class Count(Spec):
    """A whole number that is learned from `low` to `high`, both included, or kept constant when `fixed` is given."""

    init: Annotated[int, Field(ge=0, le=10_000)] = Field(default=1, description="Where learning starts.")
    low: Annotated[int, Field(ge=0, le=10_000)] = Field(default=0, description="The smallest that may be learned.")
    high: Annotated[int, Field(ge=1, le=10_000)] = Field(default=4, description="The largest that may be learned.")
    fixed: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="Keep the number at this value instead of learning it."
    )

    @property
    def is_learned(self) -> bool:
        """True unless the number is kept constant."""
        return self.fixed is None

    @model_validator(mode="after")
    def _range_holds_the_start(self) -> Self:
        if self.fixed is None and not self.low <= self.init <= self.high:
            raise wrong_at("init", f"init ({self.init}) must lie between low ({self.low}) and high ({self.high})")
        return self


class Length(Count):
    """A number of pixels that is learned from `low` to `high`, both included, or kept constant."""

    init: Annotated[int, Field(ge=0, le=10_000)] = Field(default=4, description="Where learning starts.")
    high: Annotated[int, Field(ge=1, le=10_000)] = Field(default=16, description="The largest that may be learned.")
