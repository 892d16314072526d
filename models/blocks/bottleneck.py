"""Residual bottlenecks, and the cross-stage-partial blocks of YOLOv5 and YOLOv8 made of them."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.conv import Conv, IntPair, as_pair
from models.fuse import convolution_with, normalisation_affine, scaled_parameters


class Bottleneck(nn.Module):
    """Two convolutions with a shortcut around them, where the widths are equal and `shortcut` asks for it.

    Args:
        kernels: of the two convolutions; YOLOv8 uses 3 and 3 in places where YOLOv5 has 1 and 3.
        expansion: hidden width as a share of `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shortcut: bool = True,
        groups: int = 1,
        kernels: tuple[IntPair, IntPair] = (1, 3),
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden, as_pair(kernels[0]), 1)
        self.cv2 = Conv(hidden, out_channels, as_pair(kernels[1]), 1, groups=groups)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3(nn.Module):
    """Cross-stage-partial block with three convolutions (Wang et al., CSPNet, 2020): cv3([m(cv1(x)), cv2(x)])."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.cv3 = Conv(2 * hidden, out_channels)
        self.m = self.make_branch(hidden, repeats, shortcut, groups)

    @staticmethod
    def make_branch(width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        """The processed branch; relatives of this block differ here alone."""
        return nn.Sequential(*(Bottleneck(width, width, shortcut, groups, expansion=1.0) for _ in range(repeats)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    """YOLOv8's block: like C2, with the output of every bottleneck kept for the last convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = False,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, 2 * hidden)
        self.cv2 = Conv((2 + repeats) * hidden, out_channels)
        self.m = nn.ModuleList(Bottleneck(hidden, hidden, shortcut, groups, (3, 3), 1.0) for _ in range(repeats))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class BottleneckCSP(nn.Module):
    """The first cross-stage-partial block: two bare 1 x 1 convolutions end in a BatchNorm that their outputs share.

    Args:
        leaky: the activation behind that BatchNorm is LeakyReLU(0.1), as in the first YOLOv5, not SiLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
        kernels: tuple[IntPair, IntPair] = (1, 3),
        leaky: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, out_channels)
        self.bn: nn.Module = nn.BatchNorm2d(2 * hidden)
        self.act: nn.Module = nn.LeakyReLU(0.1) if leaky else nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, groups, kernels, 1.0) for _ in range(repeats)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(branches)))

    def fuse(self) -> None:
        if isinstance(self.bn, nn.BatchNorm2d):
            scale, shift = normalisation_affine(self.bn)
            hidden = self.cv3.out_channels
            self.cv3 = convolution_with(self.cv3, *scaled_parameters(self.cv3, scale[:hidden], shift[:hidden]))
            self.cv2 = convolution_with(self.cv2, *scaled_parameters(self.cv2, scale[hidden:], shift[hidden:]))
            self.bn = nn.Identity()
