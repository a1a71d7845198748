"""Which rows and columns a job learns from, and how they are split."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.spec.base import SafeText, Spec, wrong_at

ColumnName = Annotated[SafeText, Field(min_length=1, max_length=256)]


class HoldoutSplit(Spec):
    """Rows are dealt into training, validation and test parts by the job's seed."""

    kind: Literal["holdout"] = "holdout"
    valid: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25,
        description="Fraction of all rows that measures the strengths; 0 only with `elbo`, which needs none.",
    )
    test: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="Fraction of all rows that nothing is learned from."
    )
    stratify: bool | None = Field(
        default=None,
        description="Keep the classes' shares in every part; null: yes for classes, no for numbers.",
    )
    shuffle: bool = Field(default=True, description="False takes the parts in the order of the rows.")

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.valid + self.test >= 1:
            raise wrong_at("test", f"valid + test is {self.valid + self.test:g}: it must stay below 1")
        if self.stratify and not self.shuffle:
            raise wrong_at(
                "stratify", "stratify needs shuffle: rows in their own order cannot keep the classes' shares"
            )
        return self


class KFoldSplit(Spec):
    """The outer objective is the mean validation loss over folds, solved as one batched problem."""

    kind: Literal["kfold"] = "kfold"
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    test: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.2, description="Fraction of all rows that is set aside before the folds are dealt."
    )
    stratify: bool | None = Field(
        default=None,
        description="Keep the classes' shares in every fold; null: yes for classes, no for numbers.",
    )
    shuffle: bool = True

    @model_validator(mode="after")
    def _stratified_rows_are_shuffled(self) -> Self:
        if self.stratify and not self.shuffle:
            raise wrong_at(
                "stratify", "stratify needs shuffle: rows in their own order cannot keep the classes' shares"
            )
        return self


class ColumnSplit(Spec):
    """A text column of the data names the part of each row: `train`, `valid` or `test`."""

    kind: Literal["column"] = "column"
    column: ColumnName


SplitSpec = Annotated[HoldoutSplit | KFoldSplit | ColumnSplit, Field(discriminator="kind")]


class DataSpec(Spec):
    """The data of a job."""

    dataset: Annotated[SafeText, Field(min_length=1, max_length=128)] = Field(
        description="The id of an uploaded dataset (`ds_…`), or one that ships with the service (`builtin:digits`).",
        examples=["builtin:digits"],
    )
    target: ColumnName = Field(
        default="target",
        description="The column (or, of an NPZ, the array) to predict. svmlight: always `target`.",
    )
    features: Annotated[list[ColumnName], Field(min_length=1, max_length=100_000)] | None = Field(
        default=None,
        description="Columns (or arrays) to predict from; null takes every other one that is numeric.",
    )
    split: SplitSpec = HoldoutSplit()
    standardize: bool = Field(
        default=True,
        description="Give every feature mean 0 and variance 1 on the training rows; sparse features are only scaled.",
    )

    @model_validator(mode="after")
    def _no_column_has_two_uses(self) -> Self:
        if self.features is None:
            return self
        if len(set(self.features)) != len(self.features):
            raise wrong_at("features", "features names a column twice")
        if self.target in self.features:
            raise wrong_at("features", "the target is among the features: the answer would be known beforehand")
        if isinstance(self.split, ColumnSplit) and self.split.column in self.features:
            raise wrong_at("features", "the column that names the parts is among the features")
        return self
