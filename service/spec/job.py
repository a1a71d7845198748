"""A whole tuning job, as a client says it."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.spec.base import SafeText, Spec, wrong_at
from service.spec.capabilities import FOLDS, GRANULARITIES, refusal
from service.spec.data import DataSpec, HoldoutSplit, KFoldSplit
from service.spec.hyperparameters import Granularity
from service.spec.methods import STN, ELBo, Implicit, MethodSpec, Posterior, QuasiNewtonStep
from service.spec.models import NETWORKS, RFFGP, Denoiser, ImagePrior, LinearModel, Loss, ModelSpec, Transfer
from service.spec.regularizers import L1, L2, L2SP, NOISES, TV, FieldOfExperts, LabelSmoothing, RegularizerSpec

LabelKey = Annotated[SafeText, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[SafeText, Field(max_length=256)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
JobName = Annotated[SafeText, Field(max_length=200)]
Priority = Annotated[int, Field(ge=-100, le=100)]


class Device(StrEnum):
    """Where a job may run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Of all numbers in a job; `auto` is float64 for convex models and float32 for networks."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Objective(Spec):
    """What the strengths are learned for: a loss on the validation rows."""

    on: Literal["valid"] = "valid"
    loss: Loss | None = Field(default=None, strict=False, description="Null: the loss of the job.")


class Budget(Spec):
    """When to stop."""

    outer_steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100, description="Steps 0, 1, … of the strengths, or trials of a search: at most this many."
    )
    wall_seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = Field(
        default=3600.0, description="Time that the job may run, over all its attempts; then it fails."
    )
    stall_seconds: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=600.0, description="A job without a new step for so long is stopped as stalled."
    )
    tolerance: Annotated[float, Field(ge=1e-12, lt=1)] = Field(
        default=1e-5,
        description="Stop when the projected hypergradient has fallen to this, relative to the loss; with one "
        "strength, when no more than this is left to gain. Networks and searches go on to the last of outer_steps.",
    )


class Resources(Spec):
    """What the job runs on."""

    device: Device = Field(default=Device.AUTO, strict=False)
    precision: Precision = Field(default=Precision.AUTO, strict=False)
    memory_bytes: Annotated[int, Field(ge=2**26, le=2**44)] | None = Field(
        default=None, description="Host memory that the job may use; null: what the worker allows."
    )


def _usual_loss(given: dict[str, object]) -> Loss:
    return Loss.SQUARED_ERROR if isinstance(given.get("model"), Denoiser) else Loss.CROSS_ENTROPY


def _usual_regularizers(given: dict[str, object]) -> list[RegularizerSpec]:
    model = given.get("model")
    if isinstance(model, Transfer) and model.weights is not None:
        return [L2SP(), L2()]
    if not isinstance(model, Denoiser):
        return [L2()]
    match model.regularizer:
        case ImagePrior.TV:
            return [TV()]
        case ImagePrior.FIELD_OF_EXPERTS:
            return [FieldOfExperts()]


_NETWORK_STEPS = 50
_NETWORK_METHOD: dict[str, object] = {
    "kind": "implicit",
    "solver": {"kind": "neumann", "terms": 5, "damping": 1e-3},
    "step": {"kind": "adam", "learning_rate": 0.1},
    "inner_steps": _NETWORK_STEPS,
}
"""What `implicit` is on a network unless the client says otherwise."""


