"""Self-distillation of YOLOv6 (arXiv 2209.02976; arXiv 2301.05586)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import DistillContext, DistillSetup
from ..regions import map_regions
from .base import PredictionLoss
from .kl import softened_kl
from .soft_label import weighted_mean


def class_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(...) T^2 * KL between softmax distributions over (..., nc) class **probabilities**, summed over the classes.

    Nearly flat distributions at the usual T of 20: float32 keeps some three digits.
    """
    return softened_kl(student, teacher, temperature).sum(-1)


class SelfDistillation(PredictionLoss):
    """Imitates a teacher of the student's own architecture: its class probabilities, and its box sides at the labels.

    Class probabilities are compared everywhere; box sides only where both heads predict them as distributions over
    equal bins. Unlike heads have their class probabilities compared on a common grid, and no box term.

    To be used with `kd_schedule: {shape: cosine, end: 0.01}`, which was worth as much as the losses.

    Args:
        setup: the two heads.
        cls: weight of the class term, a sum over all locations of an image; 1 for small models, 2 for large ones.
        dfl: weight of the box term, a mean over sides and positives.
        temperature: T.
    """

    grid_form = True
    names: tuple[str, ...] = ("cls", "dfl")

    def __init__(self, setup: DistillSetup, *, cls: float = 1.0, dfl: float = 1.0, temperature: float = 20.0) -> None:
        super().__init__(setup)
        if self.on_grid:
            self.names = ("cls",)
        self.cls, self.dfl, self.temperature = cls, dfl, temperature
        self.gains = {"cls": cls, "dfl": dfl}
        no_classes = self.student_head.num_classes == 1  # a softmax over one class is 1
        no_bins = self.student_head.kind == "anchor"
        self.absent = (*(("cls",) if no_classes else ()), *(("dfl",) if no_bins else ()))

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        pairs = self.pairs(student, teacher)
        by_level = [class_divergence(s.cls.sigmoid(), t.cls.sigmoid(), self.temperature).sum() for s, t in pairs]
        cls = torch.stack(by_level).sum() / len(student[0])
        if self.on_grid:
            return {"cls": self.cls * cls}
        if self.student_head.kind == "anchor":
            return {"cls": self.cls * cls, "dfl": cls.new_zeros(())}
        positives, _ = map_regions(student, self.student_head.strides, context)  # (N, A)
        by_side = [softened_kl(s.box, t.box, self.temperature).sum(-1) for s, t in pairs]  # (N, A_l, 4) each
        rows = torch.cat(by_side, 1).mean(-1)  # (N, A)
        return {"cls": self.cls * cls, "dfl": self.dfl * weighted_mean(rows, positives)}
