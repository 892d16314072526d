"""Folding for inference: BatchNorm into the convolution before it, and whatever else a block knows how to fold."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Foldable(Protocol):
    """A block with a cheaper form for inference. Folding twice is the same as folding once."""

    def fuse(self) -> None:
        """Replaces the block's parts by the folded ones, in place."""


def normalisation_affine(bn: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """The frozen BatchNorm as `scale * x + shift`.

    Returns:
        scale and shift, both (C,) in float64, so that what is folded with them is rounded once.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a BatchNorm without running statistics cannot be folded")
    mean, var = bn.running_mean.double(), bn.running_var.double()
    scale = (var + bn.eps).rsqrt()
    if bn.affine:
        scale = scale * bn.weight.double()
    shift = -mean * scale
    return scale, shift + bn.bias.double() if bn.affine else shift


def convolution_with(conv: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    """A convolution of the geometry, dtype and device of `conv`, with these weights and this bias."""
    folded = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        device="meta",
    )
    folded.weight = nn.Parameter(weight.detach().to(conv.weight), requires_grad=conv.weight.requires_grad)
    folded.bias = nn.Parameter(bias.detach().to(conv.weight), requires_grad=conv.weight.requires_grad)
    return folded.train(conv.training)


def scaled_parameters(conv: nn.Conv2d, scale: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias, in float64, of the convolution `scale * conv(x) + shift`; `scale` and `shift` are (C,)."""
    bias = torch.zeros_like(shift) if conv.bias is None else conv.bias.double()
    return conv.weight.double() * scale.view(-1, 1, 1, 1), bias * scale + shift


def folded_parameters(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias, in float64, of the convolution that gives `bn(conv(x))` as in evaluation mode."""
    return scaled_parameters(conv, *normalisation_affine(bn))


def fold_batchnorm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that gives `bn(conv(x))` as in evaluation mode."""
    return convolution_with(conv, *folded_parameters(conv, bn))


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Folds each BatchNorm that directly follows a convolution; its place keeps an Identity, so indices stay."""
    for index in range(len(sequence) - 1):
        conv, bn = sequence[index], sequence[index + 1]
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            sequence[index] = fold_batchnorm(conv, bn)
            sequence[index + 1] = nn.Identity()


@torch.no_grad()
def fuse_modules(root: nn.Module) -> None:
    """Folds every block below `root` that can be folded, in place. Outputs in evaluation mode stay the same."""
    for module in list(root.modules()):
        if isinstance(module, Foldable):
            module.fuse()
        elif isinstance(module, nn.Sequential):
            _fold_sequence(module)
