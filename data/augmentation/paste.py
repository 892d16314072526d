"""Pasting cut-out objects into a scene: the scene's own, mirrored, or those of other images.

Simple Copy-Paste, Ghiasi et al. 2021. Both need polygons; without any they change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from data.augmentation.augment import Scene

MAX_COVERED = 0.3  # share of another object's box that a pasted one may cover
MAX_PASTED = 30
MIN_CUTOUT = 4  # pixels


@dataclass(frozen=True)
class Cutout:
    """An object without its surroundings: class, uint8 BGR (h, w, 3), and uint8 mask (h, w)."""

    class_id: float
    image: np.ndarray
    mask: np.ndarray


def share_covered(box_xyxy: np.ndarray, others_xyxy: np.ndarray) -> np.ndarray:
    """Which share of each of (n, 4) boxes is covered by one box (4,): (n,) in 0..1."""
    overlap = np.minimum(box_xyxy[2:], others_xyxy[:, 2:]) - np.maximum(box_xyxy[:2], others_xyxy[:, :2])  # (n, 2)
    sides = others_xyxy[:, 2:] - others_xyxy[:, :2]
    return overlap.clip(min=0).prod(1) / np.maximum(sides.prod(1), 1e-9)


def copy_paste(scene: Scene, share: float, rng: np.random.Generator) -> Scene:
    """Pastes mirrored copies of some objects at their mirrored places, where they hide no other object.

    Args:
        scene: with a polygon for each box; returned as it is without.
        share: which share of the objects is to be copied, 0..1.
        rng: source of randomness.
    """
    if not scene.polygons:
        return scene
    width, height = scene.size_wh
    mask = np.zeros((height, width), np.uint8)
    boxes, classes, polygons = scene.boxes_xyxy, scene.classes, list(scene.polygons)
    for chosen in rng.permutation(len(polygons))[: round(share * len(polygons))]:
        box = scene.boxes_xyxy[chosen].copy()
        box[[0, 2]] = width - box[[2, 0]]
        if (share_covered(box, boxes) >= MAX_COVERED).any():
            continue
        mirrored = polygons[chosen] * (-1, 1) + (width, 0)
        cv2.fillPoly(mask, [np.round(mirrored).astype(np.int32)], 1)
        boxes, classes = np.vstack([boxes, box]), np.append(classes, scene.classes[chosen])
        polygons.append(mirrored)
    image = cv2.copyTo(cv2.flip(scene.image, 1), mask, scene.image)
    return Scene(image, classes, boxes, polygons)


def cut_out(image: np.ndarray, classes: np.ndarray, polygons: Sequence[np.ndarray]) -> list[Cutout]:
    """Cuts objects out of an image.

    Args:
        image: uint8 BGR (H, W, 3).
        classes: (n,).
        polygons: n arrays (k, 2), in pixels of the image.
    """
    cutouts = []
    for class_id, polygon in zip(classes, polygons, strict=True):
        outline = np.round(polygon).astype(np.int32)
        x, y, width, height = cv2.boundingRect(outline)
        width, height = min(width, image.shape[1] - x), min(height, image.shape[0] - y)
        if min(width, height) < MIN_CUTOUT:
            continue
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [outline - (x, y)], 1)
        cutouts.append(Cutout(float(class_id), image[y : y + height, x : x + width], mask))
    return cutouts


def paste_in(scene: Scene, cutouts: Sequence[Cutout], rng: np.random.Generator) -> Scene:
    """Pastes objects at random places and half to one and a half of their size, where they hide no other object.

    Args:
        scene: what to paste into; its image is changed.
        cutouts: the objects. At most 30 of them are tried, and each once.
        rng: source of randomness.
    """
    width, height = scene.size_wh
    boxes, classes = scene.boxes_xyxy, scene.classes
    for chosen in rng.permutation(len(cutouts))[:MAX_PASTED]:
        cutout = cutouts[chosen]
        zoom = rng.uniform(0.5, 1.5)
        w, h = round(cutout.mask.shape[1] * zoom), round(cutout.mask.shape[0] * zoom)
        place_x, place_y = rng.uniform(0, 1, 2)
        if not MIN_CUTOUT <= w <= width or not MIN_CUTOUT <= h <= height:
            continue
        x, y = round(place_x * (width - w)), round(place_y * (height - h))
        box = np.array([x, y, x + w, y + h], float)
        if (share_covered(box, boxes) >= MAX_COVERED).any():
            continue
        resized = cv2.resize(cutout.image, (w, h))
        mask = cv2.resize(cutout.mask, (w, h), interpolation=cv2.INTER_NEAREST)
        cv2.copyTo(resized, mask, scene.image[y : y + h, x : x + w])
        boxes, classes = np.vstack([boxes, box]), np.append(classes, np.float32(cutout.class_id))
    return Scene(scene.image, classes, boxes)
