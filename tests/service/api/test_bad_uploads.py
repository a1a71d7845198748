"""Files that cannot be datasets: each a clear refusal, nothing is stored and nothing is left lying about."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from service.api.services import Services
from tests.service.api.world import problem, row_counts

FORM = {"content-type": "multipart/form-data; boundary=b"}
CSV = b"x,target\n1,0\n2,1\n"


def npz(**arrays: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return sink.getvalue()


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


def lying_header() -> bytes:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    return npz(x=b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64)


def evil_pickle() -> bytes:
    class Evil:
        def __reduce__(self):
            return (eval, ("__import__('os').mkdir('/tmp/hyperdial-was-here')",))

    sink = io.BytesIO()
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    sink.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps(Evil()))
    return npz(x=sink.getvalue(), target=npy(np.array([0])))


CASES = {
    "an empty file": ("csv", b""),
    "a header without rows": ("csv", b"x,target\n"),
    "rows of different lengths": ("csv", b"x,target\n1,2\n3\n"),
    "a table that is no text": ("csv", b"\xff\xfe\x00\x01" * 100),
    "no Parquet": ("parquet", CSV),
    "a cut Parquet": ("parquet", b"PAR1" + b"\0" * 100 + b"PAR1"),
    "no archive": ("npz", b"PK nonsense"),
    "an empty archive": ("npz", npz()),
    "pickled objects": ("npz", npz(x=npy(np.array([{"a": 1}], dtype=object)), target=npy(np.array([0])))),
    "an evil pickle": ("npz", evil_pickle()),
    "a header that lies": ("npz", lying_header()),
    "an svmlight index of 0 or less": ("svmlight", b"1 -1:0.5\n"),
    "svmlight without numbers": ("svmlight", b"one two:three\n"),
    "svmlight indices that fall": ("svmlight", b"1 3:1 2:1\n"),
    "an archive of arrays for one of images": ("zip-images", npz(x=npy(np.zeros(3)))),
    "no safetensors": ("safetensors", CSV),
    "a safetensors header without an end": ("safetensors", b"\xff" * 8 + b"{}"),
    "images in no archive": ("zip-images", b"\x89PNG\r\n\x1a\n"),
}


@pytest.mark.parametrize(("kind", "content"), list(CASES.values()), ids=list(CASES))
def test_a_file_that_cannot_be_used_is_refused(
    client: TestClient, services: Services, tmp_path: Path, kind: str, content: bytes
):
    before = row_counts(services)
    response = client.post("/v1/datasets", files={"file": ("a", content)}, data={"format": kind})
    found = problem(response, 422, "invalid-spec")
    assert found["errors"][0]["pointer"] == "/file"
    assert row_counts(services) == before
    assert list(services.files.keys()) == []
    assert list((tmp_path / "uploads").iterdir()) == []
    assert not Path("/tmp/hyperdial-was-here").exists()


def test_a_zip_bomb_is_refused_before_it_goes_off(make_services, make_client):
    services = make_services(unpacked_limit_bytes=2**20)
    client = make_client(services)
    bomb = npz(x=npy(np.zeros(2**21)), target=npy(np.zeros(2**21)))
    assert len(bomb) < 2**17
    response = client.post("/v1/datasets", files={"file": ("a.npz", bomb)}, data={"format": "npz"})
    found = problem(response, 422, "invalid-spec")
    assert found["errors"][0]["pointer"] == "/file"
    assert row_counts(services)["datasets"] == 0


def test_a_file_over_the_limit_is_refused(make_services, make_client, tmp_path: Path):
    services = make_services(upload_limit_bytes=1000)
    client = make_client(services)
    response = client.post("/v1/datasets", files={"file": ("a.csv", b"x" * 1001)}, data={"format": "csv"})
    found = problem(response, 413, "body-too-large")
    assert "1,000" in found["detail"]
    assert list((tmp_path / "uploads").iterdir()) == []
    announced = client.post("/v1/datasets", files={"file": ("a.csv", b"x" * 200_000)}, data={"format": "csv"})
    problem(announced, 413, "body-too-large")
    assert row_counts(services)["datasets"] == 0


def part(name: bytes, content: bytes, extra: bytes = b"") -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="' + name + b'"' + extra + b"\r\n\r\n" + content + b"\r\n"


FILE = part(b"file", CSV, b'; filename="a.csv"')
FORMAT = part(b"format", b"csv")
END = b"--b--\r\n"


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        (FORMAT + END, "/file"),
        (FILE + END, "/format"),
        (FILE + part(b"format", b"exe") + END, "/format"),
        (FILE + FORMAT + part(b"name", b"") + END, "/name"),
        (FILE + FORMAT + part(b"name", b"a\x00b") + END, "/name"),
        (FILE + FORMAT + part(b"name", b"\xff\xfe") + END, "/name"),
        (FILE + FORMAT + part(b"name", b"x" * 201) + END, "/name"),
        (FILE + FORMAT + part(b"name", b"x" * 5000) + END, "/name"),
        (FILE + FORMAT + FORMAT + END, "/format"),
        (FILE + FILE + FORMAT + END, "/file"),
        (FILE + FORMAT + part(b"sha256", b"short") + END, "/sha256"),
        (FILE + FORMAT + part(b"target", b"y") + END, ""),
    ],
)
def test_a_wrong_form_is_refused_where_it_is_wrong(
    client: TestClient, services: Services, tmp_path: Path, raw: bytes, pointer: str
):
    before = row_counts(services)
    found = problem(client.post("/v1/datasets", content=raw, headers=FORM), 422, "invalid-spec")
    assert found["errors"][0]["pointer"] == pointer
    assert row_counts(services) == before
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("raw", "media", "status", "kind"),
    [
        (FILE + FORMAT, FORM["content-type"], 400, "malformed-body"),
        (FILE[:40], FORM["content-type"], 400, "malformed-body"),
        (b"nonsense", FORM["content-type"], 400, "malformed-body"),
        (b"", FORM["content-type"], 400, "malformed-body"),
        (part(b"name", b"x") * 20 + END, FORM["content-type"], 422, "invalid-spec"),
        (FILE + FORMAT + END, "multipart/form-data", 400, "malformed-body"),
        (FILE + FORMAT + END, "multipart/mixed; boundary=b", 415, "unsupported-media-type"),
        (CSV, "text/csv", 415, "unsupported-media-type"),
        (b"{}", "application/json", 415, "unsupported-media-type"),
    ],
)
def test_a_form_that_is_none_is_refused(
    client: TestClient, services: Services, raw: bytes, media: str, status: int, kind: str
):
    before = row_counts(services)
    problem(client.post("/v1/datasets", content=raw, headers={"content-type": media}), status, kind)
    assert row_counts(services) == before
