"""Box distillation on decoded boxes: independent of anchors and of the form of the head's box output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..boxes import giou, iou
from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from ..heads import foreground_scores
from .base import PredictionLoss
from .soft_label import weighted_mean

MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"iou": iou, "giou": giou}


class Box(PredictionLoss):
    """1 - IoU between the student's and the teacher's box at every location.

    Locations are weighted by the teacher's foreground score.

    Args:
        setup: the two heads. Anchors may differ: as long as there are as many a cell they are compared one by one.
            Unlike heads are compared on a common grid, one box a cell.
        measure: "giou" also pulls boxes that do not touch (arXiv 1902.09630); "iou" is the plain one.
    """

    grid_form = True
    names = ("box",)

    def __init__(self, setup: DistillSetup, *, measure: str = "giou") -> None:
        super().__init__(setup)
        self.measure = MEASURES[check_choice("measure", measure, MEASURES, "kd_losses.box")]

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        pairs = self.pairs(student, teacher)
        errors = [1 - self.measure(ours, theirs) for ours, theirs in self.boxes(student, teacher, pairs)]  # (N, A) each
        weights = [foreground_scores(t) for _, t in pairs]  # (N, A) each
        return {"box": weighted_mean(torch.cat(errors, 1), torch.cat(weights, 1))}
