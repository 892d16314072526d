"""Convolutions: the plain one that everything is built from, and its relatives.

Argument order follows the yaml rows `[out_channels, kernel, stride, padding, groups, activation]`; dilation, which some
generations of the format put before the activation, is a keyword here and sorted out by the parser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from models.fuse import fold_batchnorm

IntPair = int | tuple[int, int]


def same_padding(kernel: IntPair, dilation: int = 1) -> IntPair:
    """Padding that keeps the size of a map at stride 1, for an odd kernel."""
    if isinstance(kernel, int):
        return dilation * (kernel - 1) // 2 if dilation > 1 else kernel // 2
    first, second = (int(same_padding(side, dilation)) for side in kernel)  # type: ignore[arg-type]
    return first, second


def as_pair(value: IntPair | list[int]) -> IntPair:
    """A kernel or stride as written in a yaml: an int, or a list of two ints as a tuple."""
    return value if isinstance(value, int) else (value[0], value[1])


def make_activation(activation: bool | nn.Module) -> nn.Module:
    """The activation that `True` (SiLU), `False` (none) or a module stands for."""
    if isinstance(activation, nn.Module):
        return activation
    return nn.SiLU() if activation else nn.Identity()


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, activation.

    Args:
        in_channels, out_channels: widths.
        kernel, stride: an int, or one for each axis (rows, columns).
        padding: None keeps the size at stride 1.
        groups: of the convolution.
        activation: True for the architecture's default (SiLU unless the yaml says otherwise), False for none,
            or a module.
        dilation: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: IntPair = 1,
        stride: IntPair = 1,
        padding: IntPair | None = None,
        groups: int = 1,
        activation: bool | nn.Module = True,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        kernel, stride = as_pair(kernel), as_pair(stride)
        padding = same_padding(kernel, dilation) if padding is None else as_pair(padding)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = make_activation(activation)
        self.default_act = activation is True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))

    def fuse(self) -> None:
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fold_batchnorm(self.conv, self.bn)
            self.bn = nn.Identity()
        if isinstance(self.act, nn.SiLU):
            self.act.inplace = True  # saves memory traffic; in training it would cost a copy


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


def space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, 4C, H/2, W/2), phases in the order (row, column) = (0,0), (1,0), (0,1), (1,1)."""
    phases = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return torch.cat(phases, 1)


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
