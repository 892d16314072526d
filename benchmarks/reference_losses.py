"""Plain versions of the detection losses: boolean indexing, one image at a time.

They say in the most direct way what the batched losses of `losses/` compute. Tests use them as oracles, and
`benchmarks/losses.py` as the yardstick for speed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.anchor_based import AnchorLoss
from losses.functional import binary_cross_entropy
from losses.iou import box_overlap
from losses.simota import SimOTALoss
from losses.simota_aux import SimOTAAuxLoss
from losses.yolov8 import YOLOv8Loss, decode_distances, distribution_focal_loss, make_points
from utils.boxes import cxcywh_to_xyxy, pairwise_iou


def positives(targets: Tensor, anchors: Tensor, grid_hw: tuple[int, int], anchor_t: float, reach: float) -> Tensor:
    """Rows [image, anchor, row, column, target] that may predict a box, in the order in which objectness is written."""
    rows, columns = grid_hw
    x, y = targets[:, 2] * columns, targets[:, 3] * rows
    sides = targets[:, 4:6] * targets.new_tensor([columns, rows])
    ratio = sides[None] / anchors[:, None]  # (A, T, 2)
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t  # (A, T)
    found = []
    for dx, dy in ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)):
        edge = {(-1, 0): x, (0, -1): y, (1, 0): columns - x, (0, 1): rows - y}.get((dx, dy))
        inside = torch.ones_like(x, dtype=torch.bool) if edge is None else (edge % 1 < reach) & (edge > 1)
        anchor, target = (fits & inside).nonzero(as_tuple=True)
        column = (x[target] + dx * reach).long().clamp(0, columns - 1)
        row = (y[target] + dy * reach).long().clamp(0, rows - 1)
        found.append(torch.stack([targets[target, 0].long(), anchor, row, column, target], 1))
    return torch.cat(found)


def level_loss(loss: AnchorLoss, prediction: Tensor, matched: Tensor, targets: Tensor, level: int) -> list[Tensor]:
    """Box, objectness and class terms of one level without gains; `matched` as `positives` gives them."""
    image, anchor, row, column, target = matched.T
    objectness = torch.zeros_like(prediction[..., 4])
    box = cls = prediction.new_zeros(())
    if len(matched):
        logits = prediction[image, anchor, row, column]  # (M, 5 + C)
        scores = logits[:, :4].sigmoid()
        center = scores[:, :2] * 2 - 0.5 + torch.stack([column, row], 1)
        sides = (scores[:, 2:] * 2) ** 2 * loss.anchors[level].to(prediction)[anchor]
        rows, columns = prediction.shape[2:4]
        wanted = targets[target, 2:6] * targets.new_tensor([columns, rows, columns, rows])
        ciou = box_overlap(
            torch.cat([center, sides], 1), wanted, "ciou", height_eps=loss.height_eps, aspect_eps=loss.height_eps
        )
        box = (1 - ciou).mean()
        for_cells = ciou.detach().clamp(min=0)
        objectness[image, anchor, row, column] = for_cells
        if loss.num_classes > 1:
            classes = torch.full_like(logits[:, 5:], loss.negative)
            classes[torch.arange(len(matched)), targets[target, 1].long()] = loss.positive
            cls = binary_cross_entropy(logits[:, 5:], classes, loss.cls_pw, loss.fl_gamma).mean()
    obj = binary_cross_entropy(prediction[..., 4], objectness, loss.obj_pw, loss.fl_gamma).mean()
    return [box, obj * loss.balance[level], cls]


def weighted_total(loss: AnchorLoss, terms: list[Tensor], batch_size: int) -> Tensor:
    """Box, objectness and class terms -> the scalar to back-propagate."""
    box, obj, cls = terms
    return (box * loss.gains["box"] + obj * loss.gains["obj"] + cls * loss.gains["cls"]) * batch_size


def reference_yolov5(loss: AnchorLoss, predictions: list[Tensor], targets: Tensor) -> Tensor:
    """The YOLOv5 loss with the settings of `loss`."""
    targets = targets.to(predictions[0])
    terms = []
    for level, prediction in enumerate(predictions):
        anchors = loss.anchors[level].to(prediction)
        matched = positives(targets, anchors, (prediction.shape[2], prediction.shape[3]), loss.anchor_t, 0.5)
        terms.append(level_loss(loss, prediction, matched, targets, level))
    return weighted_total(loss, [torch.stack(values).sum() for values in zip(*terms)], len(predictions[0]))


@torch.no_grad()
def dynamic_k_matching(
    boxes_xyxy: Tensor, scores: Tensor, target_boxes_xyxy: Tensor, target_classes: Tensor, topk: int, stable: bool
) -> tuple[Tensor, Tensor]:
    """Matching of one image: positions of the taken candidates, and the target of each.

    `boxes_xyxy` (M, 4) and `scores` (M, C), the square root of class score times objectness, are the candidates'.
    """
    ious = pairwise_iou(target_boxes_xyxy, boxes_xyxy)  # (n, M)
    k = ious.topk(min(topk, ious.shape[1]), 1).values.sum(1).int().clamp(min=1)
    wanted = F.one_hot(target_classes, scores.shape[1]).to(scores)
    pairs = len(target_classes), *scores.shape
    class_cost = F.binary_cross_entropy(
        scores[None].expand(pairs), wanted[:, None].expand(pairs), reduction="none"
    ).sum(2)
    costs = class_cost - 3 * torch.log(ious + 1e-8)  # (n, M)
    matrix = torch.zeros_like(costs)
    for row, count in enumerate(k.tolist()):
        cheapest = (
            costs[row].sort(stable=True).indices[:count] if stable else costs[row].topk(count, largest=False).indices
        )
        matrix[row, cheapest] = 1
    contested = matrix.sum(0) > 1
    if contested.any():
        matrix[:, contested] = F.one_hot(costs[:, contested].argmin(0), len(costs)).T.to(matrix)
    taken = matrix.sum(0) > 0
    return taken.nonzero().flatten(), matrix[:, taken].argmax(0)


def simota_matches(
    loss: SimOTALoss, predictions: list[Tensor], targets: Tensor, reach: float, stable: bool
) -> list[Tensor]:
    """Matched cells of each level as rows [image, anchor, row, column, target]."""
    found = []
    for level, prediction in enumerate(predictions):
        grid_hw = prediction.shape[2], prediction.shape[3]
        found.append(positives(targets, loss.anchors[level].to(prediction), grid_hw, loss.anchor_t, reach))
    height, width = (size * loss.strides[0] for size in predictions[0].shape[2:4])
    scale = targets.new_tensor([height if loss.height_only_scale else width, height] * 2)
    matched: list[list[Tensor]] = [[] for _ in predictions]
    for image in range(len(predictions[0])):
        own = (targets[:, 0] == image).nonzero().flatten()
        rows = [level_rows[level_rows[:, 0] == image] for level_rows in found]
        if not sum(len(level_rows) for level_rows in rows):
            continue
        boxes, scores = [], []
        for level, (prediction, level_rows) in enumerate(zip(predictions, rows)):
            _, anchor, row, column, _ = level_rows.T
            output = prediction.detach()[image, anchor, row, column].sigmoid()
            center = output[:, :2] * 2 - 0.5 + torch.stack([column, row], 1)
            sides = (output[:, 2:4] * 2) ** 2 * loss.anchors[level].to(prediction)[anchor]
            boxes.append(cxcywh_to_xyxy(torch.cat([center, sides], 1) * loss.strides[level]))
            scores.append((output[:, 5:] * output[:, 4:5]).sqrt())
        target_boxes = cxcywh_to_xyxy(targets[own, 2:6] * scale)
        taken, target = dynamic_k_matching(
            torch.cat(boxes), torch.cat(scores), target_boxes, targets[own, 1].long(), loss.topk, stable
        )
        sizes = torch.tensor([len(level_rows) for level_rows in rows], device=taken.device)
        level_of = torch.arange(len(rows), device=taken.device).repeat_interleave(sizes)[taken]
        kept = torch.cat(rows)[taken]
        kept[:, 4] = own[target]
        for level in range(len(predictions)):
            matched[level].append(kept[level_of == level])
    empty = torch.zeros(0, 5, dtype=torch.long, device=targets.device)
    return [torch.cat(level_rows) if level_rows else empty for level_rows in matched]


def reference_simota(loss: SimOTALoss, predictions: list[Tensor], targets: Tensor, stable: bool = False) -> Tensor:
    """The SimOTA loss with the settings of `loss`, with auxiliary outputs where it has them.

    Of equal costs a box takes whichever torch.topk comes upon, as in the original, and the first one with `stable`.
    """
    targets = targets.to(predictions[0])
    lead, auxiliary = predictions[: loss.num_levels], predictions[loss.num_levels :]
    branches = [(lead, 0.5, 1.0)]
    if isinstance(loss, SimOTAAuxLoss):
        branches.append((auxiliary, 1.0, loss.aux_gain))
    terms = []
    for maps, reach, gain in branches:
        matches = simota_matches(loss, lead, targets, reach, stable)
        for level, (prediction, matched) in enumerate(zip(maps, matches)):
            terms.append([gain * value for value in level_loss(loss, prediction, matched, targets, level)])
    return weighted_total(loss, [torch.stack(values).sum() for values in zip(*terms)], len(lead[0]))


@torch.no_grad()
def task_aligned_matches(
    loss: YOLOv8Loss, boxes: Tensor, scores: Tensor, points: Tensor, target_boxes: Tensor, target_classes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Assignment of one image: taken points, the target of each, and the target of its class score.

    `boxes` (P, 4), `points` (P, 2) and `target_boxes` (n, 4) are in pixels.
    """
    rule = loss.assigner
    center, sides = (target_boxes[:, :2] + target_boxes[:, 2:]) / 2, target_boxes[:, 2:] - target_boxes[:, :2]
    sides = sides.clamp(min=rule.min_side)
    offset = points[None] - (center - sides / 2)[:, None]  # (n, P, 2)
    inside = torch.minimum(offset, sides[:, None] - offset).amin(2) > 1e-9
    overlaps = box_overlap(target_boxes[:, None], boxes[None], "ciou", box_format="xyxy", height_eps=1e-7)
    overlaps = overlaps.clamp(min=0) * inside
    metrics = scores[:, target_classes].T ** rule.alpha * overlaps**rule.beta  # (n, P)
    matrix = torch.zeros_like(inside)
    for row, metric in enumerate(metrics):
        best = metric.topk(min(rule.topk, len(points))).indices
        matrix[row, best[metric[best] > 0]] = True
    contested = matrix.sum(0) > 1
    if contested.any():
        closest = overlaps[:, contested].argmax(0)
        matrix[:, contested] = F.one_hot(closest, len(overlaps)).T.bool()
    metrics, overlaps = metrics * matrix, overlaps * matrix
    scaled = metrics * overlaps.amax(1, keepdim=True) / (metrics.amax(1, keepdim=True) + 1e-9)
    taken = matrix.any(0).nonzero().flatten()
    return taken, matrix[:, taken].to(torch.uint8).argmax(0), scaled.amax(0)[taken]


