"""Output distillation with the background suppressed (Mehta and Ozturk, arXiv 1805.06361)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..context import DistillContext, DistillSetup
from ..errors import check_choice
from ..heads import HeadLogits, check_same_anchors, check_same_maps, expected_sides, foreground_scores, split_logits
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
    student: HeadLogits, teacher: HeadLogits, *, scale_obj: bool, class_term: str, temperature: float
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
    """
    weight = foreground_scores(teacher)[..., None]  # (N, A, 1)
    if teacher.box.ndim == 4:
        box_error = expected_sides(student.box) - expected_sides(teacher.box)  # (N, A, 4), in cells
    else:
        box_error = student.box - teacher.box  # (N, A, 4)
    box = (weight * box_error.square()).mean()
    obj = cls = box.new_zeros(())
    if student.obj is not None and teacher.obj is not None:
        error = (student.obj - teacher.obj).square()  # (N, A)
        obj = (weight[..., 0] * error).mean() if scale_obj else error.mean()
    if student.cls.shape[-1] > 1 or student.obj is None:
        cls = (weight * CLASS_TERMS[class_term](student.cls, teacher.cls, temperature)).mean()
    return OutputParts(box, obj, cls)


class Output(PredictionLoss):
    """Imitates the teacher's raw head maps where the teacher sees an object.

    Args:
        setup: the two heads; they need equal classes and strides, and equal anchors unless `box` is 0.
        box, obj, cls: gains of the three parts; the defaults are the published YOLOv5 ones.
        scale_obj: scale the objectness part by the teacher's objectness; false is what the paper writes and pulls the
            student's background down too. It weighs some twenty times more then.
        class_term: "l2" on the logits, or "kl" of softmax distributions.
        temperature: of "kl".
    """

    names = ("box", "obj", "cls")

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
    ) -> None:
        super().__init__(setup)
        if box:
            check_same_anchors(self.student_head, self.teacher_head, "output")
        self.gains = {"box": box, "obj": obj, "cls": cls}
        self.scale_obj = scale_obj
        self.class_term = check_choice("class_term", class_term, CLASS_TERMS, "kd_losses.output")
        self.temperature = temperature

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        check_same_maps(student, teacher, "output")
        levels = [
            output_parts(
                split_logits(s, self.student_head),
                split_logits(t, self.teacher_head),
                scale_obj=self.scale_obj,
                class_term=self.class_term,
                temperature=self.temperature,
            )
            for s, t in zip(student, teacher)
        ]
        sums = OutputParts(*(sum(part[1:], part[0]) for part in zip(*levels)))
        return {name: gain * getattr(sums, name) for name, gain in self.gains.items()}
