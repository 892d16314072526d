"""Which cells of an anchor-based head may predict a box: the anchor-ratio rule of YOLOv5 and YOLOv7.

A box may be predicted at the cell that holds its centre and at cells beside it, by every anchor whose sides differ from
the box's by less than a factor. All sizes follow from the shapes of the input, so nothing waits for a GPU; where the
targets lie in host memory the padding is cut to what the batch really needs, because reading a count is free there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losses.functional import denormalise, to_device


class TargetGroups(NamedTuple):
    """Boxes in G groups of N: one image a group, or one group that holds the whole batch. Padding is not `valid`."""

    row: Tensor  # (G, N) row of `targets`
    image: Tensor  # (G, N)
    classes: Tensor  # (G, N)
    boxes_cxcywh: Tensor  # (G, N, 4) normalised
    valid: Tensor  # (G, N)

    def to(self, device: torch.device) -> TargetGroups:
        return TargetGroups(*(to_device(tensor, device) for tensor in self))


class Candidates(NamedTuple):
    """Cells of one level that may predict a box, K in each group, in the order in which their objectness is written."""

    target: Tensor  # (G, K) position of the box in its group
    anchor: Tensor  # (G, K)
    cell: Tensor  # (G, K, 2) column and row
    position: Tensor  # (G, K) in the flattened (image, anchor, row, column) map
    valid: Tensor  # (G, K)

    def to(self, device: torch.device) -> Candidates:
        return Candidates(*(to_device(tensor, device) for tensor in self))


class Assignment(NamedTuple):
    """M cells of one level and the box each has to predict. The last entry of a repeated cell gives its objectness."""

    position: Tensor  # (M,) in the flattened (image, anchor, row, column) map
    anchors: Tensor  # (M, 2) in cells
    boxes: Tensor  # (M, 4) centre relative to the cell's corner, width, height, in cells
    classes: Tensor  # (M,)
    valid: Tensor  # (M,)


def sizes_readable(tensor: Tensor) -> bool:
    """Whether a count can be read from this tensor without waiting for a device or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def group_targets(targets: Tensor, num_images: int, by_image: bool = True) -> TargetGroups:
    """Pads the boxes of a batch to a rectangle.

    Args:
        targets: (T, 6) rows [image, class, cx, cy, w, h], normalised; a row whose image is negative is padding.
        num_images: B.
        by_image: one group an image, N the largest number of boxes in one. It is ignored where N cannot be read without
            waiting; then all boxes form one group.

    Returns:
        Groups with N >= 1.
    """
    padding_row = targets.new_zeros(1, targets.shape[1])
    padding_row[:, 0] = -1
    padded = torch.cat([targets, padding_row])  # (T + 1, 6)
    image = padded[:, 0].long()
    if by_image and sizes_readable(targets):
        row = _rows_by_image(image, num_images)  # (B, N)
    else:
        row = torch.arange(len(padded), device=targets.device)[None]  # (1, T + 1)
    image = image[row]
    return TargetGroups(row, image.clamp(min=0), padded[row, 1].long(), padded[row, 2:6], image >= 0)


def _rows_by_image(image: Tensor, num_images: int) -> Tensor:
    """(T + 1,) image of each row, the last one padding -> (B, N) rows of each image in order, filled up with T."""
    last = len(image) - 1
    image = torch.where(image < 0, num_images, image)
    counts = torch.bincount(image, minlength=num_images + 1)[: num_images + 1]
    size = max(int(counts[:num_images].max()), 1)
    order = torch.argsort(image, stable=True)
    sorted_image = image[order]
    position = torch.arange(last + 1) - (counts.cumsum(0) - counts)[sorted_image]
    kept = sorted_image < num_images
    slot = torch.where(kept, sorted_image * size + position, num_images * size)
    rows = torch.full((num_images * size + 1,), last).scatter(0, slot, order)
    return rows[:-1].view(num_images, size)


