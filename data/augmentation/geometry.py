"""Where a random affine or perspective transform takes boxes and polygons, and which of them are still worth learning.

Coordinates are continuous: the left edge of the first pixel is 0 and the right edge of the last is the width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MIN_SIZE = 2.0  # pixels
MAX_ASPECT = 100.0
MIN_AREA_SHARE = 0.1
MIN_AREA_SHARE_POLYGON = 0.01  # a polygon's bounds fit tightly, so less of it can go before it misleads
NEAR = 1e-3  # least homogeneous coordinate of a point in front of the camera


def translation(x: float, y: float) -> np.ndarray:
    """3 x 3 matrix that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scaling(x: float, y: float) -> np.ndarray:
    """3 x 3 matrix that scales around the origin."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def random_transform(
    rng: np.random.Generator,
    source_wh: tuple[float, float],
    output_wh: tuple[float, float],
    *,
    degrees: float,
    translate: float,
    scale: float,
    shear: float,
    perspective: float,
) -> np.ndarray:
    """A random rotation, zoom, shear and perspective around the centre, which then lands near the output's centre.

    Args:
        rng: source of randomness; the number of values drawn is always the same.
        source_wh: width and height of what is transformed, in pixels.
        output_wh: width and height of the result, in pixels.
        degrees: largest rotation either way.
        translate: largest shift either way, as a share of the output.
        scale: the zoom is uniform in 1 - scale .. 1 + scale.
        shear: largest shear angle either way, in degrees.
        perspective: largest change of the homogeneous coordinate per pixel, either way.

    Returns:
        3 x 3 matrix from source to output pixels.
    """
    tilt_x, tilt_y, turn, growth, slant_x, slant_y, shift_x, shift_y = rng.uniform(-1, 1, 8).tolist()
    zoom = 1 + scale * growth
    landing = translation(output_wh[0] * (0.5 + translate * shift_x), output_wh[1] * (0.5 + translate * shift_y))
    centring = translation(-source_wh[0] / 2, -source_wh[1] / 2)
    if not (degrees or shear or perspective):
        return landing @ scaling(zoom, zoom) @ centring
    angle = math.radians(degrees * turn)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    slant = np.eye(3)
    slant[0, 1], slant[1, 0] = math.tan(math.radians(shear * slant_x)), math.tan(math.radians(shear * slant_y))
    tilt = np.eye(3)
    tilt[2, :2] = perspective * tilt_x, perspective * tilt_y
    return landing @ slant @ rotation @ tilt @ centring


def is_upright(matrix: np.ndarray) -> bool:
    """Whether a transform only scales and moves, so that pixel rows stay rows and columns stay columns."""
    return not (matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1])


def project_points(points: np.ndarray, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transforms points.

    Args:
        points: (n, k, 2).
        matrices: (n, 3, 3), one for each row of points.

    Returns:
        (n, k, 2) transformed points, and (n, k) whether each lies in front of the camera. Those that do not are
        without meaning.
    """
    projected = points @ matrices[:, :2, :2].transpose(0, 2, 1) + matrices[:, None, :2, 2]  # (n, k, 2)
    if not matrices[:, 2, :2].any():
        return projected, np.ones(points.shape[:2], bool)
    depth = points @ matrices[:, 2, :2, None] + matrices[:, None, 2:, 2]  # (n, k, 1)
    return projected / np.maximum(depth, NEAR), depth[..., 0] > NEAR


