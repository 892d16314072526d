"""Unlike heads on a common grid, with numbers that can be followed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distill import DistillContext, DistillError, DistillSetup, HeadSpec
from distill.grid import common_grid, joint_logits, nearest_anchor, sides_to_boxes, teacher_cells, to_grid
from distill.heads import HeadLogits, anchor_table, score_maps, unlikeness
from distill.losses.box import Box
from distill.losses.ld import LD
from distill.losses.output import Output
from distill.losses.self_distillation import SelfDistillation
from distill.losses.soft_label import SoftLabel

NC, BINS = 2, 16
ANCHORS = ((8.0, 8.0), (32.0, 16.0))
ANCHOR = HeadSpec("anchor", NC, (8,), [ANCHORS])
FREE = HeadSpec("anchor_free", NC, (8,), bins=BINS)
CONTEXT = DistillContext.from_targets(torch.zeros(0, 6), (16, 16))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def anchor_map(height: int = 2, width: int = 2, obj: float = -4.0, cls: float = -2.0) -> Tensor:
    """Boxes of the anchors' sizes in the middle of each cell."""
    raw = torch.zeros(1, 2, height, width, 5 + NC)
    raw[..., 4], raw[..., 5:] = obj, cls
    return raw


def free_map(sides: tuple[int, int, int, int] = (1, 1, 1, 1), cls: float = -2.0, size: int = 2) -> Tensor:
    """Every cell is sure of its distances left, top, right, bottom, in cells."""
    raw = torch.full((1, 4 * BINS + NC, size, size), -1e4)
    for side, distance in enumerate(sides):
        raw[:, side * BINS + distance] = 0
    raw[:, 4 * BINS :] = cls
    return raw


def on_grid(student: Tensor, teacher: Tensor, heads: tuple[HeadSpec, HeadSpec]) -> tuple[HeadLogits, HeadLogits]:
    anchors = anchor_table(heads[0])[0], anchor_table(heads[1])[0]
    return common_grid(student, teacher, heads, 0, anchors)


def test_joint_logits_are_those_of_the_product() -> None:
    """0.5 * 0.8 = 0.4; at -50 both the product is e^-100, far below what float32 can hold as a probability."""
    obj = torch.tensor([[0.0, -50.0, 40.0]])
    cls = torch.tensor([[[logit(0.8)], [-50.0], [40.0]]])
    found = joint_logits(HeadLogits(torch.zeros(1, 3, 4), obj, cls))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([logit(0.4), -100.0, 40 - math.log(2)]))


def test_nearest_anchor_is_that_of_the_smaller_ratio() -> None:
    """A box of 16 x 16: 2 times 8 x 8, 1/2 and 1 of 32 x 16; equal, the first. 20 x 16 is nearer 32 x 16."""
    boxes = torch.tensor([[[0.0, 0, 16, 16], [0, 0, 20, 16], [0, 0, 4, 4], [3, 3, 3, 3]]])
    assert nearest_anchor(boxes, torch.tensor(ANCHORS)).tolist() == [[0, 1, 0, 0]]


def test_the_teachers_likeliest_anchor_speaks() -> None:
    """Objectness 0.9 with a poor class loses against 0.5 with a good one: 0.9 * 0.1 < 0.5 * 0.8."""
    raw = anchor_map()
    raw[0, 0, 0, 1, 4:] = torch.tensor([logit(0.9), logit(0.1), logit(0.05)])
    raw[0, 1, 0, 1, 4:] = torch.tensor([0.0, logit(0.3), logit(0.8)])
    boxes, logits = teacher_cells(raw, ANCHOR, 0, torch.tensor(ANCHORS))
    assert boxes[0, 1].tolist() == [12 - 16, 4 - 8, 12 + 16, 4 + 8], "the second anchor, in the second cell"
    torch.testing.assert_close(logits[0, 1].sigmoid(), torch.tensor([0.15, 0.4]))