class JobSpec(Spec):
    """A tuning job. Equal specifications run equal computations."""

    name: JobName = Field(default="", description="For people; need not be unique.")
    labels: Labels = Field(default_factory=dict, description="For finding the job again.")
    priority: Priority = Field(default=0, description="Higher runs earlier.")
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = Field(default=0, description="Of every random choice.")
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="How many workers the job may be lost by before it fails."
    )
    data: DataSpec
    model: ModelSpec = LinearModel()
    loss: Loss = Field(
        default_factory=_usual_loss,
        strict=False,
        description="Left out: squared_error for a denoiser, cross_entropy for all else.",
    )
    regularizers: Annotated[list[RegularizerSpec], Field(min_length=1, max_length=8)] = Field(
        default_factory=_usual_regularizers,
        description="Left out: the denoiser's own; `l2_sp` and `l2` for a network that starts from weights; one `l2` "
        "for all else.",
    )
    method: MethodSpec = Implicit()
    objective: Objective = Objective()
    budget: Budget = Budget()
    resources: Resources = Resources()
    verify: bool = Field(default=True, description="Check the answer and say so in the result's evidence.")

    @model_validator(mode="before")
    @classmethod
    def _method_that_suits_the_model(cls, given: object) -> object:
        if not isinstance(given, dict) or not isinstance(given.get("model"), dict):
            return given
        if given["model"].get("kind") == RFFGP.model_fields["kind"].default and "method" not in given:
            return {**given, "method": {"kind": ELBo.model_fields["kind"].default}}
        # A network is trained by mini-batches: exact solves and comparisons of values are not to be had.
        method = given.get("method", {"kind": "implicit"})
        # A list, since what a client sends for a kind need not be hashable.
        kinds = [network.model_fields["kind"].default for network in NETWORKS]
        if given["model"].get("kind") not in kinds or not isinstance(method, dict) or method.get("kind") != "implicit":
            return given
        return {**given, "method": {**_NETWORK_METHOD, **method}}

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.objective.loss not in (None, self.loss):
            raise wrong_at("objective/loss", f"objective.loss must be the job's loss, {self.loss.value!r}, or null")
        if not any(number.is_learned for regularizer in self.regularizers for number in regularizer.numbers):
            raise wrong_at("regularizers", "every strength is fixed: nothing is left to be learned")
        kinds = [regularizer.kind for regularizer in self.regularizers]
        if reason := refusal(self.method.kind, self.model.kind, kinds):
            raise wrong_at("method/kind", reason)
        self._granularities_fit()
        if isinstance(self.model, Transfer):
            self._transfer_fits(self.model)
        if isinstance(self.data.split, HoldoutSplit) and self.data.split.valid == 0 and self.holds_out:
            raise wrong_at("data/split/valid", "strengths are learned from validation rows: take more than 0")
        if isinstance(self.data.split, KFoldSplit) and isinstance(self.method, STN | ELBo):
            raise wrong_at("data/split/kind", f"{self.method.kind!r} learns from one training: take holdout or column")
        if isinstance(self.data.split, KFoldSplit) and self.model.kind not in FOLDS:
            raise wrong_at("data/split/kind", f"folds are for {' and '.join(sorted(FOLDS))}: take holdout or column")
        if isinstance(self.model, Denoiser):
            self._denoiser_fits(self.model)
        if isinstance(self.method, Implicit):
            self._implicit_fits(self.method)
        if isinstance(self.method, STN):
            self._stn_fits()
        if isinstance(self.method, ELBo):
            self._elbo_fits(self.method)
        self._noises_fit()
        return self

    def _granularities_fit(self) -> None:
        accepted = GRANULARITIES[self.model.kind]
        for place, regularizer in enumerate(self.regularizers):
            if isinstance(regularizer, L2 | L2SP | L1) and regularizer.strength.per not in accepted:
                names = ", ".join(sorted(granularity.value for granularity in accepted))
                raise wrong_at(
                    f"regularizers/{place}/strength/per",
                    f"{self.model.kind!r} has no strengths per {regularizer.strength.per.value}: take one of {names}",
                )

    def _transfer_fits(self, model: Transfer) -> None:
        for place, regularizer in enumerate(self.regularizers):
            if isinstance(regularizer, L2SP) and model.weights is None:
                raise wrong_at(f"regularizers/{place}/kind", "'l2_sp' is around given weights: give some, or take 'l2'")
            if any(regularizer.kind == other.kind for other in self.regularizers[:place]):
                part = "backbone" if isinstance(regularizer, L2SP) else "head"
                raise wrong_at(
                    f"regularizers/{place}/kind", f"the {part} has a penalty already: one is taken of each kind"
                )

    @property
    def weights_dataset(self) -> str | None:
        """The id of the dataset that the model starts from; None if it starts at random."""
        return self.model.weights if isinstance(self.model, Transfer) else None

    def _stn_fits(self) -> None:
        if isinstance(self.model, LinearModel) and not self.model.intercept:
            raise wrong_at("model/intercept", "'stn' takes linear models with an intercept")
        accepted = (Granularity.MODEL, Granularity.LAYER, Granularity.TENSOR)
        for place, regularizer in enumerate(self.regularizers):
            if isinstance(regularizer, L2) and regularizer.strength.per not in accepted:
                names = " or ".join(granularity.value for granularity in accepted)
                raise wrong_at(f"regularizers/{place}/strength/per", f"'stn' learns strengths per {names}")

    def _elbo_fits(self, method: ELBo) -> None:
        if len(self.regularizers) > 1 and not isinstance(self.model, Transfer):  # whose parts have one each
            raise wrong_at("regularizers/1", "'elbo' reads a penalty as the prior of the weights: take one")
        has_closed_form = self.loss is Loss.SQUARED_ERROR and isinstance(self.model, LinearModel | RFFGP)
        if method.posterior is Posterior.EXACT and not has_closed_form:
            raise wrong_at(
                "method/posterior",
                "the exact posterior has a closed form for models 'linear' and 'rff_gp' with loss 'squared_error': "
                "take isotropic or diagonal",
            )
        if not self.trains_by_steps:
            for field in ("learning_rates", "training_steps"):
                if getattr(method, field) is not None:
                    raise wrong_at(f"method/{field}", f"this objective climbs in closed form: leave out {field}")

    @property
    def holds_out(self) -> bool:
        """Whether validation rows are kept from training."""
        return not isinstance(self.method, ELBo)

    @property
    def trains_by_steps(self) -> bool:
        """Whether method `elbo` trains by stochastic gradients; else its objective has a closed form."""
        exact = isinstance(self.method, ELBo) and self.method.posterior is Posterior.EXACT
        return not exact and not (isinstance(self.model, LinearModel) and self.loss is Loss.SQUARED_ERROR)

    def _noises_fit(self) -> None:
        seen: set[str] = set()
        for place, regularizer in enumerate(self.regularizers):
            if isinstance(regularizer, NOISES):
                if regularizer.kind in seen:
                    raise wrong_at(f"regularizers/{place}/kind", f"there is a {regularizer.kind!r} already")
                seen.add(regularizer.kind)
            if isinstance(regularizer, LabelSmoothing) and self.loss is not Loss.CROSS_ENTROPY:
                raise wrong_at(f"regularizers/{place}/kind", "label_smoothing needs classes: loss 'cross_entropy'")

    def _denoiser_fits(self, model: Denoiser) -> None:
        if self.loss is not Loss.SQUARED_ERROR:
            raise wrong_at("loss", "a denoiser is measured by squared_error")
        if [regularizer.kind for regularizer in self.regularizers] != [model.regularizer.value]:
            raise wrong_at(
                "regularizers",
                f"a denoiser has one regularizer, the one that model.regularizer names: {model.regularizer.value!r}",
            )
        if self.data.features is not None and len(self.data.features) != 1:
            raise wrong_at("data/features", "name the one array of noisy images, or null to have noise added")
        if self.data.features is not None and model.noise is not None:
            raise wrong_at("model/noise", "noisy images are given: leave out noise, or data.features")

    def _implicit_fits(self, method: Implicit) -> None:
        if isinstance(self.model, NETWORKS):
            if isinstance(method.step, QuasiNewtonStep):
                raise wrong_at("method/step", "hypergradients of mini-batches are noisy: take step 'adam'")
        elif method.inner_steps is not None or method.burn_in is not None:
            field = "inner_steps" if method.inner_steps is not None else "burn_in"
            raise wrong_at(f"method/{field}", f"{self.model.kind!r} is trained to a tolerance: leave out {field}")
