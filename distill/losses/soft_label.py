"""Soft class labels with a temperature (Hinton et al., arXiv 1503.02531) for detection heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from ..heads import foreground_scores
from .base import PredictionLoss
from .kl import softened_binary_kl, softened_kl

FORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"binary": softened_binary_kl, "softmax": softened_kl}


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of (..., A) values by (..., A) weights; the sum of the weights counts as 1 where it is smaller."""
    return (weights * values).sum() / weights.sum().clamp(min=1)


class SoftLabel(PredictionLoss):
    """Teaches the teacher's class probabilities where the teacher sees an object.

    Locations are weighted by the teacher's foreground score (objectness, or its best class), since nearly all of them
    are background; all levels are averaged together.

    Args:
        setup: the two heads; unlike ones are compared by joint class scores on a common grid.
        temperature: T; higher shows more of the teacher's doubt.
        form: "binary" softens each class's sigmoid, which is how these heads are trained; "softmax" compares
            distributions over the classes, which say nothing of how likely any object is (and nothing at all for a
            single class).
    """

    grid_form = True
    names = ("cls",)

    def __init__(self, setup: DistillSetup, *, temperature: float = 2.0, form: str = "binary") -> None:
        super().__init__(setup)
        self.temperature = temperature
        self.divergence = FORMS[check_choice("form", form, FORMS, "kd_losses.soft_label")]

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        pairs = self.pairs(student, teacher)
        divergence = [self.divergence(s.cls, t.cls, self.temperature).sum(-1) for s, t in pairs]  # (N, A) each
        weights = [foreground_scores(t) for _, t in pairs]  # (N, A) each
        return {"cls": weighted_mean(torch.cat(divergence, 1), torch.cat(weights, 1))}