def reference_yolov8(loss: YOLOv8Loss, predictions: list[Tensor], targets: Tensor) -> Tensor:
    """The YOLOv8 loss with the settings of `loss`."""
    targets = targets.to(predictions[0])
    grids = [(prediction.shape[2], prediction.shape[3]) for prediction in predictions]
    points, strides = make_points(grids, loss.strides, targets.device, targets.dtype)
    size = targets.new_tensor([grids[0][1], grids[0][0]] * 2) * loss.strides[0]
    box = cls = dfl = normaliser = targets.new_zeros(())
    for image in range(len(predictions[0])):
        output = torch.cat([prediction[image].flatten(1) for prediction in predictions], 1).T  # (P, 4R + C)
        logits = output[:, : 4 * loss.reg_max].unflatten(1, (4, loss.reg_max))
        boxes = decode_distances(logits, points)  # (P, 4) cells
        own = targets[targets[:, 0] == image]
        class_targets = torch.zeros_like(output[:, 4 * loss.reg_max :])
        if len(own):
            target_boxes, classes = cxcywh_to_xyxy(own[:, 2:6]) * size, own[:, 1].long()
            scores = output[:, 4 * loss.reg_max :].detach().sigmoid()
            in_pixels = boxes.detach() * strides[:, None]
            taken, target, score = task_aligned_matches(
                loss, in_pixels, scores, points * strides[:, None], target_boxes, classes
            )
            class_targets[taken, classes[target]] = score
            wanted = target_boxes[target] / strides[taken, None]
            ciou = box_overlap(boxes[taken], wanted, "ciou", box_format="xyxy", height_eps=1e-7)
            box = box + ((1 - ciou) * score).sum()
            distances = torch.cat([points[taken] - wanted[:, :2], wanted[:, 2:] - points[taken]], 1)
            dfl = dfl + (distribution_focal_loss(logits[taken], distances) * score).sum()
            normaliser = normaliser + score.sum()
        cls = cls + F.binary_cross_entropy_with_logits(output[:, 4 * loss.reg_max :], class_targets, reduction="sum")
    total = box * loss.gains["box"] + cls * loss.gains["cls"] + dfl * loss.gains["dfl"]
    return total / normaliser.clamp(min=1) * len(predictions[0])
