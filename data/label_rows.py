"""Reading one label file: rows `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

# An annotation tool that rounds to six digits can end a hair outside the image: such a value is clipped, silently wrong
# by less than a pixel. Anything further out is a mistake that cannot be guessed.
OVERSHOOT = 1e-3

COLUMNS = "wrong column count"
NOT_A_NUMBER = "not a number"
NEGATIVE_CLASS = "negative class"
OUT_OF_RANGE = "coordinates out of range"
CLIPPED = "coordinates clipped"
ZERO_SIZE = "zero-size box"
DUPLICATE = "duplicate row"


@dataclass(frozen=True, slots=True, eq=False)
class ParsedLabels:
    """Contents of a label file.

    Attributes:
        labels: float32 (n, 5) rows [class, cx, cy, w, h], in the file's order.
        lines: int32 (n,), the line each row stands on, from 1.
        segments: () or one polygon (k, 2) for each row.
        issues: (line, kind, detail) of each row that was mended or dropped.
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
    """Reads a label file's bytes. A bad row is left out and noted; the good rows stay.

    Coordinates up to 1e-3 outside [0, 1] are clipped and noted. A row that repeats an earlier one is left out. A class
    must be a whole number of at least 0; whether the data set has so many classes is not known here.
    """
    rows: list[tuple[float, ...]] = []
    lines: list[int] = []
    polygons: list[np.ndarray | None] = []
    seen: set[tuple[float, ...]] = set()
    issues: list[tuple[int, str, str]] = []
    for line, text in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), 1):
        tokens = text.split()
        if not tokens:
            continue
        try:
            values = _numbers(tokens)
            if values in seen:
                raise _BadRow(DUPLICATE, "the row stands in the file already")
            seen.add(values)
            clipped = _clip(values)
            row, polygon = _polygon_row(clipped) if len(clipped) > 5 else (clipped, None)
            if not (row[3] > 0 and row[4] > 0):
                raise _BadRow(ZERO_SIZE, f"width {row[3]:g}, height {row[4]:g}")
        except _BadRow as bad:
            issues.append((line, bad.kind, f"{bad}; row left out"))
            continue
        if clipped != values:
            issues.append((line, CLIPPED, "less than 0.001 outside the image"))
        rows.append(row)
        lines.append(line)
        polygons.append(polygon)
    labels = np.array(rows, np.float32).reshape(-1, 5)
    return ParsedLabels(labels, np.array(lines, np.int32), _segments(labels, polygons), tuple(issues))


def _numbers(tokens: list[str]) -> tuple[float, ...]:
    if len(tokens) < 5 or len(tokens) % 2 == 0:
        hint = " (a prediction with its confidence?)" if len(tokens) == 6 else ""
        raise _BadRow(COLUMNS, f"{len(tokens)} columns{hint}, expected 5, or 7 and more for a polygon")
    try:
        values = tuple(map(float, tokens))
    except ValueError as error:
        raise _BadRow(NOT_A_NUMBER, str(error)) from None
    if not all(map(math.isfinite, values)):
        raise _BadRow(NOT_A_NUMBER, "nan or inf among the values")
    if values[0] != int(values[0]):
        raise _BadRow(NOT_A_NUMBER, f"class {tokens[0]} is not a whole number")
    if values[0] < 0:
        raise _BadRow(NEGATIVE_CLASS, f"class {tokens[0]}")
    return values


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
