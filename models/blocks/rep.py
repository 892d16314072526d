"""Blocks with a training form and a lighter deployment form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.conv import Conv, make_activation
from models.fuse import convolution_with, folded_parameters, normalisation_affine


class ConvBN(nn.Sequential):
    """A convolution that keeps the size at stride 1, and its BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out_channels))

    @property
    def conv(self) -> nn.Conv2d:
        return self[0]  # type: ignore[return-value]

    @property
    def bn(self) -> nn.BatchNorm2d:
        return self[1]  # type: ignore[return-value]


class RepConv(nn.Module):
    """The sum of a 3 x 3 and a 1 x 1 convolution, and of the normalised input where shapes allow it.

    `fuse` makes one 3 x 3 convolution of them (Ding et al., RepVGG, 2021).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        activation: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        if kernel != 3 or padding not in (None, 1):
            raise ValueError(f"RepConv folds a 3 x 3 kernel with padding 1, found kernel {kernel}, padding {padding}")
        self.act = make_activation(activation)
        self.default_act = activation is True
        keeps_shape = in_channels == out_channels and stride == 1
        self.rbr_identity = nn.BatchNorm2d(in_channels) if keeps_shape else None
        self.rbr_dense: ConvBN | None = ConvBN(in_channels, out_channels, 3, stride, groups)
        self.rbr_1x1: ConvBN | None = ConvBN(in_channels, out_channels, 1, stride, groups)
        self.rbr_reparam: nn.Conv2d | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rbr_reparam is not None:
            return self.act(self.rbr_reparam(x))
        assert self.rbr_dense is not None and self.rbr_1x1 is not None
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            y = y + self.rbr_identity(x)
        return self.act(y)

    def fuse(self) -> None:
        if self.rbr_dense is None or self.rbr_1x1 is None:
            return
        conv = self.rbr_dense.conv
        branches = [folded_parameters(branch.conv, branch.bn) for branch in (self.rbr_dense, self.rbr_1x1)]
        if self.rbr_identity is not None:
            branches.append(identity_parameters(conv, self.rbr_identity))
        self.rbr_reparam = merged_convolution(conv, branches)
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None


def conv_parameters(block: Conv) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias, in float64, of a Conv without activation."""
    assert isinstance(block.bn, nn.BatchNorm2d)
    return folded_parameters(block.conv, block.bn)


def identity_parameters(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias, in float64, of the 1 x 1 convolution, grouped as `conv`, that gives `bn(x)`."""
    scale, shift = normalisation_affine(bn)
    width = conv.in_channels // conv.groups
    kernel = torch.eye(width, dtype=scale.dtype, device=scale.device).repeat(conv.groups, 1)  # (C, C / groups)
    return (kernel * scale.view(-1, 1)).view(-1, width, 1, 1), shift


def merged_convolution(conv: nn.Conv2d, branches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> nn.Conv2d:
    """One convolution of the geometry of `conv` that gives the sum of its branches, kernels centred on each other."""
    size = conv.weight.shape[-1]
    kernels = [F.pad(weight, ((size - weight.shape[-1]) // 2,) * 4) for weight, _ in branches]
    return convolution_with(conv, sum(kernels), sum(bias for _, bias in branches))  # type: ignore[arg-type]


class ImplicitA(nn.Module):
    """A learned number for every channel, added (Wang et al., YOLOR, 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(0.0, 0.02))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.implicit + x


class ImplicitM(nn.Module):
    """A learned number for every channel, multiplied (Wang et al., YOLOR, 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.empty(1, channels, 1, 1).normal_(1.0, 0.02))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.implicit * x


@torch.no_grad()
def fold_implicit(conv: nn.Conv2d, added: ImplicitA, multiplied: ImplicitM) -> None:
    """Moves `multiplied(conv(added(x)))` into the 1 x 1 convolution, in place; leaves the implicit layers neutral."""
    assert conv.bias is not None
    weight = conv.weight.double()
    factor = multiplied.implicit.double().flatten()
    bias = conv.bias.double() + weight.flatten(1) @ added.implicit.double().flatten()
    conv.weight.copy_(weight * factor.view(-1, 1, 1, 1))
    conv.bias.copy_(bias * factor)
    added.implicit.zero_()
    multiplied.implicit.fill_(1)
