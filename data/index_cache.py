"""The checked files of a data set, kept beside its labels so that the next run need not check them again.

The cache is an .npz file of plain arrays and JSON text: nothing in it is ever unpickled. An entry counts only while the
image has the size and modification time, and the label file the very bytes, that were checked. Whatever else is wrong
with a cache file, the worst that happens is that the data set is checked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.label_rows import label_path
from utils.logging import LOGGER

FORMAT_VERSION = 1
DIGEST_SIZE = 16
NO_LABEL_FILE = bytes(DIGEST_SIZE)

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


def digest(content: bytes) -> bytes:
    """16 bytes that stand for a label file's content."""
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest()


def cache_locations(sources: Sequence[Path]) -> list[Path]:
    """Where the cache of these sources may lie, best first: beside the labels folder or the list, then in ~/.cache."""
    first = Path(os.path.abspath(sources[0]))
    beside = first if first.suffix == ".txt" else Path(label_path(f"{first}{os.sep}x.jpg")).parent
    key = hashlib.sha256("\n".join(os.path.abspath(source) for source in sources).encode()).hexdigest()[:12]
    name = f"{beside.name}.index.cache" if len(sources) == 1 else f"{beside.name}.{key}.index.cache"
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return [beside.with_name(name), home / "yolo-distill" / "index" / f"{key}.index.cache"]


def read_cache(sources: Sequence[Path]) -> dict[str, CheckedImage]:
    """The entries of the first readable cache by image path; empty when there is none."""
    for location in cache_locations(sources):
        try:
            with np.load(location, allow_pickle=False) as arrays:
                return _unpack({name: arrays[name] for name in arrays.files})
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as error:
            LOGGER.info(f"{location}: not used ({error}); the data set is checked again")
    return {}


def write_cache(sources: Sequence[Path], entries: Sequence[CheckedImage]) -> Path | None:
    """Writes the cache at the first place that can be written; None when there is no such place."""
    arrays = _pack(entries)
    for location in cache_locations(sources):
        temporary = location.with_name(f"{location.name}.{os.getpid()}.tmp")
        try:
            location.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, location)
            return location
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return None


def _pack(entries: Sequence[CheckedImage]) -> dict[str, np.ndarray]:
    polygons = [segment for entry in entries for segment in entry.segments]
    header = {
        "version": FORMAT_VERSION,
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


def _unpack(arrays: dict[str, np.ndarray]) -> dict[str, CheckedImage]:
    header = json.loads(arrays["header"].tobytes().decode("utf-8", "surrogateescape"))
    if header["version"] != FORMAT_VERSION:
        raise ValueError(f"format {header['version']}, expected {FORMAT_VERSION}")
    paths, issues = header["paths"], header["issues"]
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
            issues=tuple((line, kind, detail) for line, kind, detail in issues.get(str(i), ())),
        )
    return entries


def _split(rows: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Cuts an array into pieces of the given lengths."""
    ends = np.cumsum(counts).tolist()
    if (ends[-1] if ends else 0) != len(rows):
        raise ValueError("the lengths do not add up")
    return [rows[start:end] for start, end in zip([0, *ends], ends)]