def test_the_student_answers_with_the_anchor_of_that_shape() -> None:
    """A teacher's box of 4 x 2 cells, 32 x 16 pixels: the second anchor, and only it gets a gradient."""
    student, teacher = anchor_map().requires_grad_(), free_map((2, 1, 2, 1))
    s, t = on_grid(student, teacher, (ANCHOR, FREE))
    assert t.box[0, 3].tolist() == [2, 1, 2, 1] and s.box[0, 3].tolist() == [2, 1, 2, 1]
    assert s.obj is None and t.obj is None
    torch.testing.assert_close(s.cls.sigmoid(), torch.full((1, 4, NC), 1 / (1 + math.e**4) / (1 + math.e**2)))
    (s.box @ torch.arange(1.0, 5) + s.cls.sum(-1)).sum().backward()
    assert student.grad is not None and not student.grad[:, 0].any() and bool(student.grad[:, 1].all())


def test_an_anchor_free_student_answers_cell_by_cell() -> None:
    student, teacher = free_map((3, 1, 1, 1)).requires_grad_(), anchor_map()
    teacher[0, 1, :, :, 4] = 0.0  # 32 x 16 pixels: 2, 1, 2, 1 cells
    s, t = on_grid(student, teacher, (FREE, ANCHOR))
    assert s.box[0].tolist() == [[3, 1, 1, 1]] * 4 and t.box[0].tolist() == [[2, 1, 2, 1]] * 4
    assert sides_to_boxes(t.box)[0, 0].tolist() == [-2, -1, 2, 1]


def test_a_finer_grid_of_the_teacher_is_seen_by_its_likeliest_cells() -> None:
    """4 x 4 cells of an image of 32 pixels, seen by 2 x 2 cells of one of 16: boxes are halved."""
    boxes = torch.arange(16.0)[None, :, None].expand(1, 16, 4)
    logits = torch.zeros(1, 16, 2)
    for cell in (5, 3, 8, 15):
        logits[0, cell, 1] = 1.0
    found, scores = to_grid(boxes, logits, (4, 4), (2, 2))
    assert found[0, :, 0].tolist() == [2.5, 1.5, 4.0, 7.5] and scores[0, :, 1].tolist() == [1, 1, 1, 1]


def test_a_coarser_grid_of_the_teacher_is_seen_by_all_cells_it_covers() -> None:
    boxes = torch.tensor([[[8.0, 4, 8, 4]]])
    found, _ = to_grid(boxes, torch.zeros(1, 1, 2), (1, 1), (2, 4))
    assert found.tolist() == [[[32, 8, 32, 8]] * 8], "four times as wide, twice as high"


def test_a_teacher_of_larger_images_meets_the_same_boxes() -> None:
    """Twice the image: 4 x 4 cells, boxes of 4 cells of the teacher are 2 of the student, around a corner of its cell.

    The likeliest of the teacher's cells is the lower right one of each four, a quarter cell from the student's centre.
    """
    teacher = free_map((2, 2, 2, 2), size=4)
    teacher[:, 4 * BINS :, 1::2, 1::2] = 3.0
    s, t = on_grid(free_map((1, 1, 1, 1)), teacher, (FREE, FREE))
    assert t.box[0].tolist() == [[0.75, 0.75, 1.25, 1.25]] * 4
    assert t.cls[0].tolist() == [[3, 3]] * 4 and s.box[0].tolist() == [[1, 1, 1, 1]] * 4


def test_scores_come_to_the_students_size_by_their_best() -> None:
    raw = free_map(size=4, cls=logit(0.1))
    raw[0, -1, 3, 0] = logit(0.7)
    scores = score_maps([raw], FREE, (16, 16))[8]
    torch.testing.assert_close(scores, torch.tensor([[[0.1, 0.1], [0.7, 0.1]]]))


def setup(student: HeadSpec, teacher: HeadSpec, same_images: bool = True) -> DistillSetup:
    return DistillSetup((), student, teacher, same_images=same_images)


