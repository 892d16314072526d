"""Where localisation is distilled: a main and a valuable region (Zheng et al., arXiv 2102.12252)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes import diou, iou
from .context import DistillContext
from .heads import grid_points

_PAIRS_AT_ONCE = 2**22
"""Boxes times locations looked at in one operation: 16 MiB of float32 for each number of a pair."""


def map_regions(
    maps: Sequence[Tensor], strides: Sequence[int], context: DistillContext, anchor_scale: float = 8.0
) -> tuple[Tensor, Tensor]:
    """`localization_regions` for the cells of an anchor-free head's maps (N, C, H, W)."""
    points = [grid_points(raw.shape[2:], stride, raw.device) for raw, stride in zip(maps, strides)]
    boxes, images = context.boxes_xyxy, context.box_images
    return localization_regions(boxes, images, len(maps[0]), points, strides, anchor_scale=anchor_scale)


@torch.no_grad()
def localization_regions(
    boxes_xyxy: Tensor,
    box_images: Tensor,
    num_images: int,
    points: Sequence[Tensor],
    strides: Sequence[int],
    *,
    anchor_scale: float = 8.0,
    nearest: int = 9,
    low: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """Weights (N, A) of the main region and of the valuable localisation region, over the locations of all levels.

    Every location has a square anchor of `anchor_scale` strides. For each box, the IoUs of the `nearest` anchors of
    each level have mean plus standard deviation theta. The main region (weight 1) are those of them with IoU >= theta
    whose centre lies in the box: the positives of ATSS (arXiv 1912.02424). The valuable one, around it, are all
    anchors with low * theta <= DIoU < theta, weighted by IoU; the main region is left out of it.

    Args:
        boxes_xyxy: (T, 4) in pixels; T may be 0.
        box_images: (T,) image of each box.
        num_images: N.
        points: for each level the (A_l, 2) centres of its cells.
        strides: stride of each level in pixels.
        anchor_scale: side of an anchor in strides.
        nearest: candidates a level.
        low: lower end of the valuable region, as a share of theta.
    """
    half = torch.cat([p.new_full((len(p), 1), anchor_scale * stride / 2) for p, stride in zip(points, strides)])
    centres = torch.cat(list(points))  # (A, 2)
    anchors = torch.cat((centres - half, centres + half), dim=1)  # (A, 4)
    sizes = [len(p) for p in points]
    main, valuable = boxes_xyxy.new_zeros(2, num_images, len(anchors)).unbind(0)
    step = max(1, _PAIRS_AT_ONCE // len(anchors))
    for start in range(0, len(boxes_xyxy), step):  # one round, but for hundreds of boxes: bounds the memory
        boxes, images = boxes_xyxy[start : start + step, None], box_images[start : start + step, None]
        overlap = iou(boxes, anchors)  # (T', A)
        candidate = _nearest(boxes, centres, sizes, nearest)  # (T', A), 0 or 1
        theta = _mean_plus_std(overlap, candidate)  # (T', 1)
        inside = torch.cat((centres - boxes[..., :2], boxes[..., 2:] - centres), -1).amin(-1) > 0  # (T', A)
        positive = candidate * (overlap >= theta) * inside
        distance_overlap = diou(boxes, anchors)
        around = overlap * ((distance_overlap >= low * theta) & (distance_overlap < theta))
        owner = images.expand_as(overlap)
        main = main.scatter_reduce(0, owner, positive, "amax")
        valuable = valuable.scatter_reduce(0, owner, around, "amax")
    return main, valuable * (1 - main)


def _nearest(boxes: Tensor, centres: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """(T, A) 1 for the `count` locations of each level nearest to each box's centre, else 0."""
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2  # (T, 1, 2)
    distances = (centres - middle).square().sum(-1)  # (T, A)
    marks = []
    for level in distances.split(list(sizes), dim=1):
        chosen = level.topk(min(count, level.shape[1]), dim=1, largest=False).indices
        marks.append(torch.zeros_like(level).scatter(1, chosen, 1.0))
    return torch.cat(marks, dim=1)


def _mean_plus_std(values: Tensor, mask: Tensor) -> Tensor:
    """(T, 1) mean plus (unbiased) standard deviation of each row's marked values."""
    count = mask.sum(1, keepdim=True)
    mean = (values * mask).sum(1, keepdim=True) / count
    variance = ((values - mean).square() * mask).sum(1, keepdim=True) / (count - 1).clamp(min=1)
    return mean + variance.sqrt()
