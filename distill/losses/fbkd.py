"""Feature-based distillation with attention masks and non-local blocks (Zhang and Ma, ICLR 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..context import DistillContext, DistillSetup
from .base import FeatureLoss
from .fgd import spatial_attention


class FBKDParts(NamedTuple):
    """The four unweighted scalar parts of one level: L2 norms over the whole batch."""

    masked: Tensor
    channel: Tensor
    spatial: Tensor
    relation: Tensor


class NonLocalBlock(nn.Module):
    """Adds to every pixel a mean of all pixels, weighted by dot products (arXiv 1711.07971); starts as the identity.

    Keys and values are pooled twice by 2x2, which bounds the table of products to (H * W)^2 / 16 numbers an image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.query = nn.Conv2d(channels, hidden, kernel_size=1)
        self.key = nn.Conv2d(channels, hidden, kernel_size=1)
        self.value = nn.Conv2d(channels, hidden, kernel_size=1)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)  # (N, C', H * W)
        key, value = _pooled(self.key(x)).flatten(2), _pooled(self.value(x)).flatten(2)  # (N, C', P)
        weights = torch.einsum("ncq,ncp->nqp", query, key) / key.shape[2]  # (N, H * W, P)
        mixed = torch.einsum("nqp,ncp->ncq", weights, value).unflatten(2, x.shape[2:])  # (N, C', H, W)
        return x + self.norm(self.expand(mixed))


def _pooled(x: Tensor) -> Tensor:
    for _ in range(2):
        x = F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))
    return x


class FBKDLevel(nn.Module):
    """The trained parts of one level; the teacher's non-local block is trained too."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.adapt = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.adapt_channels = nn.Linear(student_channels, teacher_channels)
        self.adapt_pixels = nn.Conv2d(1, 1, kernel_size=3, padding=1)
        self.adapt_relation = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.student_relation = NonLocalBlock(student_channels)
        self.teacher_relation = NonLocalBlock(teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor, temperature: float) -> FBKDParts:
        """The four parts for (N, C, H, W) maps."""
        with torch.no_grad():
            mask = (spatial_attention(student, temperature) + spatial_attention(teacher, temperature)) / 2  # (N, H, W)
        difference = self.adapt(student) - teacher
        return FBKDParts(
            (difference * mask[:, None].sqrt()).norm(),
            (teacher.mean((2, 3)) - self.adapt_channels(student.mean((2, 3)))).norm(),
            (teacher.mean(1, keepdim=True) - self.adapt_pixels(student.mean(1, keepdim=True))).norm(),
            (self.teacher_relation(teacher) - self.adapt_relation(self.student_relation(student))).norm(),
        )


class FBKD(FeatureLoss):
    """Imitates the teacher where either network looks, its means over pixels and channels, and its pixel relations.

    Args:
        setup: the pairs of layers.
        masked, channel, spatial, relation: weights of the four parts; the published ones.
        temperature: of the attention.
    """

    def __init__(
        self,
        setup: DistillSetup,
        *,
        masked: float = 7e-5,
        channel: float = 4e-3,
        spatial: float = 4e-3,
        relation: float = 7e-5,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(setup, [nn.Identity() for _ in setup.levels])
        self.weights = (masked, channel, spatial, relation)
        self.temperature = temperature
        self.blocks = nn.ModuleList(FBKDLevel(lv.student_channels, lv.teacher_channels) for lv in setup.levels)

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        parts: FBKDParts = self.blocks[index](student, teacher, self.temperature)
        weighted = [weight * part for weight, part in zip(self.weights, parts)]
        return torch.stack(weighted).sum()
