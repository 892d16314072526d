"""Raw head maps brought to one form, whatever the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .context import HeadSpec
from .errors import DistillError


@dataclass(frozen=True)
class HeadLogits:
    """One level of a head's output before any activation, flattened to A = na * H * W locations.

    Attributes:
        box: (N, A, 4) x, y, w, h logits of an anchor head, or (N, A, 4, bins) distribution logits of the left, top,
            right and bottom side of an anchor-free head; on a common grid (`grid.py`) (N, A, 4) distances to the sides.
        obj: (N, A) objectness logits; None for an anchor-free head and on a common grid.
        cls: (N, A, nc) class logits; on a common grid those of objectness times class score.
    """

    box: Tensor
    obj: Tensor | None
    cls: Tensor


def split_logits(raw: Tensor, head: HeadSpec) -> HeadLogits:
    """Splits a raw map: (N, na, H, W, 5 + nc) of an anchor head, (N, 4 * bins + nc, H, W) of an anchor-free one.

    Raises:
        DistillError: the map does not have that form.
    """
    nc = head.num_classes
    if head.kind == "anchor":
        if raw.ndim != 5 or raw.shape[-1] != 5 + nc:
            raise DistillError(
                f"head map of shape {tuple(raw.shape)}; expected (N, na, H, W, {5 + nc}) for {nc} classes"
            )
        flat = raw.flatten(1, 3)  # (N, A, 5 + nc)
        return HeadLogits(flat[..., :4], flat[..., 4], flat[..., 5:])
    sides = raw.shape[1] - nc if raw.ndim == 4 else 0
    if sides <= 0 or sides % 4:
        raise DistillError(
            f"head map of shape {tuple(raw.shape)}; expected (N, 4 * bins + {nc}, H, W) for {nc} classes"
        )
    flat = raw.flatten(2).transpose(1, 2)  # (N, A, 4 * bins + nc)
    return HeadLogits(flat[..., :sides].unflatten(-1, (4, sides // 4)), None, flat[..., sides:])


def foreground_scores(logits: HeadLogits) -> Tensor:
    """(N, A) how sure a network is that something is there: its objectness, or its best class where there is none."""
    return logits.obj.sigmoid() if logits.obj is not None else logits.cls.sigmoid().amax(-1)


def expected_sides(distribution: Tensor) -> Tensor:
    """(..., 4) expected distances to the sides in cells, of (..., 4, bins) logits (arXiv 2006.04388)."""
    bins = torch.arange(distribution.shape[-1], device=distribution.device, dtype=distribution.dtype)
    return (distribution.softmax(-1) * bins).sum(-1)


def score_maps(maps: Sequence[Tensor], head: HeadSpec, image_hw: Sequence[int] | None = None) -> dict[int, Tensor]:
    """For each stride, (N, H, W) how sure a head is that a cell holds something: the best of the cell's anchors.

    Args:
        maps: raw maps.
        head: the head that made them.
        image_hw: height and width in pixels of images that the maps are brought to, where the head saw them at another
            size: a cell has the best score of those that it overlaps. None: the head's own.
    """
    found = {}
    for stride, raw in zip(head.strides, maps):
        scores = foreground_scores(split_logits(raw, head))  # (N, na * H * W)
        scores = scores.unflatten(1, (-1, *grid_size(raw))).amax(1)  # (N, H, W)
        wanted = grid_size(raw) if image_hw is None else (image_hw[0] // stride, image_hw[1] // stride)
        found[stride] = scores if wanted == grid_size(raw) else F.adaptive_max_pool2d(scores, wanted)
    return found


def grid_size(raw: Tensor) -> tuple[int, int]:
    """Rows and columns of a raw map; both kinds of head have them in the third and fourth place."""
    return raw.shape[2], raw.shape[3]


def grid_points(map_hw: Sequence[int], stride: int, device: torch.device) -> Tensor:
    """(H * W, 2) centres x, y of a level's cells in pixels, row by row."""
    height, width = map_hw
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return (torch.stack((x, y), -1).flatten(0, 1) + 0.5) * stride


