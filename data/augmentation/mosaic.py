"""Mosaics of four or nine images, painted straight into the output.

Mosaics are YOLOv4's (Bochkovskiy et al. 2020). A layout says where images lie on a virtual canvas; a transform takes
canvas pixels to output pixels. The canvas itself never exists: each image that shows in the output is cropped to what
shows, and resized or warped into its place once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data.augmentation.geometry import is_upright, project_boxes, scaling, translation

GREY = 114
Rect = tuple[float, float, float, float]  # x1, y1, x2, y2
Window = tuple[int, int, int, int]  # the same in whole pixels of the output


@dataclass(frozen=True, slots=True)
class Tile:
    """An image on the canvas: its index in the data set, its upper left corner and its size there, in pixels."""

    index: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A virtual canvas of `width` x `height` pixels with images on it. What lies outside the canvas is cut off."""

    tiles: tuple[Tile, ...]
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Placement:
    """How an image was painted.

    Attributes:
        index: its index in the data set.
        matrix: 3 x 3, from coordinates normalised to the image to output pixels, exact for the pixels painted.
        visible: the part of the image that the canvas holds, normalised.
        area: of the whole image in canvas pixels, times the square of the transform's zoom.
    """

    index: int
    matrix: np.ndarray
    visible: Rect
    area: float


def fit(size_wh: tuple[int, int], side: float) -> tuple[float, float]:
    """Width and height of an image scaled so that its longer side is `side`."""
    ratio = side / max(size_wh)
    return size_wh[0] * ratio, size_wh[1] * ratio


def single_layout(index: int, size_wh: tuple[int, int], canvas_wh: tuple[int, int]) -> Layout:
    """One image in the middle of the canvas, as large as fits."""
    width, height = canvas_wh
    ratio = min(width / size_wh[0], height / size_wh[1])
    w, h = size_wh[0] * ratio, size_wh[1] * ratio
    return Layout((Tile(index, (width - w) / 2, (height - h) / 2, w, h),), width, height)


def mosaic4_layout(
    rng: np.random.Generator, indices: Sequence[int], sizes_wh: Sequence[tuple[int, int]], side: int
) -> Layout:
    """Four images around a random centre, on a canvas of 2 side x 2 side.

    Args:
        rng: source of randomness.
        indices: the images at the upper left, upper right, lower left and lower right.
        sizes_wh: their widths and heights.
        side: the longer side of each image on the canvas.
    """
    centre_x, centre_y = rng.uniform(0.5 * side, 1.5 * side, 2)
    tiles = []
    for place, (index, size) in enumerate(zip(indices, sizes_wh, strict=True)):
        width, height = fit(size, side)
        x = centre_x if place % 2 else centre_x - width
        y = centre_y if place >= 2 else centre_y - height
        tiles.append(Tile(index, x, y, width, height))
    return Layout(tuple(tiles), 2 * side, 2 * side)


def mosaic9_layout(
    rng: np.random.Generator, indices: Sequence[int], sizes_wh: Sequence[tuple[int, int]], side: int
) -> Layout:
    """Eight images clockwise around one, as YOLOv7 has it; a random window of 2 side x 2 side is the canvas.

    Args:
        rng: source of randomness.
        indices: the image in the middle, then those above, upper right, right, and so on.
        sizes_wh: their widths and heights.
        side: the longer side of each image on the canvas.
    """
    left, top = (side - rng.uniform(0, side, 2)).tolist()  # of the middle image, seen from the window
    sizes = [fit(size, side) for size in sizes_wh]
    (w0, h0), (w1, h1), (w2, h2), (w3, h3), (w4, h4), (w5, h5), (w6, h6), (w7, h7), (w8, h8) = sizes
    right, bottom = left + w0, top + h0
    corners = (
        (left, top),
        (left, top - h1),
        (left + w1, top - h2),  # each corner image touches the one before it
        (right, top),
        (right, top + h3),
        (right - w5, bottom),
        (right - w5 - w6, bottom),
        (left - w7, bottom - h7),
        (left - w8, bottom - h7 - h8),
    )
    tiles = (Tile(index, x, y, w, h) for index, (x, y), (w, h) in zip(indices, corners, sizes, strict=True))
    return Layout(tuple(tiles), 2 * side, 2 * side)


def paint(
    layout: Layout, transform: np.ndarray, output_wh: tuple[int, int], read: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, list[Placement]]:
    """Paints a layout through a transform.

    Args:
        layout: the images and where they lie.
        transform: 3 x 3, canvas pixels to output pixels.
        output_wh: width and height of the output.
        read: gives the image of an index as uint8 BGR (H, W, 3), at any resolution. It is called only for images that
            show.

    Returns:
        uint8 BGR (H, W, 3), grey where no image lies, and how each image that shows was painted.
    """
    upright = is_upright(transform)
    window_of = _upright_window if upright else _warped_window
    shown = []
    for tile in layout.tiles:
        x1, y1 = max(tile.x, 0.0), max(tile.y, 0.0)
        x2, y2 = min(tile.x + tile.width, layout.width), min(tile.y + tile.height, layout.height)
        if x1 < x2 and y1 < y2:
            window = window_of((x1, y1, x2, y2), transform, output_wh)
            if window is not None:
                shown.append((tile, (x1 - tile.x, y1 - tile.y, x2 - tile.x, y2 - tile.y), window))

    canvas = np.empty((output_wh[1], output_wh[0], 3), np.uint8)
    covered = sum((right - left) * (bottom - top) for _, _, (left, top, right, bottom) in shown)
    if not upright or covered < output_wh[0] * output_wh[1]:
        canvas.fill(GREY)
    paint_tile = _paint_upright if upright else _paint_warped
    zoom_squared = abs(float(transform[0, 0] * transform[1, 1] - transform[0, 1] * transform[1, 0]))
    placements = []
    for tile, (x1, y1, x2, y2), window in shown:
        visible = (x1 / tile.width, y1 / tile.height, x2 / tile.width, y2 / tile.height)
        matrix = paint_tile(canvas, read(tile.index), tile, visible, transform, window)
        placements.append(Placement(tile.index, matrix, visible, tile.width * tile.height * zoom_squared))
    return canvas, placements


