"""Archives of images: what is in them, and what is refused before it is decoded."""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.image_task import ImageTask, read_image_task
from service.inspection import DatasetFormat, InspectionLimits, UnusableFile, inspect, preview
from service.records import ColumnType, DatasetRecord
from service.spec.data import DataSpec
from service.spec.models import Denoiser, Loss
from service.task import read_task
from workers.data.describe import describe
from workers.data.errors import BadData
from workers.data.images import centre, read_image_headers, read_images
from workers.data.load import load

LIMIT = 1 << 24


def pixels(height: int = 12, width: int = 10, *, colour: bool = False, seed: int = 0) -> np.ndarray:
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    sink = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(sink, kind)
    return sink.getvalue()


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def record(path: Path) -> DatasetRecord:
    found = describe(path, "zip-images", limit_bytes=LIMIT)
    return DatasetRecord(
        id="ds_1",
        name="images",
        format="zip-images",
        rows=found.rows,
        columns=tuple(found.columns),
        is_sparse=False,
        nonzeros=None,
        sha256="",
        size_bytes=path.stat().st_size,
        key="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_images_are_found_in_the_order_of_their_paths(tmp_path: Path):
    images = {name: pixels(seed=i) for i, name in enumerate(["b/2.png", "a/9.png", "b/10.png"])}
    path = archive(tmp_path / "a.zip", {name: encoded(each) for name, each in images.items()})
    found = read_image_headers(path, limit_bytes=LIMIT)
    assert [header.member for header in found.headers] == ["a/9.png", "b/10.png", "b/2.png"]
    assert [header.folder for header in found.headers] == ["a", "b", "b"]
    decoded = list(read_images(path, found.headers, height=12, width=10))
    for header, each in zip(found.headers, decoded, strict=True):
        assert np.array_equal(each, images[header.member])


def test_an_archive_is_columns_of_pixels_and_folders(tmp_path: Path):
    files = {f"{part}/deep/{i}.png": encoded(pixels(seed=i)) for part in ("train", "valid") for i in range(3)}
    found = describe(archive(tmp_path / "a.zip", files), "zip-images", limit_bytes=LIMIT)
    assert (found.rows, found.is_sparse) == (6, False)
    image, folder = found.columns
    assert (image.name, image.type, image.shape, image.missing) == ("image", ColumnType.INTEGER, (12, 10), 0)
    assert (folder.name, folder.type, folder.values) == ("folder", ColumnType.TEXT, {"train": 3, "valid": 3})


def test_colour_is_a_last_axis_and_images_without_folders_have_no_such_column(tmp_path: Path):
    files = {f"{i}.jpg": encoded(pixels(colour=True), "JPEG") for i in range(2)}
    found = describe(archive(tmp_path / "a.zip", files), "zip-images", limit_bytes=LIMIT)
    assert [(column.name, column.shape) for column in found.columns] == [("image", (12, 10, 3))]


def test_what_computers_leave_in_archives_is_passed_over(tmp_path: Path):
    left = {"__MACOSX/a/._1.png": b"x", "a/.DS_Store": b"x", "a/Thumbs.db": b"x", "a/": b""}
    path = archive(tmp_path / "a.zip", {**left, "a/1.png": encoded(pixels())})
    assert len(read_image_headers(path, limit_bytes=LIMIT).headers) == 1


def test_images_of_several_sizes_are_as_large_as_their_common_middle(tmp_path: Path):
    files = {"1.png": encoded(pixels(12, 10)), "2.png": encoded(pixels(9, 15))}
    path = archive(tmp_path / "a.zip", files)
    columns = {column.name: column for column in describe(path, "zip-images", limit_bytes=LIMIT).columns}
    assert columns["image"].shape == (9, 10)
    assert columns["height"].values == {12: 1, 9: 1} or columns["height"].values == {"12": 1, "9": 1}
    assert set(columns) == {"image", "height", "width"}
    first, second = read_images(path, read_image_headers(path, limit_bytes=LIMIT).headers, height=8, width=8)
    assert np.array_equal(first, pixels(12, 10)[2:10, 1:9])
    assert np.array_equal(second, pixels(9, 15)[0:8, 3:11])


def test_the_middle_is_the_middle():
    assert np.array_equal(centre(pixels(5, 7), 3, 3), pixels(5, 7)[1:4, 2:5])
    assert np.array_equal(centre(pixels(5, 7), 5, 7), pixels(5, 7))


def test_images_of_several_sizes_are_for_denoisers_that_crop(tmp_path: Path):
    files = {f"{i}.png": encoded(pixels(12 + i % 2, 10)) for i in range(8)}
    dataset = record(archive(tmp_path / "a.zip", files))
    data = DataSpec(dataset="ds_1", target="image")
    refused = read_image_task(data, dataset, Denoiser())
    assert isinstance(refused, list)
    assert [(each.pointer, "at most 10" in each.detail) for each in refused] == [("/model/crop", True)]
    task = read_image_task(data, dataset, Denoiser(crop=8))
    assert isinstance(task, ImageTask)
    assert task.shape == (8, 8)
    other = read_task(DataSpec(dataset="ds_1", target="height"), dataset, loss=Loss.CROSS_ENTROPY)
    assert isinstance(other, list)
    assert other[0].pointer == "/data/dataset"


def test_a_linear_model_can_tell_folders_apart(tmp_path: Path):
    files = {f"{part}/{i}.png": encoded(pixels(3, 2, seed=i)) for part in ("ash", "elm") for i in range(6)}
    path = archive(tmp_path / "a.zip", files)
    loaded = load(
        DataSpec(dataset="ds_1", target="folder", standardize=False),
        record(path),
        path,
        loss=Loss.CROSS_ENTROPY,
        seed=0,
    )
    assert loaded.x.shape == (12, 6)
    assert loaded.class_names == ("ash", "elm")
    assert isinstance(loaded.x, np.ndarray)
    assert np.array_equal(loaded.x[0], pixels(3, 2, seed=0).reshape(-1).astype(float))
    assert loaded.y.tolist() == [0] * 6 + [1] * 6


GREY = encoded(pixels())
REFUSED = {
    "no image": ({"a.png": b"hello"}, "no image"),
    "another kind of file": ({"a.png": GREY, "read.me": b"text"}, "no image"),
    "another kind of image": ({"a.gif": encoded(pixels(), "GIF")}, "no image"),
    "grey and colour": ({"a.png": GREY, "b.png": encoded(pixels(colour=True))}, "in colour"),
    "transparency": ({"a.png": encoded(pixels(colour=True), mode="RGBA")}, "mode RGBA"),
    "a palette": ({"a.png": encoded(pixels(), mode="P")}, "mode P"),
    "two tones": ({"a.png": encoded(pixels(), mode="1")}, "mode 1"),
    "16 bits": ({"a.png": encoded(pixels().astype(np.uint16))}, "mode I;16"),
    "CMYK": ({"a.jpg": encoded(pixels(colour=True), "JPEG", mode="CMYK")}, "mode CMYK"),
    "too many pixels": ({"a.png": png_that_claims(100_000, 1_000)}, "pixels"),
    "absurdly many pixels": ({"a.png": png_that_claims(2**31 - 1, 2**31 - 1)}, "pixels"),
    "too much in all": ({f"{i}.png": png_that_claims(4096, 4095) for i in range(2)}, "Decoded"),
    "a damaged image": ({"a.png": GREY[:-30]}, "damaged"),
    "pixels that are missing": ({"a.png": png_that_claims(64, 64)}, "damaged"),
    "a cut header": ({"a.png": GREY[:20]}, "no image"),
    "nothing": ({}, "no images"),
    "only folders": ({"a/": b""}, "no images"),
    "a way out": ({"../a.png": GREY}, "leads out"),
    "a way to the root": ({"/a.png": GREY}, "leads out"),
    "a way out in the middle": ({"a/../../b.png": GREY}, "leads out"),
    "too long a path": ({"a" * 300 + ".png": GREY}, "256"),
    "a path that cannot be printed": ({"a\x07.png": GREY}, "printable"),
    "too large unpacked": ({"a.png": GREY, "b.png": b"\0" * (LIMIT + 1)}, "Unpacked"),
}


@pytest.mark.parametrize(("files", "reason"), list(REFUSED.values()), ids=list(REFUSED))
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, files: dict[str, bytes], reason: str):
    path = archive(tmp_path / "a.zip", files)
    with pytest.raises(BadData, match=reason):
        describe(path, "zip-images", limit_bytes=LIMIT)


