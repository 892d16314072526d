"""Overlap of boxes: IoU and the regression measures built on it (GIoU, DIoU, CIoU)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Overlap = Literal["iou", "giou", "diou", "ciou"]
BoxFormat = Literal["cxcywh", "xyxy"]


class _Extent(NamedTuple):
    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor
    width: Tensor
    height: Tensor


def _extent(boxes: Tensor, box_format: BoxFormat, height_eps: float) -> _Extent:
    if box_format == "xyxy":
        left, top, right, bottom = boxes.unbind(-1)
        return _Extent(left, top, right, bottom, right - left, bottom - top + height_eps)
    if box_format == "cxcywh":
        center_x, center_y, width, height = boxes.unbind(-1)
        half_width, half_height = width / 2, height / 2
        return _Extent(
            center_x - half_width,
            center_y - half_height,
            center_x + half_width,
            center_y + half_height,
            width,
            height + height_eps,
        )
    raise ValueError(f"box_format is {box_format!r}; expected 'cxcywh' or 'xyxy'")


def box_overlap(
    boxes1: Tensor,
    boxes2: Tensor,
    kind: Overlap = "iou",
    *,
    box_format: BoxFormat = "cxcywh",
    eps: float = 1e-7,
    height_eps: float = 0.0,
    aspect_eps: float = 0.0,
) -> Tensor:
    """Overlap of boxes, element by element; the leading dimensions broadcast.

    All pairs of N and M boxes: `box_overlap(boxes1[:, None], boxes2[None])`. The YOLO families round their CIoU
    differently, which `height_eps` and `aspect_eps` reproduce: YOLOv5 (0, 0), YOLOv7 (eps, eps), YOLOv8 (eps, 0).

    Args:
        boxes1: (..., 4), any unit.
        boxes2: (..., 4), the same unit. The measures are symmetric, their gradients are not needed for both.
        kind: `iou` in [0, 1]; `giou` (Rezatofighi et al. 2019) in (-1, 1]; `diou` and `ciou` (Zheng et al. 2020).
        box_format: how both are given.
        eps: keeps the quotients finite for boxes without area.
        height_eps: added to the heights.
        aspect_eps: added to the heights once more where the aspect ratio is formed.

    Returns:
        (...), in the dtype of the boxes.
    """
    a = _extent(boxes1, box_format, height_eps)
    b = _extent(boxes2, box_format, height_eps)
    overlap_width = (torch.minimum(a.right, b.right) - torch.maximum(a.left, b.left)).clamp(min=0)
    overlap_height = (torch.minimum(a.bottom, b.bottom) - torch.maximum(a.top, b.top)).clamp(min=0)
    intersection = overlap_width * overlap_height
    union = a.width * a.height + b.width * b.height - intersection + eps
    iou = intersection / union
    if kind == "iou":
        return iou

    hull_width = torch.maximum(a.right, b.right) - torch.minimum(a.left, b.left)
    hull_height = torch.maximum(a.bottom, b.bottom) - torch.minimum(a.top, b.top)
    if kind == "giou":
        hull_area = hull_width * hull_height + eps
        return iou - (hull_area - union) / hull_area

    diagonal = hull_width.square() + hull_height.square() + eps
    offset_x = (b.left + b.right - a.left - a.right) / 2
    offset_y = (b.top + b.bottom - a.top - a.bottom) / 2
    diou = iou - (offset_x.square() + offset_y.square()) / diagonal
    if kind == "diou":
        return diou
    if kind != "ciou":
        raise ValueError(f"kind is {kind!r}; expected 'iou', 'giou', 'diou' or 'ciou'")

    # A height below eps would make the quotient, or its gradient, infinite; above it the clamp changes nothing.
    angle_a = torch.atan(a.width / (a.height + aspect_eps).clamp(min=eps))
    angle_b = torch.atan(b.width / (b.height + aspect_eps).clamp(min=eps))
    aspect = (angle_b - angle_a).square() * (4 / math.pi**2)
    # Rounding can lift the IoU of equal boxes above 1, hence the second clamp.
    trade_off = (aspect / (aspect - iou + (1 + eps)).clamp(min=eps)).detach()
    return diou - trade_off * aspect
