"""What every distillation loss shares: float32, no autocast, checked shapes, named terms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..adapters import conv_adapter, describe_adapter
from ..context import DistillContext, DistillSetup, HeadSpec, Level
from ..errors import DistillError, check_keys, shown
from ..grid import common_grid, sides_to_boxes
from ..heads import (
    HeadLogits,
    anchor_table,
    check_same_maps,
    check_same_output,
    decode_boxes,
    split_logits,
    unlikeness,
)


class DistillationLoss(nn.Module):
    """A loss between what a student and a teacher computed on the same images.

    `forward` gives one scalar tensor for each of `names`: the paper's value, without the weight of the mixture.
    Inputs of any precision are compared in float32 (float64 stays) outside autocast; the teacher's never receive
    gradients.
    """

    needs: ClassVar[str]
    """"features" (one map for each pair of layers) or "predictions" (the raw head maps)."""
    needs_scores: ClassVar[bool] = False
    """Whether `context.teacher_scores` is read."""
    needs_teacher_output: ClassVar[bool] = False
    """Whether `context.teacher_output` is read."""
    names: tuple[str, ...]
    """The terms that `forward` returns: names of levels, or of parts."""
    gains: Mapping[str, float] = {}
    """Of its terms, where they have any."""
    absent: tuple[str, ...] = ()
    """Terms that two heads of this kind leave nothing for."""

    @property
    def zero_terms(self) -> tuple[str, ...]:
        """The terms that are 0 whatever the networks do; none where that is all of them, and the loss does nothing."""
        found = tuple(name for name in self.names if name in self.absent or not self.gains.get(name, 1.0))
        return found if len(found) < len(self.names) else ()

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], context: DistillContext
    ) -> dict[str, Tensor]:
        if len(student) != len(teacher):
            raise DistillError(f"{len(student)} maps of the student, {len(teacher)} of the teacher; expected as many")
        device = student[0].device.type
        with torch.autocast(device, enabled=False):
            return self.terms([full(s) for s in student], [full(t.detach()) for t in teacher], context)

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        """The terms, from maps in full precision."""
        raise NotImplementedError

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch; for losses that draw random numbers."""

    def describe(self, index: int) -> tuple[str, int]:
        """What stands between the maps of one pair of layers: in words, and its number of parameters."""
        return "-", 0


