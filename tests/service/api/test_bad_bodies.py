"""Bodies that cannot be jobs: each a clear refusal at the field that is wrong, and nothing is stored."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.services import Services
from service.records import ColumnType
from tests.service.api.world import BODY, body, dataset, pointers, problem, row_counts

JSON = {"content-type": "application/json"}


def strength(**given: Any) -> dict[str, Any]:
    return body(regularizers=[{"kind": "l2", "strength": given}])


def split(**given: Any) -> dict[str, Any]:
    return body(data={"dataset": "builtin:digits", "split": given})


@pytest.mark.parametrize(
    ("sent", "pointer", "says"),
    [
        (body(lerning_rate=1), "/lerning_rate", "no such field"),
        (body(mehtod={"kind": "hoag"}), "/mehtod", "did you mean 'method'"),
        (body(seed="0"), "/seed", "integer"),
        (body(seed=0.5), "/seed", "integer"),
        (body(seed=-1), "/seed", "greater than or equal to 0"),
        (body(seed=True), "/seed", "integer"),
        (body(name=3), "/name", "string"),
        (body(name="a\x00b"), "/name", "NUL"),
        (body(name="a\ud800b"), "/name", "surrogate"),
        (body(labels={"team": "\ud800"}), "/labels/team", "surrogate"),
        (body(labels={"a/b~c": 1}), "/labels/a~1b~0c", "string"),
        (body(labels={"bad key!": "x"}), "/labels/bad key!", "pattern"),
        (body(labels=[1]), "/labels", "JSON object"),
        (strength(init=-1.0), "/regularizers/0/strength/init", "greater than or equal"),
        (strength(low=1.0, high=0.5), "/regularizers/0/strength/low", "must not be above"),
        (strength(init=1e5), "/regularizers/0/strength/init", "must lie between"),
        (strength(per="layers"), "/regularizers/0/strength/per", "'model'"),
        (strength(init="0.1"), "/regularizers/0/strength/init", "number"),
        (body(regularizers=[]), "/regularizers", "at least 1"),
        (body(regularizers={}), "/regularizers", "list"),
        (body(method={"kind": "hoga"}), "/method/kind", "did you mean 'hoag'"),
        (body(method={"solver": {"kind": "cg"}}), "/method/kind", "is required"),
        (body(method={"kind": "implicit", "solver": {"kind": "cg", "iterations": 3}}), "/method/solver/iterations",
         "'max_iterations'"),
        (body(method={"kind": "implicit", "solver": {"kind": "cgg"}}), "/method/solver/kind", "did you mean 'cg'"),
        (body(method={"kind": "implicit", "solver": {"kind": "identity"}, "step": {"kind": "lbfgs"}}), "/method/step",
         "take step 'adam'"),
        (body(method=None), "/method", "object"),
        (body(model={"kind": "tree"}), "/model/kind", "'linear'"),
        (split(kind="kfold", folds=1), "/data/split/folds", "greater than or equal to 2"),
        (split(kind="holdout", valid=0.6, test=0.5), "/data/split/test", "below 1"),
        (split(kind="kfold", fold=3), "/data/split/fold", "did you mean 'folds'"),
        (body(data={}), "/data/dataset", "is required"),
        ({}, "/data", "is required"),
        ([], "", "JSON object"),
        (None, "", "JSON object"),
        ("text", "", "JSON object"),
        (body(budget={"outer_steps": 10**400}), "/budget/outer_steps", "less than or equal"),
        (body(data={"dataset": "builtin:digits", "target": "nothing"}), "/data/target", "does not have this column"),
        (body(data={"dataset": "builtin:digits", "features": ["target"]}), "/data/features", "among the features"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_where_it_is_wrong(
    client: TestClient, services: Services, sent: Any, pointer: str, says: str
):
    before = row_counts(services)
    response = client.post("/v1/jobs", content=json.dumps(sent), headers=JSON)
    found = problem(response, 422, "invalid-spec")
    assert pointer in pointers(found), found
    detail = next(error["detail"] for error in found["errors"] if error["pointer"] == pointer)
    assert says in detail
    assert "default factory" not in response.text  # what cannot be filled in while something else is wrong
    assert row_counts(services) == before


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
@pytest.mark.parametrize(
    ("place", "pointer"),
    [
        ('{"data": {"dataset": "builtin:digits"}, "budget": {"wall_seconds": %s}}', "/budget/wall_seconds"),
        ('{"data": {"dataset": "builtin:digits"}, "seed": %s}', "/seed"),
        ('{"data": {"dataset": "builtin:digits"}, "name": %s}', "/name"),
        ('{"data": {"dataset": "builtin:digits"}, "regularizers": [{"kind": "l2", "strength": {"fixed": %s}}]}',
         "/regularizers/0/strength/fixed"),
        ('{"data": {"dataset": "builtin:digits"}, "model": {"kind": "linear", "intercept": %s}}', "/model/intercept"),
        ('{"data": {"dataset": "builtin:digits"}, "unknown": %s}', "/unknown"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_refused_where_it_stands(
    client: TestClient, services: Services, place: str, pointer: str, number: str
):
    before = row_counts(services)
    found = problem(client.post("/v1/jobs", content=place % number, headers=JSON), 422, "invalid-spec")
    assert pointers(found) == [pointer]
    assert row_counts(services) == before


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"   ",
        b"{",
        b'{"data": }',
        b'{"data": {"dataset": "builtin:digits"}} trailing',
        b'\xff\xfe{"data"',
        b'{"data": "\xc3\x28"}',
        b'\xef\xbb\xbf{"data": {"dataset": "builtin:digits"}}',
        b"[" * 200_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"seed": ' + b"9" * 6000 + b"}",
        b'{"seed": 1, "seed": 2, "data": {"dataset": "builtin:digits"}}',
        b"{'data': {'dataset': 'builtin:digits'}}",
    ],
    ids=lambda sent: repr(sent[:24]),
)
def test_a_body_that_is_no_json_is_refused(client: TestClient, services: Services, sent: bytes):
    before = row_counts(services)
    response = client.post("/v1/jobs", content=sent, headers=JSON)
    problem(response, 400, "malformed-body" if sent.strip() else "empty-body")
    assert row_counts(services) == before


def test_a_repeated_name_is_named(client: TestClient):
    sent = b'{"seed": 1, "seed": 2, "data": {"dataset": "builtin:digits"}}'
    found = problem(client.post("/v1/jobs", content=sent, headers=JSON), 400, "malformed-body")
    assert "'seed'" in found["detail"]


@pytest.mark.parametrize("media", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ";"])
def test_a_body_of_another_kind_is_refused(client: TestClient, media: str | None):
    headers = {} if media is None else {"content-type": media}
    problem(client.post("/v1/jobs", content=json.dumps(BODY).encode(), headers=headers), 415, "unsupported-media-type")


def test_any_json_subtype_is_understood(client: TestClient):
    headers = {"content-type": "application/merge-patch+json; charset=utf-8"}
    assert client.post("/v1/jobs", content=json.dumps(BODY), headers=headers).status_code == 202


def test_a_body_over_the_limit_is_refused(client: TestClient, services: Services):
    before = row_counts(services)
    found = problem(client.post("/v1/jobs", json=body(name="x" * 2**20)), 413, "body-too-large")
    assert "1,048,576" in found["detail"]
    assert row_counts(services) == before


def test_nothing_that_was_sent_comes_back(client: TestClient):
    secret = "sk-this-is-a-secret"
    for sent in (
        body(name={"password": secret}),
        body(method={"kind": secret}),
        body(seed=secret),
        body(resources={"device": secret}),
        body(labels={"token": [secret]}),
        body(data={"dataset": secret}),
        body(regularizers=[secret]),
        secret,
    ):
        response = client.post("/v1/jobs", json=sent)
        assert response.status_code == 422
        assert secret not in response.text


@pytest.mark.parametrize("name", ["a\\ud800", "b\\u0000", "c" * 5000, "/~", ""])
def test_a_field_of_any_name_can_be_refused(client: TestClient, name: str):
    sent = f'{{"data": {{"dataset": "builtin:digits"}}, "{name}": 1}}'
    found = problem(client.post("/v1/jobs", content=sent, headers=JSON), 422, "invalid-spec")
    assert len(found["errors"]) == 1
    assert len(found["errors"][0]["pointer"]) < 250


def test_a_body_that_is_wrong_in_many_places_is_answered_with_a_limited_list(client: TestClient):
    sent = body(data={"dataset": "builtin:digits", "features": list(range(10_000))})
    found = problem(client.post("/v1/jobs", json=sent), 422, "invalid-spec")
    assert len(found["errors"]) == 50


NUMBER = ColumnType.NUMBER


@pytest.mark.parametrize(
    ("rows", "columns", "data", "pointer"),
    [
        (4, {"x": NUMBER, "target": {"0": 2, "1": 2}},
         {"split": {"kind": "kfold", "folds": 50, "test": 0.0, "stratify": False}}, "/data/split/folds"),
        (21, {"x": NUMBER, "target": {"0": 20, "1": 1}}, {"split": {"kind": "holdout", "stratify": True}},
         "/data/split"),
        (20, {"x": NUMBER, "target": {"0": 20}}, {}, "/data/target"),
        (40, {"x": NUMBER, "word": ColumnType.TEXT, "target": {"0": 20, "1": 20}}, {"features": ["x", "word"]},
         "/data/features"),
        (40, {"x": NUMBER, "target": NUMBER}, {}, "/data/target"),
        (40, {"word": ColumnType.TEXT, "target": {"0": 20, "1": 20}}, {}, "/data"),
    ],
    ids=["more folds than rows", "a class with one example", "a target with one class", "text among the features",
         "numbers for classes", "no column of numbers"],
)  # fmt: skip
def test_data_that_cannot_be_learned_from_is_refused_before_it_is_queued(
    client: TestClient, services: Services, rows: int, columns: dict[str, Any], data: dict[str, Any], pointer: str
):
    dataset_id = dataset(services, rows, **columns)
    before = row_counts(services)
    found = problem(client.post("/v1/jobs", json=body(data={"dataset": dataset_id, **data})), 422, "invalid-spec")
    assert any(each.startswith(pointer) for each in pointers(found)), found
    assert row_counts(services) == before


def test_a_method_that_cannot_take_the_regularizers_is_refused_and_others_are_named(client: TestClient, monkeypatch):
    # As the table will be once a method takes less than another.
    from service.spec import capabilities

    table = {"hoag": {}, "implicit": {"linear": frozenset({"l2"})}}
    monkeypatch.setattr(capabilities, "CAPABILITIES", table)
    found = problem(client.post("/v1/jobs", json=body(method={"kind": "hoag"})), 422, "invalid-spec")
    assert pointers(found) == ["/method/kind"]
    assert "take implicit" in found["errors"][0]["detail"]
