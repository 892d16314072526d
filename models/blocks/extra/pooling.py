"""Pooling pyramids and stems beyond those of the shipped architectures."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.conv import Conv
from models.blocks.extra.ghost import GhostConv
from models.blocks.pooling import SPPCSPC


class GhostSPPCSPC(SPPCSPC):
    """SPPCSPC made of ghost convolutions."""

    convolution = GhostConv


class Stem(nn.Module):
    """Quarters an image: a strided convolution, then a strided convolution and a pooling side by side.

    Args:
        kernel, stride, padding, groups, activation: part of the yaml's argument order, without effect.
    """

    convolution: type[Conv] | type[GhostConv] = Conv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        activation: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        conv = self.convolution
        half = out_channels // 2
        self.cv1 = conv(in_channels, half, 3, 2)
        self.cv2 = conv(half, half, 1, 1)
        self.cv3 = conv(half, half, 3, 2)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.cv4 = conv(2 * half, out_channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cv1(x)
        return self.cv4(torch.cat((self.cv3(self.cv2(x)), self.pool(x)), 1))


class GhostStem(Stem):
    """Stem made of ghost convolutions."""

    convolution = GhostConv
