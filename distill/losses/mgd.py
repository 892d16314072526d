"""Masked Generative Distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..context import DistillContext, DistillSetup
from ..errors import DistillError, check_choice, shown
from .base import FeatureLoss


def spatial_shape(student: Tensor) -> tuple[int, int, int, int]:
    """Shape of a mask shared by the channels: the paper's form for detection."""
    return student.shape[0], 1, student.shape[2], student.shape[3]


def channel_shape(student: Tensor) -> tuple[int, int, int, int]:
    """Shape of a mask shared by the pixels: the paper's form for classification."""
    return student.shape[0], student.shape[1], 1, 1


def spatial_mask(uniform: Tensor, masked: float) -> Tensor:
    """0 for a share `masked` of uniform random numbers, the highest ones, else 1."""
    return (uniform <= 1 - masked).to(uniform.dtype)


def channel_mask(uniform: Tensor, masked: float) -> Tensor:
    """0 for a share `masked` of uniform random numbers, the lowest ones, else 1."""
    return (uniform >= masked).to(uniform.dtype)


Shape = Callable[[Tensor], tuple[int, int, int, int]]
MASKS: dict[str, tuple[Shape, Callable[[Tensor, float], Tensor]]] = {
    "spatial": (spatial_shape, spatial_mask),
    "channel": (channel_shape, channel_mask),
}


def generation_error(student: Tensor, teacher: Tensor, mask: Tensor, generate: nn.Module) -> Tensor:
    """Sum of the squared errors of the map generated from the masked student, divided by N."""
    return F.mse_loss(generate(student * mask), teacher, reduction="sum") / student.shape[0]


class MGD(FeatureLoss):
    """Lets a small generator restore the teacher's whole map from a randomly masked student's.

    The generators are large, 2 * 9 * C^2 parameters a level, and are trained. Masks are drawn from a stream of their
    own that depends on seed, epoch and step only, so a resumed run draws the same.

    Args:
        setup: the pairs of layers.
        alpha: factor of the loss, a sum over C, H and W; 2e-5 is the paper's for one-stage detectors.
        lambda_: share that is masked. In a yaml file it is called lambda.
        mask: "spatial" hides pixels, "channel" hides channels.
        seed: of the masks.
    """

    def __init__(
        self, setup: DistillSetup, *, alpha: float = 2e-5, lambda_: float = 0.65, mask: str = "spatial", seed: int = 0
    ) -> None:
        super().__init__(setup)
        if not 0 <= lambda_ < 1:
            raise DistillError(
                f"kd_losses.mgd: lambda is {shown(lambda_)}; expected the share that is masked, from 0 to below 1"
            )
        self.alpha, self.lambda_, self.seed = alpha, lambda_, seed
        self.mask_shape, self.make_mask = MASKS[check_choice("mask", mask, MASKS, "kd_losses.mgd")]
        self.generators = nn.ModuleList(_generator(level.teacher_channels) for level in setup.levels)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._epoch, self._draws = epoch, 0

    def draw_mask(self, student: Tensor) -> Tensor:
        """The next mask of the stream, float32."""
        generator = torch.Generator(student.device).manual_seed(hash((self.seed, self._epoch, self._draws)))
        self._draws += 1
        uniform = torch.rand(self.mask_shape(student), generator=generator, device=student.device)
        return self.make_mask(uniform, self.lambda_)

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        mask = self.draw_mask(student)
        return self.alpha * generation_error(student, teacher, mask, self.generators[index])


def _generator(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1),
    )
