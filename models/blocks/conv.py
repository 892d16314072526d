"""The convolution that everything is built from, and what its relatives need.

Argument order follows the yaml rows `[out_channels, kernel, stride, padding, groups, activation]`; dilation, which some
generations of the format put before the activation, is a keyword here and sorted out by the parser.
"""

from __future__ import annotations

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


def space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, 4C, H/2, W/2), phases in the order (row, column) = (0,0), (1,0), (0,1), (1,1)."""
    phases = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return torch.cat(phases, 1)