class FeatureLoss(DistillationLoss):
    """A loss on pairs of feature maps. A subclass gives `level_loss`.

    Every child module is a ModuleList with one entry for each level (or none). `self.adapters` brings the student's map
    to the teacher's channels before the two are compared.
    """

    needs = "features"

    def __init__(self, setup: DistillSetup, adapters: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        if not setup.levels:
            raise DistillError(
                f"{type(self).__name__} compares feature maps; list student_kd_layers and teacher_kd_layers"
            )
        self.levels: tuple[Level, ...] = setup.levels
        self.names = tuple(level.name for level in setup.levels)
        if adapters is None:
            adapters = [conv_adapter(level.student_channels, level.teacher_channels) for level in setup.levels]
        self.adapters = nn.ModuleList(adapters)
        self.needs_equal_sizes = True

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        terms = {}
        for index, (level, s, t) in enumerate(zip(self.levels, student, teacher)):
            self.check(level, s, t)
            terms[level.name] = self.level_loss(index, self.adapters[index](s), t, context)
        return terms

    def check(self, level: Level, student: Tensor, teacher: Tensor) -> None:
        """Refuses maps that cannot be compared."""
        channels = (student.shape[1], teacher.shape[1])
        fits = student.shape[0] == teacher.shape[0]
        if self.needs_equal_sizes:
            fits = fits and student.shape[2:] == teacher.shape[2:]
        if not fits or channels != (level.student_channels, level.teacher_channels):
            raise DistillError(
                f"{level.name}: student layer {level.student_layer} has shape {tuple(student.shape)}, teacher layer "
                f"{level.teacher_layer} {tuple(teacher.shape)}; expected {level.student_channels} and "
                f"{level.teacher_channels} channels, the same images and equal strides (or set kd_resize: true)"
            )

    def level_loss(self, index: int, student: Tensor, teacher: Tensor, context: DistillContext) -> Tensor:
        """The scalar loss of one level; both maps are (N, C, H, W) with the teacher's channels."""
        raise NotImplementedError

    def describe(self, index: int) -> tuple[str, int]:
        lists = [modules for modules in self.children() if isinstance(modules, nn.ModuleList) and len(modules)]
        at_level = [modules[index] for modules in lists]
        return describe_adapter(self.adapters[index]), sum(p.numel() for m in at_level for p in m.parameters())


class PredictionLoss(DistillationLoss):
    """A loss on the raw head maps, described by `self.student_head` and `self.teacher_head`.

    Attributes:
        on_grid: whether the two are compared on a common grid, cell by cell, since their raw numbers mean different
            things.
    """

    needs = "predictions"
    grid_form: ClassVar[bool] = False
    """Whether the loss has a form for unlike heads: one that takes what `pairs` gives of them."""
    student_anchors: Tensor
    teacher_anchors: Tensor

    def __init__(self, setup: DistillSetup) -> None:
        super().__init__()
        name = type(self).__name__
        if setup.student_head is None or setup.teacher_head is None:
            raise DistillError(f"{name} compares the heads' outputs; give student_head and teacher_head")
        check_same_output(setup.student_head, setup.teacher_head, name)
        unlike = unlikeness(setup.student_head, setup.teacher_head, setup.same_images)
        if unlike and not self.grid_form:
            raise DistillError(
                f"{name} compares the heads' raw numbers, but {unlike}; use output, soft_label or box, which compare "
                "boxes and scores on a common grid"
            )
        self.on_grid = bool(unlike)
        self.student_head: HeadSpec = setup.student_head
        self.teacher_head: HeadSpec = setup.teacher_head
        self.register_buffer("student_anchors", anchor_table(self.student_head), persistent=False)
        self.register_buffer("teacher_anchors", anchor_table(self.teacher_head), persistent=False)

    def pairs(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[HeadLogits, HeadLogits]]:
        """Student and teacher level by level: location by location as the heads give it, or on the common grid."""
        if not self.on_grid:
            check_same_maps(student, teacher, type(self).__name__)
            return [
                (split_logits(s, self.student_head), split_logits(t, self.teacher_head))
                for s, t in zip(student, teacher)
            ]
        heads = self.student_head, self.teacher_head
        anchors = zip(self.student_anchors, self.teacher_anchors)
        return [
            common_grid(s, t, heads, level, both) for level, (s, t, both) in enumerate(zip(student, teacher, anchors))
        ]

    def boxes(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], pairs: Sequence[tuple[HeadLogits, HeadLogits]]
    ) -> list[tuple[Tensor, Tensor]]:
        """The (N, A, 4) boxes of what `pairs` gave for these maps: in pixels, or in cells on the common grid."""
        if self.on_grid:
            return [(sides_to_boxes(s.box), sides_to_boxes(t.box)) for s, t in pairs]
        return [
            (
                decode_boxes(s, self.student_head, level, self.student_anchors[level]),
                decode_boxes(t, self.teacher_head, level, self.teacher_anchors[level]),
            )
            for level, (s, t) in enumerate(zip(student, teacher))
        ]


def full(x: Tensor) -> Tensor:
    """Float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def keywords(kind: type[DistillationLoss], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A loss's constructor keywords, from the settings of a yaml file.

    A reserved word of Python (lambda) is spelt with an underscore in the constructor (lambda_).

    Raises:
        DistillError: a setting is unknown (the nearest known one is named), or its value is of another kind than the
            default, negative, or a temperature of 0.
    """
    parameters = inspect.signature(kind.__init__).parameters.values()
    known = {p.name.rstrip("_"): p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name, value in check_keys(settings, ["weight", "share", *known], where).items():
        _check_value(name, value, known[name].default, where)
    return {known[name].name: value for name, value in settings.items()}


def _check_value(name: str, value: object, default: object, where: str) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise DistillError(f"{where}: {name} is {shown(value)}; expected true or false")
    elif isinstance(default, int | float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DistillError(f"{where}: {name} is {shown(value)}; expected a number (in yaml 1.0e-3, not 1e-3)")
        if not 0 <= value < math.inf or (value == 0 and name == "temperature"):
            least = "more than" if name == "temperature" else "at least"
            raise DistillError(f"{where}: {name} is {shown(value)}; expected a number of {least} 0")
