"""The OpenAPI document: a golden file, and promises that every operation keeps.

A change of the interface shows as a change of the golden file. Write it anew, and read the difference:
`UPDATE_GOLDEN=1 pytest tests/service/api/test_openapi.py`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.problems import BAD_REQUEST, INTERNAL, METHOD_NOT_ALLOWED, NO_SUCH_PATH, TYPES

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "openapi.json"
PAGE = ROOT / "docs" / "api.md"
BODIES = {"POST": {"/v1/jobs", "/v1/datasets"}, "PATCH": {"/v1/jobs/{job_id}"}}


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    response = client.get("/v1/openapi.json")
    assert response.status_code == 200
    return dict(response.json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_interface_is_the_one_that_was_agreed_on(document: dict[str, Any]):
    document["info"]["version"] = "*"
    text = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text, "the interface has changed: see the head of this file"


def test_every_operation_is_named_and_described(document: dict[str, Any]):
    names = []
    for method, path, operation in operations(document):
        names.append(operation["operationId"])
        assert operation["operationId"].isidentifier(), path
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description") or parameter["schema"].get("description"), (method, path, parameter)
    assert len(names) == len(set(names))


def test_every_operation_declares_its_problems(document: dict[str, Any]):
    for method, path, operation in operations(document):
        responses = operation["responses"]
        assert "422" in responses
        if path not in ("/healthz", "/readyz"):
            assert {"401", "403", "503"} <= set(responses)
            assert operation["security"] == [{"apiKey": []}]
        if "{" in path:
            assert "404" in responses
        if path in BODIES.get(method, ()):
            assert {"400", "413", "415"} <= set(responses)
            assert operation["requestBody"]["required"]
        for status, response in responses.items():
            if int(status) >= 400 and path != "/readyz":
                schema = response["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}
            assert response["description"]


def test_everything_that_is_referred_to_is_there(document: dict[str, Any]):
    schemas = document["components"]["schemas"]
    used = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert used <= set(schemas)
    assert set(schemas) <= used | {"JsonValue"}
    assert not any(name.startswith(("Body_", "HTTPValidation")) for name in schemas)


def test_the_specification_is_described_down_to_its_parts(document: dict[str, Any]):
    schemas = document["components"]["schemas"]
    assert schemas["JobSpec"]["additionalProperties"] is False
    assert schemas["JobChanges"]["minProperties"] == 1
    assert "default" not in schemas["JobChanges"]["properties"]["name"]
    assert set(schemas["JobView"]["required"]) == set(schemas["JobView"]["properties"])


def test_every_kind_of_problem_is_documented():
    page = PAGE.read_text(encoding="utf-8")
    for kind in (*TYPES.values(), BAD_REQUEST, NO_SUCH_PATH, METHOD_NOT_ALLOWED, INTERNAL):
        assert f"`{kind.uri}`" in page, kind.name
