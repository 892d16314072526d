"""Stages of other backbones that YOLOv8's format names: HGNetV2 (PaddlePaddle, 2023), ResNet (He et al., 2015)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.conv import Conv
from models.blocks.extra.conv import DWConv


class HGStem(nn.Module):
    """Quarters an image; between two strided convolutions, two of 2 x 2 and a pooling stand side by side.

    Args:
        hidden: width before the last convolution.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.stem1 = Conv(in_channels, hidden, 3, 2, activation=nn.ReLU())
        self.stem2a = Conv(hidden, hidden // 2, 2, 1, 0, activation=nn.ReLU())
        self.stem2b = Conv(hidden // 2, hidden, 2, 1, 0, activation=nn.ReLU())
        self.stem3 = Conv(2 * hidden, hidden, 3, 2, activation=nn.ReLU())
        self.stem4 = Conv(hidden, out_channels, 1, 1, activation=nn.ReLU())
        self.pool = nn.MaxPool2d(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        end = (0, 1, 0, 1)  # a column and a row, so that 2 x 2 keeps the size
        x = F.pad(self.stem1(x), end)
        y = self.stem2b(F.pad(self.stem2a(x), end))
        return self.stem4(self.stem3(torch.cat((self.pool(x), y), 1)))


class LightConv(nn.Module):
    """A 1 x 1 convolution without activation, then a depth-wise one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = Conv(in_channels, out_channels, activation=False)
        self.conv2 = DWConv(out_channels, out_channels, kernel, activation=nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x))


class HGBlock(nn.Module):
    """A chain of convolutions, all of whose outputs are squeezed together by a 1 x 1 one and excited by another.

    Args:
        repeats: length of the chain.
        hidden: width of the chain.
        light: the chain is made of LightConv.
    """

    def __init__(
        self,
        in_channels: int,
        repeats: int,
        hidden: int,
        out_channels: int,
        kernel: int = 3,
        light: bool = False,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * repeats]
        self.m = nn.ModuleList(
            LightConv(before, after, kernel) if light else Conv(before, after, kernel, activation=nn.ReLU())
            for before, after in zip(widths, widths[1:])
        )
        self.sc = Conv(sum(widths), out_channels // 2, activation=nn.ReLU())
        self.ec = Conv(out_channels // 2, out_channels, activation=nn.ReLU())
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x]
        for conv in self.m:
            parts.append(conv(parts[-1]))
        y = self.ec(self.sc(torch.cat(parts, 1)))
        return x + y if self.add else y


class ResNetBlock(nn.Module):
    """ResNet's bottleneck with a strided 3 x 3 convolution; its output is `expansion` times as wide as its middle."""

    def __init__(self, in_channels: int, middle: int, stride: int, expansion: int) -> None:
        super().__init__()
        out_channels = expansion * middle
        self.cv1 = Conv(in_channels, middle)
        self.cv2 = Conv(middle, middle, 3, stride)
        self.cv3 = Conv(middle, out_channels, activation=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(Conv(in_channels, out_channels, 1, stride, activation=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.cv3(self.cv2(self.cv1(x))) + self.shortcut(x))


class ResNetLayer(nn.Module):
    """A stage of ResNet, or with `first` its stem, which quarters an image."""

    def __init__(
        self,
        in_channels: int,
        middle: int,
        stride: int = 1,
        first: bool = False,
        repeats: int = 1,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        if first:
            self.layer = nn.Sequential(Conv(in_channels, middle, 7, 2), nn.MaxPool2d(3, 2, 1))
            return
        blocks = [ResNetBlock(in_channels, middle, stride, expansion)]
        blocks += [ResNetBlock(expansion * middle, middle, 1, expansion) for _ in range(repeats - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)
