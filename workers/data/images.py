"""Zip archives of PNG and JPEG images: what their headers claim is checked before anything is decoded."""

import io
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.data.errors import BadData
from workers.data.tables import LONGEST_NAME

Pixels = NDArray[np.uint8]
_Number = TypeVar("_Number", bound=np.generic)

IMAGE: Final = "image"
FOLDER: Final = "folder"
HEIGHT, WIDTH = "height", "width"
"""What the columns of an archive are called; the last two are there only where images differ in size."""

MOST_IMAGES: Final = 100_000
MOST_PIXELS: Final = 1 << 26
"""Of one image: 8,192 × 8,192."""
LARGEST_FILE: Final = 1 << 28
"""Bytes of one image as it is packed by PNG or JPEG."""

_CHANNELS: Final = {"L": 1, "RGB": 3}
_FORMATS: Final = ("PNG", "JPEG")
_ENCRYPTED: Final = 0x1
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class ImageHeader:
    """What an image in an archive claims to be."""

    member: str
    """Its path in the archive."""
    height: int
    width: int
    channels: int
    """1 or 3."""

    @property
    def folder(self) -> str:
        """The folder at the top of the archive that it lies in; empty if it lies in none."""
        first, slash, _ = self.member.partition("/")
        return first if slash else ""


@dataclass(frozen=True)
class Archive:
    """All images of an archive in the order of their paths."""

    headers: tuple[ImageHeader, ...]

    @property
    def smallest(self) -> tuple[int, int]:
        """The least height and the least width: what every image has in its middle."""
        return min(header.height for header in self.headers), min(header.width for header in self.headers)

    @property
    def is_mixed(self) -> bool:
        """Whether images differ in size."""
        return len({(header.height, header.width) for header in self.headers}) > 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of an image of the smallest size: (height, width), or (height, width, 3) in colour."""
        return self.smallest if self.headers[0].channels == 1 else (*self.smallest, 3)


def read_image_headers(path: Path, *, limit_bytes: int) -> Archive:
    """Return what the images of an archive claim to be, without decoding one.

    Folders themselves, and what macOS and file managers leave in archives, are passed over.

    Raises:
        BadData: the file is no zip archive, holds something else, or more than may be taken.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, limit_bytes=limit_bytes)
            headers = tuple(_header(archive, member) for member in members)
    except _DAMAGED as error:
        raise BadData("The file could not be read as a zip archive of images: it is no zip, or damaged.") from error
    total = sum(header.height * header.width * header.channels for header in headers)
    if total > limit_bytes:
        raise BadData(f"Decoded, the images need {total:,} bytes, at most {limit_bytes:,} are taken.")
    for header in headers:
        if header.channels != headers[0].channels:
            first, other = ("grey", "in colour") if header.channels == 3 else ("in colour", "grey")
            raise BadData(
                f"{_shown(headers[0].member)} is {first} and {_shown(header.member)} {other}: "
                f"make all images grey, or all RGB."
            )
    return Archive(headers)


def read_images(path: Path, headers: Sequence[ImageHeader], *, height: int, width: int) -> Iterator[Pixels]:
    """Yield the middle of each image, uint8 [height, width] or [height, width, 3], in the order of `headers`.

    Raises:
        BadData: an image is damaged, or smaller than that.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for header in headers:
                pixels = _decoded(archive, header)
                if header.height < height or header.width < width:
                    raise BadData(f"{_shown(header.member)} is smaller than {height} × {width} pixels.")
                yield centre(pixels, height, width)
    except _DAMAGED as error:
        raise BadData("The archive is damaged: its bytes do not match their checksums.") from error


def centre(pixels: NDArray[_Number], height: int, width: int) -> NDArray[_Number]:
    """Return the middle of an image [h, w, …]; where it cannot be, half a pixel towards its upper left."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _members(archive: zipfile.ZipFile, *, limit_bytes: int) -> list[zipfile.ZipInfo]:
    everything = archive.infolist()
    if len(everything) > 2 * MOST_IMAGES:  # macOS doubles them
        raise BadData(f"The archive has {len(everything):,} entries, at most {MOST_IMAGES:,} images are taken.")
    members = sorted((member for member in everything if not _is_left_over(member)), key=lambda each: each.filename)
    if not members:
        raise BadData("The archive holds no images: PNG and JPEG files are taken.")
    if len(members) > MOST_IMAGES:
        raise BadData(f"The archive holds {len(members):,} files, at most {MOST_IMAGES:,} images are taken.")
    unpacked = sum(member.file_size for member in members)
    if unpacked > limit_bytes:
        raise BadData(f"Unpacked, the archive needs {unpacked:,} bytes, at most {limit_bytes:,} are taken.")
    before = None
    for member in members:
        name = member.filename
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise BadData(f"A path in the archive needs at most {LONGEST_NAME} printable characters.")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise BadData(f"{_shown(name)} leads out of the archive: paths are relative, with / between folders.")
        if name == before:
            raise BadData(f"Two files of the archive are called {_shown(name)}.")
        before = name
        if member.flag_bits & _ENCRYPTED:
            raise BadData("The archive is encrypted.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadData(f"{_shown(name)} is packed in an unusual way: stored and deflated files are taken.")
        if member.file_size > LARGEST_FILE:
            raise BadData(f"{_shown(name)} has {member.file_size:,} bytes, at most {LARGEST_FILE:,} are taken.")
    return members


def _is_left_over(member: zipfile.ZipInfo) -> bool:
    *folders, name = member.filename.split("/")
    return member.is_dir() or name.startswith(".") or name in ("Thumbs.db", "desktop.ini") or "__MACOSX" in folders[:1]


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ImageHeader:
    name = member.filename
    with archive.open(member) as stream, _opened(stream.read(), name) as image:
        width, height = image.size
        channels = _CHANNELS.get(image.mode)
        if channels is None:
            raise BadData(f"{_shown(name)} is of mode {image.mode}: grey images of 8 bits (L) and RGB are taken.")
        if getattr(image, "n_frames", 1) != 1:
            raise BadData(f"{_shown(name)} is animated: single images are taken.")
    if width * height > MOST_PIXELS:
        raise BadData(f"{_shown(name)} has {width:,} × {height:,} pixels, at most {MOST_PIXELS:,} are taken.")
    return ImageHeader(name, height, width, channels)


def _decoded(archive: zipfile.ZipFile, header: ImageHeader) -> Pixels:
    content = archive.read(header.member)
    with _opened(content, header.member) as image:
        try:
            pixels = np.asarray(image, dtype=np.uint8)
        # A decoder that meets damaged bytes raises whatever its format's reader happened to stumble over.
        except (OSError, ValueError, SyntaxError, IndexError, zlib.error) as error:
            raise BadData(f"{_shown(header.member)} is damaged and cannot be decoded.") from error
    expected = (header.height, header.width) if header.channels == 1 else (header.height, header.width, 3)
    if pixels.shape != expected:
        raise BadData(f"{_shown(header.member)} is not what its header says.")
    return pixels


def _opened(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is above ours, which is looked at next.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadData(f"{_shown(name)} has more than {MOST_PIXELS:,} pixels.") from error
    except (OSError, ValueError, SyntaxError) as error:  # UnidentifiedImageError is an OSError
        raise BadData(f"{_shown(name)} is no image: PNG and JPEG files are taken.") from error


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"…{name[-79:]}")
