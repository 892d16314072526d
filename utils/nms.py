"""Non-maximum suppression (NMS) of decoded predictions in any layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision.ops import batched_nms, nms

from utils.boxes import cxcywh_to_xyxy
from utils.detector import Layout

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
    *,
    layout: Layout,
) -> list[torch.Tensor]:
    """Keeps the best of overlapping boxes; of end-to-end predictions, which are final, the most confident.

    Args:
        predictions: decoded, in this layout.
        conf_thres: a candidate's confidence must exceed it.
        iou_thres: a box that overlaps a better one by more is dropped.
        classes: keep these classes only.
        agnostic: boxes of different classes suppress one another too.
        multi_label: a box is a candidate for every class above the threshold, not only for its best one.
        max_det: at most this many boxes an image, the most confident.
        labels: per image, (n, 5) rows [class, cx, cy, w, h] in pixels of boxes that are known to be right; they take
            part with confidence 1 (hybrid labels).
        layout: of the predictions; `iou_thres`, `agnostic` and `multi_label` mean nothing where it is end-to-end.

    Returns:
        Per image a float32 tensor (n, 6) of rows [x1, y1, x2, y2, confidence, class], most confident first.
    """
    wanted = None if classes is None else torch.as_tensor(classes, device=predictions.device)
    results = []
    for image, rows in enumerate(layout.rows(predictions)):  # (A, values)
        rows = rows[layout.most_confident(rows) > conf_thres].float()
        known = labels[image] if len(labels) else rows.new_zeros(0, 5)
        if layout.end_to_end:
            candidates = _finished(rows, known)
        else:
            boxes, scores = rows[:, :4], layout.confidences(rows)  # (n, 4), (n, nc)
            if len(known):
                boxes, scores = _with_labels(boxes, scores, known)
            candidates = _candidates(boxes, scores, conf_thres, multi_label)  # (m, 6)
        if wanted is not None:
            candidates = candidates[torch.isin(candidates[:, 5], wanted.to(candidates.dtype))]
        final = layout.end_to_end
        results.append(candidates[:max_det] if final else _suppress(candidates, iou_thres, agnostic, max_det))
    return results


def _finished(rows: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """End-to-end rows (n, 6) and those of known boxes, most confident first."""
    own = torch.cat([cxcywh_to_xyxy(known[:, 1:5]), torch.ones_like(known[:, :1]), known[:, :1]], 1)
    rows = torch.cat([rows, own.to(rows)])
    return rows[rows[:, 4].argsort(descending=True, stable=True)]


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
