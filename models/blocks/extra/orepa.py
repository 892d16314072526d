"""Online convolutional re-parameterisation: a kernel that is put together anew at every step (Hu et al., 2022)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from models.blocks.conv import Conv
from models.blocks.rep import conv_parameters, identity_parameters, merged_convolution
from models.fuse import convolution_with, folded_parameters

KERNEL = 3
DEPTHWISE_FACTOR = 8  # of the widths, in the depth-wise separable branch
STARTS = (0.25, 0.25, 0.0, 0.5, 0.5)  # of the branches' factors


class OREPA(nn.Module):
    """A 3 x 3 convolution and BatchNorm, whose kernel is a sum of five, each with a factor for every output channel.

    The branches, in the order of `vector`: a kernel of its own; a 1 x 1 kernel spread by an average; a 1 x 1 kernel
    spread by cosines; a 1 x 1 convolution, started at the identity, before a 3 x 3 one; a depth-wise separable one.

    Args:
        padding: 1, which keeps the size at stride 1.
        groups: 1; others are not supported.
    """

    weight_rbr_avg_avg: torch.Tensor
    id_tensor: torch.Tensor
    weight_rbr_prior: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = KERNEL,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if (kernel, padding, dilation, groups) != (KERNEL, 1, 1, 1):
            raise ValueError("OREPA has kernel 3 and padding 1, without dilation and groups")
        self.stride = stride
        self.weight_rbr_origin = _started(out_channels, in_channels, KERNEL, KERNEL)
        self.weight_rbr_avg_conv = _started(out_channels, in_channels, 1, 1)
        self.weight_rbr_pfir_conv = _started(out_channels, in_channels, 1, 1)
        self.weight_rbr_1x1_kxk_idconv1 = nn.Parameter(torch.zeros(in_channels, in_channels, 1, 1))
        self.weight_rbr_1x1_kxk_conv2 = _started(out_channels, in_channels, KERNEL, KERNEL)
        wide = in_channels * DEPTHWISE_FACTOR
        self.weight_rbr_gconv_dw = _started(wide, 1, KERNEL, KERNEL)
        self.weight_rbr_gconv_pw = _started(out_channels, wide, 1, 1)
        spare = int(in_channels == out_channels and stride == 1)  # upstream's checkpoints have a row without use there
        starts = torch.tensor((*STARTS, *[0.0] * spare))
        self.vector = nn.Parameter(starts.view(-1, 1).repeat(1, out_channels))
        self.register_buffer("weight_rbr_avg_avg", torch.full((KERNEL, KERNEL), 1 / KERNEL**2))
        self.register_buffer("id_tensor", torch.eye(in_channels).view(in_channels, in_channels, 1, 1))
        self.register_buffer("weight_rbr_prior", _cosine_kernels(out_channels))
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.merged: nn.Conv2d | None = None

    def kernel(self) -> torch.Tensor:
        """The present kernel, (out_channels, in_channels, 3, 3)."""
        first = (self.weight_rbr_1x1_kxk_idconv1 + self.id_tensor).flatten(1)  # (C_in, C_in)
        depthwise = self.weight_rbr_gconv_dw.view(-1, DEPTHWISE_FACTOR, KERNEL, KERNEL)  # (C_in, 8, 3, 3)
        pointwise = self.weight_rbr_gconv_pw.view(-1, *depthwise.shape[:2])  # (C_out, C_in, 8)
        branches = (
            self.weight_rbr_origin,
            self.weight_rbr_avg_conv * self.weight_rbr_avg_avg,
            self.weight_rbr_pfir_conv * self.weight_rbr_prior.unsqueeze(1),
            torch.einsum("omhw,mi->oihw", self.weight_rbr_1x1_kxk_conv2, first),
            torch.einsum("oik,ikhw->oihw", pointwise, depthwise),
        )
        factors = self.vector[: len(branches)].view(len(branches), -1, 1, 1, 1)  # (branch, C_out, 1, 1, 1)
        return sum(branch * factor for branch, factor in zip(branches, factors))  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged is not None:
            return self.merged(x)
        return self.bn(F.conv2d(x, self.kernel(), stride=self.stride, padding=1))

    def folded(self) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
        """A convolution of this geometry, and the weights and bias, in float64, of kernel and BatchNorm together."""
        kernel = self.kernel()
        conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], KERNEL, self.stride, 1, bias=False, device="meta")
        conv.weight = nn.Parameter(kernel.detach(), requires_grad=self.weight_rbr_origin.requires_grad)
        assert isinstance(self.bn, nn.BatchNorm2d)
        return conv, *folded_parameters(conv, self.bn)

    def fuse(self) -> None:
        if self.merged is None:
            conv, weight, bias = self.folded()
            self.merged = convolution_with(conv, weight, bias)
            for name in (*self._parameters, *self._buffers, "bn"):
                setattr(self, name, None)


class RepConvOREPA(nn.Module):
    """RepConv with OREPA for its 3 x 3 branch; `fuse` makes one convolution of all."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = KERNEL,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        keeps_shape = in_channels == out_channels and stride == 1
        self.act = nn.SiLU()
        self.rbr_identity = nn.BatchNorm2d(in_channels) if keeps_shape else None
        self.rbr_dense: OREPA | None = OREPA(in_channels, out_channels, kernel, stride, padding, dilation, groups)
        self.rbr_1x1: Conv | None = Conv(in_channels, out_channels, 1, stride, activation=False)
        self.rbr_reparam: nn.Conv2d | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rbr_reparam is not None:
            return self.act(self.rbr_reparam(x))
        assert self.rbr_dense is not None and self.rbr_1x1 is not None
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return self.act(y if self.rbr_identity is None else y + self.rbr_identity(x))

    def fuse(self) -> None:
        if self.rbr_dense is None or self.rbr_1x1 is None:
            return
        conv, *dense = self.rbr_dense.folded()
        branches = [(dense[0], dense[1]), conv_parameters(self.rbr_1x1)]
        if self.rbr_identity is not None:
            branches.append(identity_parameters(conv, self.rbr_identity))
        self.rbr_reparam = merged_convolution(conv, branches)
        self.rbr_dense = self.rbr_1x1 = self.rbr_identity = None


def _started(*shape: int) -> nn.Parameter:
    """Weights from the uniform distribution that a convolution of the shape starts with (He et al., 2015)."""
    weight = torch.empty(shape)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return nn.Parameter(weight)


def _cosine_kernels(channels: int) -> torch.Tensor:
    """(channels, 3, 3): cosines of growing frequency, along the rows in the first half, along the columns after it."""
    half = channels // 2
    place = torch.arange(KERNEL, dtype=torch.float64) + 0.5
    frequency = torch.arange(1, channels - half + 1, dtype=torch.float64)
    waves = torch.cos(frequency.view(-1, 1) * place * (math.pi / KERNEL)).float()  # (channels - half, 3)
    along_rows = waves[:half].unsqueeze(2).expand(-1, KERNEL, KERNEL)
    along_columns = waves.unsqueeze(1).expand(-1, KERNEL, KERNEL)
    return torch.cat((along_rows, along_columns))
