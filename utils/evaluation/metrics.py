"""Precision, recall, F1 and average precision as the upstream projects print them.

For numbers to publish or to compare across families use `utils.evaluation.coco_eval`; these make a run comparable with
upstream's logs. The families differ in three conventions, collected in `Convention`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from utils.boxes import pairwise_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10, dtype=np.float32)
CONFIDENCES = np.linspace(0, 1, 1000)  # where the curves over confidence are sampled
EPSILON = 1e-16


@dataclass(frozen=True)
class Convention:
    """How a family computes its figures.

    Attributes:
        match_once: a detection is matched at IoU 0.5 and then scored at every threshold (strictly above); otherwise it
            is matched at each threshold on its own (at or above).
        recall_to_one: the recall axis ends at 1 rather than right after the last recall. Interpolation up to there
            flatters detectors that stop early.
        smooth: the mean F1 curve is smoothed before its maximum is taken.
        origin: the program, with its version, that computes them so.
    """

    match_once: bool
    recall_to_one: bool
    smooth: bool
    origin: str = ""

    def with_v5_recall(self) -> Convention:
        """The same with YOLOv5's recall axis, which YOLOv7 takes with --v5-metric; the others have it anyway."""
        origin = f"{self.origin} with --v5-metric"
        return self if self.recall_to_one else replace(self, recall_to_one=True, origin=origin)


YOLOV5_FIGURES = Convention(match_once=False, recall_to_one=True, smooth=True, origin="YOLOv5 7.0")
YOLOV7_FIGURES = Convention(match_once=True, recall_to_one=False, smooth=False, origin="YOLOv7 a207844")
# Later versions of ultralytics, 8.4.190 among them, no longer clip boxes to the image before they match them.
YOLOV8_FIGURES = Convention(match_once=False, recall_to_one=True, smooth=True, origin="ultralytics 8.2.103")


@dataclass(frozen=True)
class ClassMetrics:
    """Figures per class with ground truth, k of them, and the curves behind them.

    Attributes:
        classes: (k,) class indices.
        precision, recall, f1: (k,) at `best_confidence`, where the mean F1 over the classes is highest (IoU 0.5).
        ap: (k, 10) average precision at IoU 0.50, 0.55, ..., 0.95.
        best_confidence: in 0..1.
        precision_curve, recall_curve, f1_curve: (k, 1000) over `CONFIDENCES`.
        pr_curve: (k, 1000) precision over recall 0..1, at IoU 0.5.
    """

    classes: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    ap: np.ndarray
    best_confidence: float
    precision_curve: np.ndarray
    recall_curve: np.ndarray
    f1_curve: np.ndarray
    pr_curve: np.ndarray

    @property
    def means(self) -> tuple[float, float, float, float]:
        """Precision, recall, AP at 0.5 and AP at 0.5:0.95 averaged over the classes; zeros without any."""
        if not len(self.classes):
            return 0.0, 0.0, 0.0, 0.0
        return (
            float(self.precision.mean()),
            float(self.recall.mean()),
            float(self.ap[:, 0].mean()),
            float(self.ap.mean()),
        )


def match_detections(
    detections: np.ndarray, boxes_xyxy: np.ndarray, classes: np.ndarray, convention: Convention
) -> np.ndarray:
    """Which detections of an image are right, at each of the ten IoU thresholds.

    Every detection asks for the box of its class that it overlaps most; a box goes to the first that asks.

    Args:
        detections: (n, 6) rows [x1, y1, x2, y2, confidence, class], most confident first.
        boxes_xyxy: (m, 4) ground truth in the same pixels.
        classes: (m,) its classes.
        convention: the family's.

    Returns:
        (n, 10) booleans.
    """
    correct = np.zeros((len(detections), len(IOU_THRESHOLDS)), dtype=bool)
    if not len(detections) or not len(boxes_xyxy):
        return correct
    iou = pairwise_iou(detections[:, :4], boxes_xyxy)  # (n, m)
    iou = np.where(detections[:, 5:6] == classes[None], iou, -1.0)
    box, overlap = iou.argmax(1), iou.max(1)  # (n,), (n,)
    if convention.match_once:
        first = _first_claims(box, overlap > IOU_THRESHOLDS[0])
        correct[first] = overlap[first, None] > IOU_THRESHOLDS
    else:
        for column, threshold in enumerate(IOU_THRESHOLDS):
            correct[_first_claims(box, overlap >= threshold), column] = True
    return correct


