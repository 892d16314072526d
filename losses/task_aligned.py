"""Task-aligned assignment: which points of an anchor-free head predict which box (TOOD, Feng et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.anchor_assign import keep_true
from losses.functional import row_blocks, sortable, sorted_order
from losses.iou import box_overlap

EPS = 1e-9


class Boxes(NamedTuple):
    """T boxes of a batch."""

    image: Tensor  # (T,)
    classes: Tensor  # (T,)
    boxes_xyxy: Tensor  # (T, 4) pixels
    valid: Tensor  # (T,)


class Outputs(NamedTuple):
    """What the assignment sees of the predictions."""

    boxes_xyxy: Tensor  # (B, P, 4) pixels
    logits: Tensor  # (B, C, P) before the sigmoid
    points: Tensor  # (P, 2) pixels


class PointAssignment(NamedTuple):
    """M entries, at most one valid for each point."""

    image: Tensor  # (M,)
    point: Tensor  # (M,)
    target: Tensor  # (M,) row of the boxes
    score: Tensor  # (M,) target of the class score, in [0, 1]; 0 where not valid
    valid: Tensor  # (M,)


class TaskAlignedAssigner(NamedTuple):
    """Each box takes the `topk` points inside it with the largest `score ** alpha * CIoU ** beta`.

    A point that several boxes take goes to the box it overlaps most. The target of the class score is that quantity,
    scaled so that a box's best point gets the largest CIoU among its points.

    Attributes:
        topk: points a box may take.
        alpha: exponent of the class score.
        beta: exponent of the overlap.
        min_side: sides are enlarged to this many pixels for the question which points lie inside; 0 leaves them.
    """

    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    min_side: float = 0.0

    @torch.no_grad()
    def __call__(self, outputs: Outputs, targets: Boxes) -> PointAssignment:
        """Assigns points to boxes; M is T times `topk`.

        Args:
            outputs: predictions.
            targets: the boxes, in the same dtype.
        """
        num_images, num_points = outputs.boxes_xyxy.shape[:2]
        num_boxes, k = len(targets.image), min(self.topk, num_points)
        row = torch.arange(num_boxes, device=targets.image.device)
        # For each point, the box that it overlaps most; of equal ones the first, hence rows counted from the end.
        closest = torch.full((num_images * num_points,), -1, device=row.device)
        metric, point = targets.boxes_xyxy.new_zeros(num_boxes, k), torch.zeros_like(row)[:, None].repeat(1, k)
        for some in row_blocks(num_boxes, num_points):
            pair, inside = self._pairs(outputs, targets, some)  # (R,) of n * P
            pair_row, pair_point = row[some][pair // num_points], pair % num_points
            overlaps, metrics = self._compare(outputs, targets, pair_row, pair_point)
            overlaps, metrics = overlaps * inside, metrics * inside
            dense = metrics.new_zeros(len(row[some]) * num_points).scatter_(0, pair, metrics)
            metric[some], point[some] = dense.view(len(row[some]), num_points).topk(k, 1)
            keys = sortable(overlaps.float(), num_boxes - pair_row).masked_fill_(~inside, -1)
            closest.scatter_reduce_(0, targets.image[pair_row] * num_points + pair_point, keys, "amax")

        position = (targets.image[:, None] * num_points + point).flatten()  # (M,) of all images' points
        takes = metric.flatten() > 0
        times = torch.zeros_like(closest).scatter_add_(0, position, takes.long())
        entry = torch.arange(len(position), device=position.device)
        first = torch.full_like(times, len(position))
        first = first.scatter_reduce(0, position, torch.where(takes, entry, len(position)), "amin")
        valid = takes & (first[position] == entry)
        own = row[:, None].expand_as(point).flatten()
        target = torch.where(times[position] > 1, num_boxes - sorted_order(closest[position]), own)
        target = torch.where(valid, target, own)
        score = self._target_scores(outputs, targets, target, point.flatten(), valid)
        return PointAssignment(targets.image[own], point.flatten(), target, score, valid)

    def _pairs(self, outputs: Outputs, targets: Boxes, some: slice) -> tuple[Tensor, Tensor]:
        """(R,) pairs of n boxes and P points as positions in (n, P), and whether the point lies inside the box."""
        left, top, right, bottom = self._enlarged(targets.boxes_xyxy[some])[:, :, None].unbind(1)  # (n, 1)
        x, y = outputs.points.unbind(1)  # (P,)
        gap = torch.minimum(torch.minimum(x - left, right - x), torch.minimum(y - top, bottom - y))  # (n, P)
        inside = (gap > EPS) & targets.valid[some, None]
        pair, inside = keep_true(inside.view(1, -1))
        return pair[0], inside[0]

    def _enlarged(self, boxes_xyxy: Tensor) -> Tensor:
        center, sides = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        half = sides.clamp(min=self.min_side) / 2
        return torch.cat([center - half, center + half], 1) if self.min_side else boxes_xyxy

    def _compare(self, outputs: Outputs, targets: Boxes, row: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) boxes and points -> (R,) CIoU, not below 0, and metric."""
        image = targets.image[row]
        overlaps = box_overlap(
            targets.boxes_xyxy[row], outputs.boxes_xyxy[image, point], "ciou", box_format="xyxy", height_eps=1e-7
        ).clamp_(min=0)
        scores = outputs.logits[image, targets.classes[row], point].sigmoid()
        return overlaps, scores.pow(self.alpha) * overlaps.pow(self.beta)

    def _target_scores(self, outputs: Outputs, targets: Boxes, target: Tensor, point: Tensor, valid: Tensor) -> Tensor:
        overlaps, metrics = self._compare(outputs, targets, target, point)  # (M,)
        overlaps, metrics = overlaps * valid, metrics * valid
        largest = torch.zeros_like(targets.boxes_xyxy[:, 0])  # (T,)
        largest_metric = largest.scatter_reduce(0, target, metrics, "amax")
        largest_overlap = largest.scatter_reduce(0, target, overlaps, "amax")
        return metrics * largest_overlap[target] / (largest_metric[target] + EPS)
