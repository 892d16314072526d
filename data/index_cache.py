"""The checked files of a data set, kept beside its labels so that the next run need not check them again.

The cache is an .npz file of plain arrays and JSON text: nothing in it is ever unpickled. An entry counts only while the
image has the size and modification time, and the label file the very bytes, that were checked; and the cache as a whole
only for the OpenCV that could read the images. Whatever else is wrong with a cache file, the worst that happens is that
the data set is checked again: all is validated, and nothing takes more memory than a small multiple of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from data.decoding.files import open_regular
from data.decoding.images import MIN_SIDE, NO_MEMORY
from data.label_rows import LABEL_FAULTS, MAX_CLASS, MIN_BOX_SIDE, label_path
from utils.logging import LOGGER
from utils.paths import remove_dead_drafts, replacing
from utils.text import printable, shown_path

FORMAT_VERSION = 2
DIGEST_SIZE = 16
NO_LABEL_FILE = bytes(DIGEST_SIZE)
# What a cache may have in bytes, beyond which the files are rather checked again.
MAX_BYTES, MAX_BYTES_PER_IMAGE = 16 << 20, 64 << 10
MAX_IMAGE_SIDE = 1 << 20  # of OpenCV
MAX_TEXT = 1000

# Name of each array: its type, and the length of a row (None for single values).
ARRAYS: dict[str, tuple[str, int | None]] = {
    "header": ("|u1", None),
    "stamps": ("<i8", 2),
    "digests": ("|u1", DIGEST_SIZE),
    "sizes": ("<i4", 2),
    "num_labels": ("<i8", None),
    "labels": ("<f4", 5),
    "lines": ("<i4", None),
    "num_segments": ("<i8", None),
    "num_points": ("<i8", None),
    "points": ("<f4", 2),
}

Issue = tuple[int, str, str]  # line (0 for the image), kind, detail


@dataclass(frozen=True, slots=True, eq=False)
class CheckedImage:
    """One image and its label file as they were found, whatever the number of classes.

    Attributes:
        path: the image.
        stamp: its size in bytes and its modification time in ns.
        label_digest: of the label file's bytes; zeros without a label file.
        width: pixels, 0 when the image cannot be used.
        height: pixels, likewise.
        labels: float32 (n, 5).
        lines: int32 (n,), the line of each label.
        segments: () or n polygons.
        issues: what was found wrong; line 0 is the image itself.
    """

    path: str
    stamp: tuple[int, int]
    label_digest: bytes
    width: int
    height: int
    labels: np.ndarray
    lines: np.ndarray
    segments: tuple[np.ndarray, ...]
    issues: tuple[Issue, ...]

    @property
    def has_usable_labels(self) -> bool:
        """Whether its label file, if there is one, could be read as a whole."""
        return not any(line == 0 and kind in LABEL_FAULTS for line, kind, _ in self.issues)


def digest(content: bytes) -> bytes:
    """16 bytes that stand for a label file's content."""
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest()


def cache_locations(sources: Sequence[Path]) -> list[Path]:
    """Where the cache of these sources may lie, best first: beside the labels folder or the list, then in ~/.cache."""
    first = Path(os.path.abspath(sources[0]))
    beside = first if first.suffix == ".txt" else Path(label_path(f"{first}{os.sep}x.jpg")).parent
    key = hashlib.sha256(os.fsencode("\n".join(os.path.abspath(source) for source in sources))).hexdigest()[:12]
    name = f"{beside.name}.index.cache" if len(sources) == 1 else f"{beside.name}.{key}.index.cache"
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return [beside.with_name(name), home / "yolo-distill" / "index" / f"{key}.index.cache"]


def read_cache(sources: Sequence[Path], num_images: int) -> dict[str, CheckedImage]:
    """The entries of the first readable cache by image path; empty when there is none, whatever the files hold.

    Args:
        sources: of the images.
        num_images: how many images there are; a file that is far too long for them is not read.
    """
    limit = MAX_BYTES + num_images * MAX_BYTES_PER_IMAGE
    for location in cache_locations(sources):
        try:
            with open_regular(location) as stream:
                return _unpack(_read_arrays(stream, limit))
        except FileNotFoundError:
            continue
        except Exception as error:  # the file may be damaged in any way, and made to do harm
            why = printable(error, 100) or type(error).__name__
            LOGGER.info(f"{shown_path(location)}: not used ({why}); the data set is checked again")
    return {}


def write_cache(sources: Sequence[Path], entries: Sequence[CheckedImage]) -> Path | None:
    """Writes the cache at the first place that can be written; None when there is no such place."""
    arrays = _pack([entry for entry in entries if not any(kind == NO_MEMORY for _, kind, _ in entry.issues)])
    for location in cache_locations(sources):
        with contextlib.suppress(OSError):
            location.parent.mkdir(parents=True, exist_ok=True)
            remove_dead_drafts(location.parent)
            with replacing(location, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            return location
    return None


def _pack(entries: Sequence[CheckedImage]) -> dict[str, np.ndarray]:
    polygons = [segment for entry in entries for segment in entry.segments]
    header = {
        "version": FORMAT_VERSION,
        "opencv": cv2.__version__,
        "paths": [entry.path for entry in entries],
        "issues": {str(i): entry.issues for i, entry in enumerate(entries) if entry.issues},
    }
    return {
        "header": np.frombuffer(json.dumps(header).encode("utf-8", "surrogateescape"), np.uint8),
        "stamps": np.array([entry.stamp for entry in entries], np.int64).reshape(-1, 2),
        "digests": np.frombuffer(b"".join(entry.label_digest for entry in entries), np.uint8).reshape(-1, DIGEST_SIZE),
        "sizes": np.array([(entry.width, entry.height) for entry in entries], np.int32).reshape(-1, 2),
        "num_labels": np.array([len(entry.labels) for entry in entries], np.int64),
        "labels": np.concatenate([np.zeros((0, 5), np.float32), *(entry.labels for entry in entries)]),
        "lines": np.concatenate([np.zeros(0, np.int32), *(entry.lines for entry in entries)]),
        "num_segments": np.array([len(entry.segments) for entry in entries], np.int64),
        "num_points": np.array([len(polygon) for polygon in polygons], np.int64),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *polygons]),
    }


