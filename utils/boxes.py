"""Box formats, scaling between network input and original image, and IoU; for tensors and arrays alike.

Formats: `xyxy` is x1, y1, x2, y2 (corners), `cxcywh` is centre x, centre y, width, height. No function changes its
input.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Boxes = TypeVar("Boxes", torch.Tensor, np.ndarray)
RatioPad = tuple[tuple[float, float], tuple[float, float]]  # ((ratio_h, ratio_w), (pad_x, pad_y)), both in input pixels


def _stack(parts: list[Boxes]) -> Boxes:
    first = parts[0]
    return torch.stack(parts, dim=-1) if isinstance(first, torch.Tensor) else np.stack(parts, axis=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Boxes) -> Boxes:
    """Centre and size to corners, (..., 4) -> (..., 4), in whatever unit the boxes have."""
    cx, cy, width, height = (boxes_cxcywh[..., i] for i in range(4))
    return _stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2])


def xyxy_to_cxcywh(boxes_xyxy: Boxes) -> Boxes:
    """Corners to centre and size, (..., 4) -> (..., 4), in whatever unit the boxes have."""
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def clip_boxes(boxes_xyxy: Boxes, hw: tuple[int, int]) -> Boxes:
    """Boxes (..., 4) cut off at the borders of an image of height and width `hw`, in pixels."""
    height, width = hw
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    return _stack([x1.clip(0, width), y1.clip(0, height), x2.clip(0, width), y2.clip(0, height)])


def scale_boxes(
    boxes_xyxy: Boxes,
    input_hw: tuple[int, int],
    original_hw: tuple[int, int],
    ratio_pad: RatioPad | None = None,
) -> Boxes:
    """Boxes in pixels of the letterboxed network input to boxes in pixels of the original image, clipped to it.

    Args:
        boxes_xyxy: (..., 4) in pixels of the network input.
        input_hw: height and width of the network input.
        original_hw: height and width of the original image.
        ratio_pad: how the image was resized and padded: ((ratio_h, ratio_w), (pad_x, pad_y)), where a ratio is resized
            over original size and a pad the border on the left and at the top. Without it, the image is taken to have
            been resized by one ratio to fit and centred.
    """
    if ratio_pad is None:
        ratio = min(input_hw[0] / original_hw[0], input_hw[1] / original_hw[1])
        pad_x, pad_y = (input_hw[1] - original_hw[1] * ratio) / 2, (input_hw[0] - original_hw[0] * ratio) / 2
        ratio_h = ratio_w = ratio
    else:
        (ratio_h, ratio_w), (pad_x, pad_y) = ratio_pad
    x1, y1, x2, y2 = (boxes_xyxy[..., i] for i in range(4))
    scaled = [(x1 - pad_x) / ratio_w, (y1 - pad_y) / ratio_h, (x2 - pad_x) / ratio_w, (y2 - pad_y) / ratio_h]
    return clip_boxes(_stack(scaled), original_hw)


def pairwise_iou(a_xyxy: Boxes, b_xyxy: Boxes) -> Boxes:
    """Intersection over union of each of (N, 4) with each of (M, 4) boxes: (N, M) in 0..1; 0 for boxes without area."""
    a, b = a_xyxy[:, None], b_xyxy[None]  # (N, 1, 4), (1, M, 4)
    if isinstance(a, torch.Tensor):
        left_top, right_bottom = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:4], b[..., 2:4])
    else:
        left_top, right_bottom = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:4], b[..., 2:4])
    overlap = (right_bottom - left_top).clip(min=0)  # (N, M, 2)
    intersection = overlap[..., 0] * overlap[..., 1]  # (N, M)
    union = box_area(a) + box_area(b) - intersection
    return intersection / union.clip(min=1e-9)


def box_area(boxes_xyxy: Boxes) -> Boxes:
    """Width times height of boxes (..., 4)."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])
