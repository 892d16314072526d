"""Losses on predictions that were added to the first ones, and options of the others: numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill import DistillContext, DistillError
from distill.heads import HeadLogits, split_logits
from distill.losses.bckd import BCKD, score_gap
from distill.losses.fgd import FGD
from distill.losses.l2 import L2, margin_relu
from distill.losses.mimic import class_mimic, quality_focal, side_mimic
from distill.losses.output import Output, feature_map_nms, output_parts
from tests.unit.distill import distill_toys as toys

CONTEXT = DistillContext.from_targets(toys.NO_TARGETS, toys.IMAGE_HW)
LOG3 = math.log(3)  # sigmoid(log 3) is 3/4


def cells(obj: list[list[float]], cls: list[list[list[float]]]) -> HeadLogits:
    """One image, one anchor a cell; probabilities are given."""
    return HeadLogits(
        torch.zeros(1, len(obj) * len(obj[0]), 4),
        torch.logit(torch.tensor(obj)).flatten()[None],
        torch.logit(torch.tensor(cls)).flatten(0, 1)[None],
    )


# Quality focal loss, and what is made of it


def test_quality_focal_by_hand() -> None:
    student, teacher = torch.tensor([0.0, LOG3, -LOG3]), torch.tensor([LOG3, LOG3, LOG3])
    found = quality_focal(student, teacher, 1.0)
    # scores 1/2, 3/4, 1/4 against 3/4: cross-entropies log 2; (unimportant); 3/4 log 4 + 1/4 log 4/3
    assert found[0].item() == pytest.approx(math.log(2) / 4)
    assert found[1].item() == 0
    assert found[2].item() == pytest.approx((0.75 * math.log(4) + 0.25 * math.log(4 / 3)) / 2)
    assert quality_focal(student, teacher, 2.0)[0].item() == pytest.approx(math.log(2) / 16)
    plain = quality_focal(student, teacher, 0.0)
    assert plain[0].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("magnitude", [1e2, 1e4])
def test_quality_focal_survives_extremes(magnitude: float) -> None:
    student = torch.tensor([magnitude, -magnitude, 0.0], requires_grad=True)
    found = quality_focal(student, torch.tensor([-magnitude, magnitude, magnitude]), 1.0)
    found.sum().backward()
    assert bool(found.isfinite().all()) and student.grad is not None and bool(student.grad.isfinite().all())


def test_classes_beside_an_objectness_count_where_the_teacher_sees_something() -> None:
    teacher = cells([[0.75, 1e-6]], [[[0.75], [0.75]]])
    student = cells([[0.5, 1e-6]], [[[0.5], [0.25]]])
    found = class_mimic(student, teacher, 1.0)
    # the foreground is 0.75, counted as 1; the second cell has none
    assert found["obj"].item() == pytest.approx(math.log(2) / 4, rel=1e-4)
    assert found["cls"].item() == pytest.approx(0.75 * math.log(2) / 4, rel=1e-4)
    free = class_mimic(replace(student, obj=None), replace(teacher, obj=None), 1.0)
    gap = (0.75 * math.log(4) + 0.25 * math.log(4 / 3)) / 2
    assert list(free) == ["cls"]
    assert free["cls"].item() == pytest.approx((math.log(2) / 4 + gap) / 1.5, rel=1e-4)  # two cells of 0.75


def test_sides_by_hand() -> None:
    student = HeadLogits(torch.zeros(1, 1, 4, 2), None, torch.zeros(1, 1, 1))
    sides = torch.tensor([LOG3, 0.0]).expand(1, 1, 4, 2)  # 3/4, 1/4 against even odds
    teacher = HeadLogits(sides, None, torch.full((1, 1, 1), LOG3))
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert side_mimic(student, teacher).item() == pytest.approx(0.75 * kl, rel=1e-5)


# BCKD


def test_the_gap_is_that_of_the_ranking_scores() -> None:
    teacher = cells([[0.8]], [[[0.5, 0.9]]])
    student = cells([[0.5]], [[[0.5, 0.2]]])
    assert score_gap(student, teacher).item() == pytest.approx(0.8 * 0.9 - 0.5 * 0.2, rel=1e-5)
    assert score_gap(replace(student, obj=None), replace(teacher, obj=None)).item() == pytest.approx(0.7, rel=1e-5)


def test_bckd_teaches_boxes_where_the_scores_differ() -> None:
    """With equal scores no box is taught, however far apart the boxes are."""
    loss = BCKD(toys.setup(), cls=0, obj=0)
    teacher = toys.head_maps("anchor", 2)
    student = [t.clone() for t in teacher]
    for s in student:
        s[..., :4] += 1
    assert loss(student, teacher, CONTEXT)["box"].item() == 0
    for s in student:
        s[..., 5:] -= 5
    assert loss(student, teacher, CONTEXT)["box"].item() > 1e-3


def test_bckd_by_hand() -> None:
    head = toys.head_spec(num_classes=1, strides=(8,), anchors=[[[8.0, 8.0]]])
    loss = BCKD(replace(toys.setup(), student_head=head, teacher_head=head))
    teacher = torch.zeros(1, 1, 1, 1, 6)
    teacher[..., 4:] = LOG3
    student = teacher.clone()
    student[..., 2] = torch.logit(torch.tensor(0.5**0.5))  # twice as wide: GIoU 1/2
    student[..., 4] = 0.0
    terms = loss([student], [teacher], CONTEXT)
    # scores 9/16 and 3/8 of the class: gap 3/16; the foreground of 3/4 counts as 1
    assert terms["box"].item() == pytest.approx(4 * 3 / 16 * 0.5, rel=1e-5)
    assert terms["obj"].item() == pytest.approx(math.log(2) / 4, rel=1e-5)
    assert terms["cls"].item() == 0


def test_bckd_weights_its_boxes_without_a_gradient() -> None:
    loss = BCKD(toys.setup(kind="anchor_free"), cls=0)
    student = [x.requires_grad_() for x in toys.head_maps("anchor_free", 1)]
    loss(student, toys.head_maps("anchor_free", 2), CONTEXT)["box"].backward()
    for x in student:
        assert x.grad is not None and x.grad[:, :64].any() and not x.grad[:, 64:].any()


# The paper's form of output distillation


def nms_by_loops(scores: Tensor, classes: Tensor) -> Tensor:
    """The definition for (na, H, W): nothing of the same class in the 3 x 3 cells around is stronger."""
    kept = torch.zeros_like(scores)
    anchors, height, width = scores.shape
    for a in range(anchors):
        for y in range(height):
            for x in range(width):
                rows, columns = slice(max(y - 1, 0), y + 2), slice(max(x - 1, 0), x + 2)
                same = classes[:, rows, columns] == classes[a, y, x]
                kept[a, y, x] = float(scores[a, y, x] >= scores[:, rows, columns][same].max())
    return kept


def test_feature_map_nms_by_hand() -> None:
    #  objectness in a row of four cells; class 0, 0, 1, 0
    teacher = cells([[0.9, 0.6, 0.5, 0.7]], [[[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]])
    # the second is weaker than its neighbour of the same class; the third has no neighbour of its class
    assert feature_map_nms(teacher, (1, 4)).tolist() == [[1.0, 0.0, 1.0, 1.0]]


def test_feature_map_nms_equals_the_definition() -> None:
    raw = toys.head_maps("anchor", 4)[0]
    logits = split_logits(raw, toys.head_spec())
    found = feature_map_nms(logits, (8, 12)).unflatten(1, (2, 8, 12))
    for image in range(2):
        wanted = nms_by_loops(raw[image, ..., 4].sigmoid(), raw[image, ..., 5:].argmax(-1))
        assert torch.equal(found[image], wanted)
    assert 0.05 < found.mean() < 0.5


def test_the_papers_objectness_is_taught_everywhere_and_0_where_suppressed() -> None:
    teacher = cells([[0.9, 0.6]], [[[0.9, 0.1], [0.9, 0.1]]])
    student = cells([[0.5, 0.5]], [[[0.5, 0.5], [0.5, 0.5]]])
    kept = feature_map_nms(teacher, (1, 2))
    parts = output_parts(student, teacher, scale_obj=False, class_term="l2", temperature=1.0, activated=True, kept=kept)
    assert parts.obj.item() == pytest.approx((0.4**2 + 0.5**2) / 2, rel=1e-5)
    assert parts.cls.item() == pytest.approx(0.9 * (0.4**2 + 0.4**2) / 4, rel=1e-5)
    scaled = output_parts(student, teacher, scale_obj=True, class_term="l2", temperature=1.0, activated=True)
    assert scaled.obj.item() == pytest.approx((0.9 * 0.4**2 + 0.6 * 0.1**2) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["anchor", "anchor_free"])
def test_the_papers_form_is_bounded_and_finite_in_extremes(kind: str) -> None:
    loss = Output(toys.setup(kind=kind), box=0, scale_obj=False, activated=True, fm_nms=True)
    student = [x.requires_grad_() for x in toys.head_maps(kind, 1, 1e4)]
    terms = loss(student, toys.head_maps(kind, 2, 1e4), CONTEXT)
    torch.stack(list(terms.values())).sum().backward()
    assert all(0 <= value <= 2 for value in terms.values())
    assert all(s.grad is not None and bool(s.grad.isfinite().all()) for s in student)


# Options of losses on features


def test_a_part_of_fgd_that_is_switched_off_has_no_parameters() -> None:
    focal = FGD(toys.setup(), gamma=0, lambda_=0)
    assert all(name.startswith("adapters") for name, _ in focal.named_parameters())
    assert focal.describe(0)[1] == 8 * 12 + 12
    with pytest.raises(DistillError, match="are all 0; set weight: 0"):
        FGD(toys.setup(), alpha=0, beta=0, gamma=0, lambda_=0)


def test_the_margin_is_the_mean_of_the_negative_values() -> None:
    teacher = torch.tensor([[-3.0, -1.0, 2.0, -2.0], [1.0, 0.0, 5.0, 2.0]]).reshape(1, 2, 2, 2)
    assert margin_relu(teacher).flatten().tolist() == [-2.0, -1.0, 2.0, -2.0, 1.0, 0.0, 5.0, 2.0]
    loss = L2(toys.setup(2, 2), mode="partial", margin=True)
    student = torch.zeros(1, 2, 2, 2)
    student[0, 0, 0, 0] = -2.0  # what is left of the teacher's -3
    value = loss([student, student], [teacher, teacher], CONTEXT)["P3"].item()
    # 0 + 1 (0 above -1) + 4 + 4 (0 above -2); 1 + 0 + 25 + 4
    assert value == pytest.approx((0 + 1 + 4 + 4 + 1 + 25 + 4) / 1000)
