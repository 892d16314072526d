"""Blocks with a training form and a lighter deployment form."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.conv import make_activation
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
        weight, bias = folded_parameters(conv, self.rbr_dense.bn)
        point_weight, point_bias = folded_parameters(self.rbr_1x1.conv, self.rbr_1x1.bn)
        weight = weight + F.pad(point_weight, (1, 1, 1, 1))
        bias = bias + point_bias
        if self.rbr_identity is not None:
            scale, shift = normalisation_affine(self.rbr_identity)
            weight = weight + scale.view(-1, 1, 1, 1) * self._identity_kernel(conv)
            bias = bias + shift
        self.rbr_reparam = convolution_with(conv, weight, bias)
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None

    @staticmethod
    def _identity_kernel(conv: nn.Conv2d) -> torch.Tensor:
        """The weights with which a grouped 3 x 3 convolution returns its input."""
        kernel = torch.zeros_like(conv.weight)
        rows = torch.arange(conv.out_channels, device=kernel.device)
        kernel[rows, rows % kernel.shape[1], 1, 1] = 1
        return kernel


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
