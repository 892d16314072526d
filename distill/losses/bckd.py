"""Bridging Cross-task Protocol Inconsistency (Yang et al., ICCV 2023, arXiv 2308.14286)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..boxes import giou
from ..context import DistillContext, DistillSetup
from ..grid import joint_logits
from ..heads import HeadLogits, foreground_scores
from .base import PredictionLoss
from .mimic import class_mimic, joined


def score_gap(student: HeadLogits, teacher: HeadLogits) -> Tensor:
    """(N, A) largest difference over the classes between the scores of both, without a gradient.

    Scores are those that rank detections: objectness times class score where there is an objectness.
    """
    with torch.no_grad():
        return (joint_logits(student).sigmoid() - joint_logits(teacher).sigmoid()).abs().amax(-1)


class BCKD(PredictionLoss):
    """Class scores as detectors are trained with them, one sigmoid a class; boxes by their overlap.

    The class term is a binary cross-entropy for each class and location, weighted by the difference of the two scores.
    The box term is 1 - GIoU between the two boxes of each location, weighted by the largest such difference: a box is
    taught where the student does not yet see what the teacher sees. Both are sums over all locations, divided by
    the sum of the teacher's foreground scores, where the authors divide by the number of positives.

    Args:
        setup: the two heads; unlike ones are compared on a common grid.
        cls: gain of the class term; 1 is the authors'.
        obj: gain of the same term on the objectness, in heads that have one. The paper's have none; 1 as for classes.
        box: gain of the box term; 4 is the authors' for GFL, 7.5 that of a YOLOv8 port.
        beta: power of the score difference in the class terms; 1 is the authors'.
    """

    grid_form = True

    def __init__(
        self, setup: DistillSetup, *, cls: float = 1.0, obj: float = 1.0, box: float = 4.0, beta: float = 1.0
    ) -> None:
        super().__init__(setup)
        self.gains = {"cls": cls, "obj": obj, "box": box}
        self.beta = beta
        objectness = self.student_head.kind == "anchor" and not self.on_grid
        self.names = ("cls", "obj", "box") if objectness else ("cls", "box")

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        pairs = self.pairs(student, teacher)
        s, t = joined([s for s, _ in pairs]), joined([t for _, t in pairs])
        boxes = self.boxes(student, teacher, pairs)
        errors = torch.cat([1 - giou(ours, theirs) for ours, theirs in boxes], 1)  # (N, A)
        box = (score_gap(s, t) * errors).sum() / foreground_scores(t).sum().clamp(min=1)
        terms = class_mimic(s, t, self.beta) | {"box": box}
        return {name: self.gains[name] * terms[name] for name in self.names}
