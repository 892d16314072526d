"""YOLOv8's anchor-free head with distributions for the box sides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from models.blocks.conv import Conv
from models.heads.base import ClassOutputs, DetectionHead, HeadPlan, Maps, at_least_float32, distance_boxes
from utils.detector import ANCHOR_FREE_LAYOUT


class DFL(nn.Module):
    """Expectation of a distribution over 0 .. bins - 1 (Li et al., Generalized Focal Loss, 2020)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data.copy_(torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, sides, bins, A) logits to (N, sides, A) expectations."""
        bins = self.conv.weight.to(logits.dtype).view(1, 1, -1, 1)
        return (logits.softmax(2) * bins).sum(2)


class AnchorFreeDetect(DetectionHead):
    """Distances to the four sides of the box as distributions, and class scores, from separate branches.

    Raw maps are (N, 4 * reg_max + nc, ny, nx): logits over `reg_max` distances in cells for left, top, right, bottom,
    then class logits. Decoded predictions are (N, 4 + nc, sum of ny * nx): centre x, y, width, height in pixels, class
    scores.

    Args:
        plan: without anchors.
        reg_max: number of bins of a distance.
    """

    kind = "anchor_free"
    loss = "task_aligned"
    layout = ANCHOR_FREE_LAYOUT

    def __init__(self, plan: HeadPlan, reg_max: int = 16) -> None:
        super().__init__(plan)
        self.reg_max = self.bins = reg_max
        self.no = self.nc + 4 * reg_max
        box_width = max(16, plan.channels[0] // 4, 4 * reg_max)
        class_width = max(plan.channels[0], min(self.nc, 100))
        self.cv2 = nn.ModuleList(self._branch(width, box_width, 4 * reg_max) for width in plan.channels)
        self.cv3 = nn.ModuleList(self._branch(width, class_width, self.nc) for width in plan.channels)
        self.dfl = DFL(reg_max)

    @staticmethod
    def _branch(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(Conv(in_channels, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, out_channels, 1))

    @torch.no_grad()
    def initialize_biases(self, sources: Sequence[nn.Module], image_size: int = 640) -> None:
        """Boxes of a few cells, and five objects of each image spread over all classes and cells."""
        for box, classes, stride in zip(self.cv2, self.cv3, self.strides):
            box.get_parameter("2.bias").fill_(1.0)
            classes.get_parameter("2.bias").fill_(math.log(5 / self.nc / (image_size / stride) ** 2))

    def class_outputs(self, sources: Sequence[nn.Module]) -> Iterator[ClassOutputs]:
        for branch in self.cv3:
            yield from (ClassOutputs(branch.get_parameter(f"2.{name}"), 0, 1, 0) for name in ("weight", "bias"))

    def raw_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        return [torch.cat((box(x), classes(x)), 1) for box, classes, x in zip(self.cv2, self.cv3, features)]

    def decode(self, raw: Maps) -> torch.Tensor:
        levels = []
        for logits, stride in zip(raw, self.strides):
            sides, classes = at_least_float32(logits).flatten(2).split((4 * self.reg_max, self.nc), 1)
            distances = self.dfl(sides.unflatten(1, (4, self.reg_max)))  # (N, 4, A) left, top, right, bottom
            levels.append(torch.cat((distance_boxes(distances, logits.shape[2:], stride), classes.sigmoid()), 1))
        return torch.cat(levels, 2)
