"""Layers without weights that join, split and rearrange maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.blocks.conv import space_to_depth


class Concat(nn.Module):
    """Joins maps along `dimension`."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(maps), self.d)


class Shortcut(nn.Module):
    """The sum of two maps. The argument belongs to the yaml's format and has no effect."""

    def __init__(self, dimension: int = 0) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return maps[0] + maps[1]


class ReOrg(nn.Module):
    """Every second pixel of each row and column becomes a channel: (C, H, W) to (4C, H/2, W/2)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return space_to_depth(x)
