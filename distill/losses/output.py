"""Output distillation with the background suppressed (Mehta and Ozturk, arXiv 1805.06361)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from ..heads import HeadLogits, expected_sides, foreground_scores, same_anchors
from .base import PredictionLoss
from .kl import softened_kl


class OutputParts(NamedTuple):
    """The unweighted scalar parts of one level."""

    box: Tensor
    obj: Tensor
    cls: Tensor


def class_l2(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(..., nc) squared differences of the logits; the temperature plays no part."""
    del temperature
    return (student - teacher).square()


CLASS_TERMS = {"l2": class_l2, "kl": softened_kl}


def output_parts(
    student: HeadLogits,
    teacher: HeadLogits,
    *,
    scale_obj: bool,
    class_term: str,
    temperature: float,
    activated: bool = False,
    kept: Tensor | None = None,
) -> OutputParts:
    """Differences between two heads' logits at one level, each location scaled by the teacher's foreground score.

    Every part is a mean over all its numbers (the class part over the classes too). Where background dominates, all of
    them are small. A head without objectness has no objectness part; a single class has no class part.

    Args:
        student, teacher: one level of the two heads.
        scale_obj: scale the objectness part too, as the published YOLO implementations do. The paper does not: there
            the teacher also teaches what is background.
        class_term: a name in `CLASS_TERMS`.
        temperature: of the class term "kl".
        activated: compare what the sigmoid makes of the logits, as the paper does, and not the logits themselves.
        kept: (N, A) 1 where the teacher's detection counts, 0 where `feature_map_nms` drops it: nothing is there then.
    """
    score = foreground_scores(teacher) if kept is None else kept * foreground_scores(teacher)  # (N, A)
    weight = score[..., None]  # (N, A, 1)
    if teacher.box.ndim == 4:
        box_error = expected_sides(student.box) - expected_sides(teacher.box)  # (N, A, 4), in cells
    elif activated and teacher.obj is not None:
        box_error = student.box.sigmoid() - teacher.box.sigmoid()  # (N, A, 4)
    else:
        box_error = student.box - teacher.box  # (N, A, 4)
    box = (weight * box_error.square()).mean()
    obj = cls = box.new_zeros(())
    if student.obj is not None and teacher.obj is not None:
        gap = student.obj.sigmoid() - score if activated else student.obj - teacher.obj  # (N, A)
        error = gap.square() if activated or kept is None else kept * gap.square()
        obj = (score * error).mean() if scale_obj else error.mean()
    if student.cls.shape[-1] > 1 or student.obj is None:
        both = student.cls, teacher.cls
        if activated and class_term == "l2":
            both = student.cls.sigmoid(), teacher.cls.sigmoid()
        cls = (weight * CLASS_TERMS[class_term](*both, temperature)).mean()
    return OutputParts(box, obj, cls)


@torch.no_grad()
def feature_map_nms(teacher: HeadLogits, map_hw: tuple[int, int]) -> Tensor:
    """(N, A) 1 for the detections of a level that are the strongest of their class among neighbours, else 0.

    Neighbours are the anchors of the 3 x 3 cells around; the class is the likeliest one, the strength the foreground
    score. Equally strong ones all stay.

    Args:
        teacher: one level of the teacher's head.
        map_hw: its rows and columns.
    """
    score, category = foreground_scores(teacher), teacher.cls.argmax(-1)  # (N, A) each
    cells = map_hw[0] * map_hw[1]
    cell = torch.arange(score.shape[1], device=score.device) % cells  # (A,)
    place = category * cells + cell  # (N, A) index into the maps of the classes
    best = score.new_zeros(len(score), teacher.cls.shape[-1] * cells).scatter_reduce(1, place, score, "amax")
    around = F.max_pool2d(best.unflatten(1, (-1, *map_hw)), kernel_size=3, stride=1, padding=1)  # (N, nc, H, W)
    return (score >= around.flatten(1).gather(1, place)).to(score.dtype)


class Output(PredictionLoss):
    """Imitates the teacher's raw head maps where the teacher sees an object.

    Unlike heads, and heads of different anchors unless `box` is 0, are compared on a common grid: box sides in cells
    and joint class logits. There is no part for objectness then, since the class logits hold it.

    Args:
        setup: the two heads.
        box, obj, cls: gains of the three parts; the defaults are the published YOLOv5 ones.
        scale_obj: scale the objectness part by the teacher's objectness; false is what the paper writes and pulls the
            student's background down too. It weighs some twenty times more then.
        class_term: "l2" on the logits, or "kl" of softmax distributions.
        temperature: of "kl".
        activated: compare scores and not logits. The paper's form is this with `fm_nms` and without `scale_obj`.
        fm_nms: of neighbouring detections of one class only the teacher's strongest counts.
    """

    grid_form = True
    names: tuple[str, ...] = ("box", "obj", "cls")

    def __init__(
        self,
        setup: DistillSetup,
        *,
        box: float = 0.05,
        obj: float = 1.0,
        cls: float = 0.58,
        scale_obj: bool = True,
        class_term: str = "l2",
        temperature: float = 20.0,
        activated: bool = False,
        fm_nms: bool = False,
    ) -> None:
        super().__init__(setup)
        self.activated, self.fm_nms = activated, fm_nms
        if box and not same_anchors(self.student_head, self.teacher_head):
            self.on_grid = True
        if self.on_grid:
            self.names = ("box", "cls")
        self.gains = {"box": box, "obj": obj, "cls": cls}
        objectness = self.student_head.kind == "anchor" and not self.on_grid
        # A single class says no more than the objectness, and a softmax over it nothing.
        no_classes = self.student_head.num_classes == 1 and (objectness or class_term == "kl")
        self.absent = (*(() if objectness else ("obj",)), *(("cls",) if no_classes else ()))
        self.scale_obj = scale_obj
        self.class_term = check_choice("class_term", class_term, CLASS_TERMS, "kd_losses.output")
        self.temperature = temperature

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        form = {"scale_obj": self.scale_obj, "class_term": self.class_term, "activated": self.activated}
        levels = []
        for raw, (s, t) in zip(student, self.pairs(student, teacher)):
            kept = feature_map_nms(t, (raw.shape[2], raw.shape[3])) if self.fm_nms else None
            levels.append(output_parts(s, t, temperature=self.temperature, kept=kept, **form))  # type: ignore[arg-type]
        sums = OutputParts(*(sum(part[1:], part[0]) for part in zip(*levels)))
        return {name: self.gains[name] * getattr(sums, name) for name in self.names}
