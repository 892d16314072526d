"""The tables of what an architecture yaml can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from models.blocks import bottleneck, conv, csp, ghost, mobilenet, pooling, rep, reshape


@dataclass(frozen=True)
class Block:
    """How a yaml row becomes a module.

    Attributes:
        module: builds it.
        widths: with how many widths `module` is called first: 2 the input's and the output's, the latter being the
            row's first argument times the width multiple; 1 the input's; 0 none.
        repeats: the number of repeats is an argument of `module`, after the widths; otherwise the module is repeated.
        order: keywords of the remaining arguments in the order of the yaml; empty for the constructor's own order.
    """

    module: Callable[..., nn.Module]
    widths: int = 2
    repeats: bool = False
    order: tuple[str, ...] = ()


# Generations of the format disagree on what follows the groups: first only the activation, later the dilation and then
# the activation. The parser drops "dilation" from the order where the value there can only be an activation.
CONV_ORDER = ("kernel", "stride", "padding", "groups", "dilation", "activation")

BLOCKS: dict[str, Block] = {
    "Conv": Block(conv.Conv, order=CONV_ORDER),
    "DWConv": Block(conv.DWConv, order=("kernel", "stride", "dilation", "activation")),
    "ConvTranspose": Block(conv.ConvTranspose),
    "DWConvTranspose2d": Block(conv.DWConvTranspose2d),
    "Focus": Block(conv.Focus),
    "CrossConv": Block(conv.CrossConv),
    "MixConv2d": Block(conv.MixConv2d),
    "GhostConv": Block(ghost.GhostConv),
    "GhostBottleneck": Block(ghost.GhostBottleneck),
    "Ghost": Block(ghost.GhostBottleneck),
    "InvertedResidual": Block(mobilenet.InvertedResidual),
    "RepConv": Block(rep.RepConv),
    "Bottleneck": Block(bottleneck.Bottleneck, order=("shortcut", "groups", "expansion")),
    "BottleneckCSP": Block(bottleneck.BottleneckCSP, repeats=True),
    "C1": Block(bottleneck.C1, repeats=True),
    "C2": Block(bottleneck.C2, repeats=True),
    "C2f": Block(bottleneck.C2f, repeats=True),
    "C3": Block(bottleneck.C3, repeats=True),
    "C3x": Block(bottleneck.C3x, repeats=True),
    "C3TR": Block(bottleneck.C3TR, repeats=True),
    "C3Ghost": Block(bottleneck.C3Ghost, repeats=True),
    "C3SPP": Block(bottleneck.C3SPP),
    "SPP": Block(pooling.SPP),
    "SPPF": Block(pooling.SPPF),
    "SPPCSPC": Block(pooling.SPPCSPC, repeats=True),
    "GhostSPPCSPC": Block(pooling.GhostSPPCSPC, repeats=True),
    "DownC": Block(pooling.DownC, repeats=True),
    "Stem": Block(pooling.Stem),
    "MP": Block(pooling.MP, widths=0),
    "SP": Block(pooling.SP, widths=0),
    "Concat": Block(reshape.Concat, widths=0),
    "Chuncat": Block(reshape.Chuncat, widths=0),
    "Foldcut": Block(reshape.Foldcut, widths=0),
    "Shortcut": Block(reshape.Shortcut, widths=0),
    "Sum": Block(reshape.Sum, widths=0),
    "ReOrg": Block(reshape.ReOrg, widths=0),
    "Contract": Block(reshape.Contract, widths=0),
    "Expand": Block(reshape.Expand, widths=0),
    **{name: Block(factory, repeats=True) for name, factory in csp.CSP_BLOCKS.items()},
    **{name: Block(factory) for name, factory in csp.UNITS.items()},
    "nn.Conv2d": Block(nn.Conv2d),
    "nn.ConvTranspose2d": Block(nn.ConvTranspose2d),
    "nn.BatchNorm2d": Block(nn.BatchNorm2d, widths=1),
    "nn.Upsample": Block(nn.Upsample, widths=0),
    "nn.MaxPool2d": Block(nn.MaxPool2d, widths=0),
    "nn.AvgPool2d": Block(nn.AvgPool2d, widths=0),
    "nn.ZeroPad2d": Block(nn.ZeroPad2d, widths=0),
    "nn.Dropout2d": Block(nn.Dropout2d, widths=0),
    "nn.Identity": Block(nn.Identity, widths=0),
    "nn.SiLU": Block(nn.SiLU, widths=0),
    "nn.ReLU": Block(nn.ReLU, widths=0),
    "nn.ReLU6": Block(nn.ReLU6, widths=0),
    "nn.LeakyReLU": Block(nn.LeakyReLU, widths=0),
    "nn.Hardswish": Block(nn.Hardswish, widths=0),
}

# What a name means in one family alone.
FAMILY_BLOCKS: dict[str, dict[str, Block]] = {
    "mobile": {"Conv": Block(conv.Conv, order=("kernel", "stride", "groups", "activation"))},
    "yolov8": {
        "Bottleneck": Block(
            partial(bottleneck.Bottleneck, kernels=(3, 3)), order=("shortcut", "groups", "kernels", "expansion")
        ),
        "BottleneckCSP": Block(partial(bottleneck.BottleneckCSP, kernels=(3, 3)), repeats=True),
    },
}

# Blocks by which an architecture with a plain Detect head is known as YOLOv7's.
YOLOV7_ONLY = frozenset((
    "MP", "SP", "ReOrg", "DownC", "RepConv", "SPPCSPC", "GhostSPPCSPC", "Shortcut", "Chuncat", "Foldcut", "Stem",
    "Ghost", *csp.CSP_BLOCKS, *csp.UNITS,
))  # fmt: skip


def known_blocks(family: str) -> dict[str, Block]:
    """Every block that a yaml of the family can name."""
    return {**BLOCKS, **FAMILY_BLOCKS.get(family, {})}
