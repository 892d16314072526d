"""Which detections hit which boxes, by COCO's rules, kept image by image: for resampling, curves and pictures.

Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014. The bootstrap: Efron, Bootstrap methods: another look
at the jackknife, The Annals of Statistics 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.boxes import pairwise_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100
"""Of an image and class."""
RESAMPLES = 300
"""Of the images, for an interval."""


@dataclass(frozen=True)
class ClassMatches:
    """All detections of a class, the most confident first.

    Attributes:
        image: (d,) index of the image of each.
        hit: (d, 10) whether it hits a box that no better one has taken, at IOU_THRESHOLDS.
        score: (d,) confidence.
        boxes: (images,) labelled boxes of the class.
    """

    image: np.ndarray
    hit: np.ndarray
    score: np.ndarray
    boxes: np.ndarray


class Matches:
    """Collects a model's detections and the labels image by image.

    Args:
        num_classes: of the data set.

    Attributes:
        found: for each image the confidence (m,) with which each labelled box is hit at IoU 0.5; 0 where it is missed.
    """

    def __init__(self, num_classes: int) -> None:
        self._rows: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(num_classes)]
        self._boxes: list[np.ndarray] = []
        self.found: list[np.ndarray] = []

    def add(self, detections: np.ndarray, boxes_xyxy: np.ndarray, classes: np.ndarray) -> None:
        """Adds an image: detections (n, 6) [x1, y1, x2, y2, confidence, class], and labels (m, 4) and their classes."""
        number = len(self._boxes)
        detections, boxes_xyxy = np.asarray(detections, np.float64), np.asarray(boxes_xyxy, np.float64)
        classes = np.asarray(classes).astype(int)
        self._boxes.append(np.bincount(classes, minlength=len(self._rows)))
        found = np.zeros(len(classes))
        for index in np.unique(detections[:, 5]).astype(int):
            mine = detections[detections[:, 5] == index]
            mine = mine[np.argsort(-mine[:, 4], kind="stable")[:MOST_DETECTIONS]]
            own = np.flatnonzero(classes == index)
            taken = match(mine[:, :4], boxes_xyxy[own])  # (n, 10)
            first = taken[:, 0] >= 0
            found[own[taken[first, 0]]] = mine[first, 4]
            columns = np.column_stack([mine[:, 4], np.full(len(mine), number)])
            self._rows[index].append((columns, taken >= 0))
        self.found.append(found)

    def by_class(self) -> list[ClassMatches]:
        """The detections of each class in the order in which COCO goes through them."""
        result = []
        boxes = np.array(self._boxes, dtype=np.int64).reshape(len(self._boxes), len(self._rows))
        for index, rows in enumerate(self._rows):
            columns = np.concatenate([np.zeros((0, 2)), *(each for each, _ in rows)])
            hit = np.concatenate([np.zeros((0, len(IOU_THRESHOLDS)), bool), *(each for _, each in rows)])
            order = np.argsort(-columns[:, 0], kind="mergesort")
            score, image = columns[order, 0], columns[order, 1].astype(np.int64)
            result.append(ClassMatches(image, hit[order], score, boxes[:, index]))
        return result


def match(boxes_xyxy: np.ndarray, labels_xyxy: np.ndarray) -> np.ndarray:
    """The label that each detection of a class takes: that of most overlap among those still free.

    Args:
        boxes_xyxy: (n, 4), most confident first.
        labels_xyxy: (m, 4) of the same class, in the same pixels.

    Returns:
        (n, 10) indices of labels at IOU_THRESHOLDS; -1 for none.
    """
    taken = np.full((len(boxes_xyxy), len(IOU_THRESHOLDS)), -1)
    if not len(boxes_xyxy) or not len(labels_xyxy):
        return taken
    overlap = pairwise_iou(boxes_xyxy, labels_xyxy)  # (n, m)
    free = np.ones((len(IOU_THRESHOLDS), len(labels_xyxy)), bool)
    last = len(labels_xyxy) - 1
    for row in np.flatnonzero(overlap.max(1) >= IOU_THRESHOLDS[0] - 1e-10):
        allowed = np.where(free & (overlap[row] >= IOU_THRESHOLDS[:, None] - 1e-10), overlap[row], -1.0)  # (10, m)
        best = last - allowed[:, ::-1].argmax(1)  # the last of equals, as COCO's loop leaves it
        hits = np.flatnonzero(allowed[np.arange(len(best)), best] >= 0)
        taken[row, hits] = best[hits]
        free[hits, best[hits]] = False
    return taken


def resampled_ap(matches: Sequence[ClassMatches], weights: np.ndarray) -> np.ndarray:
    """COCO's AP of resampled images.

    An image drawn k times counts as k images. A hit's precision and recall are those behind its last copy: in between
    both are lower, so COCO's envelope never sees them.

    Args:
        matches: of each class.
        weights: (resamples, images) how often each image was drawn; ones for the images as they are.

    Returns:
        (resamples,) mean over IOU_THRESHOLDS and the classes that have boxes; NaN where none has.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for each in matches:
        boxes = weights @ each.boxes  # (resamples,)
        own = weights[:, each.image]  # (resamples, d)
        seen = own.cumsum(1)
        value = np.zeros(len(weights))
        for column in range(each.hit.shape[1]):
            places = np.flatnonzero(each.hit[:, column])
            hits = own[:, places].cumsum(1)
            value += _areas(hits, seen[:, places], boxes)
        there = boxes > 0
        total += np.where(there, value / each.hit.shape[1], 0)
        classes += there
    return np.where(classes > 0, total / np.maximum(classes, 1), np.nan)


def _areas(hits: np.ndarray, seen: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mean precision over RECALLS, (resamples,), of rising (resamples, h) hits among what was seen."""
    precision = hits / np.maximum(seen, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    areas = np.zeros(len(hits))
    for number, count in enumerate(boxes):
        if count > 0:
            areas[number] = padded[number, np.searchsorted(hits[number] / count, RECALLS)].mean()
    return areas


def draw_images(num_images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """(resamples, images) how often each image is drawn, with replacement: the same for all models, so they pair."""
    generator = np.random.default_rng(0)
    return generator.multinomial(num_images, np.full(num_images, 1 / num_images), resamples)


def percentile_interval(values: np.ndarray, level: float) -> tuple[float, float] | None:
    """The middle `level` of bootstrapped values; None without any."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def precision_over_recall(matches: Sequence[ClassMatches], column: int = 0) -> np.ndarray:
    """(101,) precision at RECALLS, the mean over the classes that have boxes, at one of IOU_THRESHOLDS."""
    curves = [np.zeros((0, len(RECALLS)))]
    for each in matches:
        count = each.boxes.sum()
        if count:
            hits = each.hit[:, column].cumsum()
            precision = hits / np.arange(1, len(hits) + 1)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            curves.append(envelope[np.searchsorted(hits / count, RECALLS)][None])
    every = np.concatenate(curves)
    return every.mean(0) if len(every) else np.zeros(len(RECALLS))


def best_confidence(matches: Sequence[ClassMatches]) -> float:
    """The confidence at which F1 at IoU 0.5 over all classes together is highest; 1 where nothing is hit."""
    score = np.concatenate([np.zeros(0), *(each.score for each in matches)])
    hit = np.concatenate([np.zeros(0, bool), *(each.hit[:, 0] for each in matches)])
    order = np.argsort(-score, kind="stable")
    hits = hit[order].cumsum()
    if not len(hits) or not hits[-1]:
        return 1.0
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + sum(int(each.boxes.sum()) for each in matches))
    return float(score[order][f1.argmax()])
