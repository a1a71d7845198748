"""Jobs that name two datasets, one of them weights."""

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from service.api.services import Services
from service.records import JobStatus
from tests.service.api.world import Worker, body, problem, row_counts

BACKBONE = {"kind": "mlp", "widths": [3]}


def weights(**changes: np.ndarray) -> bytes:
    tensors = {"0.linear.weight": np.ones((3, 64)), "0.linear.bias": np.zeros(3)}
    return save({name.replace("_", "."): tensor for name, tensor in {**tensors, **changes}.items()})


def uploaded(client: TestClient, content: bytes, kind: str = "safetensors") -> str:
    answer = client.post("/v1/datasets", files={"file": ("a", content)}, data={"format": kind})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def transfer(weights_id: str) -> dict[str, object]:
    return body(model={"kind": "transfer", "backbone": BACKBONE, "weights": weights_id})


def test_weights_that_a_job_needs_are_not_deleted_unless_one_insists(client: TestClient, services: Services) -> None:
    weights_id = uploaded(client, weights())
    answer = client.post("/v1/jobs", json=transfer(weights_id))
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert [regularizer["kind"] for regularizer in job["spec"]["regularizers"]] == ["l2_sp", "l2"]
    problem(client.delete(f"/v1/datasets/{weights_id}"), 409, "dataset-in-use")
    services.store.datasets.delete(weights_id, force=True)
    failed = client.get(f"/v1/jobs/{job['id']}").json()
    assert (failed["status"], failed["failure"]["code"]) == ("failed", "bad_data")


def test_weights_are_free_again_when_the_job_has_ended(client: TestClient, worker: Worker) -> None:
    weights_id = uploaded(client, weights())
    job = client.post("/v1/jobs", json=transfer(weights_id)).json()
    claim = worker.claim()
    problem(client.delete(f"/v1/datasets/{weights_id}"), 409, "dataset-in-use")
    assert worker.succeed(claim).status is JobStatus.SUCCEEDED
    assert client.delete(f"/v1/datasets/{weights_id}").status_code == 204
    problem(client.post(f"/v1/jobs/{job['id']}/clone"), 422, "invalid-spec")


@pytest.mark.parametrize("query", [{}, {"dry_run": "true"}])
def test_weights_that_cannot_be_taken_are_refused(
    client: TestClient, services: Services, query: dict[str, str]
) -> None:
    table = uploaded(client, b"x,target\n1,0\n2,1\n", "csv")
    other = uploaded(client, weights(**{"0_linear_bias": np.zeros(4)}))
    before = row_counts(services)
    for weights_id, says in (
        ("ds_00000000000000000000000000", "no such dataset"),
        ("builtin:digits", "holds no weights"),
        (table, "holds no weights"),
        (other, "'0.linear.bias' has shape [4]"),
    ):
        response = client.post("/v1/jobs", json=transfer(weights_id), params=query)
        (fault,) = problem(response, 422, "invalid-spec")["errors"]
        assert fault["pointer"] == "/model/weights"
        assert says in fault["detail"]
    assert row_counts(services) == before
