"""Small trainable modules that bring a student's feature map to the teacher's channels."""

from __future__ import annotations

from torch import nn


def conv_adapter(student_channels: int, teacher_channels: int, bias: bool = True) -> nn.Module:
    """1x1 convolution; the identity (no parameters) where the channels agree already.

    Where each channel is standardised next, a bias would be taken away again: it has to be left out.
    """
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=bias)


def converter(student_channels: int, teacher_channels: int) -> nn.Module:
    """1x1 convolution, BatchNorm, ReLU6 (a FitNets regressor, arXiv 1412.6550); always there, also at equal channels.

    The teacher's map has to be clamped to [0, 6] as well before the two are compared.
    """
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU6(),
    )


def describe_adapter(adapter: nn.Module) -> str:
    """A few words for a table: "-" for the identity."""
    leaves = [module for module in adapter.modules() if not list(module.children())]
    words = [
        f"conv {module.kernel_size[0]}x{module.kernel_size[1]}"
        if isinstance(module, nn.Conv2d)
        else type(module).__name__
        for module in leaves
        if not isinstance(module, nn.Identity)
    ]
    return " + ".join(words) or "-"