def _first_claims(box: np.ndarray, claims: np.ndarray) -> np.ndarray:
    """Indices of the detections that are the first to claim their box."""
    claiming = np.flatnonzero(claims)
    return claiming[np.unique(box[claiming], return_index=True)[1]]


def average_precision(recall: np.ndarray, precision: np.ndarray, convention: Convention) -> tuple[float, np.ndarray]:
    """Area under the precision envelope at 101 recalls, and the envelope at 1000 recalls from 0 to 1.

    Args:
        recall: (n,) rising, after each detection.
        precision: (n,) after each detection.
        convention: the family's.
    """
    end = 1.0 if convention.recall_to_one else recall[-1] + 0.01
    recall = np.concatenate([[0.0], recall, [end]])
    precision = np.concatenate([[1.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    grid = np.linspace(0, 1, 101)
    sampled = np.interp(grid, recall, envelope)
    area = float(np.sum((sampled[1:] + sampled[:-1]) / 2 * np.diff(grid)))
    return area, np.interp(CONFIDENCES, recall, envelope)


def class_metrics(
    correct: np.ndarray,
    confidence: np.ndarray,
    predicted_classes: np.ndarray,
    true_classes: np.ndarray,
    convention: Convention,
) -> ClassMetrics:
    """Precision, recall, F1 and AP of each class that has ground truth.

    Args:
        correct: (n, 10) from `match_detections`, of all images.
        confidence: (n,) in 0..1.
        predicted_classes: (n,) classes of the detections.
        true_classes: (m,) classes of the ground truth.
        convention: the family's.
    """
    order = np.argsort(-confidence, kind="stable")
    correct, confidence, predicted_classes = correct[order], confidence[order], predicted_classes[order]
    classes, counts = np.unique(true_classes, return_counts=True)
    ap = np.zeros((len(classes), correct.shape[1]))
    precision, recall, pr = (np.zeros((len(classes), len(CONFIDENCES))) for _ in range(3))
    for k, (class_index, count) in enumerate(zip(classes, counts)):
        mine = predicted_classes == class_index
        if not mine.any():
            continue
        hits = correct[mine].cumsum(0)  # (n_k, 10)
        found = hits / (count + EPSILON)
        right = hits / np.arange(1, len(hits) + 1)[:, None]
        # np.interp wants rising abscissae. Above the highest confidence nothing is found, so nothing is wrong either.
        recall[k] = np.interp(-CONFIDENCES, -confidence[mine], found[:, 0], left=0)
        precision[k] = np.interp(-CONFIDENCES, -confidence[mine], right[:, 0], left=1)
        for column in range(ap.shape[1]):
            ap[k, column], envelope = average_precision(found[:, column], right[:, column], convention)
            if column == 0:
                pr[k] = envelope
    f1 = 2 * precision * recall / (precision + recall + EPSILON)
    best = _best_index(f1, convention.smooth)
    return ClassMetrics(
        classes=classes.astype(int), precision=precision[:, best], recall=recall[:, best], f1=f1[:, best], ap=ap,
        best_confidence=float(CONFIDENCES[best]), precision_curve=precision, recall_curve=recall, f1_curve=f1,
        pr_curve=pr,
    )  # fmt: skip


def _best_index(f1: np.ndarray, smooth: bool) -> int:
    """Where the mean of the curves (k, 1000) is highest; smoothed by a box filter over a tenth of its length."""
    if not len(f1):
        return 0
    mean = f1.mean(0)
    if smooth:
        width = round(len(mean) * 0.2) // 2 + 1
        width += 1 - width % 2
        mean = np.convolve(np.pad(mean, width // 2, mode="edge"), np.full(width, 1 / width), mode="valid")
    return int(mean.argmax())


def fitness(ap50: float, ap: float) -> float:
    """The figure that the best epoch has most of: 0.1 AP50 + 0.9 AP. NaN (nothing to measure) counts as 0."""
    return float(0.1 * np.nan_to_num(ap50) + 0.9 * np.nan_to_num(ap))
