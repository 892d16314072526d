"""Imitating predictions as dense detectors are trained: one sigmoid a class, boxes by overlap, sides by bins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..context import HeadSpec
from ..heads import HeadLogits, decode_boxes, foreground_scores
from .kl import softened_kl
from .soft_label import weighted_mean


def quality_focal(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Binary cross-entropy with the teacher's score as label, times |difference of the scores| ** beta, one by one.

    The quality focal loss (arXiv 2006.04388, eq. 5) with soft labels; 0 where both agree, also for scores that are
    neither 0 nor 1.

    Args:
        student, teacher: logits of one shape.
        beta: at 0 the plain cross-entropy, whose least value is the teacher's entropy.
    """
    target = teacher.sigmoid()
    error = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return error * (student.sigmoid() - target).abs().pow(beta)


def joined(levels: Sequence[HeadLogits]) -> HeadLogits:
    """The logits of all levels, one after another."""
    objs = [level.obj for level in levels if level.obj is not None]
    boxes, classes = torch.cat([level.box for level in levels], 1), torch.cat([level.cls for level in levels], 1)
    return HeadLogits(boxes, torch.cat(objs, 1) if objs else None, classes)


def decoded(maps: Sequence[Tensor], head: HeadSpec, anchors: Tensor) -> Tensor:
    """(N, A, 4) boxes in pixels of all levels of raw maps; `anchors` is `anchor_table(head)`."""
    return torch.cat([decode_boxes(raw, head, level, anchors[level]) for level, raw in enumerate(maps)], 1)


def class_mimic(student: HeadLogits, teacher: HeadLogits, beta: float) -> dict[str, Tensor]:
    """Quality focal losses of the class scores, "cls", and of the objectness where there is one, "obj".

    Every location counts; sums are divided by the teacher's foreground, the sum of its scores (at least 1), which
    stands for the number of positives that the papers divide by. Class logits beside an objectness mean nothing in the
    background, so there they are weighted by the teacher's objectness.
    """
    weights = foreground_scores(teacher)  # (N, A)
    foreground = weights.sum().clamp(min=1)
    errors = quality_focal(student.cls, teacher.cls, beta).sum(-1)  # (N, A)
    if student.obj is None or teacher.obj is None:
        return {"cls": errors.sum() / foreground}
    return {
        "cls": (weights * errors).sum() / foreground,
        "obj": quality_focal(student.obj, teacher.obj, beta).sum() / foreground,
    }


def side_mimic(student: HeadLogits, teacher: HeadLogits) -> Tensor:
    """KL of the distributions of box sides at temperature 1, summed over the bins, mean over the sides.

    Locations are weighted by the teacher's foreground score.
    """
    rows = softened_kl(student.box, teacher.box, 1.0).sum(-1).mean(-1)  # (N, A)
    return weighted_mean(rows, foreground_scores(teacher))