def find_candidates(
    groups: TargetGroups, anchors: Tensor, grid_hw: tuple[int, int], anchor_t: float, reach: float = 0.5
) -> Candidates:
    """Candidate cells of one level.

    Args:
        groups: the boxes.
        anchors: (A, 2) widths and heights in cells.
        grid_hw: rows and columns of the level.
        anchor_t: largest factor between a side of a box and of an anchor (exclusive).
        reach: how far, in cells, a centre may lie from a neighbour to include it; 0.5 takes the nearer ones, 1.0 all.

    Returns:
        Candidates: the cells of the centres, then their left, upper, right and lower neighbours, each block by anchor
        and box. K is 5 * A * N, or the largest number of valid ones in a group where that can be read without waiting.
    """
    rows, columns = grid_hw
    num_anchors, num_boxes = len(anchors), groups.valid.shape[1]
    x, y, width, height = denormalise(groups.boxes_cxcywh, columns, rows).unbind(-1)  # (G, N)

    ratio_w = width[:, None] / anchors[:, :1]  # (G, A, N)
    ratio_h = height[:, None] / anchors[:, 1:]
    worst = torch.maximum(torch.maximum(ratio_w, 1 / ratio_w), torch.maximum(ratio_h, 1 / ratio_h))
    fits = (worst < anchor_t) & groups.valid[:, None]  # (G, A, N)

    from_right, from_bottom = columns - x, rows - y
    beside = [(edge % 1 < reach) & (edge > 1) for edge in (x, y, from_right, from_bottom)]
    inside = torch.stack([torch.ones_like(beside[0]), *beside], 1)  # (G, 5, N)
    column = torch.stack([x, x - reach, x, x + reach, x], 1).long().clamp(0, columns - 1)  # (G, 5, N)
    row = torch.stack([y, y, y - reach, y, y + reach], 1).long().clamp(0, rows - 1)

    source, valid = keep_true((inside[:, :, None] & fits[:, None]).flatten(1))  # (G, K) of 5 * A * N
    target = source % num_boxes
    anchor = source // num_boxes % num_anchors
    place = source // (num_boxes * num_anchors) * num_boxes + target  # of 5 * N
    column = column.flatten(1).gather(1, place)
    row = row.flatten(1).gather(1, place)
    image = groups.image.gather(1, target)
    position = ((image * num_anchors + anchor) * rows + row) * columns + column
    return Candidates(target, anchor, torch.stack([column, row], -1), position, valid)


def keep_true(valid: Tensor) -> tuple[Tensor, Tensor]:
    """(G, R) mask -> (G, K) positions of the true entries in their order, and which of the K are not padding.

    K is the largest number of true entries in a row, or R where that cannot be read without waiting.
    """
    positions = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    if not sizes_readable(valid):
        return positions, valid
    counts = valid.sum(1, keepdim=True)  # (G, 1)
    size = int(counts.max())
    slot = torch.where(valid, valid.cumsum(1) - 1, size)
    source = positions.new_zeros(len(valid), size + 1).scatter(1, slot, positions)[:, :size]
    return source, positions[:, :size] < counts


def assign(groups: TargetGroups, candidates: Candidates, anchors: Tensor, grid_hw: tuple[int, int]) -> Assignment:
    """What each candidate of a level has to predict for its `target`; `anchors` is (A, 2) in cells."""
    rows, columns = grid_hw
    target = candidates.target
    boxes = denormalise(groups.boxes_cxcywh, columns, rows)
    boxes = boxes.gather(1, target[..., None].expand(-1, -1, 4))  # (G, K, 4)
    center = boxes[..., :2] - candidates.cell
    return Assignment(
        candidates.position.flatten(),
        anchors[candidates.anchor].flatten(0, 1),
        torch.cat([center, boxes[..., 2:]], -1).flatten(0, 1),
        groups.classes.gather(1, target).flatten(),
        candidates.valid.flatten(),
    )


def drop_invalid(assignment: Assignment) -> Assignment:
    """Leaves the valid entries only, where their number can be read without waiting."""
    if not sizes_readable(assignment.valid):
        return assignment
    source, _ = keep_true(assignment.valid[None])
    return Assignment(*(values[source[0]] for values in assignment))
