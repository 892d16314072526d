"""Random changes of a training image and its boxes: colour, flips, and blending with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import cv2
import numpy as np

from data.augmentation.geometry import (
    MIN_AREA_SHARE,
    MIN_AREA_SHARE_POLYGON,
    polygon_bounds,
    project_boxes,
    project_points,
    worth_keeping,
)
from data.augmentation.mosaic import Placement
from data.records import ImageRecord
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError

PROBABILITIES = ("flipud", "fliplr", "mosaic", "mosaic9", "mixup", "copy_paste", "paste_in")
SHARES = (*PROBABILITIES, "hsv_h", "hsv_s", "hsv_v", "translate", "scale")

HSV_ROWS = 64  # converted at a time: what is in between stays in the processor's cache


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are changed. Names and units are upstream's; the defaults change nothing.

    Attributes:
        hsv_h: largest relative change of the hue.
        hsv_s: largest relative change of the saturation.
        hsv_v: largest relative change of the brightness.
        degrees: largest rotation either way.
        translate: largest shift either way, as a share of the image.
        scale: zoom uniform in 1 - scale .. 1 + scale.
        shear: largest shear either way, in degrees.
        perspective: largest perspective coefficient per pixel, at most 0.001.
        flipud: probability of turning upside down.
        fliplr: probability of mirroring.
        mosaic: probability of a mosaic instead of a single image.
        mosaic9: share of the mosaics that have nine images instead of four.
        mixup: probability of blending a mosaic with another one.
        mixup_alpha: both parameters of the Beta distribution of the blend.
        copy_paste: share of the objects with a polygon that are pasted a second time, mirrored.
        paste_in: probability of pasting objects with a polygon from other images.
    """

    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.0
    mosaic: float = 0.0
    mosaic9: float = 0.0
    mixup: float = 0.0
    mixup_alpha: float = 32.0
    copy_paste: float = 0.0
    paste_in: float = 0.0

    def __post_init__(self) -> None:
        limits = dict.fromkeys(SHARES, 1.0) | {"degrees": 180.0, "shear": 60.0, "perspective": 0.001}
        for option in fields(self):
            value, limit = getattr(self, option.name), limits.get(option.name)
            if limit is not None and not 0 <= value <= limit:
                raise UserError(f"hyper-parameter {option.name}: {value} is not in 0 .. {limit:g}")
        if self.scale >= 1:
            raise UserError(f"hyper-parameter scale: {self.scale} would shrink images to nothing; use less than 1")
        if self.mixup_alpha <= 0:
            raise UserError(f"hyper-parameter mixup_alpha: {self.mixup_alpha} is not above 0")


@dataclass
class Scene:
    """A training image while it is being made.

    Attributes:
        image: uint8 BGR (H, W, 3).
        classes: float32 (n,).
        boxes_xyxy: float64 (n, 4), in pixels.
        polygons: n arrays (k, 2) in pixels, or empty where boxes are all there is.
    """

    image: np.ndarray
    classes: np.ndarray
    boxes_xyxy: np.ndarray
    polygons: list[np.ndarray] = field(default_factory=list)

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


