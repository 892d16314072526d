"""Ghost convolutions (Han et al., GhostNet, 2020): half of the channels are cheap transformations of the other half."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.conv import Conv
from models.blocks.extra.conv import DWConv


class GhostConv(nn.Module):
    """An ordinary convolution to half of the width, and a depth-wise 5 x 5 one of its output for the rest."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels, half, kernel, stride, None, groups, activation)
        self.cv2 = Conv(half, half, 5, 1, None, half, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.cv1(x)
        return torch.cat((primary, self.cv2(primary)), 1)


class GhostBottleneck(nn.Module):
    """Two ghost convolutions with a shortcut; at stride 2 a depth-wise convolution stands between them."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        hidden = out_channels // 2
        reduces = stride == 2
        self.conv = nn.Sequential(
            GhostConv(in_channels, hidden),
            DWConv(hidden, hidden, kernel, stride, activation=False) if reduces else nn.Identity(),
            GhostConv(hidden, out_channels, activation=False),
        )
        self.shortcut: nn.Module = nn.Identity()
        if reduces:
            self.shortcut = nn.Sequential(
                DWConv(in_channels, in_channels, kernel, stride, activation=False),
                Conv(in_channels, out_channels, activation=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + self.shortcut(x)
