"""Box distillation on decoded boxes: independent of anchors and of the form of the head's box output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..boxes import giou, iou
from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from ..heads import anchor_table, check_same_maps, decode_boxes, foreground_scores, split_logits
from .base import PredictionLoss
from .soft_label import weighted_mean

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"iou": iou, "giou": giou}


class Box(PredictionLoss):
    """1 - IoU between the student's and the teacher's box at every location.

    Locations are weighted by the teacher's foreground score.

    Args:
        setup: the two heads; they need equal classes and strides. Anchors may differ.
        measure: "giou" also pulls boxes that do not touch (arXiv 1902.09630); "iou" is the plain one.
    """

    names = ("box",)
    student_anchors: Tensor
    teacher_anchors: Tensor

    def __init__(self, setup: DistillSetup, *, measure: str = "giou") -> None:
        super().__init__(setup)
        self.measure = MEASURES[check_choice("measure", measure, MEASURES, "kd_losses.box")]
        self.register_buffer("student_anchors", anchor_table(self.student_head), persistent=False)
        self.register_buffer("teacher_anchors", anchor_table(self.teacher_head), persistent=False)

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        check_same_maps(student, teacher, "box")
        errors, weights = [], []
        for level, (s, t) in enumerate(zip(student, teacher)):
            student_boxes = decode_boxes(s, self.student_head, level, self.student_anchors[level])  # (N, A, 4)
            teacher_boxes = decode_boxes(t, self.teacher_head, level, self.teacher_anchors[level])
            errors.append(1 - self.measure(student_boxes, teacher_boxes))
            weights.append(foreground_scores(split_logits(t, self.teacher_head)))
        return {"box": weighted_mean(torch.cat(errors, 1), torch.cat(weights, 1))}