def test_box_on_the_grid_by_hand() -> None:
    """Student 2 x 2 cells in a teacher's box of 4 x 2: IoU 1/2. Teacher's scores are equal, so the mean is it."""
    loss = Box(setup(FREE, ANCHOR), measure="iou")
    teacher = anchor_map()
    teacher[0, 1, :, :, 4] = 0.0
    assert loss.on_grid and loss([free_map()], [teacher], CONTEXT)["box"].item() == pytest.approx(0.5 * weight_sum())


def weight_sum() -> float:
    """Four cells of 0.5 * sigmoid(-2): below 1 the sum of weights counts as 1."""
    return 4 * 0.5 / (1 + math.e**2)


def test_soft_labels_on_the_grid_by_hand() -> None:
    """At T = 1 the divergence of q = 0.5 * sigmoid(-2) from p = sigmoid(-2), of both classes, weighted by q."""
    teacher = anchor_map()
    teacher[0, 1, :, :, 4] = 0.0
    p, q = 1 / (1 + math.e**2), 0.5 / (1 + math.e**2)
    divergence = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    found = SoftLabel(setup(FREE, ANCHOR), temperature=1.0)([free_map()], [teacher], CONTEXT)["cls"]
    assert found.item() == pytest.approx(weight_sum() * 2 * divergence, rel=1e-4)


def test_output_on_the_grid_by_hand() -> None:
    """Sides differ by 1 cell left and right, of four; class logits by their difference; means over all numbers."""
    teacher = anchor_map()
    teacher[0, 1, :, :, 4] = 0.0
    q = 0.5 / (1 + math.e**2)
    loss = Output(setup(FREE, ANCHOR), box=1.0, cls=1.0)
    terms = loss([free_map()], [teacher], CONTEXT)
    assert loss.names == tuple(terms) == ("box", "cls")
    assert terms["box"].item() == pytest.approx(q * 2 / 4, rel=1e-5)
    assert terms["cls"].item() == pytest.approx(q * (logit(q) + 2) ** 2, rel=1e-5)


def test_equal_cells_of_unlike_heads_cost_nothing() -> None:
    """An anchor head of objectness 1 that says what an anchor-free one says."""
    student = anchor_map(obj=80.0)
    for loss in (Output, SoftLabel, SelfDistillation, Box):
        terms = loss(setup(ANCHOR, FREE))([student], [free_map((2, 1, 2, 1))], CONTEXT)
        assert sum(terms.values()).item() == pytest.approx(0, abs=1e-5), loss.__name__


def test_why_heads_are_unlike() -> None:
    one = HeadSpec("anchor", NC, (8,), [[[8.0, 8.0]]])
    assert unlikeness(ANCHOR, ANCHOR) == unlikeness(FREE, FREE) == ""
    assert unlikeness(ANCHOR, HeadSpec("anchor", NC, (8,), [[[9.0, 9.0], [10.0, 10.0]]])) == ""
    assert unlikeness(ANCHOR, ANCHOR, same_images=False) == "the teacher sees the images at another size"
    assert unlikeness(ANCHOR, FREE) == "the student's head is anchor, the teacher's anchor_free"
    assert unlikeness(one, ANCHOR) == "the student's head has 1 anchors a cell, the teacher's 2"
    eight = HeadSpec("anchor_free", NC, (8,), bins=8)
    assert unlikeness(FREE, eight) == "the student's box sides have 16 bins, the teacher's 8"
    assert unlikeness(FREE, HeadSpec("anchor_free", NC, (8,))) == "", "not known beforehand"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (setup(ANCHOR, FREE), r"anchor heads do not have \(here: the student\); use the loss box instead"),
        (setup(FREE, ANCHOR), r"anchor heads do not have \(here: the teacher\); use the loss box instead"),
        (
            setup(FREE, FREE, False),
            "LD compares the heads' raw numbers, but the teacher sees the images at another size",
        ),
        (
            setup(FREE, HeadSpec("anchor_free", NC, (8,), bins=8)),
            "sides have 16 bins, the teacher's 8; use output, soft",
        ),
    ],
)
def test_distributions_need_distributions(setting: DistillSetup, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        LD(setting)
