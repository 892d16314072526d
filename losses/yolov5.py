"""The YOLOv5 loss: every candidate cell of the anchor-ratio rule predicts its box. YOLOv7 validates with it as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.anchor_assign import Assignment, assign, find_candidates, group_targets
from losses.anchor_based import AnchorLoss, compute_dtype


class YOLOv5Loss(AnchorLoss):
    """CIoU, objectness and class loss with anchor-ratio assignment; arguments as `AnchorLoss`.

    `forward(predictions, targets)` takes the training maps, L of (B, A, rows, columns, 5 + C) in any floating dtype,
    and targets (T, 6) rows [image, class, cx, cy, w, h] normalised, on the device of the maps or in host memory. It
    returns the loss times B, and its parts `box`, `obj`, `cls`.
    """

    def forward(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.check_inputs(predictions, targets, self.num_levels)
        with torch.autocast(predictions[0].device.type, enabled=False):
            terms = self.terms(predictions, self.assign_cells(predictions, targets))
            return self.total(terms, len(predictions[0]))

    def assign_cells(self, predictions: Sequence[Tensor], targets: Tensor) -> list[Assignment]:
        """What the cells of each level have to predict; depends on the shapes of the predictions only."""
        device, dtype = predictions[0].device, compute_dtype(predictions[0])
        groups = group_targets(targets.to(dtype), len(predictions[0]), by_image=False)
        anchors = self.anchors_on(targets.device, dtype)
        groups_there, anchors_there = groups.to(device), self.anchors_on(device, dtype)
        assignments = []
        for level, prediction in enumerate(predictions):
            grid_hw = prediction.shape[2], prediction.shape[3]
            candidates = find_candidates(groups, anchors[level], grid_hw, self.anchor_t).to(device)
            assignments.append(assign(groups_there, candidates, anchors_there[level], grid_hw))
        return assignments
