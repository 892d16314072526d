"""Anchor heads: YOLOv5's Detect, and the heads of YOLOv7 with implicit layers and auxiliary outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from models.blocks.rep import ImplicitA, ImplicitM, fold_implicit
from models.heads.base import ClassOutputs, DetectionHead, HeadPlan, Maps, at_least_float32, cell_grid


class AnchorHead(DetectionHead):
    """Decodes maps of anchor predictions; subclasses say where the maps come from.

    Raw maps are (N, na, ny, nx, 5 + nc): x, y, w, h, objectness, classes, all logits. Decoded predictions are
    (N, sum of na * ny * nx, 5 + nc): centre x, y, width, height in pixels, objectness and class scores, ordered by
    level, anchor, row, column. Decoding is YOLOv5's: xy = (2 s(t) - 0.5 + cell) * stride, wh = (2 s(t))^2 * anchor.

    Attributes:
        na, no: anchors a level, and outputs an anchor.
        anchors: (num_levels, na, 2) in units of the level's cells.
        anchor_grid: the same in pixels, (num_levels, 1, na, 1, 1, 2); only in families whose checkpoints hold one.

    Args:
        plan: with anchors and the family's style of them.
    """

    takes_anchors = True
    kind = "anchor"
    anchors: torch.Tensor
    anchor_grid: torch.Tensor
    box_outputs = 4  # before the objectness

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__(plan)
        self.plan = plan
        self.layout = plan.style.layout
        self.loss = plan.style.loss
        self.no = self.box_outputs + 1 + plan.num_classes
        self.na = self.per_cell = len(plan.anchors[0]) // 2
        self.keep_pixel_anchors = plan.style.keep_pixel_anchors
        pixels = torch.tensor(plan.anchors, dtype=torch.float32).view(self.num_levels, self.na, 2)
        self.register_buffer("anchors", pixels / torch.tensor(self.strides).view(-1, 1, 1))
        if self.keep_pixel_anchors:
            self.register_buffer("anchor_grid", pixels.view(self.num_levels, 1, self.na, 1, 1, 2))

    @property
    def anchors_px(self) -> torch.Tensor:
        return torch.stack([self.level_anchors(level) for level in range(self.num_levels)])

    def level_anchors(self, level: int) -> torch.Tensor:
        """(na, 2) anchor widths and heights of one level in pixels."""
        if self.keep_pixel_anchors:
            return self.anchor_grid[level].view(self.na, 2)
        return self.anchors[level] * self.strides[level]

    @torch.no_grad()
    def set_anchors(self, anchors_px: torch.Tensor) -> None:
        for level, stride in enumerate(self.strides):
            self.anchors[level] = anchors_px[level].to(self.anchors) / stride
        if self.keep_pixel_anchors:
            self.anchor_grid.copy_(anchors_px.to(self.anchor_grid).view_as(self.anchor_grid))

    def prediction_convolutions(self, sources: Sequence[nn.Module]) -> list[nn.Module]:
        """The last convolutions, one for each map, given the layers that feed the head."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize_biases(self, sources: Sequence[nn.Module], image_size: int = 640) -> None:
        """Eight objects an image, classes at a frequency of 0.6 / nc (Lin et al., Focal Loss, 2017, section 3.3)."""
        for index, conv in enumerate(self.prediction_convolutions(sources)):
            cells = (image_size / self.strides[index % self.num_levels]) ** 2
            bias = conv.bias.view(self.na, self.no)  # type: ignore[union-attr, operator]
            bias[:, self.box_outputs] += math.log(8 / cells)
            bias[:, self.box_outputs + 1 :] += math.log(0.6 / (self.nc - self.plan.style.class_margin))

    def class_outputs(self, sources: Sequence[nn.Module]) -> Iterator[ClassOutputs]:
        for conv in self.prediction_convolutions(sources):
            yield from (ClassOutputs(one, 0, self.na, self.box_outputs + 1) for one in conv.parameters())

    def logits(self, level: int, feature: torch.Tensor) -> torch.Tensor:
        """The map (N, na * no, ny, nx) of one level."""
        raise NotImplementedError

    def arrange(self, x: torch.Tensor) -> torch.Tensor:
        """(N, na * no, ny, nx) to (N, na, ny, nx, no)."""
        batch, _, height, width = x.shape
        return x.view(batch, self.na, self.no, height, width).permute(0, 1, 3, 4, 2).contiguous()

    def raw_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        return [self.arrange(self.logits(level, features[level])) for level in range(self.num_levels)]

    def decode(self, raw: Maps) -> torch.Tensor:
        levels = []
        for level, logits in enumerate(raw):
            scores = at_least_float32(logits).sigmoid()  # (N, na, ny, nx, no)
            grid = cell_grid(logits.shape[2], logits.shape[3], scores)  # (ny, nx, 2)
            anchors = self.level_anchors(level).to(scores.dtype).view(1, self.na, 1, 1, 2)
            centres = (scores[..., :2] * 2 - 0.5 + grid) * self.strides[level]
            sizes = self.relative_sizes(scores[..., 2 : self.box_outputs]) * anchors
            levels.append(torch.cat((centres, sizes, scores[..., self.box_outputs :]), -1).flatten(1, 3))
        return torch.cat(levels, 1)

    def relative_sizes(self, scores: torch.Tensor) -> torch.Tensor:
        """Widths and heights in anchors, (..., 2), from the sigmoids of the outputs that tell them."""
        return (scores * 2) ** 2