def project_boxes(boxes_xyxy: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Upright bounds of transformed boxes.

    Args:
        boxes_xyxy: (n, 4).
        matrices: (n, 3, 3).

    Returns:
        (n, 4). A box that is partly behind the camera becomes empty (all zeros).
    """
    if not matrices[:, [0, 1, 2, 2], [1, 0, 0, 1]].any():  # no corner changes sides
        zoom, shift = matrices[:, [0, 1, 0, 1], [0, 1, 0, 1]], matrices[:, [0, 1, 0, 1], 2]  # (n, 4)
        return boxes_xyxy * zoom + shift
    corners = boxes_xyxy[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # (n, 4, 2)
    corners, in_front = project_points(corners, matrices)
    bounds = np.concatenate([corners.min(1), corners.max(1)], axis=1)  # (n, 4)
    bounds[~in_front.all(1)] = 0
    return bounds


def worth_keeping(
    areas_before: np.ndarray, boxes_xyxy: np.ndarray, min_area_share: float = MIN_AREA_SHARE
) -> np.ndarray:
    """Which boxes are still large enough, not too thin, and show enough of their object after a transform.

    Args:
        areas_before: (n,) areas before the transform clipped them, at the scale of the result, in square pixels.
        boxes_xyxy: (n, 4) the boxes as transformed and clipped, in pixels.
        min_area_share: least share of a box's area that must be left.

    Returns:
        bool (n,).
    """
    tiny = 1e-16
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]  # (n, 2)
    shorter, longer = np.minimum(sides[:, 0], sides[:, 1]), np.maximum(sides[:, 0], sides[:, 1])
    enough = shorter * longer > min_area_share * (areas_before + tiny)
    return (shorter > MIN_SIZE) & enough & (longer < MAX_ASPECT * shorter)


def polygon_bounds(polygons: Sequence[np.ndarray], width: float, height: float) -> np.ndarray:
    """Bounds of what is left of each polygon inside a picture.

    Every edge is cut to the picture (Liang and Barsky, 1984); the ends that remain, and the picture's corners that lie
    inside the polygon, span the bounds. So a polygon that crosses the border gets the exact bounds of its visible part.

    Args:
        polygons: n arrays (k, 2) of points in pixels, k >= 3.
        width: of the picture.
        height: of the picture.

    Returns:
        (n, 4) xyxy; all zeros for a polygon outside the picture.
    """
    counts = np.array([len(polygon) for polygon in polygons])
    if not len(counts):
        return np.zeros((0, 4))
    starts = np.cumsum(counts) - counts
    begin = np.concatenate(polygons).astype(np.float64)  # (p, 2), p points of all polygons together
    end = np.roll(begin, -1, axis=0)
    end[starts + counts - 1] = begin[starts]
    first, last = _visible_part(begin, end, np.array([width, height]))
    seen = (first <= last)[:, None]  # (p, 1)
    shares = np.where(seen, np.stack([first, last], axis=1), 0.0)  # (p, 2)
    ends = begin[:, None] + shares[..., None] * (end - begin)[:, None]  # (p, 2, 2)
    low = np.minimum.reduceat(np.where(seen, ends.min(1), np.inf), starts)  # (n, 2)
    high = np.maximum.reduceat(np.where(seen, ends.max(1), -np.inf), starts)

    for corner in ((0.0, 0.0), (width, 0.0), (width, height), (0.0, height)):
        inside = _contains(begin, end, starts, corner)[:, None]  # (n, 1)
        low = np.where(inside, np.minimum(low, corner), low)
        high = np.where(inside, np.maximum(high, corner), high)
    bounds = np.concatenate([low, high], axis=1)
    bounds[~np.isfinite(bounds).all(1)] = 0
    return bounds


def _visible_part(begin: np.ndarray, end: np.ndarray, size_wh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last share of the way from begin to end that lies in 0..size; first > last if none does."""
    step = end - begin  # (p, 2)
    flat = step == 0
    safe = np.where(flat, 1.0, step)
    at_low, at_high = -begin / safe, (size_wh - begin) / safe
    entry, leave = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
    within = (begin >= 0) & (begin <= size_wh)
    entry = np.where(flat, np.where(within, -np.inf, np.inf), entry)
    leave = np.where(flat, np.where(within, np.inf, -np.inf), leave)
    return np.maximum(entry.max(1), 0.0), np.minimum(leave.min(1), 1.0)


def _contains(begin: np.ndarray, end: np.ndarray, starts: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """Whether each polygon contains a point: an odd number of its edges crosses the ray to the right."""
    x, y = point
    crosses = (begin[:, 1] <= y) != (end[:, 1] <= y)
    rise = np.where(crosses, end[:, 1] - begin[:, 1], 1.0)
    at_x = begin[:, 0] + (y - begin[:, 1]) / rise * (end[:, 0] - begin[:, 0])
    return np.add.reduceat((crosses & (at_x > x)).astype(np.int64), starts) % 2 == 1
