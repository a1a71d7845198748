"""What cannot run is refused before it is queued, at the field that should change; what may disappoint is said."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from service.admission import Admission, admit
from service.builtin import BUILTIN_DATASETS
from service.records import ColumnRecord, ColumnType, DatasetRecord
from service.spec.job import JobSpec

NUMBER, INTEGER, TEXT, BOOLEAN = ColumnType.NUMBER, ColumnType.INTEGER, ColumnType.TEXT, ColumnType.BOOLEAN


def column(
    name: str, kind: ColumnType = NUMBER, *, values: dict[str, int] | None = None, missing: int = 0,
    shape: tuple[int, ...] = (),
) -> ColumnRecord:  # fmt: skip
    return ColumnRecord(name=name, type=kind, shape=shape, missing=missing, values=values)


TABLE = DatasetRecord(
    id="ds_1",
    name="table",
    format="csv",
    rows=100,
    columns=(
        column("a"),
        column("b", INTEGER, values={str(i): 10 for i in range(10)}),
        column("flag", BOOLEAN, values={"false": 40, "true": 60}),
        column("word", TEXT, values={"x": 50, "y": 50}),
        column("gaps", missing=7),
        column("part", TEXT, values={"train": 60, "valid": 30, "test": 10}),
        column("target", INTEGER, values={"0": 70, "1": 20, "2": 10}),
        column("rare", INTEGER, values={"0": 98, "1": 2}),
        column("lonely", INTEGER, values={"5": 100}),
        column("many", TEXT),
        column("image", shape=(8, 8)),
    ),
    is_sparse=False,
    nonzeros=None,
    sha256="0" * 64,
    size_bytes=1,
    key="",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


def ask(dataset: DatasetRecord = TABLE, *, gpu_online: bool | None = None, **spec: object) -> Admission:
    data = {"dataset": dataset.id, "features": ["a", "b"], **dict(spec.pop("data", {}))}  # type: ignore[call-overload]
    return admit(JobSpec.model_validate({"data": data, **spec}), dataset, gpu_online=gpu_online)


def refused(admission: Admission) -> dict[str, str]:
    assert not admission.is_admitted
    assert admission.estimate is None
    return {refusal.pointer: refusal.detail for refusal in admission.refusals}


def codes(admission: Admission) -> set[str]:
    assert admission.is_admitted, admission.refusals
    return {warning.code for warning in admission.warnings}


def test_a_plain_job_is_admitted_without_a_word() -> None:
    admission = ask()
    assert codes(admission) == set()
    assert admission.estimate is not None
    assert (admission.estimate.strengths, admission.estimate.weights) == (1, 2 * 3 + 2)
    assert (admission.estimate.rows.train, admission.estimate.rows.valid, admission.estimate.rows.test) == (50, 25, 25)


@pytest.mark.parametrize(
    ("data", "loss", "pointer", "says"),
    [
        ({"target": "nothing"}, "cross_entropy", "/data/target", "does not have this column; it has 'a', 'b'"),
        ({"features": ["a", "zz", "yy"]}, "cross_entropy", "/data/features", "does not have 2 of these columns"),
        ({"features": ["a", "word"]}, "cross_entropy", "/data/features", "texts in column 'word'"),
        ({"features": ["gaps", "a"]}, "cross_entropy", "/data/features", "not finite in column 'gaps'"),
        ({"features": None}, "cross_entropy", "/data/features", "'gaps'"),
        ({"target": "gaps", "features": ["a"]}, "squared_error", "/data/target", "missing or not finite in 7 rows"),
        ({"target": "a", "features": ["b"]}, "cross_entropy", "/data/target", "take squared_error"),
        ({"target": "many"}, "cross_entropy", "/data/target", "too many distinct values"),
        ({"target": "lonely"}, "cross_entropy", "/data/target", "at least two classes"),
        ({"target": "image"}, "squared_error", "/data/target", "shape [8, 8]"),
        ({"target": "word"}, "squared_error", "/data/target", "take cross_entropy"),
        ({"target": "flag"}, "squared_error", "/data/target", "take cross_entropy"),
        ({"target": "rare"}, "cross_entropy", "/data/split/stratify", "too few has '1'"),
        ({"split": {"kind": "holdout", "stratify": True}}, "squared_error", "/data/split/stratify", "only classes"),
        ({"split": {"kind": "kfold", "folds": 90}}, "cross_entropy", "/data/split/folds", "90 folds need as many rows"),
        ({"split": {"kind": "column", "column": "zz"}}, "cross_entropy", "/data/split/column", "does not have"),
        ({"split": {"kind": "column", "column": "word"}}, "cross_entropy", "/data/split/column",
         "train, valid and test"),
        ({"split": {"kind": "column", "column": "target"}}, "cross_entropy", "/data/split/column", "is the target"),
        ({"split": {"kind": "column", "column": "a"}, "features": ["b"]}, "cross_entropy", "/data/split/column",
         "must hold the texts"),
    ],
)  # fmt: skip
def test_a_job_that_does_not_fit_its_data_is_refused_at_the_field(
    data: dict[str, object], loss: str, pointer: str, says: str
) -> None:
    details = refused(ask(data=data, loss=loss))
    assert list(details) == [pointer]
    assert says in details[pointer]


def test_all_that_is_wrong_is_said_at_once() -> None:
    details = refused(ask(data={"target": "nothing", "features": ["word"], "split": {"kind": "column", "column": "z"}}))
    assert set(details) == {"/data/target", "/data/features", "/data/split/column"}


def test_what_was_sent_is_not_echoed() -> None:
    for detail in refused(ask(data={"target": "<script>", "features": ["<script>2"]})).values():
        assert "script" not in detail


def test_a_dataset_without_numbers_has_nothing_to_predict_from() -> None:
    texts = replace(TABLE, columns=(column("word", TEXT, values={"x": 1}), TABLE.columns[6]))
    assert "no numeric column" in refused(ask(texts, data={"features": None}))["/data/features"]


def test_too_few_rows_for_the_parts_are_refused() -> None:
    tiny = replace(TABLE, rows=2)
    assert (
        "at least 3 rows"
        in refused(ask(tiny, loss="squared_error", data={"target": "b", "features": ["a"]}))["/data/split"]
    )
    two = ask(
        tiny, loss="squared_error", data={"target": "b", "features": ["a"], "split": {"kind": "holdout", "test": 0}}
    )
    assert two.estimate is not None
    assert (two.estimate.rows.train, two.estimate.rows.valid) == (1, 1)


@pytest.mark.parametrize(("absent", "says"), [("valid", "no row is valid"), ("train", "no row is train")])
def test_a_column_of_parts_needs_training_and_validation_rows(absent: str, says: str) -> None:
    values = {part: 50 for part in ("train", "valid", "test") if part != absent}
    table = replace(TABLE, columns=(*TABLE.columns[:5], column("part", TEXT, values=values), *TABLE.columns[6:]))
    assert says in refused(ask(table, data={"split": {"kind": "column", "column": "part"}}))["/data/split/column"]


def test_columns_of_texts_are_left_out_of_the_features_unless_they_are_named() -> None:
    table = replace(TABLE, columns=tuple(c for c in TABLE.columns if c.name != "gaps"))
    admission = ask(table, data={"features": None, "split": {"kind": "column", "column": "part"}})
    assert admission.estimate is not None
    # a, b, flag, rare, lonely and 64 pixels
    assert admission.estimate.features == 5 + 64
    assert (admission.estimate.rows.train, admission.estimate.rows.test) == (60, 10)


def test_a_hessian_too_large_to_factorise_is_refused() -> None:
    wide = replace(TABLE, columns=(*TABLE.columns, column("wide", shape=(2000,))))
    spec = {"method": {"kind": "implicit", "solver": {"kind": "direct"}}}
    details = refused(ask(wide, data={"features": ["wide"]}, **spec))
    assert "take 'cg'" in details["/method/solver"]
    assert ask(**spec).is_admitted


def test_a_rank_beyond_the_weights_is_refused() -> None:
    spec = {"method": {"kind": "implicit", "solver": {"kind": "nystrom", "rank": 9}}}
    assert "number of weights, 8" in refused(ask(**spec))["/method/solver/rank"]


def l2(**strength: object) -> dict[str, object]:
    return {"kind": "l2", "strength": strength}


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"resources": {"device": "cuda"}}, "no_gpu_worker"),
        ({"regularizers": [l2(per="class")], "loss": "squared_error"}, "same_as_model"),
        ({"regularizers": [l2(per="class")], "data": {"target": "flag"}}, "same_as_model"),
        ({"regularizers": [l2(per="parameter")], "data": {"target": "flag"}}, "same_as_feature"),
        ({"regularizers": [l2(per="feature")], "data": {"features": ["a"]}}, "same_as_model"),
        ({"regularizers": [l2(per="feature")], "data": {"features": ["image"]}}, "many_strengths"),
        ({"regularizers": [l2(), l2()]}, "redundant_penalty"),
        ({"data": {"split": {"kind": "holdout", "test": 0}}}, "no_test_part"),
        ({"data": {"split": {"kind": "kfold", "folds": 15}}}, "rare_classes"),
        ({"resources": {"precision": "float32"}, "budget": {"tolerance": 1e-8}}, "beyond_precision"),
        ({"resources": {"memory_bytes": 2**26}}, "memory"),
    ],
)
def test_what_may_disappoint_is_said(spec: dict[str, object], code: str) -> None:
    admission = ask(gpu_online=False, **spec)
    assert code in codes(admission)


def test_a_gpu_that_may_be_there_is_no_reason_to_warn() -> None:
    for online in (True, None):
        assert codes(ask(gpu_online=online, resources={"device": "cuda"})) == set()


def test_a_fixed_strength_is_not_counted_and_not_redundant() -> None:
    admission = ask(regularizers=[l2(per="feature", fixed=0.1), l2()])
    assert codes(admission) == set()
    assert admission.estimate is not None
    assert admission.estimate.strengths == 1


def test_folds_share_strengths_and_have_weights_of_their_own() -> None:
    one = ask(data={"target": "flag"}).estimate
    folds = ask(data={"target": "flag", "split": {"kind": "kfold", "folds": 4}}).estimate
    assert one is not None
    assert folds is not None
    assert (folds.strengths, folds.weights) == (one.strengths, 4 * one.weights)
    assert (folds.rows.train, folds.rows.valid, folds.rows.test) == (80, 0, 20)


@pytest.mark.parametrize("dataset_id", sorted(BUILTIN_DATASETS))
def test_every_builtin_dataset_can_be_learned_from_with_defaults(dataset_id: str) -> None:
    loss = "squared_error" if dataset_id == "builtin:diabetes" else "cross_entropy"
    admission = ask(BUILTIN_DATASETS[dataset_id], loss=loss, data={"features": None})
    assert codes(admission) == set()


def test_the_larger_job_is_estimated_to_take_more() -> None:
    small, large = (
        ask(BUILTIN_DATASETS["builtin:wine"], data={"features": None}),
        ask(BUILTIN_DATASETS["builtin:digits"], data={"features": None}),
    )
    assert small.estimate is not None
    assert large.estimate is not None
    assert small.estimate.seconds < large.estimate.seconds
    assert small.estimate.memory_bytes < large.estimate.memory_bytes


def test_a_grid_that_the_budget_does_not_cover_is_refused() -> None:
    two = [{"kind": "l2", "strength": {"per": "feature"}}]
    budget = {"outer_steps": 100}
    assert ask(method={"kind": "grid", "points": 100}, budget=budget).is_admitted
    assert ask(method={"kind": "grid", "points": 10}, regularizers=two, budget=budget).is_admitted
    detail = refused(ask(method={"kind": "grid", "points": 11}, regularizers=two, budget=budget))["/method/points"]
    assert "121 trainings" in detail
    assert "budget.outer_steps allows 100" in detail


def test_tpe_is_refused_more_strengths_than_it_can_model() -> None:
    many = {"features": ["image"]}  # 64 features for each of three classes
    each = [{"kind": "l2", "strength": {"per": "parameter"}}]
    tpe = {"kind": "tpe"}
    assert ask(method=tpe, regularizers=each, data=many).is_admitted
    wide = replace(TABLE, columns=tuple(replace(c, shape=(20, 20)) if c.name == "image" else c for c in TABLE.columns))
    detail = refused(ask(wide, method=tpe, regularizers=each, data=many))["/method/kind"]
    assert "up to 1,000 of them, and there are 1,200" in detail
    assert ask(wide, method={"kind": "random"}, regularizers=each, data=many).is_admitted
