"""What a family of architectures means where its yaml does not say it: one row a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from models.blocks import bottleneck, conv
from models.blocks.block import Block
from models.blocks.extra.conv import MixConv2d
from models.heads.anchor import MapDetect
from models.heads.anchor_free import AnchorFreeDetect
from models.heads.base import AnchorStyle, DetectionHead
from models.registry import BLOCKS, HEADS, YOLOV7_ONLY
from utils.detector import Layout
from utils.evaluation.metrics import YOLOV5_FIGURES, YOLOV7_FIGURES, YOLOV8_FIGURES, Convention


@dataclass(frozen=True)
class Traits:
    """What a family is recognized by in an architecture that does not name it.

    Attributes:
        head: name of the last row's module.
        num_arguments: of that row: 1 for [nc], 2 for [nc, anchors].
        feeds: names of the modules that the last row reads.
        modules: names of all modules.
    """

    head: str
    num_arguments: int
    feeds: frozenset[str]
    modules: frozenset[str]


@dataclass(frozen=True)
class Family:
    """A family of architectures.

    Attributes:
        recognized: whether an architecture with such traits is of this family; the first row of `FAMILIES` that says so
            is taken.
        heads: names in the yaml that mean another head than in `HEADS`.
        blocks: names in the yaml that mean another block than in `BLOCKS`.
        anchors: how its heads with anchors differ from those of other families.
        batchnorm_eps: of all BatchNorm layers.
        activation: of blocks that have no activation of their own, as a yaml writes it; empty for the blocks' default.
        views_overlap: with test-time augmentation, the views of other sizes keep all of their levels.
        convention: how the family's original program computes precision, recall and AP.
    """

    recognized: Callable[[Traits], bool]
    heads: Mapping[str, type[DetectionHead]] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    anchors: AnchorStyle = AnchorStyle()
    batchnorm_eps: float = 1e-3
    activation: str = ""
    views_overlap: bool = False
    convention: Convention = YOLOV5_FIGURES


FAMILIES: dict[str, Family] = {
    "yolov8": Family(
        recognized=lambda found: found.head == "Detect" and found.num_arguments < 2,
        heads={"Detect": AnchorFreeDetect},
        blocks={
            "Bottleneck": Block(
                partial(bottleneck.Bottleneck, kernels=(3, 3)), order=("shortcut", "groups", "kernels", "expansion")
            ),
            "BottleneckCSP": Block(partial(bottleneck.BottleneckCSP, kernels=(3, 3)), repeats=True),
        },
        convention=YOLOV8_FIGURES,
    ),
    "mobile": Family(
        recognized=lambda found: found.feeds <= {"nn.Conv2d"},
        heads={"Detect": MapDetect},
        blocks={
            "Conv": Block(conv.Conv, order=("kernel", "stride", "groups", "activation")),
            "BottleneckCSP": Block(partial(bottleneck.BottleneckCSP, leaky=True), repeats=True),
        },
        anchors=AnchorStyle(keep_pixel_anchors=True, class_margin=0.99),
        batchnorm_eps=1e-4,
        activation="nn.LeakyReLU(0.1)",
        views_overlap=True,
    ),
    "yolov7": Family(
        recognized=lambda found: bool(found.modules & YOLOV7_ONLY),
        blocks={
            "MixConv2d": Block(partial(MixConv2d, dense=True)),
            "nn.ConvTranspose2d": Block(nn.ConvTranspose2d, widths=0),
        },
        anchors=AnchorStyle(
            keep_pixel_anchors=True,
            class_margin=0.99,
            loss="simota",
            layout=Layout(objectness=True, objectness_alone=True),
        ),
        views_overlap=True,
        convention=YOLOV7_FIGURES,
    ),
    "yolov5": Family(recognized=lambda found: True),
}


def known_blocks(family: str) -> dict[str, Block]:
    """Every block that a yaml of the family can name."""
    return {**BLOCKS, **FAMILIES[family].blocks}


def known_heads(family: str) -> dict[str, type[DetectionHead]]:
    """Every head that a yaml of the family can name."""
    return {**HEADS, **FAMILIES[family].heads}


def head_keys(family: str | None = None, name: str = "") -> set[str]:
    """Keys of a yaml's top level that a head of a family understands; without a family, that any head does."""
    tables = [known_heads(one) for one in ([family] if family else FAMILIES)]
    return {key for table in tables for head in table if not family or head == name for key in table[head].yaml_keys}