def test_no_archive_an_encrypted_one_and_one_that_names_a_file_twice_are_refused(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK nonsense")
    with pytest.raises(BadData, match="no zip"):
        describe(tmp_path / "a.zip", "zip-images", limit_bytes=LIMIT)
    path = archive(tmp_path / "b.zip", {"a.png": GREY})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the directory
    path.write_bytes(content)
    with pytest.raises(BadData, match="encrypted"):
        describe(path, "zip-images", limit_bytes=LIMIT)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as target:
        target.writestr("a.png", GREY)
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("a.png", GREY)
    with pytest.raises(BadData, match="Two files"):
        describe(tmp_path / "c.zip", "zip-images", limit_bytes=LIMIT)


def test_a_checksum_that_does_not_match_is_a_damaged_archive(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        target.writestr("a.png", GREY)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadData, match="damaged"):
        describe(path, "zip-images", limit_bytes=LIMIT)


def test_the_service_looks_into_archives_through_its_limited_process(tmp_path: Path):
    path = archive(tmp_path / "a.zip", {f"x/{i}.png": encoded(pixels(seed=i)) for i in range(3)})
    limits = InspectionLimits(unpacked_bytes=LIMIT, memory_bytes=4 << 30, cpu_seconds=60, wall_seconds=90.0)
    found = inspect(path, DatasetFormat.ZIP_IMAGES, limits=limits)
    assert (found.rows, found.columns[0].shape) == (3, (12, 10))
    shown = preview(path, DatasetFormat.ZIP_IMAGES, rows=2, limits=limits)
    assert shown["columns"] == ["image", "folder"]
    assert shown["rows"] == [["0.png, 12 × 10", "x"], ["1.png, 12 × 10", "x"]]
    archive(tmp_path / "b.zip", {"a.png": png_that_claims(4096, 4097)})
    with pytest.raises(UnusableFile, match="Decoded"):
        inspect(tmp_path / "b.zip", DatasetFormat.ZIP_IMAGES, limits=limits)
