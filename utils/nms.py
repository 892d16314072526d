"""Non-maximum suppression of decoded predictions, with each family's layout and rule for the confidence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision.ops import batched_nms, nms

from utils.boxes import cxcywh_to_xyxy
from utils.errors import unknown_name

LAYOUTS = ("yolov5", "yolov7", "yolov8")
MAX_CANDIDATES = 30000  # per image, the best ones


def non_max_suppression(
    predictions: torch.Tensor,
    conf_thres: float = 0.25,
    iou_thres: float = 0.45,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    multi_label: bool = False,
    max_det: int = 300,
    labels: Sequence[torch.Tensor] = (),
    layout: str = "yolov5",
) -> list[torch.Tensor]:
    """Keeps the best of overlapping boxes.

    Args:
        predictions: decoded boxes as centre and size in pixels, with scores in 0..1. Layouts "yolov5" and "yolov7":
            (N, A, 5 + nc) of box, objectness, class scores; the confidence is the product of the scores, but with a
            single class "yolov7" takes the objectness alone. Layout "yolov8": (N, 4 + nc, A) of box and class scores.
        conf_thres: a candidate's confidence must exceed it.
        iou_thres: a box that overlaps a better one by more is dropped.
        classes: keep these classes only.
        agnostic: boxes of different classes suppress one another too.
        multi_label: a box is a candidate for every class above the threshold, not only for its best one.
        max_det: at most this many boxes an image, the most confident.
        labels: per image, (n, 5) rows [class, cx, cy, w, h] in pixels of boxes that are known to be right; they take
            part with confidence 1 (hybrid labels).
        layout: one of `LAYOUTS`.

    Returns:
        Per image a float32 tensor (n, 6) of rows [x1, y1, x2, y2, confidence, class], most confident first.
    """
    if layout not in LAYOUTS:
        raise unknown_name("prediction layout", layout, LAYOUTS, "non_max_suppression")
    rows_by_anchor = predictions.transpose(1, 2) if layout == "yolov8" else predictions  # (N, A, 4 + nc or 5 + nc)
    wanted = None if classes is None else torch.as_tensor(classes, device=predictions.device)
    results = []
    for image, rows in enumerate(rows_by_anchor):
        boxes, scores = _boxes_and_scores(rows, conf_thres, layout)  # (n, 4), (n, nc)
        if len(labels) and len(labels[image]):
            boxes, scores = _with_labels(boxes, scores, labels[image])
        candidates = _candidates(boxes, scores, conf_thres, multi_label)  # (m, 6)
        if wanted is not None:
            candidates = candidates[torch.isin(candidates[:, 5], wanted.to(candidates.dtype))]
        results.append(_suppress(candidates, iou_thres, agnostic, max_det))
    return results


def _boxes_and_scores(rows: torch.Tensor, conf_thres: float, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (n, 4) cxcywh and class confidences (n, nc) in float32 of the rows (A, 4 + nc or 5 + nc) that can pass."""
    if layout == "yolov8":
        kept = rows[rows[:, 4:].amax(1) > conf_thres].float()
        return kept[:, :4], kept[:, 4:]
    kept = rows[rows[:, 4] > conf_thres].float()
    objectness, class_scores = kept[:, 4:5], kept[:, 5:]
    if layout == "yolov7" and class_scores.shape[1] == 1:
        return kept[:, :4], objectness
    return kept[:, :4], class_scores * objectness


def _with_labels(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes and scores with the known boxes appended at confidence 1."""
    known = torch.zeros(len(labels), scores.shape[1], device=scores.device)
    known.scatter_(1, labels[:, :1].long(), 1.0)
    return torch.cat([boxes, labels[:, 1:5].to(boxes)]), torch.cat([scores, known])


def _candidates(boxes: torch.Tensor, scores: torch.Tensor, conf_thres: float, multi_label: bool) -> torch.Tensor:
    """Rows (m, 6) [x1, y1, x2, y2, confidence, class], sorted by confidence, at most `MAX_CANDIDATES`."""
    if multi_label:
        row, class_index = (scores > conf_thres).nonzero(as_tuple=True)
        confidence = scores[row, class_index]
    else:
        best, class_index = scores.max(1)
        row = (best > conf_thres).nonzero()[:, 0]
        confidence, class_index = best[row], class_index[row]
    if len(row) > MAX_CANDIDATES:
        confidence, order = confidence.topk(MAX_CANDIDATES)
    else:
        confidence, order = confidence.sort(descending=True, stable=True)
    row, class_index = row[order], class_index[order]
    return torch.cat([cxcywh_to_xyxy(boxes[row]), confidence[:, None], class_index[:, None].float()], dim=1)


def _suppress(candidates: torch.Tensor, iou_thres: float, agnostic: bool, max_det: int) -> torch.Tensor:
    """The rows of sorted candidates (m, 6) that survive, at most `max_det`."""
    # Whether a box survives depends on better boxes only, so the best candidates alone give the first survivors:
    # the quadratic work on thousands of weak ones is mostly not needed.
    size = 8 * max_det
    while True:
        boxes, confidence, class_index = candidates[:size, :4], candidates[:size, 4], candidates[:size, 5]
        keep = nms(boxes, confidence, iou_thres) if agnostic else batched_nms(boxes, confidence, class_index, iou_thres)
        if len(keep) >= max_det or size >= len(candidates):
            return candidates[keep[:max_det]]
        size *= 4
