"""Pooling: plain, pyramids of it, and the down-sampling blocks of YOLOv7."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from models.blocks.conv import Conv


class MP(nn.Module):
    """Max pooling by `k`."""

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(kernel_size=k, stride=k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.m(x)


class SP(nn.Module):
    """Max pooling over k x k that keeps the size of the map."""

    def __init__(self, k: int = 3, s: int = 1) -> None:
        super().__init__()
        self.m = nn.MaxPool2d(kernel_size=k, stride=s, padding=k // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.m(x)


class PoolingPyramid(nn.Module):
    """Maps max-pooled over growing odd kernels: x, pool_k1(x), pool_k2(x), ... concatenated.

    Each pool works on the one before it: a maximum over 5 x 5 of a maximum over 5 x 5 is one over 9 x 9, at a fraction
    of the comparisons.
    """

    def __init__(self, kernels: Sequence[int]) -> None:
        super().__init__()
        if any(kernel % 2 == 0 for kernel in kernels) or sorted(set(kernels)) != list(kernels):
            raise ValueError(f"pooling kernels must be odd and grow, found {list(kernels)}")
        steps = [kernel - before + 1 for before, kernel in zip((1, *kernels), kernels)]
        self.pools = nn.ModuleList(nn.MaxPool2d(step, stride=1, padding=step // 2) for step in steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        for pool in self.pools:
            maps.append(pool(maps[-1]))
        return torch.cat(maps, 1)  # (N, (1 + K) * C, H, W)


class SPP(nn.Module):
    """Spatial pyramid pooling (He et al., 2014) between two 1 x 1 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = Conv(in_channels, hidden)
        self.cv2 = Conv(hidden * (len(kernels) + 1), out_channels)
        self.m = PoolingPyramid(kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cv2(self.m(self.cv1(x)))


class SPPF(SPP):
    """SPP as YOLOv5 6 writes it: one kernel, applied three times over."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5) -> None:
        super().__init__(in_channels, out_channels, (kernel, 2 * kernel - 1, 3 * kernel - 2))


class SPPCSPC(nn.Module):
    """YOLOv7's cross-stage-partial pooling pyramid.

    Args:
        repeats, shortcut, groups: part of the yaml's argument order, without effect.
    """

    convolution: Callable[..., nn.Module] = Conv

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        repeats: int = 1,
        shortcut: bool = False,
        groups: int = 1,
        expansion: float = 0.5,
        kernels: Sequence[int] = (5, 9, 13),
    ) -> None:
        super().__init__()
        conv = self.convolution
        hidden = int(2 * out_channels * expansion)
        self.cv1 = conv(in_channels, hidden, 1, 1)
        self.cv2 = conv(in_channels, hidden, 1, 1)
        self.cv3 = conv(hidden, hidden, 3, 1)
        self.cv4 = conv(hidden, hidden, 1, 1)
        self.m = PoolingPyramid(kernels)
        self.cv5 = conv((len(kernels) + 1) * hidden, hidden, 1, 1)
        self.cv6 = conv(hidden, hidden, 3, 1)
        self.cv7 = conv(2 * hidden, out_channels, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.m(self.cv4(self.cv3(self.cv1(x))))
        return self.cv7(torch.cat((self.cv6(self.cv5(pooled)), self.cv2(x)), 1))


class DownC(nn.Module):
    """Halves a map by a strided convolution and by pooling, each giving half of the channels.

    Args:
        repeats: part of the yaml's argument order, without effect.
    """

    def __init__(self, in_channels: int, out_channels: int, repeats: int = 1, kernel: int = 2) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels, in_channels)
        self.cv2 = Conv(in_channels, half, 3, kernel)
        self.cv3 = Conv(in_channels, half)
        self.mp = nn.MaxPool2d(kernel_size=kernel, stride=kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), 1)
