"""Reading one label file: rows `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass

import numpy as np

from utils.text import printable, shown

# An annotation tool that rounds to six digits can end a hair outside the image: such a value is clipped, silently wrong
# by less than a pixel. Anything further out is a mistake that cannot be guessed.
OVERSHOOT = 1e-3
MIN_BOX_SIDE = 1e-6  # share of the image; no image is large enough for a smaller box to hold a pixel
MAX_CLASS = 1 << 24  # up to here a float32 holds every whole number
# The most crowded public sets have some 26 000 boxes in an image. Assigning boxes to cells takes memory and time by
# their number, and what goes beyond is no label file but an accident.
MAX_ROWS = 30_000
MAX_LABEL_BYTES = 16 << 20
MAX_ROW_CHARACTERS = 1 << 18
MAX_ISSUES = 1000

COLUMNS = "wrong column count"
NOT_A_NUMBER = "not a number"
NEGATIVE_CLASS = "negative class"
CLASS_TOO_LARGE = "class out of range"
OUT_OF_RANGE = "coordinates out of range"
CLIPPED = "coordinates clipped"
ZERO_SIZE = "zero-size box"
DUPLICATE = "duplicate row"
MORE = "more bad rows"
# Of a whole file: what is in the image is not known then, so the image is left out.
UNREADABLE_LABELS = "unreadable label file"
NOT_TEXT = "label file is no text"
TOO_MANY = "too many labels"
LABEL_FAULTS = frozenset({UNREADABLE_LABELS, NOT_TEXT, TOO_MANY})


@dataclass(frozen=True, slots=True, eq=False)
class ParsedLabels:
    """Contents of a label file.

    Attributes:
        labels: float32 (n, 5) rows [class, cx, cy, w, h], in the file's order.
        lines: int32 (n,), the line each row stands on, from 1.
        segments: () or one polygon (k, 2) for each row.
        issues: (line, kind, detail) of each row that was mended or dropped; of a file that cannot be used, line 0 and
            one of LABEL_FAULTS alone.
    """

    labels: np.ndarray
    lines: np.ndarray
    segments: tuple[np.ndarray, ...]
    issues: tuple[tuple[int, str, str], ...]


class _BadRow(Exception):
    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def label_path(image_path: str) -> str:
    """The label file of an image: the last /images/ of the path becomes /labels/, and the suffix .txt."""
    stem = os.path.splitext(image_path)[0]
    head, found, tail = stem.rpartition(f"{os.sep}images{os.sep}")
    return (f"{head}{os.sep}labels{os.sep}{tail}" if found else stem) + ".txt"


def parse_labels(content: bytes) -> ParsedLabels:
    """Reads a label file's bytes, whatever they are. A bad row is left out and noted; the good rows stay.

    Coordinates up to 1e-3 outside [0, 1] are clipped and noted. A row that repeats an earlier one is left out. A class
    must be a whole number of at least 0; whether the data set has so many classes is not known here.
    """
    if len(content) > MAX_LABEL_BYTES:
        return unusable_labels(UNREADABLE_LABELS, f"{len(content)} bytes, at most {MAX_LABEL_BYTES} are read")
    text = _decode(content)
    if text is None:
        return unusable_labels(NOT_TEXT, "it holds zero bytes")
    rows: list[tuple[float, ...]] = []
    lines: list[int] = []
    polygons: list[np.ndarray | None] = []
    seen: set[object] = set()
    issues: list[tuple[int, str, str]] = []
    num_rows = num_issues = 0
    for line, row_text in enumerate(io.StringIO(text, newline=None), 1):
        if row_text.isspace():
            continue
        num_rows += 1
        if num_rows > MAX_ROWS:
            return unusable_labels(TOO_MANY, f"more than {MAX_ROWS} rows")
        try:
            row, polygon, clipped = _read_row(row_text, seen)
        except _BadRow as bad:
            num_issues += 1
            if num_issues <= MAX_ISSUES:
                issues.append((line, bad.kind, f"{bad}; row left out"))
            continue
        if clipped:
            num_issues += 1
            if num_issues <= MAX_ISSUES:
                issues.append((line, CLIPPED, "less than 0.001 outside the image"))
        rows.append(row)
        lines.append(line)
        polygons.append(polygon)
    if num_issues > MAX_ISSUES:
        issues.append((line, MORE, f"{num_issues - MAX_ISSUES} rows up to this one, left out or clipped"))
    labels = np.array(rows, np.float32).reshape(-1, 5)
    return ParsedLabels(labels, np.array(lines, np.int32), _segments(labels, polygons), tuple(issues))


def unusable_labels(kind: str, why: str) -> ParsedLabels:
    """What is known of a label file that cannot be used: nothing, and why."""
    issues = ((0, kind, f"{why}; the image is left out"),)
    return ParsedLabels(np.zeros((0, 5), np.float32), np.zeros(0, np.int32), (), issues)


def _decode(content: bytes) -> str | None:
    """The text of a label file: UTF-8, or UTF-16 with its mark, as some editors write it; None for no text."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16", errors="replace")
    else:
        text = content.decode("utf-8-sig", errors="replace")
    return None if "\0" in text else text


