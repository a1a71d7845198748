"""Trajectories, a page at a time or as files."""

import csv
import io
import json
import math
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from service.api import exports
from service.api.negotiation import best
from service.api.refusals import NotAcceptable
from service.api.services import Services
from service.records import JsonObject, PointRecord
from tests.service.api.world import Worker, problem, submit

STEPS = 2500


@pytest.fixture
def job_id(client: TestClient, services: Services, worker: Worker) -> str:
    """A running job with more points than any batch."""
    job = submit(client, budget={"outer_steps": STEPS})
    worker.record(worker.claim(), range(STEPS))
    return str(job["id"])


def test_points_come_in_order_a_page_at_a_time(client: TestClient, job_id: str):
    steps, after = [], None
    while True:
        params = {"limit": 1000} | ({} if after is None else {"after": after})
        page = client.get(f"/v1/jobs/{job_id}/trajectory", params=params).json()
        steps += [point["step"] for point in page["items"]]
        after = page["next_after"]
        if after is None:
            break
    assert steps == list(range(STEPS))


@pytest.mark.parametrize("limit", [1, 999, 1000, 1001, 2499])
def test_a_page_says_where_the_next_one_begins(client: TestClient, job_id: str, limit: int):
    page = client.get(f"/v1/jobs/{job_id}/trajectory", params={"limit": limit}).json()
    assert [point["step"] for point in page["items"]] == list(range(limit))
    assert page["next_after"] == limit - 1


@pytest.mark.parametrize("limit", [2500, 2501, 100_000])
def test_the_last_page_says_so(client: TestClient, job_id: str, limit: int):
    page = client.get(f"/v1/jobs/{job_id}/trajectory", params={"limit": limit}).json()
    assert len(page["items"]) == STEPS
    assert page["next_after"] is None


def test_a_point_is_what_the_contract_says(client: TestClient, job_id: str):
    (point,) = client.get(f"/v1/jobs/{job_id}/trajectory", params={"after": 0, "limit": 1}).json()["items"]
    assert datetime.fromisoformat(point.pop("at")).tzinfo is not None
    assert point == {
        "step": 1,
        "attempt": 1,
        "elapsed_s": 0.5,
        "hyperparameters": {"l2": 0.5, "l1": {"size": 3, "min": 0.1, "median": 0.2, "max": 0.3, "norm": 0.4}},
        "train_loss": 0.5,
        "valid_loss": "NaN",
        "hypergradient_norm": 0.1,
        "metrics": {"accuracy": 0.5},
        "inner": {"iterations": 7, "residual": 1e-9},
        "certificate": None,
    }


