"""Cross-head knowledge distillation (Wang et al., CVPR 2024, arXiv 2306.11369)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..adapters import conv_adapter
from ..boxes import giou
from ..context import DistillContext, DistillSetup, HeadSpec
from ..crossing import LevelMaps, make_crossing
from ..errors import DistillError, shown
from ..heads import anchor_table, check_same_maps, foreground_scores, split_logits
from .base import FeatureLoss, full
from .mimic import class_mimic, decoded, joined, side_mimic
from .soft_label import weighted_mean


def match_statistics(student: Tensor, teacher: Tensor, eps: float = 1e-6) -> Tensor:
    """The student's map with the mean and deviation that each of the teacher's channels has over batch and pixels."""
    own_std, own_mean = torch.std_mean(student, (0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1) each
    std, mean = torch.std_mean(teacher, (0, 2, 3), correction=0, keepdim=True)
    return (student - own_mean) * (std / own_std.clamp(min=eps)) + mean


class CrossKD(FeatureLoss):
    """What the teacher's head makes of the student's features imitates what it makes of its own.

    Gradients pass through the frozen rest of the teacher's head into the student's features; the student's own head is
    taught by the labels alone, so that the two never contradict each other there. Student and teacher may have unlike
    heads, anchors and classes.

    Args:
        setup: the networks, the pairs of layers, and the teacher's head. The pairs have to feed every level of that
            head, directly or through layers of a single source (75, 88, 101 before the RepConvs of yolov7).
        at: 0: the tapped features cross; 1 or 2: the maps before that convolution of the branches of YOLOv8's head,
            between two such heads. The paper crosses in the middle of the branches.
        match: give the student's maps the means and deviations of the teacher's channels first, as the authors do.
        cls, obj, box, dfl: gains of the quality focal losses of classes and objectness, of 1 - GIoU, and of the KL of
            box sides (anchor-free heads). The authors' are 1, -, 2 and 3 for GFL, and 1 for the objectness of YOLOv3.
        beta: power of the score difference in the quality focal loss; 1 is the authors'.
    """

    needs_teacher_output = True

    def __init__(
        self,
        setup: DistillSetup,
        *,
        at: int = 0,
        match: bool = True,
        cls: float = 1.0,
        obj: float = 1.0,
        box: float = 2.0,
        dfl: float = 3.0,
        beta: float = 1.0,
    ) -> None:
        if setup.teacher_head is None:
            raise DistillError("crosskd imitates the teacher's predictions; give teacher_head")
        if at not in (0, 1, 2):
            raise DistillError(f"kd_losses.crosskd: at is {shown(at)}; expected 0, 1 or 2")
        if not setup.same_images:
            raise DistillError(
                "crosskd compares what one head makes of both networks' features, but the teacher sees the "
                "images at another size; leave the teacher's image size out, or use output, soft_label or box"
            )
        super().__init__(setup, [nn.Identity() for _ in setup.levels])
        self.crossing = make_crossing(setup, at)
        self.view = setup.teacher_view
        self.adapters = nn.ModuleList(
            nn.ModuleList(conv_adapter(*pair, bias=not match) for pair in level) for level in self.crossing.channels
        )
        self.teacher_head: HeadSpec = setup.teacher_head
        self.register_buffer("anchors", anchor_table(self.teacher_head), persistent=False)
        self.match, self.beta = match, beta
        self.gains = {"cls": cls, "obj": obj, "box": box, "dfl": dfl}
        self.names = ("cls", "obj", "box") if self.teacher_head.kind == "anchor" else ("cls", "box", "dfl")

    anchors: Tensor

    def terms(self, student: list[Tensor], teacher: list[Tensor], context: DistillContext) -> dict[str, Tensor]:
        raw = self.crossing.predict(self.adapted(*self.crossing.maps(student, teacher)))
        cross = [full(x) for x in (raw if self.view is None else self.view(raw))]
        own = [full(x.detach()) for x in context.teacher_output]
        check_same_maps(cross, own, "crosskd")
        s, t = (joined([split_logits(x, self.teacher_head) for x in maps]) for maps in (cross, own))
        boxes = [decoded(maps, self.teacher_head, self.anchors) for maps in (cross, own)]  # (N, A, 4) each
        terms = class_mimic(s, t, self.beta)
        terms["box"] = weighted_mean(1 - giou(*boxes), foreground_scores(t))
        if "dfl" in self.names:
            terms["dfl"] = side_mimic(s, t)
        return {name: self.gains[name] * terms[name] for name in self.names}

    def adapted(self, student: LevelMaps, teacher: LevelMaps) -> LevelMaps:
        """The student's crossing maps with the teacher's channels, and with their statistics where asked for."""
        found = []
        for level, adapters, ours, theirs in zip(self.levels, self.adapters, student, teacher):
            row = []
            for adapt, s, t in zip(adapters, ours, theirs):  # type: ignore[call-overload]
                here = replace(level, student_channels=s.shape[1], teacher_channels=t.shape[1])
                self.check(here if len(ours) > 1 else level, s, t)
                row.append(match_statistics(adapt(s), t) if self.match else adapt(s))
            found.append(row)
        return found