def _read_arrays(stream: BinaryIO, limit: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz file as `write_cache` makes it. Any Exception where it is another one."""
    size = os.fstat(stream.fileno()).st_size
    if size > limit:
        raise ValueError(f"{size} bytes, more than {limit}")
    with zipfile.ZipFile(stream) as archive:
        members = [archive.getinfo(f"{name}.npy") for name in ARRAYS]
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise ValueError("compressed or encrypted")
        if sum(member.file_size for member in members) > size:
            raise ValueError("members longer than the file")
        return {name: _read_array(archive.read(member), *ARRAYS[name]) for name, member in zip(ARRAYS, members)}


def _read_array(content: bytes, dtype: str, row: int | None) -> np.ndarray:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another version")
    shape, by_columns, found = np.lib.format.read_array_header_1_0(stream)
    start = stream.tell()
    expected = (shape[0],) if row is None else (shape[0], row)
    if by_columns or found != np.dtype(dtype) or shape != expected or shape[0] < 0:
        raise ValueError(f"an array of {found} {shape}")
    if math.prod(shape) * found.itemsize != len(content) - start:
        raise ValueError("an array of another length")
    return np.frombuffer(content, found, offset=start).reshape(shape).copy()


def _unpack(arrays: dict[str, np.ndarray]) -> dict[str, CheckedImage]:
    header = json.loads(arrays["header"].tobytes())
    for key, expected in (("version", FORMAT_VERSION), ("opencv", cv2.__version__)):
        if header[key] != expected:
            raise ValueError(f"{key} {header[key]}, expected {expected}")
    paths = header["paths"]
    issues = _checked_issues(header["issues"], len(paths))
    _check_values(paths, arrays)
    labels = _split(arrays["labels"], arrays["num_labels"])
    lines = _split(arrays["lines"], arrays["num_labels"])
    polygons = _split(arrays["points"], arrays["num_points"])
    stamps, sizes, digests = arrays["stamps"].tolist(), arrays["sizes"].tolist(), arrays["digests"].tobytes()
    ends = np.cumsum(arrays["num_segments"]).tolist()
    starts = [0, *ends]
    entries = {}
    for i, path in enumerate(paths):
        entries[path] = CheckedImage(
            path=path,
            stamp=(stamps[i][0], stamps[i][1]),
            label_digest=digests[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE],
            width=sizes[i][0],
            height=sizes[i][1],
            labels=labels[i],
            lines=lines[i],
            segments=tuple(polygons[starts[i] : ends[i]]),
            issues=issues.get(i, ()),
        )
    return entries


def _checked_issues(issues: dict[str, Any], num_images: int) -> dict[int, tuple[Issue, ...]]:
    checked = {}
    for key, rows in issues.items():
        for line, kind, detail in rows:
            if type(line) is not int or line < 0 or type(kind) is not str or type(detail) is not str:
                raise ValueError("an issue of another form")
            if max(len(kind), len(detail)) > MAX_TEXT or not kind.isprintable():
                raise ValueError("an issue that is too long, or of no kind")
        if not 0 <= int(key) < num_images:
            raise ValueError("an issue of no image")
        checked[int(key)] = tuple((line, kind, detail) for line, kind, detail in rows)
    return checked


def _check_values(paths: Any, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError where the values are none that checking files can give."""
    sizes, labels, points = arrays["sizes"], arrays["labels"], arrays["points"]
    num_labels, num_segments = arrays["num_labels"], arrays["num_segments"]
    per_image = ("stamps", "digests", "sizes", "num_labels", "num_segments")
    usable = (sizes >= MIN_SIDE).all(1) & (sizes <= MAX_IMAGE_SIDE).all(1)
    classes, boxes = labels[:, 0], labels[:, 1:]
    sound = {
        "paths": isinstance(paths, list) and all(type(path) is str for path in paths) and len({*paths}) == len(paths),
        "lengths": all(len(arrays[name]) == len(paths) for name in per_image),
        "sizes": (usable | (sizes == 0).all(1)).all(),
        "counts": (num_labels >= 0).all() and (num_labels <= len(labels)).all() and (arrays["num_points"] >= 3).all(),
        "classes": ((classes >= 0) & (classes <= MAX_CLASS) & (classes == np.floor(classes))).all(),
        "boxes": ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] >= MIN_BOX_SIDE / 2).all(),
        "lines": (arrays["lines"] >= 1).all(),
        "points": ((points >= -0.51) & (points <= 1.51)).all(),  # a plain box among polygons may reach outside
    }
    wrong = next((name for name, holds in sound.items() if not holds), None)
    if wrong:
        raise ValueError(f"wrong {wrong}")
    if num_labels[~usable].any() or not ((num_segments == 0) | (num_segments == num_labels)).all():
        raise ValueError("labels or segments that belong to nothing")
    if num_segments.sum() != len(arrays["num_points"]):
        raise ValueError("the segments do not add up")


def _split(rows: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Cuts an array into pieces of the given lengths."""
    if counts.size and counts.max() > len(rows):
        raise ValueError("a length beyond the end")
    ends = np.cumsum(counts).tolist()
    if (ends[-1] if ends else 0) != len(rows):
        raise ValueError("the lengths do not add up")
    return [rows[start:end] for start, end in zip([0, *ends], ends)]
