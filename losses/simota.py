"""The YOLOv7 loss: SimOTA decides which of the candidate cells predict which box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.anchor_assign import (
    Assignment,
    Candidates,
    TargetGroups,
    assign,
    drop_invalid,
    find_candidates,
    group_targets,
    sizes_readable,
)
from losses.anchor_based import AnchorLoss, compute_dtype, decode_boxes
from losses.functional import denormalise, row_blocks, sortable
from utils.boxes import cxcywh_to_xyxy

IOU_COST = 3.0
UNAFFORDABLE = 0x7F800000 << 32  # the bits of infinity: what `sortable` makes of an infinite cost


class CandidateBoxes(NamedTuple):
    """What the matching sees of the candidates of all levels."""

    boxes_xyxy: Tensor  # (G, K, 4) predicted, pixels
    class_costs: Tensor  # (G, C + 1, K) cost of predicting a class; the last row, of padding, is infinite
    image: Tensor  # (G, K)


def class_costs(class_logits: Tensor, object_logits: Tensor, valid: Tensor) -> Tensor:
    """Cost of each class at each candidate: cross-entropy of `sqrt(class score * objectness)` with the class's one-hot.

    The sum over the classes is the same for every one-hot but for one class, so no tensor has to hold boxes times
    candidates times classes.

    Args:
        class_logits: (G, K, C).
        object_logits: (G, K).
        valid: (G, K).

    Returns:
        (G, C + 1, K); infinite for candidates that are not valid, and in the last row.
    """
    num_groups, num_candidates, num_classes = class_logits.shape
    log_score = (F.logsigmoid(class_logits) + F.logsigmoid(object_logits)[..., None]) / 2  # (G, K, C)
    log_score.clamp_(max=-torch.finfo(log_score.dtype).eps)
    log_complement = torch.expm1(log_score).neg_().log_()
    cost_of_none = -log_complement.sum(2, keepdim=True)  # (G, K, 1)
    cost_of_none.masked_fill_(~valid[..., None], torch.inf)
    costs = class_logits.new_full((num_groups, num_classes + 1, num_candidates), torch.inf)
    costs[:, :num_classes] = log_complement.sub_(log_score).add_(cost_of_none).transpose(1, 2)
    return costs


def pair_ious(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """(G, N, 4) and (G, K, 4) -> (G, N, K) IoU; 0 where both boxes have no area. Without gradients."""
    left1, top1, right1, bottom1 = boxes1_xyxy[:, :, None].unbind(-1)  # (G, N, 1)
    left2, top2, right2, bottom2 = boxes2_xyxy[:, None].unbind(-1)  # (G, 1, K)
    intersection = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).clamp_(min=0)
    intersection *= (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).clamp_(min=0)
    area1, area2 = (right1 - left1) * (bottom1 - top1), (right2 - left2) * (bottom2 - top2)
    union = (area1 + area2).sub_(intersection).clamp_(min=torch.finfo(area1.dtype).tiny)
    return intersection.div_(union)


def settle_ties(place: Tensor, rank: Tensor, k: Tensor, costs: Tensor) -> None:
    """Where the k-th and the next candidate of a box cost the same, takes those that `torch.topk` returns.

    The original asks `torch.topk` for the k cheapest of a box. On the CPU that selects as `std::nth_element` does, and
    which of equal costs come out depends on all other costs and on k: no order of the candidates gives the same. It
    matters, as candidates with equal costs are copies of one cell, and another box may take the copy that is left over.
    So each box with such a tie is asked for in the very same way.

    Args:
        place: (G, n, k_max + 1) candidates, the cheapest first; its first k are replaced.
        rank: (G, n, k_max + 1) costs of these as whole numbers, see `sortable`.
        k: (G, n).
        costs: (G, n, K), infinite for what is no candidate.
    """
    cost = rank >> 32
    at_k = torch.arange(rank.shape[2])[1:] == k[..., None]  # (G, n, k_max)
    tied = at_k & (cost[..., 1:] == cost[..., :-1]) & (rank[..., 1:] < UNAFFORDABLE)
    for group, box, last in tied.nonzero().tolist():
        candidates = costs[group, box].isfinite().nonzero()[:, 0]
        cheapest = costs[group, box, candidates].topk(last + 1, largest=False).indices
        place[group, box, : last + 1] = candidates[cheapest]


@torch.no_grad()
def match(
    target_boxes_xyxy: Tensor, groups: TargetGroups, candidates: CandidateBoxes, topk: int
) -> tuple[Tensor, Tensor]:
    """Dynamic-k matching of SimOTA (Ge et al. 2021, YOLOX).

    A box takes its k cheapest candidates, k being the whole part of the sum of its `topk` largest IoUs and at least 1.
    A candidate taken by several boxes goes to the box for which it is cheapest, be it one of those or not. Candidates
    that are copies of one cell have equal costs: the first ones count as the cheaper, but on the CPU `settle_ties`
    takes those that the original takes.

    Args:
        target_boxes_xyxy: (G, N, 4) pixels.
        groups: the boxes.
        candidates: predictions at the candidate cells.
        topk: number of IoUs in the estimate of k, and its upper bound.

    Returns:
        (G, K) box of each candidate as its position in the group, and (G, K) whether it has one.
    """
    num_groups, num_boxes = groups.valid.shape
    num_candidates = candidates.image.shape[1]
    num_classes = candidates.class_costs.shape[1] - 1
    classes = torch.where(groups.valid, groups.classes, num_classes)
    group = torch.arange(num_groups, device=classes.device)[:, None]

    taken = torch.zeros_like(candidates.image)  # (G, K) how many boxes take it
    taker = torch.zeros_like(candidates.image)
    cheapest = torch.zeros_like(candidates.image)  # the box for which it is cheapest
    least = torch.full_like(candidates.boxes_xyxy[..., 0], torch.inf)
    column = torch.arange(num_candidates, device=classes.device)
    k_max = min(topk, num_candidates)
    for some in row_blocks(num_boxes, num_groups * num_candidates):
        ious = pair_ious(target_boxes_xyxy[:, some], candidates.boxes_xyxy)  # (G, n, K)
        costs = candidates.class_costs[group, classes[:, some]]  # (G, n, K)
        if num_groups == 1:  # one group may hold the boxes of several images
            elsewhere = groups.image[:, some, None] != candidates.image[:, None]
            ious.masked_fill_(elsewhere, 0)
            costs.masked_fill_(elsewhere, torch.inf)
        k = ious.topk(k_max, 2).values.sum(2).int().clamp_(min=1)  # (G, n)
        costs -= IOU_COST * ious.add_(1e-8).log_()
        block_least, block_cheapest = costs.clamp_(min=0).min(1)  # (G, K); of equal boxes the first one
        cheapest = torch.where(block_least < least, block_cheapest + some.start, cheapest)
        least = torch.minimum(least, block_least)

        ranks = sortable(costs, column)  # (G, n, K)
        rank, place = ranks.topk(min(k_max + 1, num_candidates), 2, largest=False)  # (G, n, k_max + 1)
        if sizes_readable(costs):
            settle_ties(place, rank, k, costs)
        takes = (rank < UNAFFORDABLE) & (torch.arange(rank.shape[2], device=k.device) < k[..., None])
        position = torch.arange(num_boxes, device=k.device)[some, None]  # (n, 1)
        taken.scatter_add_(1, place.flatten(1), takes.flatten(1).to(taken.dtype))
        taker.scatter_reduce_(1, place.flatten(1), torch.where(takes, position, 0).flatten(1), "amax")
    return torch.where(taken > 1, cheapest, taker), taken > 0


class SimOTALoss(AnchorLoss):
    """The loss YOLOv7 trains with: candidates by anchor ratio, SimOTA matching, then the terms of the YOLOv5 loss.

    `forward(predictions, targets)` takes the training maps, L of (B, A, rows, columns, 5 + C) in any floating dtype,
    and targets (T, 6) rows [image, class, cx, cy, w, h] normalised, on the device of the maps or in host memory. It
    returns the loss times B, and its parts `box`, `obj`, `cls`. Targets in host memory are the faster choice: the
    padding is then cut to the batch. Nothing waits for the device in either case.

    Args:
        anchors: as for `AnchorLoss`.
        strides: as for `AnchorLoss`.
        num_classes: as for `AnchorLoss`.
        topk: number of IoUs that estimate how many cells a box takes.
        height_only_scale: scale normalised boxes by the image height on both axes while matching, as the original does;
            it differs on images that are not square.
        height_eps: as for `AnchorLoss`.
        settings: the other keywords of `AnchorLoss`.
    """

    def __init__(
        self,
        anchors: Tensor,
        strides: Sequence[float] | Tensor,
        num_classes: int,
        *,
        topk: int = 10,
        height_only_scale: bool = False,
        height_eps: float = 1e-7,
        **settings: Any,
    ) -> None:
        super().__init__(anchors, strides, num_classes, height_eps=height_eps, **settings)
        self.topk = topk
        self.height_only_scale = height_only_scale

    def forward(self, predictions: Sequence[Tensor], targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.check_inputs(predictions, targets, self.num_levels)
        with torch.autocast(predictions[0].device.type, enabled=False):
            terms = self.terms(predictions, self.assign_cells(predictions, targets))
            return self.total(terms, len(predictions[0]))

    @torch.no_grad()
    def assign_cells(self, predictions: Sequence[Tensor], targets: Tensor, reach: float = 0.5) -> list[Assignment]:
        """What the cells of each level have to predict, by SimOTA among the candidates within `reach` cells."""
        device, dtype = predictions[0].device, compute_dtype(predictions[0])
        grids = [(prediction.shape[2], prediction.shape[3]) for prediction in predictions]
        groups = group_targets(targets.to(dtype), len(predictions[0]))
        anchors = self.anchors_on(targets.device, dtype)
        found = [
            find_candidates(groups, anchors[level], grid, self.anchor_t, reach) for level, grid in enumerate(grids)
        ]
        found = [candidates.to(device) for candidates in found]
        groups, anchors = groups.to(device), self.anchors_on(device, dtype)

        height, width = grids[0][0] * self.strides[0], grids[0][1] * self.strides[0]
        boxes = denormalise(groups.boxes_cxcywh, height if self.height_only_scale else width, height)
        seen = self._look(predictions, found, groups)
        target, matched = match(cxcywh_to_xyxy(boxes).float(), groups, seen, self.topk)

        sizes = [candidates.valid.shape[1] for candidates in found]
        assignments = []
        for level, parts in enumerate(zip(found, target.split(sizes, 1), matched.split(sizes, 1))):
            candidates = parts[0]._replace(target=parts[1], valid=parts[2])
            assignments.append(drop_invalid(assign(groups, candidates, anchors[level], grids[level])))
        return assignments

    def _look(self, predictions: Sequence[Tensor], found: Sequence[Candidates], groups: TargetGroups) -> CandidateBoxes:
        """Collects the predictions at the candidates of all levels, in float32."""
        anchors = self.anchors_on(groups.valid.device, torch.float32)
        boxes, rows = [], []
        for level, (prediction, candidates) in enumerate(zip(predictions, found)):
            row = prediction.flatten(0, 3).index_select(0, candidates.position.flatten())
            row = row.unflatten(0, candidates.position.shape).float()  # (G, K of the level, 5 + C)
            box = decode_boxes(row[..., :4], anchors[level][candidates.anchor])
            center = box[..., :2] + candidates.cell
            box = cxcywh_to_xyxy(torch.cat([center, box[..., 2:]], -1) * self.strides[level])
            boxes.append(torch.where(candidates.valid[..., None], box, 0))
            rows.append(row[..., 4:])
        logits = torch.cat(rows, 1)  # (G, K, 1 + C)
        valid = torch.cat([candidates.valid for candidates in found], 1)
        image = groups.image.gather(1, torch.cat([candidates.target for candidates in found], 1))
        return CandidateBoxes(torch.cat(boxes, 1), class_costs(logits[..., 1:], logits[..., 0], valid), image)
