"""The tables of what an architecture yaml can name."""

from __future__ import annotations

from torch import nn

from models.blocks import bottleneck, conv, mobilenet, pooling, rep, reshape
from models.blocks.block import CONV_ORDER, Block
from models.blocks.extra import csp
from models.blocks.extra.table import EXTRA_BLOCKS
from models.heads.anchor import Detect, IAuxDetect, IDetect
from models.heads.base import DetectionHead
from models.heads.binned import IBin

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
    "InvertedResidual": Block(mobilenet.InvertedResidual),
    "RepConv": Block(rep.RepConv),
    "Bottleneck": Block(bottleneck.Bottleneck, order=("shortcut", "groups", "expansion")),
    "BottleneckCSP": Block(bottleneck.BottleneckCSP, repeats=True),
    "C2f": Block(bottleneck.C2f, repeats=True),
    "C3": Block(bottleneck.C3, repeats=True),
    "SPP": Block(pooling.SPP),
    "SPPF": Block(pooling.SPPF),
    "SPPCSPC": Block(pooling.SPPCSPC, repeats=True),
    "DownC": Block(pooling.DownC, repeats=True),
    "MP": Block(pooling.MP, widths=0),
    "SP": Block(pooling.SP, widths=0),
    "Concat": Block(reshape.Concat, widths=0),
    "Shortcut": Block(reshape.Shortcut, widths=0),
    "ReOrg": Block(reshape.ReOrg, widths=0),
    **EXTRA_BLOCKS,
    "nn.Conv2d": Block(nn.Conv2d),
    "nn.ConvTranspose2d": Block(nn.ConvTranspose2d),
    "nn.BatchNorm2d": Block(nn.BatchNorm2d, widths=1),
    **{f"nn.{name}": Block(getattr(nn, name), widths=0) for name in TORCH_LAYERS},
}

# The last row of an architecture, in every family that does not mean another head by the name.
HEADS: dict[str, type[DetectionHead]] = {
    "Detect": Detect,
    "IDetect": IDetect,
    "IAuxDetect": IAuxDetect,
    "IBin": IBin,
}

# Blocks and heads by which an architecture is known as YOLOv7's.
YOLOV7_ONLY = frozenset((
    "IDetect", "IAuxDetect", "IBin",
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