def test_without_a_limit_all_points_come_in_every_format(client: TestClient, job_id: str):
    path = f"/v1/jobs/{job_id}/trajectory"
    whole = client.get(path)
    points = whole.json()["items"]
    assert whole.json()["next_after"] is None
    assert [point["step"] for point in points] == list(range(STEPS))

    lines = client.get(path, headers={"Accept": "application/x-ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.text.splitlines()] == points

    table = client.get(path, headers={"Accept": "text/csv"})
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["content-disposition"] == f'attachment; filename="{job_id}.csv"'
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert rows[3]["hyperparameters.l2"] == "0.125"
    assert rows[1]["valid_loss"] == "NaN"
    assert rows[0]["hyperparameters.l1.median"] == "0.2"
    assert rows[0]["certificate"] == ""

    file = client.get(path, headers={"Accept": "application/vnd.apache.parquet"})
    read = pq.read_table(pa.BufferReader(file.content))
    assert read.column("step").to_pylist() == list(range(STEPS))
    assert math.isnan(read.column("valid_loss")[1].as_py())
    assert read.column("hyperparameters.l2")[3].as_py() == 0.125
    assert read.schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert read.column_names == table.text.partition("\r\n")[0].split(",")


@pytest.mark.parametrize("form", ["json", "ndjson", "csv", "parquet"])
def test_a_job_without_points_can_be_exported(client: TestClient, form: str):
    job = submit(client)
    response = client.get(f"/v1/jobs/{job['id']}/trajectory", params={"format": form})
    assert response.status_code == 200
    match form:
        case "json":
            assert response.json() == {"items": [], "next_after": None}
        case "ndjson":
            assert response.content == b""
        case "csv":
            assert response.text == "step,attempt,at,elapsed_s\r\n"
        case "parquet":
            assert pq.read_table(pa.BufferReader(response.content)).num_rows == 0


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_a_file_can_begin_and_end_anywhere(client: TestClient, job_id: str, form: str):
    params = {"format": form, "after": 9, "limit": 1500}
    lines = client.get(f"/v1/jobs/{job_id}/trajectory", params=params).text.splitlines()
    assert len(lines) == 1500 + (form == "csv")
    last = lines[-1]
    assert (json.loads(last)["step"] if form == "ndjson" else int(last.split(",")[0])) == 1509


def test_a_format_that_cannot_be_given_is_refused(client: TestClient):
    job = submit(client)
    response = client.get(f"/v1/jobs/{job['id']}/trajectory", headers={"Accept": "image/png"})
    assert "text/csv" in problem(response, 406, "not-acceptable")["detail"]


@pytest.mark.parametrize("query", ["after=-1", "after=x", "limit=0", "after=99999999999", "format=xml"])
def test_a_page_that_makes_no_sense_is_refused(client: TestClient, query: str):
    job = submit(client)
    found = problem(client.get(f"/v1/jobs/{job['id']}/trajectory?{query}"), 422, "invalid-spec")
    assert found["errors"][0]["parameter"] == query.partition("=")[0]


OFFERED = {"application/json": "json", "application/x-ndjson": "ndjson", "text/csv": "csv"}


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "json"),
        ("", "json"),
        ("*/*", "json"),
        ("application/*", "json"),
        ("text/*", "csv"),
        ("text/csv", "csv"),
        ("TEXT/CSV; charset=utf-8", "csv"),
        ("text/csv;q=0.5, application/x-ndjson", "ndjson"),
        ("application/json;q=0, */*", "ndjson"),
        ("text/html, application/xhtml+xml, */*;q=0.1", "json"),
        ("application/json;q=0.1, text/csv;q=0.2", "csv"),
    ],
)
def test_accept_is_read_as_http_says(accept: str | None, form: str):
    assert best(accept, OFFERED) == form


@pytest.mark.parametrize("accept", ["image/png", "application/json;q=0", "nonsense", "text/csv;q=0.0"])
def test_accept_can_leave_nothing(accept: str):
    with pytest.raises(NotAcceptable):
        best(accept, OFFERED)


def record(step: int, body: JsonObject) -> PointRecord:
    return PointRecord(step=step, attempt=1, at=datetime(2026, 1, 1, tzinfo=UTC), elapsed_s=0.0, body=body)


def test_columns_that_appear_late_are_in_the_table_from_its_first_row():
    batches = [[record(0, {"a": 1.0})], [record(1, {"a": "Infinity", "b": {"c": True, "d": [1, 2]}, "e": "=1+1"})]]
    rows = list(csv.reader(io.StringIO(b"".join(exports.as_csv(lambda: iter(batches))).decode())))
    assert rows[0] == ["step", "attempt", "at", "elapsed_s", "a", "b.c", "b.d", "e"]
    assert rows[1][4:] == ["1.0", "", "", ""]
    assert rows[2][4:] == ["Infinity", "true", "[1,2]", "'=1+1"]
    table = pq.read_table(pa.BufferReader(b"".join(exports.as_parquet(lambda: iter(batches)))))
    assert table.column("a").to_pylist() == [1.0, math.inf]
    assert table.column("b.c").to_pylist() == [None, True]
    assert table.column("b.d").to_pylist() == [None, "[1,2]"]


def test_points_that_arrive_between_two_readings_do_not_break_a_table():
    batches = [[record(0, {"a": 1.0})]]
    readings = []

    def begin():
        readings.append(1)
        return iter(batches if len(readings) == 1 else [*batches, [record(1, {"new": 2.0})]])

    assert b"".join(exports.as_csv(begin)).decode().count("\r\n") == 2


def test_a_column_of_mixed_values_is_text():
    batches = [[record(0, {"a": 1.5}), record(1, {"a": "word"}), record(2, {"a": None})]]
    table = pq.read_table(pa.BufferReader(b"".join(exports.as_parquet(lambda: iter(batches)))))
    assert table.column("a").to_pylist() == ["1.5", "word", None]
