"""The tables of what an architecture yaml can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from models.blocks import (
    attention,
    backbones,
    bottleneck,
    conv,
    csp,
    gelan,
    ghost,
    mobilenet,
    orepa,
    pooling,
    rep,
    reshape,
    robust,
    swin,
    transformer,
)


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

# Layers of PyTorch that take their arguments as they stand in the yaml.
TORCH_LAYERS = (
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "ConstantPad2d",
    "Dropout",
    "Dropout2d",
    "ELU",
    "GELU",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Identity",
    "LeakyReLU",
    "MaxPool2d",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "ReflectionPad2d",
    "ReplicationPad2d",
    "Sigmoid",
    "SiLU",
    "Softplus",
    "Tanh",
    "Upsample",
    "UpsamplingBilinear2d",
    "UpsamplingNearest2d",
    "ZeroPad2d",
)

BLOCKS: dict[str, Block] = {
    "Conv": Block(conv.Conv, order=CONV_ORDER),
    "DWConv": Block(conv.DWConv, order=("kernel", "stride", "dilation", "activation")),
    "ConvTranspose": Block(conv.ConvTranspose),
    "DWConvTranspose2d": Block(conv.DWConvTranspose2d),
    "Focus": Block(conv.Focus),
    "CrossConv": Block(conv.CrossConv),
    "MixConv2d": Block(conv.MixConv2d),
    "SCDown": Block(conv.SCDown),
    "RobustConv": Block(robust.RobustConv),
    "RobustConv2": Block(robust.RobustConv2),
    "GhostConv": Block(ghost.GhostConv),
    "GhostBottleneck": Block(ghost.GhostBottleneck),
    "Ghost": Block(ghost.GhostBottleneck),
    "InvertedResidual": Block(mobilenet.InvertedResidual),
    "RepConv": Block(rep.RepConv),
    "RepConv_OREPA": Block(orepa.RepConvOREPA),
    "OREPA_3x3_RepConv": Block(orepa.OREPA, widths=0),
    "Bottleneck": Block(bottleneck.Bottleneck, order=("shortcut", "groups", "expansion")),
    "BottleneckCSP": Block(bottleneck.BottleneckCSP, repeats=True),
    "C1": Block(bottleneck.C1, repeats=True),
    "C2": Block(bottleneck.C2, repeats=True),
    "C2f": Block(bottleneck.C2f, repeats=True),
    "C2fCIB": Block(bottleneck.C2fCIB, repeats=True),
    "C3": Block(bottleneck.C3, repeats=True),
    "C3x": Block(bottleneck.C3x, repeats=True),
    "C3TR": Block(bottleneck.C3TR, repeats=True),
    "C3Ghost": Block(bottleneck.C3Ghost, repeats=True),
    "C3SPP": Block(bottleneck.C3SPP),
    "RepC3": Block(bottleneck.RepC3, repeats=True),
    "RepNCSPELAN4": Block(gelan.RepNCSPELAN4),
    "ELAN1": Block(gelan.ELAN1),
    "SPPELAN": Block(gelan.SPPELAN),
    "AConv": Block(gelan.AConv),
    "ADown": Block(gelan.ADown),
    "CBLinear": Block(gelan.CBLinear, widths=1),
    "CBFuse": Block(gelan.CBFuse, widths=0),
    "HGStem": Block(backbones.HGStem, widths=1),
    "HGBlock": Block(backbones.HGBlock, widths=1, repeats=True),
    "ResNetLayer": Block(backbones.ResNetLayer, widths=0),
    "PSA": Block(attention.PSA),
    "AIFI": Block(attention.AIFI, widths=1),
    "CBAM": Block(attention.CBAM, widths=1),
    "ChannelAttention": Block(attention.ChannelAttention, widths=1),
    "SpatialAttention": Block(attention.SpatialAttention, widths=0),
    "TransformerBlock": Block(transformer.TransformerBlock, widths=0),
    "SwinTransformerBlock": Block(swin.SwinTransformerBlock),
    "SwinTransformer2Block": Block(swin.SwinTransformer2Block),
    "SPP": Block(pooling.SPP),
    "SPPF": Block(pooling.SPPF),
    "SPPCSPC": Block(pooling.SPPCSPC, repeats=True),
    "GhostSPPCSPC": Block(pooling.GhostSPPCSPC, repeats=True),
    "DownC": Block(pooling.DownC, repeats=True),
    "Stem": Block(pooling.Stem),
    "GhostStem": Block(pooling.GhostStem),
    "MP": Block(pooling.MP, widths=0),
    "SP": Block(pooling.SP, widths=0),
    "Concat": Block(reshape.Concat, widths=0),
    "Chuncat": Block(reshape.Chuncat, widths=0),
    "Foldcut": Block(reshape.Foldcut, widths=0),
    "Shortcut": Block(reshape.Shortcut, widths=0),
    "Sum": Block(reshape.Sum, widths=0),
    "Silence": Block(reshape.Silence, widths=0),
    "ReOrg": Block(reshape.ReOrg, widths=0),
    "Contract": Block(reshape.Contract, widths=0),
    "Expand": Block(reshape.Expand, widths=0),
    **{name: Block(factory, repeats=True) for name, factory in csp.CSP_BLOCKS.items()},
    **{name: Block(factory, order=("shortcut", "groups", "expansion")) for name, factory in csp.UNITS.items()},
    "nn.Conv2d": Block(nn.Conv2d),
    "nn.ConvTranspose2d": Block(nn.ConvTranspose2d),
    "nn.BatchNorm2d": Block(nn.BatchNorm2d, widths=1),
    **{f"nn.{name}": Block(getattr(nn, name), widths=0) for name in TORCH_LAYERS},
}

# What a name means in one family alone.
FAMILY_BLOCKS: dict[str, dict[str, Block]] = {
    "yolov7": {
        "MixConv2d": Block(partial(conv.MixConv2d, dense=True)),
        "nn.ConvTranspose2d": Block(nn.ConvTranspose2d, widths=0),
    },
    "mobile": {
        "Conv": Block(conv.Conv, order=("kernel", "stride", "groups", "activation")),
        "BottleneckCSP": Block(partial(bottleneck.BottleneckCSP, leaky=True), repeats=True),
    },
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
    "Ghost", "GhostStem", "RobustConv", "RobustConv2", "RepConv_OREPA", "OREPA_3x3_RepConv", "SwinTransformerBlock",
    "SwinTransformer2Block", *csp.CSP_BLOCKS, *csp.UNITS,
))  # fmt: skip

# What upstream's yaml files name for other purposes, and what those are.
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("IKeypoint", "Pose", "Pose26"), "for keypoints"),
    **dict.fromkeys(("Segment", "Segment26", "Proto", "YOLOESegment", "SemanticSegment"), "for segmentation"),
    **dict.fromkeys(("OBB", "OBB26"), "for rotated boxes"),
    "Classify": "for classification",
    **dict.fromkeys(("WorldDetect", "YOLOEDetect", "C2fAttn", "ImagePoolingAttn"), "for detection by text"),
    "RTDETRDecoder": "RT-DETR's",
    "v10Detect": "YOLOv10's",
    **dict.fromkeys(("C3k2", "C2PSA", "C2fPSA", "A2C2f"), "for YOLO11 and later, whose head is another"),
}


def known_blocks(family: str) -> dict[str, Block]:
    """Every block that a yaml of the family can name."""
    return {**BLOCKS, **FAMILY_BLOCKS.get(family, {})}