def _upright_window(rect: Rect, transform: np.ndarray, output_wh: tuple[int, int]) -> Window | None:
    """Whole output pixels that a rectangle on the canvas covers, or None if there are none."""
    (zoom_x, _, shift_x), (_, zoom_y, shift_y), _ = transform.tolist()
    left, top = max(round(rect[0] * zoom_x + shift_x), 0), max(round(rect[1] * zoom_y + shift_y), 0)
    right = min(round(rect[2] * zoom_x + shift_x), output_wh[0])
    bottom = min(round(rect[3] * zoom_y + shift_y), output_wh[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _warped_window(rect: Rect, transform: np.ndarray, output_wh: tuple[int, int]) -> Window | None:
    """Whole output pixels around a transformed rectangle on the canvas, or None if there are none."""
    bounds = project_boxes(np.array([rect]), transform[None])[0]
    if not bounds.any():  # partly behind the camera
        return 0, 0, *output_wh
    x1, y1, x2, y2 = bounds.tolist()
    left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
    right, bottom = min(math.ceil(x2), output_wh[0]), min(math.ceil(y2), output_wh[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _paint_upright(
    canvas: np.ndarray, image: np.ndarray, tile: Tile, visible: Rect, transform: np.ndarray, window: Window
) -> np.ndarray:
    """Resizes the part of an image that shows into its window.

    Whole source pixels fill whole output pixels, so it lands up to half a source pixel beside where it should.

    Returns:
        3 x 3 matrix from coordinates normalised to the image to output pixels, exact for what was painted.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = window
    (zoom_x, _, shift_x), (_, zoom_y, shift_y), _ = transform.tolist()
    scale_x, scale_y = zoom_x * tile.width / width, zoom_y * tile.height / height  # output pixels per source pixel
    origin_x, origin_y = zoom_x * tile.x + shift_x, zoom_y * tile.y + shift_y
    step = _halvings(math.sqrt(scale_x * scale_y))
    x1, x2 = _whole_pixels((left - origin_x) / scale_x, (right - origin_x) / scale_x, width, step)
    y1, y2 = _whole_pixels((top - origin_y) / scale_y, (bottom - origin_y) / scale_y, height, step)
    part = _reduce(image[y1:y2, x1:x2], step)
    cv2.resize(part, (right - left, bottom - top), dst=canvas[top:bottom, left:right], interpolation=cv2.INTER_LINEAR)
    painted_x, painted_y = (right - left) / (x2 - x1), (bottom - top) / (y2 - y1)
    return np.array(
        [
            [painted_x * width, 0.0, left - x1 * painted_x],
            [0.0, painted_y * height, top - y1 * painted_y],
            [0.0, 0.0, 1.0],
        ]
    )


def _paint_warped(
    canvas: np.ndarray, image: np.ndarray, tile: Tile, visible: Rect, transform: np.ndarray, window: Window
) -> np.ndarray:
    """Warps the part of an image that the canvas holds into its window.

    Returns:
        3 x 3 matrix from coordinates normalised to the image to output pixels.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = window
    to_output = transform @ translation(tile.x, tile.y) @ scaling(tile.width, tile.height)
    pixels_to_output = to_output @ scaling(1 / width, 1 / height)
    step = _halvings(math.sqrt(abs(float(np.linalg.det(pixels_to_output[:2, :2])))))
    x1, x2 = _whole_pixels(visible[0] * width, visible[2] * width, width, step)
    y1, y2 = _whole_pixels(visible[1] * height, visible[3] * height, height, step)
    part = _reduce(image[y1:y2, x1:x2], step)
    to_window = translation(-left, -top) @ pixels_to_output @ translation(x1, y1)
    to_window = to_window @ scaling((x2 - x1) / part.shape[1], (y2 - y1) / part.shape[0])
    # OpenCV counts from the centres of pixels, everything here from their edges: hence the halves. The border of one
    # pixel lets neighbouring tiles meet: a transparent warp ends at the centres of the outer pixels.
    part = cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    to_window = translation(-0.5, -0.5) @ to_window @ translation(-0.5, -0.5)
    size, target = (right - left, bottom - top), canvas[top:bottom, left:right]
    if to_window[2, 0] or to_window[2, 1]:
        cv2.warpPerspective(part, to_window, size, dst=target, borderMode=cv2.BORDER_TRANSPARENT)
    else:
        cv2.warpAffine(part, to_window[:2], size, dst=target, borderMode=cv2.BORDER_TRANSPARENT)
    return to_output


def _halvings(scale: float) -> int:
    """The largest power of two by which an image can be reduced before it is scaled by `scale` without enlarging it."""
    return 1 << max(0, math.floor(-math.log2(max(scale, 1e-3))))


def _reduce(image: np.ndarray, step: int) -> np.ndarray:
    """Averages squares of `step` pixels, so that bilinear sampling after it skips none."""
    if step == 1:
        return image
    size = (max(image.shape[1] // step, 1), max(image.shape[0] // step, 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _whole_pixels(start: float, stop: float, length: int, step: int) -> tuple[int, int]:
    """Whole pixels nearest to start..stop within 0..length, at least one, and a multiple of `step` where possible."""
    first = min(max(round(start), 0), length - 1)
    last = min(max(round(stop), first + 1), length)
    count = (last - first) // step * step
    return first, first + count if count else last