def labelled_scene(
    image: np.ndarray, placements: Sequence[Placement], records: Sequence[ImageRecord], use_polygons: bool
) -> Scene:
    """Brings the labels of all images in a painted layout to output pixels, and drops those with too little to see.

    Args:
        image: the output, uint8 BGR (H, W, 3).
        placements: how each image was painted.
        records: the data set.
        use_polygons: take boxes from the transformed polygons, which fit tighter than transformed boxes.
    """
    if not placements:
        return Scene(image, np.zeros(0, np.float32), np.zeros((0, 4)))
    labels = [records[placement.index].labels for placement in placements]
    tile_of = np.repeat(np.arange(len(labels)), [len(rows) for rows in labels])  # (n,)
    rows = np.concatenate(labels)  # (n, 5)
    visible = np.array([placement.visible for placement in placements])[tile_of]  # (n, 4)
    matrices = np.array([placement.matrix for placement in placements])[tile_of]  # (n, 3, 3)
    areas = np.array([placement.area for placement in placements])[tile_of]  # (n,)

    half = rows[:, 3:] / 2
    boxes = np.concatenate([rows[:, 1:3] - half, rows[:, 1:3] + half], axis=1)  # (n, 4) normalised
    boxes = np.clip(boxes, visible[:, [0, 1, 0, 1]], visible[:, [2, 3, 2, 3]])
    areas *= (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    height, width = image.shape[:2]
    bounds = np.clip(project_boxes(boxes, matrices), 0, np.array([width, height, width, height]))
    polygons: list[np.ndarray] = []
    if use_polygons and len(rows):
        polygons = [
            polygon for placement in placements for polygon in _projected_polygons(records[placement.index], placement)
        ]
        tight = polygon_bounds(polygons, width, height)
        low, high = np.maximum(bounds[:, :2], tight[:, :2]), np.minimum(bounds[:, 2:], tight[:, 2:])
        bounds = np.concatenate([low, np.maximum(low, high)], axis=1)
    keep = worth_keeping(areas, bounds, MIN_AREA_SHARE_POLYGON if use_polygons else MIN_AREA_SHARE)
    polygons = [polygon for polygon, kept in zip(polygons, keep) if kept]
    return Scene(image, rows[keep, 0], bounds[keep], polygons)


def _projected_polygons(record: ImageRecord, placement: Placement) -> list[np.ndarray]:
    """The polygons of an image's labels in output pixels; a box without one is its four corners."""
    outlines = record.segments or cxcywh_to_xyxy(record.labels[:, 1:])[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    return [project_points(outline[None], placement.matrix[None])[0][0] for outline in outlines]


def adjust_hsv(image: np.ndarray, gains: np.ndarray) -> None:
    """Multiplies hue, saturation and value by `gains` (3,), in place.

    Args:
        image: uint8 BGR (H, W, 3).
        gains: factors for hue, saturation and value; each product is rounded and limited to its range.
    """
    # The full-range variant holds hue in 256 steps instead of 180 and converts faster. A per-channel factor equals the
    # usual look-up tables, except that a hue pushed past red stays there instead of wrapping by a degree or two.
    factors = np.diag(gains).astype(np.float32)
    for top in range(0, len(image), HSV_ROWS):
        rows = image[top : top + HSV_ROWS]
        hsv = cv2.cvtColor(rows, cv2.COLOR_BGR2HSV_FULL)
        cv2.transform(hsv, factors, dst=hsv)
        cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL, dst=rows)


def flip(planes: np.ndarray, boxes_xyxy: np.ndarray, vertically: bool, horizontally: bool) -> np.ndarray:
    """Turns an image upside down, mirrors it, or both.

    Args:
        planes: uint8 (3, H, W), changed in place. One by one, OpenCV flips colour planes faster than their mixture.
        boxes_xyxy: (n, 4) in pixels.
        vertically: swap top and bottom.
        horizontally: swap left and right.

    Returns:
        (n, 4) the boxes where they are now.
    """
    if not vertically and not horizontally:
        return boxes_xyxy
    code = -1 if vertically and horizontally else int(horizontally)
    for plane in planes:
        cv2.flip(plane, code, dst=plane)
    _, height, width = planes.shape
    x1, y1, x2, y2 = boxes_xyxy.T
    if horizontally:
        x1, x2 = width - x2, width - x1
    if vertically:
        y1, y2 = height - y2, height - y1
    return np.stack([x1, y1, x2, y2], axis=1)


def mixup(first: Scene, second: Scene, share: float) -> Scene:
    """Blends two scenes of one size and keeps the boxes of both (Zhang et al. 2018).

    Args:
        first: a scene.
        second: another.
        share: weight of the first, 0..1.
    """
    return Scene(
        cv2.addWeighted(first.image, share, second.image, 1 - share, 0),
        np.concatenate([first.classes, second.classes]),
        np.concatenate([first.boxes_xyxy, second.boxes_xyxy]),
        first.polygons + second.polygons,
    )
