"""Uploading, showing and deleting datasets."""

import hashlib
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from service.api.datasets import stem
from service.api.services import Services
from service.builtin import BUILTIN_DATASETS
from service.records import ColumnType
from tests.service.api.world import body, dataset, problem, row_counts, submit

CSV = b"x,y,target\n" + b"".join(b"%d,%d.5,%d\n" % (i, i, i % 2) for i in range(40))
SHA256 = hashlib.sha256(CSV).hexdigest()


def upload(client: TestClient, content: bytes = CSV, *, filename: str = "a file.csv", **form: str):
    return client.post("/v1/datasets", files={"file": (filename, content)}, data={"format": "csv", **form})


def key_of(services: Services, dataset_id: str) -> str:
    """Where the bytes of a dataset lie."""
    return services.store.datasets.get(dataset_id).key


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0], "target": [0, 1, 0]}), sink)
    return sink.getvalue()


def npz() -> bytes:
    sink = io.BytesIO()
    np.savez(sink, x=np.arange(12.0).reshape(3, 4), target=np.array([0, 1, 0]))
    return sink.getvalue()


def safetensors() -> bytes:
    return save({"w": np.ones((3, 2), dtype=np.float32), "b": np.zeros(3, dtype=np.float32)})


def test_a_file_becomes_a_dataset(client: TestClient, services: Services, tmp_path: Path):
    response = upload(client, name="my data")
    assert response.status_code == 201
    found = response.json()
    assert response.headers["location"] == f"/v1/datasets/{found['id']}" == found["links"]["self"]
    assert (found["name"], found["format"], found["rows"], found["bytes"]) == ("my data", "csv", 40, len(CSV))
    assert found["sha256"] == SHA256
    assert [(column["name"], column["type"]) for column in found["columns"]] == [
        ("x", "integer"),
        ("y", "number"),
        ("target", "integer"),
    ]
    assert found["columns"][2]["values"] == {"0": 20, "1": 20}
    assert client.get(response.headers["location"]).json() == found
    assert client.get("/v1/datasets").json()["items"][0] == found
    assert list((tmp_path / "uploads").iterdir()) == []
    assert b"".join(services.files.open_range(key_of(services, found["id"]))) == CSV


@pytest.mark.parametrize(
    ("kind", "content", "rows", "names"),
    [
        ("parquet", parquet(), 3, ["x", "target"]),
        ("npz", npz(), 3, ["x", "target"]),
        ("svmlight", b"0 1:0.5 3:1\n1 2:2\n", 2, None),
        ("safetensors", safetensors(), 0, ["w", "b"]),
    ],
)
def test_every_format_is_read(client: TestClient, kind: str, content: bytes, rows: int, names: list[str] | None):
    response = upload(client, content, filename=f"a.{kind}", format=kind)
    assert response.status_code == 201, response.text
    found = response.json()
    assert found["rows"] == rows
    if names is not None:
        assert sorted(column["name"] for column in found["columns"]) == sorted(names)
    assert found["sparse"] is (kind == "svmlight")


def test_nothing_is_learned_from_a_file_of_weights(client: TestClient, services: Services):
    weights = upload(client, safetensors(), format="safetensors").json()
    shapes = {column["name"]: (column["type"], column["shape"]) for column in weights["columns"]}
    assert shapes == {"w": ("number", [3, 2]), "b": ("number", [3])}
    shown = client.get(weights["links"]["preview"]).json()
    assert sorted(shown["rows"]) == [["b", "F32", "3"], ["w", "F32", "3 × 2"]]
    before = row_counts(services)
    for query in ({}, {"dry_run": "true"}):
        response = client.post("/v1/jobs", json=body(data={"dataset": weights["id"]}), params=query)
        (fault,) = problem(response, 422, "invalid-spec")["errors"]
        assert fault["pointer"] == "/data/dataset"
        assert "uploaded as csv" in fault["detail"]
    assert row_counts(services) == before


def test_the_same_bytes_are_the_same_dataset(client: TestClient, services: Services):
    first = upload(client, name="first")
    again = upload(client, name="again")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert row_counts(services)["datasets"] == 1


def test_uploads_at_the_same_moment_make_one_dataset(client: TestClient, services: Services):
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: upload(client), range(3)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert row_counts(services)["datasets"] == 1


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("a file.csv", "a file"),
        ("../../etc/passwd", "passwd"),
        ("a\x07b.csv", "ab"),
        ("", ""),
        ("ü.csv", "ü"),
        ("..", ""),
    ],
)
def test_a_dataset_without_a_name_has_its_files(filename: str, name: str):
    assert stem(filename) == name


def test_a_dataset_without_any_name_can_be_uploaded(client: TestClient):
    assert upload(client, filename='"').json()["name"]


def test_a_hash_that_is_said_is_checked(client: TestClient, services: Services):
    assert upload(client, sha256=SHA256).status_code == 201
    before = row_counts(services)
    found = problem(upload(client, CSV + b"9,9,1\n", sha256=SHA256), 422, "invalid-spec")
    assert found["errors"][0]["pointer"] == "/sha256"
    assert row_counts(services) == before


def test_shipped_datasets_are_there_from_the_start(client: TestClient):
    items = client.get("/v1/datasets").json()["items"]
    assert [item["id"] for item in items] == sorted(BUILTIN_DATASETS)
    digits = client.get("/v1/datasets/builtin:digits").json()
    assert digits["rows"] == 1797
    assert digits in items


