"""Re-parameterized convolutions of larger kernels."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.conv import Conv
from models.blocks.rep import conv_parameters, merged_convolution


class TwoBranchConv(nn.Module):
    """YOLOv8's RepConv: the sum of a 3 x 3 and a 1 x 1 convolution; `fuse` makes one of them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.conv1: Conv | None = Conv(in_channels, out_channels, 3, activation=False)
        self.conv2: Conv | None = Conv(in_channels, out_channels, 1, activation=False)
        self.conv: nn.Conv2d | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv is not None:
            return self.act(self.conv(x))
        assert self.conv1 is not None and self.conv2 is not None
        return self.act(self.conv1(x) + self.conv2(x))

    def fuse(self) -> None:
        if self.conv1 is not None and self.conv2 is not None:
            branches = [conv_parameters(branch) for branch in (self.conv1, self.conv2)]
            self.conv = merged_convolution(self.conv1.conv, branches)
            self.conv1 = self.conv2 = None


class LargeKernelConv(nn.Module):
    """The sum of a 7 x 7 and a 3 x 3 depth-wise convolution (Wang et al., YOLOv10, 2024); `fuse` makes one of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv: nn.Module = Conv(channels, channels, 7, groups=channels, activation=False)
        self.conv1: Conv | None = Conv(channels, channels, 3, groups=channels, activation=False)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.act(y if self.conv1 is None else y + self.conv1(x))

    def fuse(self) -> None:
        if self.conv1 is not None and isinstance(self.conv, Conv):
            branches = [conv_parameters(branch) for branch in (self.conv, self.conv1)]
            self.conv = merged_convolution(self.conv.conv, branches)
            self.conv1 = None
