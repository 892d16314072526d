"""CSP blocks of YOLOv5, v8 and v10 beyond those of the shipped architectures."""

from __future__ import annotations

import torch
from torch import nn

from models.blocks.bottleneck import C3, Bottleneck, C2f
from models.blocks.conv import Conv
from models.blocks.extra.conv import CrossConv
from models.blocks.extra.ghost import GhostBottleneck
from models.blocks.extra.rep import LargeKernelConv, TwoBranchConv
from models.blocks.extra.transformer import TransformerBlock
from models.blocks.pooling import SPP


class C3x(C3):
    """C3 with cross convolutions."""

    @staticmethod
    def make_branch(width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(width, width, 3, 1, groups, 1.0, shortcut) for _ in range(repeats)))


class C3TR(C3):
    """C3 with transformer layers of four heads."""

    @staticmethod
    def make_branch(width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return TransformerBlock(width, width, 4, repeats)


class C3Ghost(C3):
    """C3 with ghost bottlenecks."""

    @staticmethod
    def make_branch(width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(width, width) for _ in range(repeats)))


class C3SPP(C3):
    """C3 with spatial pyramid pooling; the first yaml argument after the width is the pooling kernels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernels: tuple[int, ...] = (5, 9, 13),
        repeats: int = 1,
        shortcut: bool = True,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__(in_channels, out_channels, 0, shortcut, groups, expansion)
        hidden = int(out_channels * expansion)
        self.m = SPP(hidden, hidden, kernels)


class C1(nn.Module):
    """A 1 x 1 convolution followed by a residual chain of 3 x 3 ones."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int = 1) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels)
        self.m = nn.Sequential(*(Conv(out_channels, out_channels, 3) for _ in range(repeats)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv1(x)
        return self.m(y) + y


class C2(nn.Module):
    """Cross-stage-partial block with two convolutions: one half of cv1's output goes through the bottlenecks."""

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
        self.cv1 = Conv(in_channels, 2 * hidden)
        self.cv2 = Conv(2 * hidden, out_channels)
        chain = (Bottleneck(hidden, hidden, shortcut, groups, (3, 3), 1.0) for _ in range(repeats))
        self.m = nn.Sequential(*chain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        processed, kept = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat((self.m(processed), kept), 1))


class CIB(nn.Module):
    """Compact inverted bottleneck (Wang et al., YOLOv10, 2024): depth-wise convolutions take turns with 1 x 1 ones.

    Args:
        large_kernel: the middle one is 7 x 7.
    """

    def __init__(self, channels: int, shortcut: bool, large_kernel: bool) -> None:
        super().__init__()
        wide = 2 * channels
        self.cv1 = nn.Sequential(
            Conv(channels, channels, 3, groups=channels),
            Conv(channels, wide),
            LargeKernelConv(wide) if large_kernel else Conv(wide, wide, 3, groups=wide),
            Conv(wide, channels),
            Conv(channels, channels, 3, groups=channels),
        )
        self.add = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv1(x)
        return x + y if self.add else y


class C2fCIB(C2f):
    """C2f with compact inverted bottlenecks."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = False,
        large_kernel: bool = False,
        groups: int = 1,
        expansion: float = 0.5,
    ) -> None:
        super().__init__(in_channels, out_channels, 0, shortcut, groups, expansion)
        hidden = int(out_channels * expansion)
        self.cv2 = Conv((2 + repeats) * hidden, out_channels)
        self.m = nn.ModuleList(CIB(hidden, shortcut, large_kernel) for _ in range(repeats))


class RepC3(nn.Module):
    """A chain of re-parameterised convolutions beside a 1 x 1 one, summed (RT-DETR, 2023)."""

    def __init__(self, in_channels: int, out_channels: int, repeats: int = 3, expansion: float = 1.0) -> None:
        super().__init__()
        hidden = int(out_channels * expansion)
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(in_channels, hidden)
        self.m = nn.Sequential(*(TwoBranchConv(hidden, hidden) for _ in range(repeats)))
        self.cv3 = Conv(hidden, out_channels) if hidden != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv3(self.m(self.cv1(x)) + self.cv2(x))
