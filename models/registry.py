"""The tables of what an architecture yaml can name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from models.blocks import bottleneck, conv, csp, ghost, mobilenet, pooling, rep, reshape

Widths = Sequence[int]


@dataclass(frozen=True)
class Block:
    """How a yaml row becomes a module.

    Attributes:
        module: builds it.
        out_width: its output width from its inputs' widths and its arguments. None: the first argument is the output
            width, to be scaled by the width multiple, and `module` is called with the input and the output width first.
        repeats: the number of repeats is an argument of `module`, after the widths; otherwise the module is repeated.
        order: keywords of the remaining arguments in the order of the yaml; empty for the constructor's own order.
        reads_width: `module` is called with the input width first.
    """

    module: Callable[..., nn.Module]
    out_width: Callable[[Widths, Sequence[Any]], int] | None = None
    repeats: bool = False
    order: tuple[str, ...] = ()
    reads_width: bool = False


def same_width(inputs: Widths, arguments: Sequence[Any]) -> int:
    return inputs[0]


def summed_width(inputs: Widths, arguments: Sequence[Any]) -> int:
    return sum(inputs)


def half_width(inputs: Widths, arguments: Sequence[Any]) -> int:
    return inputs[0] // 2


def contracted_width(inputs: Widths, arguments: Sequence[Any]) -> int:
    return inputs[0] * (arguments[0] if arguments else 2) ** 2


def expanded_width(inputs: Widths, arguments: Sequence[Any]) -> int:
    return inputs[0] // (arguments[0] if arguments else 2) ** 2


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
    "MP": Block(pooling.MP, same_width),
    "SP": Block(pooling.SP, same_width),
    "Concat": Block(reshape.Concat, summed_width),
    "Chuncat": Block(reshape.Chuncat, summed_width),
    "Foldcut": Block(reshape.Foldcut, half_width),
    "Shortcut": Block(reshape.Shortcut, same_width),
    "Sum": Block(reshape.Sum, same_width),
    "ReOrg": Block(reshape.ReOrg, contracted_width),
    "Contract": Block(reshape.Contract, contracted_width),
    "Expand": Block(reshape.Expand, expanded_width),
    **{name: Block(factory, repeats=True) for name, factory in csp.CSP_BLOCKS.items()},
    **{name: Block(factory) for name, factory in csp.UNITS.items()},
    "nn.Conv2d": Block(nn.Conv2d),
    "nn.ConvTranspose2d": Block(nn.ConvTranspose2d),
    "nn.BatchNorm2d": Block(nn.BatchNorm2d, same_width, reads_width=True),
    "nn.Upsample": Block(nn.Upsample, same_width),
    "nn.MaxPool2d": Block(nn.MaxPool2d, same_width),
    "nn.AvgPool2d": Block(nn.AvgPool2d, same_width),
    "nn.ZeroPad2d": Block(nn.ZeroPad2d, same_width),
    "nn.Dropout2d": Block(nn.Dropout2d, same_width),
    "nn.Identity": Block(nn.Identity, same_width),
    "nn.SiLU": Block(nn.SiLU, same_width),
    "nn.ReLU": Block(nn.ReLU, same_width),
    "nn.ReLU6": Block(nn.ReLU6, same_width),
    "nn.LeakyReLU": Block(nn.LeakyReLU, same_width),
    "nn.Hardswish": Block(nn.Hardswish, same_width),
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
YOLOV7_ONLY = frozenset(
    (
        "MP",
        "SP",
        "ReOrg",
        "DownC",
        "RepConv",
        "SPPCSPC",
        "GhostSPPCSPC",
        "Shortcut",
        "Chuncat",
        "Foldcut",
        "Stem",
        "Ghost",
    )
) | frozenset((*csp.CSP_BLOCKS, *csp.UNITS))


def known_blocks(family: str) -> dict[str, Block]:
    """Every block that a yaml of the family can name."""
    return {**BLOCKS, **FAMILY_BLOCKS.get(family, {})}
