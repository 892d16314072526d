"""What the header of an image file says: its size, which way up it is meant, whether the file ends where it should."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from data.decoding.jpeg_header import END_OF_JPEG, JPEG, read_jpeg_header
from data.decoding.tiff_header import HEIGHT, ORIENTATION, TIFF_ORDERS, UPRIGHT, WIDTH, exif_orientation, read_tiff_tags

PNG = b"\x89PNG\r\n\x1a\n"

_MOST_CHUNKS = 10_000  # before the pixels; a file has a dozen


class Header(NamedTuple):
    """Width and height in pixels as they are stored, and the EXIF orientation: 1 to 8, or 0 where it is in doubt."""

    width: int
    height: int
    orientation: int


def read_header(content: bytes) -> Header | None:
    """The header of a JPEG, PNG, WebP, TIFF or BMP file; None for anything else, and for a damaged one."""
    try:
        if content.startswith(JPEG):
            jpeg = read_jpeg_header(BytesIO(content))
            return Header(jpeg.width, jpeg.height, jpeg.orientation) if jpeg else None
        if content.startswith(PNG):
            exif = next((part for kind, part in _png_chunks(content) if kind == b"eXIf"), b"")
            width, height = struct.unpack_from(">II", content, 16)
            return Header(width, height, exif_orientation(exif) if exif else UPRIGHT)
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            exif = next((part for kind, part in _webp_chunks(content) if kind == b"EXIF"), b"")
            exif = exif.removeprefix(b"Exif\0\0")
            width, height = _webp_size(content)
            return Header(width, height, exif_orientation(exif) if exif else UPRIGHT)
        if content[:4] in TIFF_ORDERS:
            tags = read_tiff_tags(content)
            return Header(tags[WIDTH], tags[HEIGHT], tags.get(ORIENTATION, UPRIGHT))
        if content.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", content, 18)
            return Header(abs(width), abs(height), UPRIGHT)
    except (struct.error, KeyError, IndexError):
        pass
    return None


def is_cut_short(content: bytes) -> bool:
    """Whether the end of a JPEG, PNG or WebP file is missing."""
    if content.startswith(JPEG):
        return len(content) > 100 and END_OF_JPEG not in content[-4096:]
    if content.startswith(PNG):
        return len(content) > 100 and b"IEND" not in content[-4096:]
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return len(content) < int.from_bytes(content[4:8], "little") + 8
    return False


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the chunks before the pixels."""
    position = 8
    for _ in range(_MOST_CHUNKS):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind in (b"IDAT", b"IEND"):
            return
        yield kind, content[position + 8 : position + 8 + length]
        position += 12 + length


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    for _ in range(_MOST_CHUNKS):
        if position + 8 > len(content):
            return
        kind, length = struct.unpack_from("<4sI", content, position)
        yield kind, content[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _webp_size(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF
