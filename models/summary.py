"""The size of a model in numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ModelSummary:
    """The size of a model.

    Attributes:
        layers: modules, counted through all levels.
        parameters: numbers in all parameters.
        gradients: numbers in the parameters that are trained.
        gflops: 10^9 operations for one image, twice the multiply-accumulates.
    """

    layers: int
    parameters: int
    gradients: int
    gflops: float

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, {self.parameters:,} parameters, {self.gradients:,} gradients, "
            f"{self.gflops:.1f} GFLOPs"
        )


def summarize(model: nn.Module, channels: int, stride: int, img_size: int = 640) -> ModelSummary:
    """Counts a model; see `Model.summary`. The arguments are those of `count_gflops`."""
    parameters = list(model.parameters())
    return ModelSummary(
        layers=sum(1 for _ in model.modules()),
        parameters=sum(p.numel() for p in parameters),
        gradients=sum(p.numel() for p in parameters if p.requires_grad),
        gflops=count_gflops(model, channels, stride, img_size),
    )


def count_gflops(model: nn.Module, channels: int, stride: int, img_size: int = 640) -> float:
    """10^9 operations for one square image: twice thop's multiply-accumulates, measured small and scaled up.

    This is upstream's count, and the only one that tables and messages show.

    Args:
        model: the network, which is left as it is.
        channels: of its images.
        stride: the largest one.
        img_size: side of the image in pixels.
    """
    from thop import profile

    side = max(stride, 32)
    reference = next(model.parameters())
    image = torch.zeros(1, channels, side, side, dtype=reference.dtype, device=reference.device)
    macs, _ = profile(copy.deepcopy(model).eval(), inputs=(image,), verbose=False)
    return 2e-9 * macs * (img_size / side) ** 2
