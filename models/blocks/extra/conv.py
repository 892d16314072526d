"""Convolutions beyond the plain one: depthwise, transposed, focused, crossed, mixed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from models.blocks.conv import Conv, IntPair, make_activation, space_to_depth


class DWConv(Conv):
    """Depth-wise convolution: as many groups as the widths have in common."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: IntPair = 1,
        stride: IntPair = 1,
        activation: bool | nn.Module = True,
        dilation: int = 1,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel, stride, None, groups, activation, dilation)


class SCDown(nn.Module):
    """Spatial-channel decoupled down-sampling (Wang et al., YOLOv10, 2024): 1 x 1, then depth-wise with the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels)
        self.cv2 = Conv(out_channels, out_channels, kernel, stride, groups=out_channels, activation=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv2(self.cv1(x))


class DWConvTranspose2d(nn.ConvTranspose2d):
    """Depth-wise transposed convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
    ) -> None:
        groups = math.gcd(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel, stride, padding, output_padding, groups)


class ConvTranspose(nn.Module):
    """Transposed convolution, BatchNorm, activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 2,
        stride: int = 2,
        padding: int = 0,
        batchnorm: bool = True,
        activation: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        self.conv_transpose = nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, padding, bias=not batchnorm)
        self.bn = nn.BatchNorm2d(out_channels) if batchnorm else nn.Identity()
        self.act = make_activation(activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv_transpose(x)))


class Focus(nn.Module):
    """Every second pixel of each row and column becomes a channel, then a convolution: (C, H, W) to (4C, H/2, W/2)."""

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
        self.conv = Conv(4 * in_channels, out_channels, kernel, stride, padding, groups, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(space_to_depth(x))


class CrossConv(nn.Module):
    """A k x k convolution as a row and a column convolution, with a shortcut where the widths allow one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        expansion: float = 1.0,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden, (1, kernel), (1, stride))
        self.cv2 = Conv(hidden, out_channels, (kernel, 1), (stride, 1), groups=groups)
        self.add = shortcut and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class MixConv2d(nn.Module):
    """Convolutions of several kernel sizes share the output channels (Tan and Le, MixConv, 2019).

    Args:
        kernels: one a branch.
        equal_widths: branches of equal width; otherwise of about as many weights each.
        dense: ordinary convolutions with a shortcut around the block where shapes allow one, as in YOLOv7 and the first
            YOLOv5; otherwise grouped ones.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: Sequence[int] = (1, 3),
        stride: int = 1,
        equal_widths: bool = True,
        dense: bool = False,
    ) -> None:
        super().__init__()
        split = _equal_widths if equal_widths else _widths_of_equal_weights
        self.m = nn.ModuleList(
            nn.Conv2d(
                in_channels,
                width,
                kernel,
                stride,
                kernel // 2,
                groups=1 if dense else math.gcd(in_channels, width),
                bias=False,
            )
            for kernel, width in zip(kernels, split(out_channels, kernels))
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.LeakyReLU(0.1) if dense else nn.SiLU()
        self.add = dense and in_channels == out_channels and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.bn(torch.cat([branch(x) for branch in self.m], 1)))
        return x + y if self.add else y


def _equal_widths(channels: int, kernels: Sequence[int]) -> list[int]:
    """Channel i of n goes to branch i * len(kernels) / (n - 1), rounded down but for whole numbers, one below."""
    owners = [max(index * len(kernels) - 1, 0) // max(channels - 1, 1) for index in range(channels)]
    return [owners.count(branch) for branch in range(len(kernels))]


def _widths_of_equal_weights(channels: int, kernels: Sequence[int]) -> list[int]:
    """Widths as the inverse of the kernels' areas."""
    total = sum(kernel**-2 for kernel in kernels)
    return [round(channels * kernel**-2 / total) for kernel in kernels]