def _read_row(text: str, seen: set[object]) -> tuple[tuple[float, ...], np.ndarray | None, bool]:
    """A row's label, its polygon if it is one, and whether it was clipped; raises _BadRow. Adds to `seen`."""
    values = _numbers(text)
    # The floats of a polygon take four times the memory of its numbers.
    key: object = values if len(values) == 5 else (np.array(values) + 0.0).tobytes()
    if key in seen:
        raise _BadRow(DUPLICATE, "the row stands in the file already")
    seen.add(key)
    clipped = _clip(values)
    row, polygon = _polygon_row(clipped) if len(clipped) > 5 else (clipped, None)
    if not (row[3] >= MIN_BOX_SIDE and row[4] >= MIN_BOX_SIDE):
        raise _BadRow(ZERO_SIZE, f"width {row[3]:g}, height {row[4]:g}")
    return row, polygon, clipped != values


def _numbers(text: str) -> tuple[float, ...]:
    if len(text) > MAX_ROW_CHARACTERS:
        raise _BadRow(COLUMNS, f"{len(text)} characters, more than {MAX_ROW_CHARACTERS}")
    tokens = text.split()
    if len(tokens) < 5 or len(tokens) % 2 == 0:
        hint = " (a prediction with its confidence?)" if len(tokens) == 6 else ""
        raise _BadRow(COLUMNS, f"{len(tokens)} columns{hint}, expected 5, or 7 and more for a polygon")
    try:
        values = tuple(map(float, tokens))
    except ValueError:
        wrong = next(token for token in tokens if not _is_number(token))
        raise _BadRow(NOT_A_NUMBER, f"{shown(wrong)} among the values") from None
    if "_" in text:  # which Python takes between digits
        raise _BadRow(NOT_A_NUMBER, "an underscore among the values")
    if not all(map(math.isfinite, values)):
        raise _BadRow(NOT_A_NUMBER, "nan or inf among the values")
    if values[0] != int(values[0]):
        raise _BadRow(NOT_A_NUMBER, f"class {printable(tokens[0], 40)} is not a whole number")
    if values[0] < 0:
        raise _BadRow(NEGATIVE_CLASS, f"class {printable(tokens[0], 40)}")
    if values[0] > MAX_CLASS:
        raise _BadRow(CLASS_TOO_LARGE, f"class {printable(tokens[0], 40)}")
    return values


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _clip(values: tuple[float, ...]) -> tuple[float, ...]:
    low, high = min(values[1:]), max(values[1:])
    if low >= 0 and high <= 1:
        return values
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        worst = low if low < -OVERSHOOT else high
        hint = "; are these pixels?" if high > 2 else ""
        raise _BadRow(OUT_OF_RANGE, f"{worst:g} is outside 0...1{hint}")
    return (values[0], *(min(max(value, 0.0), 1.0) for value in values[1:]))


def _polygon_row(values: tuple[float, ...]) -> tuple[tuple[float, ...], np.ndarray]:
    """The bounding box of a polygon as a label row, and the polygon, (k, 2)."""
    x, y = values[1::2], values[2::2]
    box = ((min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y))
    return (values[0], *box), np.array([x, y], np.float32).T.copy()


def _segments(labels: np.ndarray, polygons: list[np.ndarray | None]) -> tuple[np.ndarray, ...]:
    if all(polygon is None for polygon in polygons):
        return ()
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]], np.float32)
    return tuple(
        (label[1:3] + corners * label[3:5]).astype(np.float32) if polygon is None else polygon
        for label, polygon in zip(labels, polygons, strict=True)
    )
