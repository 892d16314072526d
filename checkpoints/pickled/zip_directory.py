"""The directory of a zip file as PyTorch writes it, read strictly: one way to understand a file, and no other.

General zip readers look for a directory in several places and believe what they find; two of them may see different
contents in one file, and one of them may take a directory of any size into memory. Here every entry must lie by itself,
uncompressed, between the start of the file and its directory.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from utils.text import shown

MAX_ENTRIES = 100_000  # the largest published checkpoints have a few thousand
MAX_DIRECTORY_BYTES = 32 << 20
ZIP_END = b"PK\x05\x06"
_END = struct.Struct("<4s4H2LH")  # signature, disks and counts, bytes and place of the directory, bytes of the comment
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_LOCATOR_MARK, _END64_MARK, _ENTRY_MARK, _HEADER_MARK = b"PK\x06\x07", b"PK\x06\x06", b"PK\x01\x02", b"PK\x03\x04"
_LONGEST_COMMENT = (1 << 16) - 1
_IN_EXTRA = 0xFFFFFFFF  # a size or place that stands in the entry's extra field
_SIZES_EXTRA = 1
_UTF8 = 1 << 11
_ENCRYPTED = 1


class ZipError(Exception):
    """A zip file that contradicts itself, or that PyTorch would not write."""


class CutShort(ZipError):
    """The file ends before its directory does."""


@dataclass(frozen=True)
class ZipEntry:
    """One file in a zip file.

    Attributes:
        name: with its folders.
        start: of its header, in bytes from the start of the file.
        size: bytes.
        checksum: CRC-32 of its bytes.
        stored: it lies in the file as it is, neither compressed nor encrypted.
        encrypted: only a password would open it.
    """

    name: str
    start: int
    size: int
    checksum: int
    stored: bool
    encrypted: bool


def read_directory(stream: BinaryIO, file_size: int) -> list[ZipEntry]:
    """All entries of a zip file, in the order of its directory.

    Args:
        stream: the file.
        file_size: its bytes.

    Raises:
        ZipError: it contradicts itself, or has more entries than any checkpoint.
    """
    start, size, count = _find_directory(stream, file_size)
    if size > MAX_DIRECTORY_BYTES:
        raise ZipError(f"its zip directory of {size} bytes is larger than any checkpoint's")
    if count > MAX_ENTRIES:
        raise ZipError(f"{count} entries, at most {MAX_ENTRIES} are read")
    if count * _ENTRY.size > size or start < 0:
        raise ZipError("its zip directory is larger than the place that it has")
    stream.seek(start)
    content = stream.read(size)
    entries, position = [], 0
    for _ in range(count):
        entry, position = _read_entry(content, position)
        entries.append(entry)
    if position != size:
        raise ZipError("its zip directory holds more than its entries")
    _check_places(entries, start)
    return entries


def _find_directory(stream: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """(start, bytes, number of entries) of the directory, which lies before the records that end the file."""
    stream.seek(max(file_size - _LONGEST_COMMENT - _END.size - _LOCATOR.size - _END64.size, 0))
    tail_start = stream.tell()
    tail = stream.read()
    end = tail.rfind(ZIP_END)
    while end >= 0 and end + _END.size + _comment(tail, end) != len(tail):
        end = tail.rfind(ZIP_END, 0, end)
    if end < 0:
        raise CutShort("the zip directory at its end is missing")
    *_, count, size, place, _ = _END.unpack_from(tail, end)
    locator, record = end - _LOCATOR.size, end - _LOCATOR.size - _END64.size
    if locator >= 0 and tail.startswith(_LOCATOR_MARK, locator):
        if record < 0 or not tail.startswith(_END64_MARK, record):
            raise ZipError("its zip directory has no place")
        *_, count, size, place = _END64.unpack_from(tail, record)
        end = record
    start = tail_start + end - size
    if size <= MAX_DIRECTORY_BYTES and place != start:
        raise ZipError("its zip directory is not where it should be")
    return start, size, count


def _comment(tail: bytes, end: int) -> int:
    """Bytes of the comment behind a record that ends a file; of one that is cut, more than any file has."""
    return int(_END.unpack_from(tail, end)[-1]) if end + _END.size <= len(tail) else 1 << 16


def _read_entry(content: bytes, position: int) -> tuple[ZipEntry, int]:
    """The entry at a position of the directory, and the position of the next one."""
    if position + _ENTRY.size > len(content) or not content.startswith(_ENTRY_MARK, position):
        raise ZipError("its zip directory has an entry that is none")
    _, _, _, flags, method, _, _, checksum, packed, size, name, extra, comment, _, _, _, start = _ENTRY.unpack_from(
        content, position
    )
    begin = position + _ENTRY.size
    following = begin + name + extra + comment
    if following > len(content):
        raise ZipError("its zip directory is cut short")
    raw = content[begin : begin + name]
    try:
        text = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise ZipError("its zip directory has a name that is no text") from error
    size, packed, start = _large_values(content[begin + name : begin + name + extra], (size, packed, start))
    encrypted = bool(flags & _ENCRYPTED)
    return ZipEntry(text, start, size, checksum, method == 0 and size == packed, encrypted), following


def _large_values(extra: bytes, values: tuple[int, int, int]) -> list[int]:
    """Size, packed size and place of an entry, those beyond 32 bits from its extra field."""
    found: list[int] = []
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _SIZES_EXTRA:
            part = extra[position + 4 : position + 4 + length]
            found = list(struct.unpack_from(f"<{len(part) // 8}Q", part))
            break
        position += 4 + length
    if values.count(_IN_EXTRA) > len(found):
        raise ZipError("its zip directory has an entry without a size")
    rest = iter(found)
    return [next(rest) if value == _IN_EXTRA else value for value in values]


def _check_places(entries: list[ZipEntry], end: int) -> None:
    """Refuses entries that share bytes, or that reach into the directory.

    Compressed and encrypted ones are not read; whoever needs them refuses them by that.
    """
    free = 0
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start < free:
            raise ZipError(f"its entries claim more than the bytes up to the next one, {shown(entry.name)}")
        free = entry.start + _HEADER.size + (entry.size if entry.stored else 0)
    if free > end:
        raise ZipError(f"its entries claim more than the {end} bytes that they have")


def read_stored(stream: BinaryIO, entry: ZipEntry) -> bytearray:
    """The bytes of a stored entry, checked against its checksum.

    Raises:
        ZipError: they are not there, or others.
    """
    stream.seek(entry.start)
    header = stream.read(_HEADER.size)
    if len(header) != _HEADER.size or not header.startswith(_HEADER_MARK):
        raise ZipError("its header is missing")
    *_, name, extra = _HEADER.unpack(header)
    stream.seek(name + extra, io.SEEK_CUR)
    content = bytearray(entry.size)
    view, position = memoryview(content), 0
    while position < entry.size and (count := stream.readinto(view[position:])):  # type: ignore[attr-defined]
        position += count
    if position != entry.size:
        raise ZipError(f"{position} of {entry.size} bytes are there")
    if zlib.crc32(content) != entry.checksum:
        raise ZipError("its bytes do not have its checksum")
    return content
