"""The YOLOv8 loss: task-aligned assignment, cross-entropy on the classes, CIoU and distribution focal loss on boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.anchor_based import check_targets, compute_dtype
from losses.functional import background_cross_entropy, denormalise, to_device
from losses.iou import box_overlap
from losses.task_aligned import Boxes, Outputs, PointAssignment, TaskAlignedAssigner
from utils.boxes import cxcywh_to_xyxy
from utils.errors import UserError


def make_points(
    grids: Sequence[tuple[int, int]], strides: Sequence[float], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Centres of all cells, level by level and row by row.

    Args:
        grids: rows and columns of each level.
        strides: pixels a cell, one a level.
        device: where to make them.
        dtype: of which type.

    Returns:
        (P, 2) x and y in cells, and (P,) strides.
    """
    points, sizes = [], []
    for (rows, columns), stride in zip(grids, strides):
        y = torch.arange(rows, device=device, dtype=dtype) + 0.5
        x = torch.arange(columns, device=device, dtype=dtype) + 0.5
        points.append(torch.stack([x.repeat(rows), y.repeat_interleave(columns)], 1))
        sizes.append(torch.full((rows * columns,), stride, device=device, dtype=dtype))
    return torch.cat(points), torch.cat(sizes)


def decode_distances(logits: Tensor, points: Tensor) -> Tensor:
    """(M, 4, R) logits of the distances to the four sides, (M, 2) points -> (M, 4) boxes x1, y1, x2, y2, in cells.

    A distance is the expectation over the bins 0, ..., R - 1 (Generalized Focal Loss, Li et al. 2020).
    """
    bins = torch.arange(logits.shape[2], device=logits.device, dtype=logits.dtype)
    distances = logits.softmax(2) @ bins  # (M, 4) left, top, right, bottom
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], 1)


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy with the two bins around each distance, weighted by how near they are; the mean over the sides.

    Args:
        logits: (M, S, R).
        distances: (M, S), cut to [0, R - 1.01]: a distance beyond the last bin pulls towards it.

    Returns:
        (M,).
    """
    distances = distances.clamp(0, logits.shape[2] - 1.01)
    below = distances.floor()
    share_above = distances - below
    log_probability = logits.log_softmax(2)  # (M, S, R)
    below = below.long()[..., None]
    loss_below = -log_probability.gather(2, below).squeeze(2)
    loss_above = -log_probability.gather(2, below + 1).squeeze(2)
    return (loss_below * (1 - share_above) + loss_above * share_above).mean(1)


class YOLOv8Loss(nn.Module):
    """Loss of the anchor-free head with distributed distances.

    `forward(predictions, targets)` takes the training maps, L of (B, 4 * reg_max + C, rows, columns) in any floating
    dtype, and targets (T, 6) rows [image, class, cx, cy, w, h] normalised, on the device of the maps or in host memory.
    It returns the loss times B, and its parts `box`, `cls`, `dfl`.

    Args:
        strides: L, pixels a cell.
        num_classes: C.
        reg_max: bins of a distance.
        box: gain of the CIoU term.
        cls: gain of the class term.
        dfl: gain of the distribution focal loss.
        topk: points a box may take.
        alpha: exponent of the class score in the assignment.
        beta: exponent of the overlap in the assignment.
        enlarge_small_boxes: let boxes with sides below the second stride take points as if they had that size, as later
            releases of ultralytics (8.4) do; the classic rule leaves the smallest boxes without any point.
    """

    def __init__(
        self,
        strides: Sequence[float] | Tensor,
        num_classes: int,
        *,
        reg_max: int = 16,
        box: float = 7.5,
        cls: float = 0.5,
        dfl: float = 1.5,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        enlarge_small_boxes: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(float(stride) for stride in strides)
        self.num_classes = num_classes
        self.reg_max = reg_max
        self.gains = {"box": box, "cls": cls, "dfl": dfl}
        min_side = self.strides[min(1, len(self.strides) - 1)] if enlarge_small_boxes else 0.0
        self.assigner = TaskAlignedAssigner(topk, alpha, beta, min_side)

    def check_inputs(self, predictions: Sequence[Tensor], targets: Tensor) -> None:
        """Raises UserError where the maps or the targets do not fit this loss."""
        if len(predictions) != len(self.strides):
            raise UserError(f"loss: the head gives {len(predictions)} maps; this loss expects {len(self.strides)}")
        channels = 4 * self.reg_max + self.num_classes
        for level, prediction in enumerate(predictions):
            shape = tuple(prediction.shape)
            if len(shape) != 4 or shape[1] != channels:
                raise UserError(
                    f"loss: map {level} has shape {shape}; expected (images, {channels}, rows, columns) "
                    f"for {self.reg_max} bins a side and {self.num_classes} classes"
                )
        check_targets(targets)

    def forward(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.check_inputs(predictions, targets)
        device, dtype = predictions[0].device, compute_dtype(predictions[0])
        with torch.autocast(device.type, enabled=False):
            grids = [(prediction.shape[2], prediction.shape[3]) for prediction in predictions]
            outputs = torch.cat([prediction.flatten(2) for prediction in predictions], 2).to(dtype)  # (B, 4R + C, P)
            distance_logits, class_logits = outputs.split([4 * self.reg_max, self.num_classes], 1)
            points, strides = make_points(grids, self.strides, device, dtype)
            height, width = grids[0][0] * self.strides[0], grids[0][1] * self.strides[0]
            boxes = read_boxes(to_device(targets.to(dtype), device), width, height)

            assignment = self.assigner(self._look(distance_logits, class_logits, points, strides), boxes)
            normaliser = assignment.score.sum().clamp(min=1)
            cls = self._class_term(class_logits, assignment, boxes)
            box, dfl = self._box_terms(distance_logits, points, strides, assignment, boxes)
            terms = {"box": box, "cls": cls, "dfl": dfl}
            items = {name: value / normaliser * self.gains[name] for name, value in terms.items()}
            loss = (items["box"] + items["cls"] + items["dfl"]) * len(outputs)
            return loss, {name: value.detach() for name, value in items.items()}

    @torch.no_grad()
    def _look(self, distance_logits: Tensor, class_logits: Tensor, points: Tensor, strides: Tensor) -> Outputs:
        """Decodes all predictions."""
        probability = distance_logits.unflatten(1, (4, self.reg_max)).softmax(2)  # (B, 4, R, P)
        bins = torch.arange(self.reg_max, device=points.device, dtype=points.dtype)
        distances = (probability * bins[:, None]).sum(2)  # (B, 4, P)
        centers = points.T  # (2, P)
        boxes = torch.cat([centers - distances[:, :2], centers + distances[:, 2:]], 1) * strides  # (B, 4, P)
        return Outputs(boxes.transpose(1, 2).contiguous(), class_logits, points * strides[:, None])

    def _class_term(self, logits: Tensor, assignment: PointAssignment, boxes: Boxes) -> Tensor:
        """Cross-entropy summed over everything; it is linear in the targets, of which few are not 0."""
        chosen = logits[assignment.image, boxes.classes[assignment.target], assignment.point]  # (M,)
        return background_cross_entropy(logits).sum() - (chosen * assignment.score).sum()

    def _box_terms(
        self, logits: Tensor, points: Tensor, strides: Tensor, assignment: PointAssignment, boxes: Boxes
    ) -> tuple[Tensor, Tensor]:
        logits = logits.transpose(1, 2)[assignment.image, assignment.point].unflatten(1, (4, self.reg_max))  # (M, 4, R)
        point = points[assignment.point]
        predicted = decode_distances(logits, point)  # (M, 4)
        target = boxes.boxes_xyxy[assignment.target] / strides[assignment.point, None]
        # Entries that do not count are computed too: comparing a box with itself keeps their gradients finite.
        target = torch.where(assignment.valid[:, None], target, predicted.detach())
        score = assignment.score.to(logits.dtype)
        ciou = box_overlap(predicted, target, "ciou", box_format="xyxy", height_eps=1e-7)
        distances = torch.cat([point - target[:, :2], target[:, 2:] - point], 1)
        dfl = distribution_focal_loss(logits, distances)
        return ((1 - ciou) * score).sum(), (dfl * score).sum()


def read_boxes(targets: Tensor, width: float, height: float) -> Boxes:
    """(T, 6) rows [image, class, cx, cy, w, h] normalised -> boxes in pixels; a negative image marks padding."""
    image = targets[:, 0].long()
    boxes_xyxy = cxcywh_to_xyxy(denormalise(targets[:, 2:6], width, height))
    return Boxes(image.clamp(min=0), targets[:, 1].long().clamp(min=0), boxes_xyxy, image >= 0)
