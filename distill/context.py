"""Plain values that describe what is compared: heads, levels, and one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DistillError, check_choice

HEAD_KINDS = ("anchor", "anchor_free")
Anchors = tuple[tuple[tuple[float, ...], ...], ...]


@dataclass(frozen=True)
class HeadSpec:
    """A detection head, described by values.

    Attributes:
        kind: "anchor" for raw maps (N, na, H, W, 5 + nc) holding x, y, w, h, objectness and class logits (YOLOv5,
            YOLOv7); "anchor_free" for raw maps (N, 4 * bins + nc, H, W) holding side distributions and class logits
            (YOLOv8).
        num_classes: number of classes.
        strides: stride of each level in pixels, in the order of the raw maps.
        anchors: (levels, na, 2) widths and heights in pixels of the network input, any nested sequence or tensor;
            required by the kind "anchor".
        names: class names; may stay empty.
        bins: of each side's distribution in the kind "anchor_free"; None where it is not known beforehand.
    """

    kind: str
    num_classes: int
    strides: tuple[int, ...]
    anchors: Any = None
    names: tuple[str, ...] = ()
    bins: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind of head", self.kind, HEAD_KINDS, "HeadSpec")
        if self.kind == "anchor" and self.anchors is None:
            raise DistillError("HeadSpec: a head of kind 'anchor' needs its anchors, (levels, na, 2) in pixels")
        object.__setattr__(self, "strides", tuple(int(stride) for stride in self.strides))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "anchors", self._plain_anchors())

    def _plain_anchors(self) -> Anchors | None:
        if self.anchors is None:
            return None
        values = torch.as_tensor(self.anchors).detach().cpu()
        levels = len(self.strides)
        if values.ndim != 3 or values.shape[0] != levels or values.shape[2] != 2:
            raise DistillError(f"HeadSpec: anchors have shape {tuple(values.shape)}; expected ({levels}, na, 2)")
        return tuple(tuple(tuple(pair) for pair in level) for level in values.tolist())


@dataclass(frozen=True)
class Level:
    """One pair of tapped layers: what they are called, and what the dry run measured."""

    name: str
    student_layer: int | str
    teacher_layer: int | str
    student_channels: int
    teacher_channels: int
    stride: int


@dataclass(frozen=True)
class DistillSetup:
    """What a loss is built from.

    Attributes:
        levels: the pairs of layers.
        student_head, teacher_head: the two heads as they are compared: classes and strides that both have, in the
            student's order.
        same_images: whether the teacher sees the images at the student's size, so that cells correspond.
        teacher: the frozen teacher. To be looked at, not kept: a loss's attributes are copied, and its modules trained.
        teacher_view: brings raw maps of the teacher's own head to `teacher_head`.
        student: the network in training, likewise to be looked at.
        cross_head: from features of the teacher's tapped layers to raw maps of its own head; None: to be found.
    """

    levels: tuple[Level, ...] = ()
    student_head: HeadSpec | None = None
    teacher_head: HeadSpec | None = None
    same_images: bool = True
    teacher: nn.Module | None = None
    teacher_view: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    student: nn.Module | None = None
    cross_head: Callable[[list[Tensor]], Any] | None = None


@dataclass(frozen=True)
class DistillContext:
    """What a loss may know about one batch besides the two networks' outputs.

    Attributes:
        image_hw: height and width of the network input in pixels.
        boxes_xyxy: (T, 4) labelled boxes in pixels of the network input, float32.
        box_images: (T,) index of the image that each box lies in, int64.
        box_classes: (T,) class of each box, int64: its place among the compared classes, -1 for one that only the
            student knows.
        teacher_scores: for each stride of the teacher's head, (N, H, W) how sure it is that a cell holds something of
            the compared classes; empty unless a loss needs it.
        teacher_output: the teacher's raw head maps as they are compared; empty unless a loss needs them.
        teacher: the frozen teacher, for a loss that runs a part of it. Its parameters take no gradient, but gradients
            pass through it; its inputs have to be of its parameters' type and device.
    """

    image_hw: tuple[int, int]
    boxes_xyxy: Tensor
    box_images: Tensor
    box_classes: Tensor
    teacher_scores: Mapping[int, Tensor] = field(default_factory=dict)
    teacher_output: Sequence[Tensor] = ()
    teacher: nn.Module | None = None

    @classmethod
    def from_targets(
        cls, targets: Tensor, image_hw: Sequence[int], teacher_scores: Mapping[int, Tensor] | None = None
    ) -> DistillContext:
        """From (T, 6) rows [image, class, cx, cy, w, h], normalised to the network input."""
        height, width = int(image_hw[0]), int(image_hw[1])
        image, category, cx, cy, w, h = targets.float().unbind(1)  # (T,) each
        boxes = torch.stack(
            ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height), dim=1
        )  # (T, 4)
        return cls((height, width), boxes, image.long(), category.long(), teacher_scores or {})


def level_names(layers: Sequence[int | str], strides: Sequence[int]) -> list[str]:
    """P3 for stride 8, P4 for 16, ...; where two layers share a stride, the layer is added: P4-12."""
    names = [f"P{int(math.log2(s))}" if s > 0 and s & (s - 1) == 0 else f"S{s}" for s in strides]
    return [f"{n}-{layer}" if names.count(n) > 1 else n for n, layer in zip(names, layers)]
