"""Localization Distillation (Zheng et al., CVPR 2022, arXiv 2102.12252), for distributions of box sides."""

from __future__ import annotations

import torch
from torch import Tensor

from ..context import DistillContext, DistillSetup
from ..errors import DistillError
from ..regions import map_regions
from .base import PredictionLoss
from .kl import softened_kl
from .soft_label import weighted_mean


def side_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(...) T^2 * KL between (..., bins) side distributions, **averaged** over the bins as the authors do."""
    return softened_kl(student, teacher, temperature).mean(-1)


class LD(PredictionLoss):
    """Teaches how sure the teacher is of each box side, near the labelled objects.

    Both terms are weighted means over their region: the authors' sum would grow with the number of objects. Without
    labelled boxes both are 0.

    Args:
        setup: the two heads, anchor-free with equal bins.
        main: weight of the main region (the positives of ATSS), whose locations weigh as the student's best class
            score.
        vlr: weight of the valuable region around it, whose locations weigh as their overlap; a quarter is the authors'.
        temperature: T.
        anchor_scale: side of the square anchors that define the regions, in strides.
    """

    names = ("main", "vlr")

    def __init__(
        self,
        setup: DistillSetup,
        *,
        main: float = 1.0,
        vlr: float = 0.25,
        temperature: float = 10.0,
        anchor_scale: float = 8.0,
    ) -> None:
        heads = {"student": setup.student_head, "teacher": setup.teacher_head}
        lacking = [who for who, head in heads.items() if head is not None and head.kind != "anchor_free"]
        if lacking:
            raise DistillError(
                "ld compares distributions of box sides, which anchor heads do not have (here: the "
                f"{' and the '.join(lacking)}); use the loss box instead"
            )
        super().__init__(setup)
        self.main, self.vlr, self.temperature, self.anchor_scale = main, vlr, temperature, anchor_scale
        self.gains = {"main": main, "vlr": vlr}

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        pairs = self.pairs(student, teacher)
        main, valuable = map_regions(student, self.student_head.strides, context, self.anchor_scale)  # (N, A) each
        rows = torch.cat([side_divergence(s.box, t.box, self.temperature) for s, t in pairs], 1).mean(-1)  # (N, A)
        scores = torch.cat([s.cls.detach().sigmoid().amax(-1) for s, _ in pairs], 1)  # (N, A)
        return {"main": self.main * weighted_mean(rows, main * scores), "vlr": self.vlr * weighted_mean(rows, valuable)}
