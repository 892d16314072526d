"""Wide depth-wise convolutions with a learned scale a channel, after ConvNeXt (Liu et al., 2022), as in YOLOv7."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.conv import Conv
from models.fuse import convolution_with, scaled_parameters

START_OF_SCALES = 1e-6  # the share with which a block starts to count, as in ConvNeXt


class RobustConv(nn.Module):
    """A depth-wise convolution, a 1 x 1 one, and a learned factor for every channel.

    Args:
        padding, groups: part of the yaml's argument order, without effect.
        scale: start of the factors; 0 leaves them out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 7,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        activation: bool | nn.Module = True,
        scale: float = START_OF_SCALES,
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((out_channels,), float(scale))) if scale > 0 else None
        self.conv_dw = Conv(in_channels, in_channels, kernel, stride, None, in_channels, activation)
        self.conv1x1 = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1x1(self.conv_dw(x))
        return y if self.gamma is None else y * self.gamma.view(1, -1, 1, 1)

    def fuse(self) -> None:
        if self.gamma is not None:
            scale = self.gamma.double()
            scaled = scaled_parameters(self.conv1x1, scale, torch.zeros_like(scale))
            self.conv1x1 = convolution_with(self.conv1x1, *scaled)
            self.gamma = None


class RobustConv2(nn.Module):
    """A strided depth-wise convolution, a transposed one back to the size before, and a learned factor a channel.

    Args:
        padding, groups: part of the yaml's argument order, without effect.
        scale: start of the factors; 0 leaves them out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 7,
        stride: int = 4,
        padding: int | None = None,
        groups: int = 1,
        activation: bool | nn.Module = True,
        scale: float = START_OF_SCALES,
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((out_channels,), float(scale))) if scale > 0 else None
        self.conv_strided = Conv(in_channels, in_channels, kernel, stride, None, in_channels, activation)
        self.conv_deconv = nn.ConvTranspose2d(in_channels, out_channels, stride, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_deconv(self.conv_strided(x))
        return y if self.gamma is None else y * self.gamma.view(1, -1, 1, 1)