def test_datasets_are_listed_page_by_page_shipped_ones_last(client: TestClient, services: Services):
    uploaded = [dataset(services, number, target=ColumnType.NUMBER) for number in range(1, 4)]
    for limit in (1, 2, 3, 5, 7):
        seen, cursor = [], None
        while True:
            params = {"limit": limit} | ({} if cursor is None else {"cursor": cursor})
            page = client.get("/v1/datasets", params=params).json()
            assert len(page["items"]) <= limit
            seen += [item["id"] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == [*uploaded[::-1], *sorted(BUILTIN_DATASETS)]


def test_a_dataset_is_shown_by_its_first_rows(client: TestClient):
    dataset = upload(client).json()
    found = client.get(f"/v1/datasets/{dataset['id']}/preview", params={"rows": 2}).json()
    assert found["columns"] == ["x", "y", "target"]
    assert found["rows"] == [["0", "0.5", "0"], ["1", "1.5", "1"]]  # a cell as it stands in the file
    assert found["columns_left_out"] == 0
    shipped = client.get("/v1/datasets/builtin:wine/preview", params={"rows": 3}).json()
    assert len(shipped["rows"]) == 3


@pytest.mark.parametrize("rows", ["0", "101", "x"])
def test_a_preview_has_a_limit(client: TestClient, rows: str):
    problem(client.get("/v1/datasets/builtin:wine/preview", params={"rows": rows}), 422, "invalid-spec")


def test_a_dataset_that_is_known_is_not_sent_again(client: TestClient):
    response = client.get("/v1/datasets/builtin:digits")
    tag = response.headers["etag"]
    assert client.get("/v1/datasets/builtin:digits", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("dataset_id", ["ds_none", "builtin:nothing", "nonsense", "ds_%00", "job_1"])
@pytest.mark.parametrize("path", ["", "/preview"])
def test_a_dataset_that_is_not_there_is_not_found(client: TestClient, dataset_id: str, path: str):
    problem(client.get(f"/v1/datasets/{dataset_id}{path}"), 404, "not-found")


def test_a_deleted_dataset_is_gone_and_its_file_is_left_to_the_outbox(client: TestClient, services: Services):
    dataset_id = upload(client).json()["id"]
    key = key_of(services, dataset_id)
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    problem(client.get(f"/v1/datasets/{dataset_id}"), 404, "not-found")
    problem(client.delete(f"/v1/datasets/{dataset_id}"), 404, "not-found")
    assert [entry.subject for entry in services.store.maintenance.outbox_pending(10)] == [key]
    # Uploaded anew before the file was removed: it lies elsewhere.
    again = key_of(services, upload(client).json()["id"])
    assert again != key
    services.files.delete([key])
    assert b"".join(services.files.open_range(again)) == CSV


def test_a_file_that_the_store_lost_comes_back_with_the_next_upload(client: TestClient, services: Services):
    first = upload(client).json()
    lost = key_of(services, first["id"])
    services.files.delete([lost])
    again = upload(client, name="again")
    assert (again.status_code, again.json()) == (200, first)
    assert key_of(services, first["id"]) != lost
    assert client.get(f"/v1/datasets/{first['id']}/preview").status_code == 200


def test_a_process_that_was_held_up_for_a_day_stores_its_upload_anew(client: TestClient, services: Services):
    class Slow:
        """A file store through which a day passes, once."""

        def __init__(self) -> None:
            self.days = 1

        def put(self, key: str, source: Path) -> tuple[str, int]:
            if self.days:
                self.days -= 1
                services.store.maintenance.give_up_files(-1.0)
            return services.files.put(key, source)

        def __getattr__(self, name: str) -> object:
            return getattr(services.files, name)

    client.app.state.services = replace(services, files=Slow())  # type: ignore[attr-defined, arg-type]
    response = upload(client)
    assert response.status_code == 201
    assert list(services.files.keys("datasets/")) == [key_of(services, response.json()["id"])]


def test_a_dataset_that_a_job_waits_for_is_kept_unless_forced(client: TestClient, services: Services):
    dataset_id = dataset(services, 40, x=ColumnType.NUMBER, target={"0": 20, "1": 20})
    submit(client, **body(data={"dataset": dataset_id}))
    problem(client.delete(f"/v1/datasets/{dataset_id}"), 409, "dataset-in-use")
    assert client.delete(f"/v1/datasets/{dataset_id}", params={"force": "true"}).status_code == 204


def test_a_shipped_dataset_cannot_be_deleted(client: TestClient):
    problem(client.delete("/v1/datasets/builtin:digits"), 422, "invalid-spec")


def test_uploads_of_killed_processes_are_removed_at_the_next_start_or_upload(
    make_services, make_client, tmp_path: Path
):
    folder = tmp_path / "uploads"
    folder.mkdir()
    old, young, other = folder / "upload-old", folder / "upload-young", folder / "mine"
    for path in (old, young, other):
        path.write_bytes(b"x")
    long_ago = time.time() - 3 * 86_400
    os.utime(old, (long_ago, long_ago))
    os.utime(other, (long_ago, long_ago))
    client = make_client(make_services())
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "upload-young"]
    os.utime(young, (long_ago, long_ago))
    assert upload(client).status_code == 201
    assert [path.name for path in folder.iterdir()] == ["mine"]
