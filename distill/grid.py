"""Heads of different kinds compared on a common grid: one box and the class scores of each cell.

An anchor head predicts several boxes a cell, an anchor-free one a single box; neither their raw numbers nor their
places correspond. What both say is: here is a box, and so likely it is of this class. For feature maps the gap between
kinds of detectors is known (HEAD, arXiv 2207.05345, closes it with a head of the teacher's kind on the student); the
outputs meet here without further parts.

- The teacher's cell speaks by its likeliest anchor, the one with the highest objectness times class score.
- The student's cell answers by the anchor whose shape is nearest to the teacher's box. That is the one that YOLOv5's
  assignment by ratios of sides would train for this box, so distillation and labels teach the same anchor. The choice
  has no gradient; the chosen anchor's numbers have.
- Class scores are joint ones: objectness times class score.
- On grids of different sizes the student's cell looks at the teacher's cells that it overlaps: the likeliest speaks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .context import HeadSpec
from .heads import HeadLogits, decode_boxes, grid_points, grid_size, split_logits

_EPS = 1e-6


def joint_logits(logits: HeadLogits) -> Tensor:
    """(N, A, nc) logits of objectness times class score; the class logits where there is no objectness.

    1 / (sigmoid(o) sigmoid(c)) - 1 = e^-o + e^-c + e^-(o + c), so the logit is minus its logarithm, at any magnitude.
    """
    if logits.obj is None:
        return logits.cls
    obj = logits.obj[..., None].expand_as(logits.cls)
    return -torch.stack((-obj, -logits.cls, -obj - logits.cls)).logsumexp(0)


def nearest_anchor(boxes_xyxy: Tensor, anchors: Tensor) -> Tensor:
    """(N, A) index of the anchor whose sides have the ratios nearest to 1 with each box's: of the larger ratio.

    Args:
        boxes_xyxy: (N, A, 4) in pixels.
        anchors: (na, 2) in pixels.
    """
    sides = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=_EPS)  # (N, A, 2)
    ratios = sides[..., None, :].log() - anchors.log()  # (N, A, na, 2)
    return ratios.abs().amax(-1).argmin(-1)


def _candidates(raw: Tensor, head: HeadSpec, level: int, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, na, A, 4) boxes in pixels and (N, na, A, nc) joint logits: all that a head says of each cell."""
    height, width = grid_size(raw)
    boxes, logits = decode_boxes(raw, head, level, anchors), joint_logits(split_logits(raw, head))
    return boxes.unflatten(1, (-1, height * width)), logits.unflatten(1, (-1, height * width))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """(N, na, A, C) and (N, A) to (N, A, C): the chosen anchor of each cell."""
    return values.gather(1, index[:, None, :, None].expand(-1, 1, -1, values.shape[-1])).squeeze(1)


@torch.no_grad()
def teacher_cells(raw: Tensor, head: HeadSpec, level: int, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, A, 4) boxes in pixels and (N, A, nc) joint logits of a level, one for each cell."""
    boxes, logits = _candidates(raw, head, level, anchors)
    best = logits.amax(-1).argmax(1)  # (N, A)
    return _take(boxes, best), _take(logits, best)


def student_cells(
    raw: Tensor, head: HeadSpec, level: int, anchors: Tensor, teacher_boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """As `teacher_cells`, by the anchor nearest to the teacher's box, with gradients."""
    boxes, logits = _candidates(raw, head, level, anchors)
    if head.kind == "anchor_free":
        return boxes.squeeze(1), logits.squeeze(1)
    chosen = nearest_anchor(teacher_boxes, anchors)  # (N, A)
    return _take(boxes, chosen), _take(logits, chosen)


@torch.no_grad()
def to_grid(boxes_xyxy: Tensor, logits: Tensor, from_hw: Sequence[int], to_hw: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cells of one grid seen from another of the same image: the likeliest of those that a cell overlaps.

    Args:
        boxes_xyxy: (N, A, 4) in pixels of the image as the first grid's network sees it.
        logits: (N, A, nc).
        from_hw, to_hw: rows and columns of both grids; A is the product of the first.

    Returns:
        (N, A', 4) boxes in pixels of the image as the second grid's network sees it, and (N, A', nc) logits.
    """
    if tuple(from_hw) == tuple(to_hw):
        return boxes_xyxy, logits
    best = logits.amax(-1).unflatten(1, tuple(from_hw))  # (N, H, W)
    _, index = F.adaptive_max_pool2d(best, tuple(to_hw), return_indices=True)  # (N, H', W')
    index = index.flatten(1)[..., None]  # (N, A', 1)
    y, x = (new / old for new, old in zip(to_hw, from_hw))
    boxes = boxes_xyxy.gather(1, index.expand(-1, -1, 4)) * boxes_xyxy.new_tensor((x, y, x, y))
    return boxes, logits.gather(1, index.expand(-1, -1, logits.shape[-1]))


def common_grid(
    student: Tensor,
    teacher: Tensor,
    heads: tuple[HeadSpec, HeadSpec],
    level: int,
    anchors: tuple[Tensor, Tensor],
) -> tuple[HeadLogits, HeadLogits]:
    """One level of both heads on the student's grid.

    Args:
        student, teacher: raw maps.
        heads: the student's and the teacher's, with equal classes and strides.
        level: which level it is.
        anchors: (na, 2) of that level in pixels, of both.

    Returns:
        For each side the boxes as (N, A, 4) distances left, top, right, bottom from the cell's centre, in cells of the
        student; no objectness; the joint class logits.
    """
    grid_hw, stride = grid_size(student), heads[0].strides[level]
    boxes, scores = teacher_cells(teacher, heads[1], level, anchors[1])
    teacher_side = to_grid(boxes, scores, grid_size(teacher), grid_hw)
    student_side = student_cells(student, heads[0], level, anchors[0], teacher_side[0])
    points = grid_points(grid_hw, stride, student.device)  # (A, 2)

    def on_grid(boxes_xyxy: Tensor, logits: Tensor) -> HeadLogits:
        sides = torch.cat((points - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points), -1) / stride
        return HeadLogits(sides, None, logits)

    return on_grid(*student_side), on_grid(*teacher_side)


def sides_to_boxes(sides: Tensor) -> Tensor:
    """(..., 4) distances to the sides as boxes around the origin."""
    return torch.cat((-sides[..., :2], sides[..., 2:]), -1)
