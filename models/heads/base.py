"""What every detection head has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from utils.detector import ANCHOR_LAYOUT, Layout

Maps = list[torch.Tensor]


@dataclass(frozen=True)
class AnchorStyle:
    """In what the anchor heads of the families differ.

    Attributes:
        keep_pixel_anchors: the checkpoints hold the anchors in pixels too, as `anchor_grid`.
        class_margin: the start of the class biases is log(0.6 / (nc - class_margin)).
        loss: name of the loss, see `DetectionHead.loss`.
        layout: of the decoded predictions.
    """

    keep_pixel_anchors: bool = False
    class_margin: float = 0.99999
    loss: str = "anchor_ratio"
    layout: Layout = ANCHOR_LAYOUT


@dataclass(frozen=True)
class HeadPlan:
    """What a head is built from.

    Attributes:
        num_classes: number of classes.
        strides: pixels of the image per cell, for each level, small first.
        channels: widths of the maps that it reads: one a level, then those that only training reads.
        anchors: for each level w, h, w, h, ... in pixels; empty for a head without anchors.
        style: the family's, of a head with anchors.
        options: values of the yaml's keys that the head names in `yaml_keys`, where they are given.
    """

    num_classes: int
    strides: Sequence[float]
    channels: Sequence[int]
    anchors: Sequence[Sequence[float]] = ()
    style: AnchorStyle = AnchorStyle()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassOutputs:
    """A parameter of a head whose entries along one dimension belong to outputs, among them the classes.

    Attributes:
        parameter: the parameter.
        dimension: along which its outputs lie.
        groups: how many times the outputs of a box follow each other there, once for each anchor.
        before: outputs of a box before its classes.
    """

    parameter: nn.Parameter
    dimension: int
    groups: int
    before: int


def cell_grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Column and row number of every cell, (height, width, 2), in the dtype and on the device of `like`."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    row_of, column_of = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((column_of, row_of), -1)


def distance_boxes(distances: torch.Tensor, grid_hw: Sequence[int], stride: float) -> torch.Tensor:
    """(N, 4, A) centre x, y, width, height in pixels of boxes around the centres of all cells, row by row.

    Args:
        distances: (N, 4, A) to the left, top, right and bottom side, in cells.
        grid_hw: rows and columns of the level; A is their product.
        stride: pixels a cell.
    """
    before, after = distances.chunk(2, 1)
    cells = cell_grid(grid_hw[0], grid_hw[1], distances).view(-1, 2).T  # (2, A)
    centres = cells + 0.5 + (after - before) / 2
    return torch.cat((centres, before + after), 1) * stride


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision as float32: pixel coordinates of a large image have no room in sixteen bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class DetectionHead(nn.Module):
    """Base of the heads: raw maps in training, `(decoded, raw)` in evaluation. A head describes itself in plain values.

    Attributes:
        takes_anchors: its row in a yaml is [nc, anchors], else [nc].
        inputs_per_level: maps that it reads for each level.
        reads: name of the only block that may feed it; empty where any may.
        yaml_keys: keys of the yaml's top level that it understands besides those of every architecture.
        kind: which form its raw maps have, for whoever compares two heads: "anchor" for x, y, w, h, objectness and
            classes of each anchor, "anchor_free" for distributions of four distances and classes; any other name is a
            form of its own.
        loss: name of what it is trained with, see engine.training.criterion.LOSSES; empty where nothing is known.
        layout: of its decoded predictions.
        bins: of a distance to a side of the box; None where there are no such bins.
        anchors_px: (num_levels, per_cell, 2) anchor widths and heights in pixels; None without anchors.
        per_cell: boxes that it predicts a cell.
        nc: number of classes.
        num_levels: number of maps it detects on.
        strides: pixels of the image per cell, for each level.

    Args:
        plan: what it is built from.
    """

    takes_anchors = False
    inputs_per_level = 1
    reads = ""
    yaml_keys: tuple[str, ...] = ()
    kind: str
    loss = ""
    layout: Layout
    bins: int | None = None
    per_cell = 1

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__()
        self.nc = plan.num_classes
        self.num_levels = len(plan.strides)
        self.strides = tuple(float(stride) for stride in plan.strides)

    @property
    def anchors_px(self) -> torch.Tensor | None:
        return None

    def set_anchors(self, anchors_px: torch.Tensor) -> None:
        """Replaces the anchors by (num_levels, per_cell, 2) widths and heights in pixels."""
        raise NotImplementedError

    def class_outputs(self, sources: Sequence[nn.Module]) -> Iterator[ClassOutputs]:
        """The parameters with an entry for each class, given the layers that feed the head."""
        raise NotImplementedError

    def deployed(self) -> DetectionHead:
        """The head that gives the same predictions without what only training needs; itself where there is none."""
        return self

    def initialize_biases(self, sources: Sequence[nn.Module], image_size: int = 640) -> None:
        """Starts the predictions at the frequencies of objects in an image of `image_size` pixels a side.

        Args:
            sources: the layers that feed the head.
            image_size: pixels a side.
        """
        raise NotImplementedError

    def forward(self, features: Sequence[torch.Tensor]) -> Maps | tuple[torch.Tensor, Maps]:
        """Predicts on one map per level, small stride first.

        Returns:
            the raw maps in training; the decoded predictions of all levels and the raw maps in evaluation.
        """
        raw = self.raw_maps(features)
        if self.training:
            return raw + self.auxiliary_maps(features)
        return self.decode(raw), raw

    def raw_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        """The logits of each level."""
        raise NotImplementedError

    def auxiliary_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        """Further logits that only training wants."""
        return []

    def decode(self, raw: Maps) -> torch.Tensor:
        """Boxes in pixels and scores in [0, 1] from the raw maps."""
        raise NotImplementedError
