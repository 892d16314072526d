"""Channel-wise knowledge distillation (Shu et al., ICCV 2021, arXiv 2011.13256)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..adapters import conv_adapter
from ..context import DistillContext, DistillSetup
from .base import FeatureLoss
from .kl import softened_kl


def channel_wise_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL of each channel's softmax over the pixels, times T^2, mean over images and channels."""
    return softened_kl(student.flatten(2), teacher.flatten(2), temperature).sum(-1).mean()


def standardise(x: Tensor) -> Tensor:
    """Every channel to mean 0 and variance 1 over batch and pixels, without parameters; a channel of one value to 0."""
    if x.numel() == x.shape[1]:  # one image and one pixel, which batch_norm refuses
        return x - x.detach()
    return F.batch_norm(x, None, None, training=True)


class CWD(FeatureLoss):
    """Imitates, channel by channel, where the teacher's activation lies.

    Args:
        setup: the pairs of layers.
        temperature: of the softmax over the pixels.
        normalise: standardise both maps first, with batch statistics, as the RTMDet recipe of mmyolo does; the
            published weight is 1 then. Without it the published weights for detectors are 1 to 10, and scales of
            activation matter.
    """

    def __init__(self, setup: DistillSetup, *, temperature: float = 1.0, normalise: bool = True) -> None:
        adapters = [conv_adapter(lv.student_channels, lv.teacher_channels, not normalise) for lv in setup.levels]
        super().__init__(setup, adapters)
        self.temperature = temperature
        self.normalise = normalise

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        if self.normalise:
            student, teacher = standardise(student), standardise(teacher)
        return channel_wise_kl(student, teacher, self.temperature)
