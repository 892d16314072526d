"""MobileNetV2's inverted residual (Sandler et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn


def _conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter depth-wise by 3 x 3, narrow by 1 x 1; a shortcut where shapes allow one.

    The narrowing has no activation.

    Args:
        expansion: width of the middle as a multiple of `in_channels`; 1 leaves out the widening.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 6) -> None:
        super().__init__()
        hidden = round(in_channels * expansion)
        widen = [_conv_bn_relu6(in_channels, hidden, 1, 1, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_bn_relu6(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.add = stride == 1 and in_channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return x + y if self.add else y
