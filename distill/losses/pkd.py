"""Distillation by the Pearson correlation coefficient (Cao et al., NeurIPS 2022, arXiv 2207.02039)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..adapters import conv_adapter
from ..context import DistillContext, DistillSetup
from .base import FeatureLoss


def standardise(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Every channel to mean 0 and (unbiased) variance 1 over batch and pixels; a constant channel to 0."""
    if x.numel() == x.shape[1]:  # one image and one pixel have no variance
        return x - x.detach()
    std, mean = x.std((0, 2, 3), keepdim=True), x.mean((0, 2, 3), keepdim=True)  # (1, C, 1, 1)
    return (x - mean) / (std + eps)


def pearson_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of the standardised maps: mean of 1 - correlation, in [0, 2]."""
    return F.mse_loss(standardise(student), standardise(teacher)) / 2


def resize(x: Tensor, size_of: Tensor) -> Tensor:
    """A map brought to another one's height and width, bilinearly."""
    return F.interpolate(x, size_of.shape[2:], mode="bilinear", align_corners=False)


class PKD(FeatureLoss):
    """Imitates relations between values, whatever their scale: for a teacher of another kind.

    The published weights are 6 (two-stage teachers) and 10 (one-stage ones).

    Args:
        setup: the pairs of layers.
        resize: bring the student's map to the teacher's size where the two differ. Pairs of unequal strides are allowed
            then.
    """

    def __init__(self, setup: DistillSetup, *, resize: bool = False) -> None:
        adapters = [conv_adapter(lv.student_channels, lv.teacher_channels, bias=False) for lv in setup.levels]
        super().__init__(setup, adapters)
        self.needs_equal_sizes = not resize

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        if student.shape[2:] != teacher.shape[2:]:
            student = resize(student, teacher)
        return pearson_loss(student, teacher)
