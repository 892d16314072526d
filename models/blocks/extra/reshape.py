"""Blocks that join, split and move without weights, beyond those of the shipped architectures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Chuncat(nn.Module):
    """Cuts each map in two along `dimension` and joins all first halves, then all second halves."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        halves = [one.chunk(2, self.d) for one in maps]
        return torch.cat([first for first, _ in halves] + [second for _, second in halves], self.d)


class Foldcut(nn.Module):
    """The sum of the two halves of a map."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, self.d)
        return first + second


class Sum(nn.Module):
    """The sum of `count` maps; with `weight`, each after the first times twice the sigmoid of a learned number."""

    def __init__(self, count: int, weight: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(-torch.arange(1.0, count) / 2) if weight else None

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.w is None:
            return torch.stack(list(maps)).sum(0)
        factors = 2 * self.w.sigmoid()
        return maps[0] + sum(one * factor for one, factor in zip(maps[1:], factors))


class Silence(nn.Module):
    """Hands its input on, so that a later row can read the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Contract(nn.Module):
    """Moves pixels into channels: (C, H, W) to (gain^2 C, H/gain, W/gain)."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        gain = self.gain
        cells = x.view(batch, channels, height // gain, gain, width // gain, gain)
        cells = cells.permute(0, 3, 5, 1, 2, 4)  # (N, gain, gain, C, H/gain, W/gain)
        return cells.reshape(batch, channels * gain**2, height // gain, width // gain)


class Expand(nn.Module):
    """Moves channels into pixels: (gain^2 C, H, W) to (C, gain H, gain W)."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        gain = self.gain
        cells = x.view(batch, gain, gain, channels // gain**2, height, width)
        cells = cells.permute(0, 3, 4, 1, 5, 2)  # (N, C, H, gain, W, gain)
        return cells.reshape(batch, channels // gain**2, height * gain, width * gain)
