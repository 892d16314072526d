"""Task-aligned assignment: which points of an anchor-free head predict which box (TOOD, Feng et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    """What the assignment sees of the predictions; planar, so that a box picks its image without a transposition."""

    boxes_xyxy: Tensor  # (B, 4, P) pixels
    scores: Tensor  # (B, C, P) after the sigmoid
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
        num_images, num_points = outputs.scores.shape[0], outputs.scores.shape[2]
        num_boxes, k = len(targets.image), min(self.topk, num_points)
        # For each point, the box that it overlaps most; of equal ones the first, hence rows counted from the end.
        closest = torch.full((num_images, num_points), -1, device=targets.image.device)
        metric, point = targets.boxes_xyxy.new_zeros(num_boxes, k), targets.image.new_zeros(num_boxes, k)
        row = torch.arange(num_boxes, device=targets.image.device)
        for some in row_blocks(num_boxes, num_points):
            part = Boxes(*(tensor[some] for tensor in targets))
            overlaps, metrics, inside = self._compare(outputs, part)  # (n, P)
            metric[some], point[some] = metrics.topk(k, 1)
            keys = sortable(overlaps.float(), num_boxes - row[some, None])
            index = part.image[:, None].expand_as(keys)
            closest.scatter_reduce_(0, index, keys.masked_fill_(~inside, -1), "amax")

        position = (targets.image[:, None] * num_points + point).flatten()  # (M,) of all images' points
        takes = metric.flatten() > 0
        times = torch.zeros_like(closest).view(-1).scatter_add(0, position, takes.long())
        entry = torch.arange(len(position), device=position.device)
        first = torch.full_like(times, len(position))
        first = first.scatter_reduce(0, position, torch.where(takes, entry, len(position)), "amin")
        valid = takes & (first[position] == entry)
        own = row[:, None].expand_as(point).flatten()
        target = torch.where(times[position] > 1, num_boxes - sorted_order(closest.view(-1)[position]), own)
        target = torch.where(valid, target, own)
        image = targets.image[own]
        score = self._target_scores(outputs, targets, image, point.flatten(), target, valid)
        return PointAssignment(image, point.flatten(), target, score, valid)

    def _compare(self, outputs: Outputs, targets: Boxes) -> tuple[Tensor, Tensor, Tensor]:
        """All points against n boxes: (n, P) CIoU not below 0, metric, and whether the point is a candidate."""
        left, top, right, bottom = self._enlarged(targets.boxes_xyxy)[:, :, None].unbind(1)  # (n, 1)
        x, y = outputs.points.unbind(1)  # (P,)
        gap = torch.minimum(torch.minimum(x - left, right - x), torch.minimum(y - top, bottom - y))  # (n, P)
        inside = (gap > EPS) & targets.valid[:, None]
        predicted = outputs.boxes_xyxy[targets.image].transpose(1, 2)  # (n, P, 4)
        overlaps = _overlap(predicted, targets.boxes_xyxy[:, None])
        overlaps.masked_fill_(~inside, 0)
        scores = outputs.scores[targets.image, targets.classes]  # (n, P)
        return overlaps, self._metric(scores, overlaps), inside

    def _enlarged(self, boxes_xyxy: Tensor) -> Tensor:
        center, sides = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        half = sides.clamp(min=self.min_side) / 2
        return torch.cat([center - half, center + half], 1) if self.min_side else boxes_xyxy

    def _metric(self, scores: Tensor, overlaps: Tensor) -> Tensor:
        return scores.pow(self.alpha) * overlaps.pow(self.beta)

    def _target_scores(
        self, outputs: Outputs, targets: Boxes, image: Tensor, point: Tensor, target: Tensor, valid: Tensor
    ) -> Tensor:
        predicted = outputs.boxes_xyxy[image, :, point]  # (M, 4)
        overlaps = _overlap(predicted, targets.boxes_xyxy[target]) * valid  # (M,)
        metrics = self._metric(outputs.scores[image, targets.classes[target], point], overlaps)
        largest = torch.zeros_like(targets.boxes_xyxy[:, 0])  # (T,)
        largest_metric = largest.scatter_reduce(0, target, metrics, "amax")
        largest_overlap = largest.scatter_reduce(0, target, overlaps, "amax")
        return metrics * largest_overlap[target] / (largest_metric[target] + EPS)


def _overlap(predicted_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    return box_overlap(target_xyxy, predicted_xyxy, "ciou", box_format="xyxy", height_eps=1e-7).clamp_(min=0)
