"""The header of a JPEG file: its size, which way up it is meant, and whether a decoder can find fault with it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from data.decoding.tiff_header import UPRIGHT, exif_orientation

JPEG = b"\xff\xd8\xff"
END_OF_JPEG = b"\xff\xd9"

_BASELINE = frozenset({0xC0, 0xC1})  # and extended, which differs in nothing that matters here
_FRAMES = _BASELINE | {0xC2}  # and progressive
_QUANTIZATION, _HUFFMAN, _SCAN, _END, _EXIF = 0xDB, 0xC4, 0xDA, 0xD9, 0xE1
_HARMLESS = frozenset({0xDD, 0xFE, *range(0xE0, 0xF0)})  # restarts, comments, of applications
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a segment
_NEEDED = _FRAMES | {_QUANTIZATION, _HUFFMAN, _SCAN, _EXIF}
_MOST_SEGMENTS = 10_000  # a file has a dozen


class JpegHeader(NamedTuple):
    """Width and height in pixels as they are stored, the EXIF orientation, and whether the file must be decodable."""

    width: int
    height: int
    orientation: int
    sound: bool


def read_jpeg_header(stream: BinaryIO) -> JpegHeader | None:
    """Reads what stands before the pixels.

    It is `sound` if the file is baseline with one scan, and all its tables are in order: a decoder then reads the
    pixels, whatever they are. In any doubt it is not.

    Returns:
        The header, or None for a file that is no JPEG of 8 bits a channel.
    """
    if stream.read(2) != JPEG[:2]:
        return None
    orientation = UPRIGHT
    frame: tuple[int, bytes] | None = None
    quantization: set[int] = set()
    huffman: set[int] = set()
    sound = True
    for marker, segment in _segments(stream):
        if marker == _EXIF and segment.startswith(b"Exif\0\0"):
            orientation = exif_orientation(segment[6:])
        elif marker in _FRAMES:
            sound = sound and frame is None
            frame = marker, segment
        elif marker == _QUANTIZATION:
            sound = sound and _read_quantization(segment, quantization)
        elif marker == _HUFFMAN:
            sound = sound and _read_huffman(segment, huffman)
        elif marker == _SCAN and frame:
            sound = sound and frame[0] in _BASELINE and _is_sound_scan(segment, frame[1], quantization, huffman)
            return _header(frame[1], orientation, sound)
        elif marker not in _HARMLESS:
            sound = False
    return _header(frame[1], orientation, False) if frame else None


def _segments(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Marker and content of the segments up to the first scan; of those that are not needed, no content."""
    for _ in range(_MOST_SEGMENTS):
        prefix, marker = stream.read(1), stream.read(1)
        if prefix != b"\xff" or not marker or marker[0] == _END:
            return
        if marker == b"\xff":  # padding
            stream.seek(-1, 1)
            continue
        if marker[0] in _ALONE:
            yield marker[0], b""
            continue
        length = int.from_bytes(stream.read(2), "big") - 2
        if length < 0:
            return
        if marker[0] not in _NEEDED:
            stream.seek(length, 1)
            yield marker[0], b""
            continue
        segment = stream.read(length)
        if len(segment) < length:
            return
        yield marker[0], segment
        if marker[0] == _SCAN:
            return


def _header(frame: bytes, orientation: int, sound: bool) -> JpegHeader | None:
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3, 4):
        return None
    height, width = struct.unpack(">HH", frame[1:5])
    return JpegHeader(width, height, orientation, sound) if width and height else None


def _read_quantization(segment: bytes, known: set[int]) -> bool:
    """Adds the numbers of the tables to `known`; False where the segment is not in order."""
    while segment:
        precision, number = divmod(segment[0], 16)
        length = 1 + 64 * (precision + 1)
        if precision > 1 or number > 3 or len(segment) < length:
            return False
        known.add(number)
        segment = segment[length:]
    return True


def _read_huffman(segment: bytes, known: set[int]) -> bool:
    """Adds the classes and numbers of the tables, such as 0x11, to `known`; False where the segment is not in order."""
    while segment:
        counts, length = segment[1:17], 17 + sum(segment[1:17])
        if segment[0] & ~0x11 or len(segment) < length or sum(counts) > 256:
            return False
        code = 0
        for bits, count in enumerate(counts, 1):
            code += count
            if code > (1 << bits) - (count > 0):  # the code of ones alone is not allowed
                return False
            code <<= 1
        if segment[0] < 16 and any(symbol > 11 for symbol in segment[17:length]):
            return False
        known.add(segment[0])
        segment = segment[length:]
    return True


def _is_sound_scan(scan: bytes, frame: bytes, quantization: set[int], huffman: set[int]) -> bool:
    """Whether one scan holds all components of the frame, by tables that are there."""
    count = frame[5] if len(frame) > 5 else 0
    if len(frame) != 6 + 3 * count or len(scan) != 4 + 2 * count or scan[0] != count:
        return False
    for component in range(count):
        name, sampling, table = frame[6 + 3 * component : 9 + 3 * component]
        across, down = divmod(sampling, 16)
        if across not in (1, 2, 4) or down not in (1, 2, 4) or table not in quantization:
            return False
        same_name, tables = scan[1 + 2 * component : 3 + 2 * component]
        if same_name != name or tables >> 4 not in huffman or 0x10 | tables & 15 not in huffman or tables > 0xFF:
            return False
    names = frame[6::3]
    blocks = sum((sampling >> 4) * (sampling & 15) for sampling in frame[7::3])
    return len({*names}) == count and (count == 1 or blocks <= 10) and scan[-3:] == b"\0\x3f\0"
