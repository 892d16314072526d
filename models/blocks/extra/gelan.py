"""Blocks of YOLOv9 that YOLOv8's yaml format names too (Wang et al., YOLOv9, 2024): GELAN and auxiliary branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.bottleneck import C3, Bottleneck
from models.blocks.conv import Conv
from models.blocks.extra.rep import TwoBranchConv
from models.blocks.pooling import PoolingPyramid


class RepCSP(C3):
    """C3 with bottlenecks whose first convolution is a re-parameterised one."""

    @staticmethod
    def make_branch(width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        chain = nn.Sequential(
            *(Bottleneck(width, width, shortcut, groups, (3, 3), expansion=1.0) for _ in range(repeats))
        )
        for bottleneck in chain:
            bottleneck.cv1 = TwoBranchConv(width, width)  # type: ignore[assignment]
        return chain


class ELAN1(nn.Module):
    """Efficient layer aggregation: both halves of cv1, and each of two stages behind the second half, joined by cv4.

    Args:
        middle: width of cv1.
        stage: width of each stage.
    """

    def __init__(self, in_channels: int, out_channels: int, middle: int, stage: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, middle)
        self.cv2: nn.Module = Conv(middle // 2, stage, 3)
        self.cv3: nn.Module = Conv(stage, stage, 3)
        self.cv4 = Conv(middle + 2 * stage, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, y = self.cv1(x).chunk(2, 1)
        first = self.cv2(y)
        return self.cv4(torch.cat((kept, y, first, self.cv3(first)), 1))


class RepNCSPELAN4(ELAN1):
    """ELAN1 whose stages are cross-stage-partial blocks of `repeats` re-parameterised bottlenecks."""

    def __init__(self, in_channels: int, out_channels: int, middle: int, stage: int, repeats: int = 1) -> None:
        super().__init__(in_channels, out_channels, middle, stage)
        self.cv2 = nn.Sequential(RepCSP(middle // 2, stage, repeats), Conv(stage, stage, 3))
        self.cv3 = nn.Sequential(RepCSP(stage, stage, repeats), Conv(stage, stage, 3))


class SPPELAN(nn.Module):
    """A pooling pyramid of `kernel`, applied three times over, between two 1 x 1 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, middle: int, kernel: int = 5) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, middle)
        self.m = PoolingPyramid((kernel, 2 * kernel - 1, 3 * kernel - 2))
        self.cv5 = Conv(4 * middle, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv5(self.m(self.cv1(x)))


class AConv(nn.Module):
    """Halves a map: an average over 2 x 2 at every cell, then a strided convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels, out_channels, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv1(F.avg_pool2d(x, 2, 1))


class ADown(nn.Module):
    """Halves a map: after an average over 2 x 2 one half of the channels is convolved, the other pooled."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.cv1 = Conv(in_channels // 2, out_channels // 2, 3, 2)
        self.cv2 = Conv(in_channels // 2, out_channels // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolved, pooled = F.avg_pool2d(x, 2, 1).chunk(2, 1)
        return torch.cat((self.cv1(convolved), self.cv2(F.max_pool2d(pooled, 3, 2, 1))), 1)


class CBLinear(nn.Module):
    """A convolution whose output is split into maps of the widths asked for; only CBFuse reads it."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        kernel: int = 1,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, sum(widths), kernel, stride, padding, groups=groups)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.conv(x).split(self.widths, 1)


class CBFuse(nn.Module):
    """The sum of the last map and of one map of each CBLinear before it, brought to the last one's size.

    Args:
        choices: which map of each CBLinear.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        super().__init__()
        self.choices = tuple(choices)

    def forward(self, inputs: Sequence[Sequence[torch.Tensor] | torch.Tensor]) -> torch.Tensor:
        last = inputs[-1]
        assert isinstance(last, torch.Tensor)
        chosen = [maps[choice] for maps, choice in zip(inputs[:-1], self.choices)]
        return torch.stack([F.interpolate(one, size=last.shape[2:], mode="nearest") for one in chosen] + [last]).sum(0)
