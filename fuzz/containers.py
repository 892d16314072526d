"""Mutations of binary containers: PyTorch's zip archive and its older stream, and numpy's .npz."""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable

import numpy as np

from fuzz.contents import mutate_content
from fuzz.pickles import mutate_pickle, split_pickle
from fuzz.scalars import LARGEST_INPUT, flipped_bytes, mutate_value

Entries = list[tuple[str, bytes]]

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PICKLES = 5  # magic number, protocol, system, content, storage keys
SIGNATURES = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06")
HEADER_SIZES = (30, 46, 22)
NAMES = (
    "archive/../x", "/etc/x", "archive\\x", "archive/data.pkl", "archive/data/0", "archive/byteorder",
    "archive/constants.pkl", "archive/code/x.py", "other/x", "", "archive/", "archive/\x1b[31m",
    "archive/" + "x" * 300, "header.npy", "\u65e5.npy",
)  # fmt: skip
DTYPES = (
    "|u1",
    "<i8",
    "<f4",
    "<f8",
    ">f4",
    "<i4",
    "|b1",
    "|O",
    "<U4",
    "|S3",
    "<M8[ns]",
    "<c8",
    "|V8",
    "<f2",
    "|i1",
    "<u8",
)


def mutate_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """A checkpoint file whose pickle, storages or container were changed."""
    if data.startswith(LEGACY_MAGIC):
        return _mutate_legacy(data, rng)
    entries = _entries(data)
    if not entries:
        return flipped_bytes(data, rng)
    kind = rng.randrange(12)
    if kind < 3 and (changed := mutate_content(data, rng)) is not None:
        return changed
    if kind < 7:
        index = next((i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")), 0)
        entries[index] = entries[index][0], mutate_pickle(entries[index][1], rng)
        return _zipped(entries)
    if kind < 9:
        _mutate_entries(entries, rng, _mutated_storage)
        return _zipped(entries, rng)
    return _mutated_directory(data if rng.random() < 0.5 else _zipped(entries), rng)


def mutate_cache(data: bytes, rng: random.Random) -> bytes:
    """An .npz file whose arrays, their headers or the container were changed."""
    entries = _entries(data)
    if not entries:
        return flipped_bytes(data, rng)
    if rng.random() < 0.8:
        _mutate_entries(entries, rng, _mutated_array)
        return _zipped(entries, rng)
    return _mutated_directory(data, rng)


def _entries(data: bytes) -> Entries:
    """Names and contents of a zip file's entries; none where it cannot be read, or is far too large unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > 16 * LARGEST_INPUT:
                return []
            return [(info.filename, archive.read(info)) for info in infos]
    except Exception:  # whatever the zip reader says of a file that was mutated before
        return []


def _zipped(entries: Entries, rng: random.Random | None = None) -> bytes:
    packed = rng is not None and rng.random() < 0.05
    stream = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore")  # of two entries by one name
        for name, content in entries:
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode("utf-8"))  # no surrogates; a fixed date
            info.compress_type = archive.compression
            archive.writestr(info, content)
    return stream.getvalue()


def _mutate_entries(entries: Entries, rng: random.Random, change: Callable[[bytes, random.Random], bytes]) -> None:
    place, kind = rng.randrange(len(entries)), rng.randrange(10)
    name, content = entries[place]
    if kind < 6:
        entries[place] = name, change(content, rng)
    elif kind == 6:
        del entries[place]
    elif kind == 7:
        entries[place] = rng.choice(NAMES), content
    elif kind == 8:
        entries.insert(place, (rng.choice((name, *NAMES)), content))
    else:
        other = rng.randrange(len(entries))
        entries[place], entries[other] = (name, entries[other][1]), (entries[other][0], content)


def _mutated_storage(content: bytes, rng: random.Random) -> bytes:
    odd = rng.choice(
        (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff" * 8, b"\0" * 4, b"\0\0\0\0\0\0\xf8\x7f", b"\xff\xff\x7f\x7f")
    )
    place = rng.randrange(len(content) // 4 + 1) * 4
    changed = (
        content[:place] + odd + content[place + len(odd) :], content[:place], content + odd, b"", content * 2,
        flipped_bytes(content, rng), odd * (len(content) // len(odd)), b"big",
    )  # fmt: skip
    return rng.choice(changed)


def _mutated_array(content: bytes, rng: random.Random) -> bytes:
    """A .npy file whose numbers, JSON text, shape or type were changed."""
    kind = rng.randrange(6)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # mutated before
        return flipped_bytes(content, rng)
    if array.dtype == np.uint8 and array.tobytes()[:1] in b"{[" and kind < 4:
        try:
            text = json.dumps(mutate_value(json.loads(array.tobytes()), rng), default=str)
        except (ValueError, TypeError, RecursionError):
            return flipped_bytes(content, rng)
        return _saved(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
    if kind < 2 and array.size and array.dtype.kind in "iuf":
        changed = array.copy()
        odd = (0, 1, 2, 255) if array.dtype.kind == "u" else (0, 1, -1, 2, 100, 1 << 30, -(1 << 31))
        floats = (np.nan, np.inf, -np.inf, 1e38, 0.0, -0.5, 1.5)
        changed.flat[rng.randrange(array.size)] = rng.choice(floats if array.dtype.kind == "f" else odd)
        return _saved(changed)
    if kind == 2:
        changes = (
            array[:-1],
            array[1:],
            array[..., None],
            array.ravel(),
            array[:0],
            np.concatenate([array, array]),
            array.T,
        )
        return _saved(np.ascontiguousarray(rng.choice(changes))) if array.ndim else flipped_bytes(content, rng)
    if kind == 3:
        return _saved(array.astype(rng.choice(("f4", "f8", "i4", "i8", "u1", "?", "U8", "f2"))))
    if kind == 4:
        shape = rng.choice(
            ("()", "(1,)", "(0, 5)", "(-1, 5)", "(1 << 40,)", f"({1 << 40},)", "(2, 5, 1)", "(1.5,)", "((1,),)")
        )
        return _npy_header(rng.choice((array.dtype.str, *DTYPES)), shape, rng) + array.tobytes()
    return flipped_bytes(content, rng)


def _saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npy_header(dtype: str, shape: str, rng: random.Random) -> bytes:
    text = (
        f"{{'descr': {dtype!r}, 'fortran_order': {rng.choice(('False', 'True', '0'))}, 'shape': {shape}, }}\n".encode()
    )
    return b"\x93NUMPY" + rng.choice((b"\x01\x00", b"\x01\x00", b"\x03\x00")) + struct.pack("<H", len(text)) + text


def _mutated_directory(data: bytes, rng: random.Random) -> bytes:
    """A zip file with one field of a local header, of the directory or of its end changed."""
    content = bytearray(data)
    signature, size = rng.choice(list(zip(SIGNATURES, HEADER_SIZES)))
    places = []
    place = content.find(signature)
    while place >= 0:
        places.append(place)
        place = content.find(signature, place + 1)
    if not places:
        return flipped_bytes(data, rng)
    at = rng.choice(places) + rng.randrange(4, size, 2)
    width = rng.choice((2, 4))
    (old,) = struct.unpack_from("<H" if width == 2 else "<L", content.ljust(at + 4, b"\0"), at)
    new = rng.choice((0, 1, 8, old + 1, max(old - 1, 0), old * 2, len(data), 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    content[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    if rng.random() < 0.1:
        content += rng.choice((b"\0" * 22, b"PK\x05\x06" + b"\0" * 18, b"PK\x06\x07" + b"\0" * 16, b"x"))
    return bytes(content)


def _mutate_legacy(data: bytes, rng: random.Random) -> bytes:
    """The older stream with one of its pickles, or its storages, changed."""
    parts, rest = [], data
    for _ in range(LEGACY_PICKLES):
        instructions, following = split_pickle(rest)
        parts.append(rest[: len(rest) - len(following)])
        rest = following
    kind = rng.randrange(10)
    if kind < 8:
        place = 3 if kind < 6 else rng.randrange(1, len(parts))
        parts[place] = mutate_pickle(parts[place], rng)
    elif kind == 8:
        rest = _mutated_storage(rest, rng)
    else:
        return flipped_bytes(data, rng)
    return b"".join(parts) + rest
