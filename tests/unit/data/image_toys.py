"""Small images whose objects can be found again in a sample by their colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.records import DatasetIndex, ImageRecord

# One colour (RGB) for each class; no mixture of one with black or grey 114 comes close to another.
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))
OCTAGON = np.array([(1, 0.5), (0.5, 1), (-0.5, 1), (-1, 0.5), (-1, -0.5), (-0.5, -1), (0.5, -1), (1, -0.5)])
SIZES_WH = ((96, 72), (64, 96), (96, 96), (120, 60), (50, 80), (96, 72))


def color_mask(image_rgb: np.ndarray, class_id: int, margin: int = 110) -> np.ndarray:
    """Which pixels of (H, W, 3) have the colour of a class, or are at least mostly covered by it."""
    return (np.abs(image_rgb.astype(int) - COLORS[class_id]) < margin).all(-1)


def pixel_bounds(mask: np.ndarray) -> np.ndarray:
    """Box x1, y1, x2, y2 around the set pixels, to their outer edges."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float)


def toy_index(
    folder: Path, sizes_wh: Sequence[tuple[int, int]] = SIZES_WH, *, suffix: str = ".png", octagons: bool = False
) -> DatasetIndex:
    """Black images, each with one object in the colour of its own class, labelled exactly.

    The object is a rectangle over the middle 40 % by 50 %; or that without its corners, which also gets a polygon.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (width, height) in enumerate(sizes_wh):
        class_id = number % len(COLORS)
        x1, x2 = round(0.3 * width), round(0.7 * width)
        y1, y2 = round(0.25 * height), round(0.75 * height)
        centre, half = np.array([x1 + x2, y1 + y2]) / 2, np.array([x2 - x1, y2 - y1]) / 2
        y, x = np.mgrid[:height, :width] + 0.5  # centres of pixels
        across, down = np.abs(x - centre[0]) / half[0], np.abs(y - centre[1]) / half[1]
        image = np.zeros((height, width, 3), np.uint8)
        image[(across < 1) & (down < 1) & (across + down < (1.5 if octagons else 2))] = COLORS[class_id][::-1]
        path = folder / f"im{number:02d}{suffix}"
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
        box = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        labels = np.array([[class_id, *box]], np.float32)
        corners = centre + half * OCTAGON
        segments = ((corners / (width, height)).astype(np.float32),) if octagons else ()
        records.append(ImageRecord(str(path), width, height, labels, segments))
    return DatasetIndex(records, [], {"images": len(records)}, "toy")
