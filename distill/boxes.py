"""Boxes (..., 4) as x1, y1, x2, y2: overlaps of pairs that broadcast against each other."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-7


def _areas(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union."""
    top_left = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    bottom_right = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    a_area = (a_xyxy[..., 2:] - a_xyxy[..., :2]).prod(-1)
    b_area = (b_xyxy[..., 2:] - b_xyxy[..., :2]).prod(-1)
    return intersection, a_area + b_area - intersection


def _hull(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(..., 2) width and height of the smallest box around both."""
    top_left = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    return torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - top_left


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(...) intersection over union, in [0, 1]; 0 for two boxes without area."""
    intersection, union = _areas(a_xyxy, b_xyxy)
    return intersection / union.clamp(min=_EPS)


def giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(...) generalised IoU, in [-1, 1] (arXiv 1902.09630, algorithm 1)."""
    intersection, union = _areas(a_xyxy, b_xyxy)
    hull = _hull(a_xyxy, b_xyxy).prod(-1).clamp(min=_EPS)
    return intersection / union.clamp(min=_EPS) - (hull - union) / hull


def diou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(...) IoU less the squared distance of centres by the hull's squared diagonal (arXiv 1911.08287, eq. 7)."""
    centres = (a_xyxy[..., :2] + a_xyxy[..., 2:] - b_xyxy[..., :2] - b_xyxy[..., 2:]) / 2
    diagonal = _hull(a_xyxy, b_xyxy).square().sum(-1).clamp(min=_EPS)
    return iou(a_xyxy, b_xyxy) - centres.square().sum(-1) / diagonal
