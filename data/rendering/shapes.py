"""Shapes of the built-in data set, and a rasteriser whose result is the same on every machine.

All arithmetic on pixels is on integers. A shape is a list of polygons around the origin in a unit of 1/1000 of its
radius; each is painted with a tone over the ones before it: BODY and DETAIL are two colours, HOLE shows the ground.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

HOLE, BODY, DETAIL = 0, 1, 2
RADIUS = 1000
FIXED = 16  # vertices are given in sixteenths of a sample

Point = tuple[int, int]
Shape = list[tuple[int, Sequence[Point]]]


def fill_polygon(tones: np.ndarray, vertices: np.ndarray, tone: int) -> None:
    """Sets every sample whose centre lies inside a polygon, by the even-odd rule.

    Args:
        tones: uint8 (h, w), written in place.
        vertices: integers (n, 2), x and y in sixteenths of a sample from the upper left corner of `tones`.
        tone: the value to write.
    """
    half = FIXED // 2
    x1, y1 = vertices.T[:, :, None]  # (n, 1)
    x2, y2 = np.roll(vertices, -1, axis=0).T[:, :, None]
    top, bottom = max(int(y1.min()) // FIXED, 0), min(int(y1.max()) // FIXED + 1, len(tones))
    left, right = max(int(x1.min()) // FIXED, 0), min(int(x1.max()) // FIXED + 1, tones.shape[1])
    if bottom <= top or right <= left:
        return
    y = np.arange(top, bottom) * FIXED + half  # centres of the rows
    edges, rows = np.nonzero((y1 <= y) != (y2 <= y))  # the edges that a row crosses
    x = x1[edges, 0] + (y[rows] - y1[edges, 0]) * (x2 - x1)[edges, 0] // (y2 - y1)[edges, 0]
    columns = np.minimum(np.maximum(-((half - x) // FIXED) - left, 0), right - left)
    num_columns = right - left + 1
    counts = np.bincount(rows * num_columns + columns, minlength=(bottom - top) * num_columns)
    crossings = (counts & 1).astype(np.bool_).reshape(bottom - top, num_columns)
    inside = np.logical_xor.accumulate(crossings[:, :-1], axis=1)
    tones[top:bottom, left:right][inside] = tone


def circle(radius: int, x: int = 0, y: int = 0, corners: int = 32) -> list[Point]:
    """A circle as a polygon."""
    return [(x + px, y + py) for px, py in (_polar(radius, i, corners) for i in range(corners))]


def star(points: int, inner: int) -> list[Point]:
    """A star of outer radius 1000."""
    return [_polar((RADIUS, inner)[i % 2], i, 2 * points) for i in range(2 * points)]


def rectangle(x1: int, y1: int, x2: int, y2: int) -> list[Point]:
    """An upright rectangle."""
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _polar(radius: int, step: int, steps: int) -> Point:
    angle = 2 * math.pi * step / steps
    # The offset is not quite a half, so that the last digit of a library's cosine never decides.
    return math.floor(radius * math.cos(angle) + 0.5001), math.floor(radius * math.sin(angle) + 0.5001)


def _gear(num_holes: int) -> Shape:
    teeth = 8
    body = [_polar((RADIUS, RADIUS, 740, 740)[i % 4], i, 4 * teeth) for i in range(4 * teeth)]
    if num_holes == 1:
        return [(BODY, body), (HOLE, circle(320))]
    centres = (_polar(400, i, num_holes) for i in range(num_holes))
    return [(BODY, body), *((HOLE, circle(190, x, y, 16)) for x, y in centres)]


def _ring(gap: bool) -> Shape:
    parts: Shape = [(BODY, circle(RADIUS, corners=48)), (HOLE, circle(580))]
    if gap:
        parts.append((HOLE, rectangle(200, -230, 1100, 230)))
    return parts


def _arrow(double: bool) -> Shape:
    head = [(350, -520), (1000, 0), (350, 520)]
    shaft = rectangle(-400 if double else -1000, -190, 400, 190)
    parts: Shape = [(BODY, shaft), (BODY, head)]
    if double:
        parts.append((BODY, [(-x, y) for x, y in head]))
    return parts


def _key() -> Shape:
    return [
        (BODY, circle(420, -580, 0)),
        (HOLE, circle(200, -580, 0, 16)),
        (BODY, rectangle(-220, -110, 1000, 110)),
        (BODY, rectangle(450, 100, 630, 400)),
        (BODY, rectangle(800, 100, 980, 340)),
    ]


def _cross() -> Shape:
    return [(BODY, rectangle(-1000, -300, 1000, 300)), (BODY, rectangle(-300, -1000, 300, 1000))]


def _board(across: bool) -> Shape:
    parts: Shape = [(BODY, rectangle(-1000, -600, 1000, 600))]
    if across:
        return parts + [(DETAIL, rectangle(x, -600, x + 250, 600)) for x in (-875, -375, 125, 625)]
    return parts + [(DETAIL, rectangle(-1000, y, 1000, y + 200)) for y in (-500, -100, 300)]


# Pairs that differ in a detail: points, holes, a gap, a second head, the direction of stripes.
OBJECTS: dict[str, Callable[[], Shape]] = {
    "star5": lambda: [(BODY, star(5, 450))],
    "star7": lambda: [(BODY, star(7, 560))],
    "gear1": lambda: _gear(1),
    "gear3": lambda: _gear(3),
    "ring": lambda: _ring(False),
    "ring_gap": lambda: _ring(True),
    "arrow": lambda: _arrow(False),
    "arrow2": lambda: _arrow(True),
    "key": _key,
    "cross": _cross,
    "plank": lambda: _board(False),
    "ladder": lambda: _board(True),
}

# Clutter that is no object: each shares an outline or a part with some of them.
DISTRACTORS: dict[str, Callable[[], Shape]] = {
    "disc": lambda: [(BODY, circle(RADIUS))],
    "triangle": lambda: [(BODY, [_polar(RADIUS, i, 3) for i in range(3)])],
    "bar": lambda: [(BODY, rectangle(-1000, -170, 1000, 170))],
    "board": lambda: [(BODY, rectangle(-1000, -600, 1000, 600))],
    "hexagon": lambda: [(BODY, [_polar(RADIUS, i, 6) for i in range(6)])],
    "half": lambda: [(BODY, circle(RADIUS)), (HOLE, circle(580)), (HOLE, rectangle(0, -1100, 1100, 1100))],
    "dots": lambda: [(BODY, circle(300, x, y, 12)) for x, y in ((-650, -400), (600, -500), (100, 600))],
}
