"""Squared differences of features where the teacher's head sees something."""

from __future__ import annotations

from torch import Tensor

from ..context import DistillContext, DistillSetup
from ..errors import DistillError
from .base import FeatureLoss


def score_weighted_l2(student: Tensor, teacher: Tensor, scores: Tensor) -> Tensor:
    """Weighted mean over the pixels of the mean squared difference over the channels.

    Args:
        student, teacher: (N, C, H, W).
        scores: (N, H, W) weights in [0, 1]; their sum, at least 1, divides.
    """
    error = (student - teacher).square().mean(1)  # (N, H, W)
    return (scores * error).sum() / scores.sum().clamp(min=1)


class ScoreL2(FeatureLoss):
    """Imitates the teacher's features in the cells where its own head is sure of an object, labelled or not.

    The tapped layers need the strides of the teacher's head, so that every cell has a score: the best class of an
    anchor-free head, the highest objectness of an anchor head. Classes may differ.

    Args:
        setup: the pairs of layers, and the teacher's head.
    """

    needs_scores = True

    def __init__(self, setup: DistillSetup) -> None:
        super().__init__(setup)
        if setup.teacher_head is None:
            raise DistillError("score_l2 weighs features by the teacher's scores; give teacher_head")
        for level in setup.levels:
            if level.stride not in setup.teacher_head.strides:
                raise DistillError(
                    f"score_l2: layers {level.student_layer} and {level.teacher_layer} have stride {level.stride}, the "
                    f"teacher's head has {setup.teacher_head.strides}; choose layers that feed the head, or auto"
                )

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        return score_weighted_l2(student, teacher, context.teacher_scores[self.levels[index].stride])