def anchor_table(head: HeadSpec) -> Tensor:
    """(levels, na, 2) anchors in pixels; na is 0 for an anchor-free head."""
    return torch.zeros(len(head.strides), 0, 2) if head.anchors is None else torch.tensor(head.anchors)


def decode_boxes(raw: Tensor, head: HeadSpec, level: int, anchors: Tensor) -> Tensor:
    """(N, A, 4) boxes x1, y1, x2, y2 in pixels of the network input, of one level's raw map.

    Args:
        raw: (N, na, H, W, 5 + nc) or (N, 4 * bins + nc, H, W).
        head: the head that made it.
        level: which of the head's levels it is.
        anchors: (na, 2), this level of `anchor_table`.
    """
    stride, box = head.strides[level], split_logits(raw, head).box
    if head.kind == "anchor_free":
        points = grid_points(grid_size(raw), stride, raw.device)  # (A, 2)
        low, high = (expected_sides(box) * stride).chunk(2, dim=-1)  # (N, A, 2) each
        return torch.cat((points - low, points + high), dim=-1)
    points = grid_points(grid_size(raw), stride, raw.device)  # (H * W, 2)
    cells = box.sigmoid().unflatten(1, (len(anchors), -1))  # (N, na, H * W, 4)
    centre = points + (2 * cells[..., :2] - 1) * stride
    half = (2 * cells[..., 2:]).square() * anchors[:, None] / 2
    return torch.cat((centre - half, centre + half), dim=-1).flatten(1, 2)


def check_same_output(student: HeadSpec, teacher: HeadSpec, loss: str) -> None:
    """Refuses heads that are not of the same classes and strides; a distiller narrows both to the common ones.

    Raises:
        DistillError: their number of classes or their strides differ.
    """
    if student.num_classes != teacher.num_classes:
        raise DistillError(
            f"{loss}: the student has {student.num_classes} classes, the teacher {teacher.num_classes}; "
            "narrow both to the common ones first (compare_heads)"
        )
    if student.strides != teacher.strides:
        raise DistillError(
            f"{loss}: the student's head has strides {student.strides}, the teacher's {teacher.strides}; "
            "narrow both to the common ones first (compare_heads)"
        )


def unlikeness(student: HeadSpec, teacher: HeadSpec, same_images: bool = True) -> str:
    """Why the raw maps of two heads cannot be compared number by number; empty where they can."""
    if not same_images:
        return "the teacher sees the images at another size"
    if student.kind != teacher.kind:
        return f"the student's head is {student.kind}, the teacher's {teacher.kind}"
    counts = [len(head.anchors[0]) if head.anchors else 0 for head in (student, teacher)]
    if counts[0] != counts[1]:
        return f"the student's head has {counts[0]} anchors a cell, the teacher's {counts[1]}"
    if student.bins and teacher.bins and student.bins != teacher.bins:
        return f"the student's box sides have {student.bins} bins, the teacher's {teacher.bins}"
    return ""


def same_anchors(student: HeadSpec, teacher: HeadSpec, tolerance: float = 1e-3) -> bool:
    """Whether anchors differ by less than a share `tolerance`, so that box logits mean the same boxes."""
    if student.anchors is None or teacher.anchors is None:
        return student.anchors is teacher.anchors
    ours, theirs = anchor_table(student), anchor_table(teacher)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def check_same_maps(student: Sequence[Tensor], teacher: Sequence[Tensor], loss: str) -> None:
    """Refuses raw maps of different shapes."""
    for level, (s, t) in enumerate(zip(student, teacher)):
        if s.shape != t.shape:
            raise DistillError(
                f"{loss}: head map {level} of the student has shape {tuple(s.shape)}, of the teacher {tuple(t.shape)}; "
                "both need the same images, strides, anchors and classes"
            )