class MapDetect(AnchorHead):
    """A head without weights: the layers that feed it are the prediction convolutions (YOLOv5 1.0, MobileNet)."""

    reads = "nn.Conv2d"

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__(plan)
        if list(plan.channels) != [self.na * self.no] * self.num_levels:
            raise ValueError(
                f"the convolutions before the head have {list(plan.channels)} channels, "
                f"na * (nc + 5) = {self.na * self.no} needed"
            )

    def prediction_convolutions(self, sources: Sequence[nn.Module]) -> list[nn.Module]:
        return [source[-1] if isinstance(source, nn.Sequential) else source for source in sources]

    def logits(self, level: int, feature: torch.Tensor) -> torch.Tensor:
        return feature


class Detect(AnchorHead):
    """YOLOv5's head: a 1 x 1 convolution on each level."""

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__(plan)
        self.channels = tuple(plan.channels[: self.num_levels])
        self.m = nn.ModuleList(nn.Conv2d(width, self.na * self.no, 1) for width in self.channels)

    def prediction_convolutions(self, sources: Sequence[nn.Module]) -> list[nn.Module]:
        return list(self.m)

    def logits(self, level: int, feature: torch.Tensor) -> torch.Tensor:
        return self.m[level](feature)


class IDetect(Detect):
    """Detect with an implicit layer before (added) and after (multiplied) each convolution (YOLOR, 2021).

    `fuse` folds them into the convolutions and leaves them neutral, so folding again changes nothing and the folded
    weights mean the same wherever they are loaded.
    """

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__(plan)
        self._add_convolutions(plan.channels)
        self.ia = nn.ModuleList(ImplicitA(width) for width in self.channels)
        self.im = nn.ModuleList(ImplicitM(self.na * self.no) for _ in range(self.num_levels))

    def _add_convolutions(self, channels: Sequence[int]) -> None:
        """Registers what a subclass needs between the convolutions and the implicit layers."""

    def logits(self, level: int, feature: torch.Tensor) -> torch.Tensor:
        return self.im[level](self.m[level](self.ia[level](feature)))

    def class_outputs(self, sources: Sequence[nn.Module]) -> Iterator[ClassOutputs]:
        yield from super().class_outputs(sources)
        for layer in self.im:
            yield ClassOutputs(layer.get_parameter("implicit"), 1, self.na, self.box_outputs + 1)

    @torch.no_grad()
    def fuse(self) -> None:
        for conv, added, multiplied in zip(self.m, self.ia, self.im):
            fold_implicit(conv, added, multiplied)  # type: ignore[arg-type]

    def deployed(self) -> DetectionHead:
        """A `Detect`, which takes this head's first `num_levels` inputs."""
        self.fuse()
        plain = Detect(replace(self.plan, channels=self.channels))
        plain.m = self.m
        plain.anchors = self.anchors
        if self.keep_pixel_anchors:
            plain.anchor_grid = self.anchor_grid
        return plain.train(self.training)


class IAuxDetect(IDetect):
    """IDetect whose second half of inputs feeds auxiliary maps, for training alone.

    In training the result is the maps of all levels, then the auxiliary maps of all levels.
    """

    inputs_per_level = 2

    def __init__(self, plan: HeadPlan) -> None:
        super().__init__(plan)
        self.loss = "simota_auxiliary"

    def _add_convolutions(self, channels: Sequence[int]) -> None:
        self.m2 = nn.ModuleList(nn.Conv2d(width, self.na * self.no, 1) for width in channels[self.num_levels :])

    def prediction_convolutions(self, sources: Sequence[nn.Module]) -> list[nn.Module]:
        return [*self.m, *self.m2]

    def auxiliary_maps(self, features: Sequence[torch.Tensor]) -> Maps:
        return [self.arrange(conv(x)) for conv, x in zip(self.m2, features[self.num_levels :])]
