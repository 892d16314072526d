"""Focal and Global Knowledge Distillation (Yang et al., CVPR 2022, arXiv 2111.11837)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..context import DistillContext, DistillSetup
from ..errors import DistillError
from .base import FeatureLoss

_CELLS_AT_ONCE = 2**25
"""Boxes times cells that the scale masks look at in one operation: 128 MiB of float32."""


def spatial_attention(x: Tensor, temperature: float) -> Tensor:
    """(N, H, W) softmax over the pixels of the mean magnitude over the channels, with mean 1."""
    magnitude = x.abs().mean(1)  # (N, H, W)
    weights = (magnitude.flatten(1) / temperature).softmax(1) * magnitude[0].numel()
    return weights.reshape(magnitude.shape)


def channel_attention(x: Tensor, temperature: float) -> Tensor:
    """(N, C) softmax over the channels of the mean magnitude over the pixels, with mean 1."""
    return (x.abs().mean((2, 3)) / temperature).softmax(1) * x.shape[1]


@torch.no_grad()
def scale_masks(
    boxes_xyxy: Tensor, box_images: Tensor, num_images: int, image_hw: tuple[int, int], map_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Foreground and background masks of a level, each (N, H, W): every box, and every background, weighs about 1.

    A box covers the cells from the one its first corner lies in up to, and including, the one after its last corner.
    Its cells weigh 1 / (their number, counted before the map's border cuts them off); the smallest box wins where boxes
    overlap. Cells in no box weigh 1 / (their number).

    Args:
        boxes_xyxy: (T, 4) in pixels; clipped to the image first. Inverted boxes and boxes outside the image are
            ignored.
        box_images: (T,) image that each box lies in.
        num_images: N.
        image_hw: size of the network input in pixels.
        map_hw: size of the feature map in cells.
    """
    (image_h, image_w), (height, width) = image_hw, map_hw
    left, top, right, bottom = boxes_xyxy.unbind(1)  # (T,) each
    inside = (right >= left) & (bottom >= top) & (right >= 0) & (bottom >= 0) & (left <= image_w) & (top <= image_h)
    first_x, last_x = _cells(left, right, image_w, width)
    first_y, last_y = _cells(top, bottom, image_h, height)
    weights = inside / ((last_x - first_x + 1) * (last_y - first_y + 1))  # (T,)
    in_columns = _covered(first_x, last_x, width)  # (T, W)
    in_rows = _covered(first_y, last_y, height) * weights[:, None]  # (T, H)
    foreground = weights.new_zeros(num_images, height * width)
    step = max(1, _CELLS_AT_ONCE // (height * width))
    for start in range(0, len(boxes_xyxy), step):  # one round, but for thousands of boxes: bounds the memory
        part = slice(start, start + step)
        cells = (in_rows[part, :, None] * in_columns[part, None, :]).flatten(1)  # (T', H * W)
        owner = box_images[part, None].expand_as(cells)
        foreground = foreground.scatter_reduce(0, owner, cells, "amax")
    foreground = foreground.reshape(num_images, height, width)
    empty = (foreground == 0).to(foreground.dtype)
    return foreground, empty / empty.sum((1, 2), keepdim=True).clamp(min=1)


def _cells(low: Tensor, high: Tensor, extent: int, cells: int) -> tuple[Tensor, Tensor]:
    scale = cells / extent
    return (low.clamp(0, extent) * scale).floor(), (high.clamp(0, extent) * scale).ceil()


def _covered(first: Tensor, last: Tensor, cells: int) -> Tensor:
    grid = torch.arange(cells, device=first.device)
    return ((grid >= first[:, None]) & (grid <= last[:, None])).to(first.dtype)  # (T, cells)


def focal_error(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, H, W) squared differences summed over the channels, weighted by the teacher's two attentions."""
    channels = channel_attention(teacher, temperature)
    error = torch.einsum("nchw,nc->nhw", (student - teacher).square(), channels)
    return error * spatial_attention(teacher, temperature)


def attention_difference(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sum of the absolute differences of both attentions, divided by the batch size."""
    pairs = [
        (attention(student, temperature), attention(teacher, temperature))
        for attention in (spatial_attention, channel_attention)
    ]
    return torch.stack([F.l1_loss(s, t, reduction="sum") for s, t in pairs]).sum() / len(student)


def relation_error(student: Tensor, teacher: Tensor, student_shift: Tensor, teacher_shift: Tensor) -> Tensor:
    """Squared differences after relation blocks, summed and divided by the batch size.

    Args:
        student, teacher: (N, C, H, W).
        student_shift, teacher_shift: (N, C), what the two blocks add to every pixel of their map.
    """
    return (student - teacher + (student_shift - teacher_shift)[:, :, None, None]).square().sum() / len(student)


class RelationBlock(nn.Module):
    """What a global context block (GcNet, arXiv 1904.11492) adds to every pixel of a map: (N, C, H, W) to (N, C).

    The last convolution starts at zero, so that a fresh block adds nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.mask = nn.Conv2d(channels, 1, kernel_size=1)
        self.reduce = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.expand = nn.Linear(hidden, channels)
        nn.init.kaiming_normal_(self.mask.weight, nonlinearity="relu")
        nn.init.zeros_(self.mask.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mask(x).flatten(1).softmax(1)  # (N, H * W)
        context = torch.einsum("ncp,np->nc", x.flatten(2), weights)  # (N, C)
        return self.expand(F.relu(self.norm(self.reduce(context))))


class FGD(FeatureLoss):
    """Imitates where the teacher looks (focal part) and how it relates pixels to each other (global part).

    The defaults are those of the authors' YOLOX recipe. Both relation blocks, the teacher's side too, are trained. A
    part of weight 0 is not computed, and has no parameters.

    Args:
        setup: the pairs of layers.
        alpha: weight of the squared error inside the labelled boxes.
        beta: weight of the squared error outside of them.
        gamma: weight of the difference between the attentions; grows with H * W.
        lambda_: weight of the relation part; grows with C * H * W. In a yaml file it is called lambda.
        temperature: of the attention; lower is sharper. It acts on raw magnitudes.
    """

    def __init__(
        self,
        setup: DistillSetup,
        *,
        alpha: float = 2e-3,
        beta: float = 1e-3,
        gamma: float = 1e-3,
        lambda_: float = 1e-5,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(setup)
        self.alpha, self.beta, self.gamma, self.lambda_ = alpha, beta, gamma, lambda_
        self.temperature = temperature
        if not any((alpha, beta, gamma, lambda_)):
            raise DistillError("kd_losses.fgd: alpha, beta, gamma and lambda are all 0; set weight: 0 to leave it out")
        widths = [level.teacher_channels for level in setup.levels] if lambda_ else []
        self.student_relations = nn.ModuleList(RelationBlock(width) for width in widths)
        self.teacher_relations = nn.ModuleList(RelationBlock(width) for width in widths)

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        parts = []
        if self.alpha or self.beta:
            map_hw = (student.shape[2], student.shape[3])
            masks = scale_masks(context.boxes_xyxy, context.box_images, len(student), context.image_hw, map_hw)
            weights = self.alpha * masks[0] + self.beta * masks[1]  # (N, H, W)
            parts.append((focal_error(student, teacher, self.temperature) * weights).sum() / len(student))
        if self.gamma:
            parts.append(self.gamma * attention_difference(student, teacher, self.temperature))
        if self.lambda_:
            shifts = self.student_relations[index](student), self.teacher_relations[index](teacher)
            parts.append(self.lambda_ * relation_error(student, teacher, *shifts))
        return torch.stack(parts).sum()
