"""Plain squared differences of feature maps: FitNets (Romero et al., arXiv 1412.6550) and its relatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters import conv_adapter, converter
from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from .base import FeatureLoss


def element_mean(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of the squared differences."""
    return F.mse_loss(student, teacher)


def sum_over_batch(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of the squared differences divided by the batch size; grows with C, H and W."""
    return F.mse_loss(student, teacher, reduction="sum") / student.shape[0]


def normalised(student: Tensor, teacher: Tensor) -> Tensor:
    """`sum_over_batch` of maps divided by their L2 norm, image by image; in [0, 4] whatever the features' scale."""
    return sum_over_batch(F.normalize(student.flatten(1), dim=1), F.normalize(teacher.flatten(1), dim=1))


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance over the whole batch; its gradient at equal maps is 0."""
    return (student - teacher).norm()


def partial(student: Tensor, teacher: Tensor) -> Tensor:
    """`sum_over_batch` / 1000 without the entries where both are negative and the student is lower.

    Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866.
    """
    counted = (student > teacher) | (teacher > 0)
    return ((student - teacher).square() * counted).sum() / (1000 * student.shape[0])


def margin_relu(teacher: Tensor) -> Tensor:
    """Every channel cut off from below at its mean negative value (over batch and pixels); at 0 where it has none.

    The margin of arXiv 1904.01866, section 3.2, from the batch at hand instead of from BatchNorm's parameters.
    """
    negative = (teacher < 0).to(teacher.dtype)
    total = (teacher * negative).sum((0, 2, 3), keepdim=True)  # (1, C, 1, 1)
    return torch.maximum(teacher, total / negative.sum((0, 2, 3), keepdim=True).clamp(min=1))


MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": element_mean,
    "sum_over_batch": sum_over_batch,
    "normalised": normalised,
    "distance": distance,
    "partial": partial,
}
ADAPTERS = {"conv": conv_adapter, "converter": converter}


class L2(FeatureLoss):
    """Squared differences of the feature maps, level by level.

    Args:
        setup: the pairs of layers.
        mode: how the differences are summed up, a name in `MODES`.
        adapter: "conv" is a 1x1 convolution where the channels differ; "converter" is convolution, BatchNorm and ReLU6
            at every level, with the teacher clamped to [0, 6] as well.
        margin: cut the teacher's negative values off at their mean, channel by channel, as goes with "partial".
    """

    def __init__(self, setup: DistillSetup, *, mode: str = "mean", adapter: str = "conv", margin: bool = False) -> None:
        check_choice("mode", mode, MODES, "kd_losses.l2")
        build = ADAPTERS[check_choice("adapter", adapter, ADAPTERS, "kd_losses.l2")]
        super().__init__(setup, [build(level.student_channels, level.teacher_channels) for level in setup.levels])
        self.measure = MODES[mode]
        self.clamp_teacher, self.margin = adapter == "converter", margin

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        teacher = margin_relu(teacher) if self.margin else teacher
        return self.measure(student, F.relu6(teacher) if self.clamp_teacher else teacher)
