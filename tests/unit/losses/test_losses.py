"""Detection losses: hand-worked numbers, agreement with plain versions, batches without boxes, compilation, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import losses.anchor_assign
import losses.functional
import losses.simota
from losses import SimOTALoss, YOLOv5Loss, YOLOv8Loss
from losses.anchor_assign import assign, find_candidates, group_targets
from losses.functional import binary_cross_entropy, masked_mean, smoothed_targets
from losses.iou import box_overlap
from losses.simota import CandidateBoxes, match
from losses.task_aligned import Boxes, Outputs, TaskAlignedAssigner
from losses.yolov8 import distribution_focal_loss
from tests.unit.losses.loss_toys import (
    ANCHORS,
    LOSSES,
    NUM_CLASSES,
    REFERENCES,
    STRIDES,
    make_loss,
    make_maps,
    make_targets,
    value_and_gradients,
)
from utils.errors import UserError


class TestOverlap:
    def test_shifted_squares(self) -> None:
        boxes1, boxes2 = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 1, 3, 3]])
        # Intersection 1, union 4 + 4 - 1 = 7, hull 3 * 3 = 9, squared centre distance 2, squared diagonal 18.
        expected = {"iou": 1 / 7, "giou": 1 / 7 - 2 / 9, "diou": 1 / 7 - 2 / 18, "ciou": 1 / 7 - 2 / 18}
        for kind, value in expected.items():
            assert box_overlap(boxes1, boxes2, kind, box_format="xyxy").item() == pytest.approx(value, abs=1e-6)

    def test_aspect_term(self) -> None:
        square, wide = torch.tensor([5.0, 5, 2, 2]), torch.tensor([5.0, 5, 4, 2])
        # Same centre, IoU 4 / 8; v = 4 / pi^2 (atan 2 - atan 1)^2, alpha = v / (1 - 1/2 + v).
        v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
        assert box_overlap(square, wide, "ciou").item() == pytest.approx(0.5 - v * v / (0.5 + v), abs=1e-6)

    def test_pairs_by_broadcasting(self) -> None:
        boxes = torch.tensor([[1.0, 1, 2, 2], [2, 1, 2, 2], [9, 9, 1, 1]])
        expected = torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])
        torch.testing.assert_close(box_overlap(boxes[:, None], boxes[None]), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
    @pytest.mark.parametrize("other", [[2.0, 2, 1, 1], [2.0, 2, 0, 0], [2.0, 2, 1, 0], [90.0, 90, 1e-6, 1e-6]])
    def test_gradient_is_finite(self, kind: Any, other: list[float]) -> None:
        for values in ([2.0, 2, 1, 1], [2.0, 2, 0, 0], [2.0, 2, 3, 0], [2.0, 2, 0, 3]):
            box = torch.tensor(values, requires_grad=True)
            overlap = box_overlap(box, torch.tensor(other), kind)
            overlap.backward()
            assert overlap.isfinite() and box.grad is not None and box.grad.isfinite().all()

    def test_unknown_names(self) -> None:
        box = torch.ones(4)
        with pytest.raises(ValueError, match="'siou'; expected 'iou', 'giou', 'diou' or 'ciou'"):
            box_overlap(box, box, "siou")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'xywh'; expected 'cxcywh' or 'xyxy'"):
            box_overlap(box, box, box_format="xywh")  # type: ignore[arg-type]


class TestFunctions:
    def test_smoothed_targets(self) -> None:
        assert smoothed_targets(0.2) == (0.9, 0.1)

    def test_positive_weight(self) -> None:
        logits, targets = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.arange(50) / 49
        library = nn.functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=torch.tensor(2.5), reduction="none"
        )
        torch.testing.assert_close(binary_cross_entropy(logits, targets, 2.5), library)

    def test_focal_loss(self) -> None:
        # At the logit 0 both scores are 1/2: ln 2 * alpha * (1/2)^2 with alpha 1/4 for positives, 3/4 for negatives.
        loss = binary_cross_entropy(torch.zeros(2), torch.tensor([1.0, 0.0]), gamma=2.0)
        assert loss.tolist() == pytest.approx([math.log(2) / 16, 3 * math.log(2) / 16])

    def test_masked_mean(self) -> None:
        values = torch.tensor([[1.0, 3], [10, 20], [5, 7]])
        assert masked_mean(values, torch.tensor([True, False, True])).item() == 4.0  # (1 + 3 + 5 + 7) / 4
        assert masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0.0
        assert masked_mean(values[:0], torch.zeros(0, dtype=torch.bool)).item() == 0.0


def candidate_rows(center: tuple[float, float], sides: tuple[float, float], reach: float = 0.5) -> list[list[int]]:
    """[column, row, anchor] of the candidates of one box in cells of a 4 x 5 grid with anchors 1 x 1 and 2 x 2."""
    box = [center[0] / 5, center[1] / 4, sides[0] / 5, sides[1] / 4]
    groups = group_targets(torch.tensor([[0, 0, *box]], dtype=torch.float64), 1)
    anchors = torch.tensor([[1.0, 1], [2, 2]], dtype=torch.float64)
    found = find_candidates(groups, anchors, (4, 5), anchor_t=4.0, reach=reach)
    assert found.valid.all(), "padding where the sizes can be read"
    assert assign(groups, found, anchors, (4, 5)).boxes[:, 2:].tolist() == pytest.approx(
        torch.tensor([sides] * found.valid.shape[1])
    )
    return torch.cat([found.cell, found.anchor[..., None]], -1)[0].tolist()


class TestCandidates:
    def test_nearer_neighbours(self) -> None:
        # The centre lies in the left part (.3) and the lower part (.6) of cell (1, 2); 1 x 1 fits both anchors.
        assert candidate_rows((1.3, 2.6), (1, 1)) == [[1, 2, 0], [1, 2, 1], [0, 2, 0], [0, 2, 1], [1, 3, 0], [1, 3, 1]]

    def test_no_neighbour_beyond_the_border_or_from_the_middle(self) -> None:
        assert candidate_rows((0.3, 3.6), (1, 5)) == [[0, 3, 1]]  # 5 / 2 < 4, but 5 / 1 is not
        assert candidate_rows((2.5, 1.5), (1, 5)) == [[2, 1, 1]]

    def test_center_on_a_cell_boundary_counts_its_own_cell_again(self) -> None:
        assert candidate_rows((2.0, 1.5), (1, 5)) == [[2, 1, 1], [1, 1, 1], [2, 1, 1]]

    def test_all_neighbours(self) -> None:
        cells = candidate_rows((2.5, 1.5), (1, 5), reach=1.0)
        assert cells == [[2, 1, 1], [1, 1, 1], [2, 0, 1], [3, 1, 1], [2, 2, 1]]

    def test_anchor_factor_is_exclusive(self) -> None:
        assert candidate_rows((2.5, 1.5), (4, 1)) == [[2, 1, 1]]
        assert candidate_rows((2.5, 1.5), (0.25, 0.5)) == []
        assert candidate_rows((2.5, 1.5), (0, 1)) == []

    def test_groups_of_unsorted_targets_and_padding(self) -> None:
        targets = torch.zeros(5, 6)
        targets[:, 0] = torch.tensor([2, 0, -1, 2, 0])
        targets[:, 1] = torch.arange(5)
        groups = group_targets(targets, 4)
        assert groups.row[groups.valid].tolist() == [1, 4, 0, 3]
        assert groups.image[groups.valid].tolist() == [0, 0, 2, 2]
        assert groups.valid.sum(1).tolist() == [2, 0, 2, 0]
        assert groups.valid.shape == (4, 2)


def test_last_entry_of_a_cell_gives_its_objectness() -> None:
    """With only the objectness gain, d loss / d logit = (score - target) / cells * balance * images."""
    anchors = torch.tensor([[[1.0, 1.0]]])
    loss = YOLOv5Loss(anchors, [8], 1, box=0, cls=0, obj=1, balance=[1])
    narrow, wide = [0, 0, 0.5, 0.5, 0.2, 0.2], [0, 0, 0.5, 0.5, 0.5, 0.5]  # centred in cell (2, 2) of 5 x 5
    for rows in ([narrow, wide], [wide, narrow]):
        maps = torch.zeros(1, 1, 5, 5, 6, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss([maps], torch.tensor(rows))[0], maps)
        # All logits 0: the prediction is the anchor 1 x 1 in the middle of its cell; the last box has the side 5 * w.
        side = 5 * rows[-1][4]
        target = 1 / side**2  # IoU of concentric squares: CIoU is equal, for distance and aspect terms are 0
        assert gradient[0, 0, 2, 2, 4].item() == pytest.approx((0.5 - target) / 25, abs=1e-6)
        assert gradient[0, 0, 0, 0, 4].item() == pytest.approx(0.5 / 25)
        assert gradient[..., [0, 1, 2, 3, 5]].abs().max() == 0


def run_match(targets: list[list[float]], candidates: list[list[float]], costs: list[list[float]]) -> list[int | None]:
    """Box of each candidate for given class costs of each box, all in one image."""
    boxes = torch.tensor(targets)
    rows = torch.zeros(len(targets), 6)
    rows[:, 1] = torch.arange(len(targets))  # every box has its own class, so its own row of class costs
    groups = group_targets(rows, 1)
    padding = len(groups.valid[0]) - len(targets)
    boxes = nn.functional.pad(boxes, (0, 0, 0, padding))
    table = torch.cat([torch.tensor(costs), torch.full((1, len(candidates)), torch.inf)])
    seen = CandidateBoxes(torch.tensor([candidates]), table[None], torch.zeros(1, len(candidates), dtype=torch.long))
    target, taken = match(boxes[None], groups, seen, topk=10)
    return [int(t) if hit else None for t, hit in zip(target[0], taken[0])]


class TestSimOTAMatching:
    whole, most, half = [0.0, 0, 10, 10], [0.0, 0, 10, 6], [0.0, 0, 10, 5]

    def test_dynamic_k_and_conflict(self) -> None:
        # Box 0: IoUs 1, .5, .6, sum 2.1, so 2 candidates: the first and the third. Box 1, the lower half: IoUs .5, 0
        # and 10 / (60 + 50 - 10) = .1, so 1: the first. That costs box 0 nothing and box 1 -3 ln .5: it is box 0's.
        lower = [0.0, 5, 10, 10]
        free = [[0.0] * 3] * 2
        assert run_match([self.whole, lower], [self.whole, self.half, self.most], free) == [0, None, 0]

    def test_class_cost_decides(self) -> None:
        # As above, but the first candidate costs box 0 another 5: it takes the others (-3 ln .6 and -3 ln .5).
        lower = [0.0, 5, 10, 10]
        costs = [[5.0, 0, 0], [0.0, 0, 0]]
        assert run_match([self.whole, lower], [self.whole, self.half, self.most], costs) == [1, 0, 0]

    def test_contested_candidate_goes_to_the_cheapest_box_even_if_it_did_not_take_it(self) -> None:
        # IoUs with [0, 0, 10, 9] and the whole: box 0 .9 and 1, sum 1.9, takes the whole only. Boxes 1 and 2, .833 and
        # .75, .8 and .72, take the other one, for which box 0 (.9) is cheaper than both.
        boxes = [self.whole, [0.0, 0, 10, 7.5], [0.0, 0, 9, 8]]
        candidates = [[0.0, 0, 10, 9], self.whole]
        assert run_match(boxes, candidates, [[0.0] * 2] * 3) == [0, 0]

    def test_first_of_equal_candidates(self) -> None:
        # IoUs .5 and .5: one candidate, the first of the two.
        assert run_match([self.whole], [self.half, self.half], [[0.0] * 2]) == [0, None]

    def test_no_order_of_the_candidates_explains_torch_topk(self) -> None:
        """Two copies at the same two places, one of which is taken: which one depends on the costs of the others."""
        generator = torch.Generator().manual_seed(0)
        taken = set()
        for _ in range(50):
            costs = torch.cat([torch.rand(4, generator=generator), 2 + torch.rand(34, generator=generator)])
            costs = costs[torch.randperm(38, generator=generator)]
            costs = torch.cat([torch.tensor([1.0]), costs, torch.tensor([1.0])])
            chosen = set(costs.topk(5, largest=False).indices.tolist())
            assert len(chosen & {0, 39}) == 1
            taken |= chosen & {0, 39}
        assert taken == {0, 39}

    @pytest.mark.parametrize("device_rule", [False, True])
    def test_copies_of_a_cell(self, device_rule: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A box takes the copies that torch.topk takes, and the first ones where nothing may wait for the device."""
        if device_rule:
            monkeypatch.setattr(losses.simota, "sizes_readable", lambda tensor: False)
        generator = torch.Generator().manual_seed(0)
        for repeats in range(1, 9):
            sides = torch.rand(6, generator=generator) * 5 + 5
            cells = torch.stack([torch.zeros(6), torch.zeros(6), sides, torch.full((6,), 10.0)], 1)
            candidates = cells.repeat(repeats, 1)[torch.randperm(6 * repeats, generator=generator)]
            ious = candidates[:, 2] / 10
            k = max(int(ious.topk(min(10, len(ious))).values.sum()), 1)
            costs = -3 * ious.log()
            if device_rule:
                expected = costs.sort(stable=True).indices[:k]
            else:
                expected = costs.topk(k, largest=False).indices
            found = run_match([self.whole], candidates.tolist(), [[0.0] * len(ious)])
            assert {place for place, box in enumerate(found) if box == 0} == set(expected.tolist())

    def test_width_and_height_scale_their_own_axis(self) -> None:
        """Transposing the image, the boxes and the predictions changes nothing."""
        targets = torch.tensor([[0, 1, 0.31, 0.62, 0.2, 0.5]])
        maps = make_maps("simota", images=1)
        flipped = [level.transpose(2, 3)[..., [1, 0, 3, 2, 4, 5, 6, 7]] for level in maps]
        values = []
        for quirk in (False, True):
            upright = SimOTALoss(ANCHORS, STRIDES, NUM_CLASSES, height_only_scale=quirk)
            turned = SimOTALoss(ANCHORS.flip(2), STRIDES, NUM_CLASSES, height_only_scale=quirk)
            values.append((upright(maps, targets)[0].item(), turned(flipped, targets[:, [0, 1, 3, 2, 5, 4]])[0].item()))
        assert values[0][0] == pytest.approx(values[0][1], rel=1e-6)
        assert values[1][0] != pytest.approx(values[1][1], rel=1e-3)


class TestTaskAlignedAssignment:
    points = torch.tensor([[4.0, 4], [12, 4], [20, 4], [28, 4]])

    def outputs(self, boxes: list[list[float]], scores: list[float]) -> Outputs:
        return Outputs(torch.tensor([boxes]), torch.tensor([[scores]]).logit(), self.points)

    def test_best_points_and_their_scores(self) -> None:
        # A box around the first three points. CIoU of predictions with its shape at its place: 1; the second prediction
        # is the left half: IoU 1/2 less distance and aspect terms. Two points may be taken.
        box = [0.0, 0, 24, 8]
        outputs = self.outputs([box, [0.0, 0, 12, 8], box, box], [0.64, 0.81, 0.25, 1.0])
        boxes = Boxes(torch.tensor([0]), torch.tensor([0]), torch.tensor([box]), torch.tensor([True]))
        found = TaskAlignedAssigner(topk=2)(outputs, boxes)
        assert found.valid.tolist() == [True, True]
        assert found.point.tolist() == [0, 2]
        # Metrics .8 * 1 and .5 * 1, the largest overlap 1: scores .8 / .8 and .5 / .8.
        assert found.score.tolist() == pytest.approx([1.0, 0.625], abs=1e-5)

    def test_contested_point_goes_to_the_larger_overlap(self) -> None:
        box, wider = [0.0, 0, 16, 8], [0.0, 0, 20, 8]
        outputs = self.outputs([wider, [40.0, 0, 50, 8], wider, wider], [0.5] * 4)
        boxes = Boxes(
            torch.zeros(2).long(), torch.zeros(2).long(), torch.tensor([box, wider]), torch.tensor([True] * 2)
        )
        found = TaskAlignedAssigner()(outputs, boxes)
        assert {(int(p), int(t)) for p, t, v in zip(found.point, found.target, found.valid) if v} == {(0, 1)}

    def test_small_boxes(self) -> None:
        # No point lies in x 7 to 9; enlarged to 16 pixels it reaches from 0 to 16 and holds the first two.
        box = [7.0, 2, 9, 6]
        outputs = self.outputs([box] * 4, [0.5] * 4)
        boxes = Boxes(torch.tensor([0]), torch.tensor([0]), torch.tensor([box]), torch.tensor([True]))
        assert not TaskAlignedAssigner()(outputs, boxes).valid.any()
        found = TaskAlignedAssigner(min_side=16.0)(outputs, boxes)
        assert sorted(found.point[found.valid].tolist()) == [0, 1]
        assert YOLOv8Loss(STRIDES, 1, enlarge_small_boxes=True).assigner.min_side == 16.0


def test_distribution_focal_loss() -> None:
    # Scores .1, .2, .4, .3 of the bins 0 to 3; the distance 2.25 is a quarter of the way from bin 2 to bin 3, and one
    # beyond the last bin counts as 2.99.
    logits = torch.tensor([0.1, 0.2, 0.4, 0.3]).log().expand(2, 1, 4)
    expected = [-0.75 * math.log(0.4) - 0.25 * math.log(0.3), -0.01 * math.log(0.4) - 0.99 * math.log(0.3)]
    distances = torch.tensor([[2.25], [7.0]])
    assert distribution_focal_loss(logits, distances).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    @pytest.mark.parametrize("boxes", [1, 20])
    def test_agrees_with_the_plain_version(self, name: str, boxes: int) -> None:
        loss, maps, targets = make_loss(name), make_maps(name), make_targets(boxes)
        plain = REFERENCES[name](loss, maps, targets)
        ours = value_and_gradients(loss, maps, targets)
        torch.testing.assert_close(ours[0], plain.detach(), rtol=1e-6, atol=0)
        for gradient, expected in zip(ours[1:], torch.autograd.grad(plain, maps)):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())

    def test_padding_and_blocks_change_nothing(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        loss, maps, targets = make_loss(name), make_maps(name), make_targets(7)
        expected = value_and_gradients(loss, maps, targets)
        monkeypatch.setattr(losses.anchor_assign, "sizes_readable", lambda tensor: False)
        for pairs in (1 << 22, 1):
            monkeypatch.setattr(losses.functional, "PAIRS_AT_ONCE", pairs)
            for ours, other in zip(value_and_gradients(loss, maps, targets), expected):
                torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6 * other.abs().max().item())

    def test_rows_of_different_images_may_be_mixed(self, name: str) -> None:
        loss, maps, targets = make_loss(name), make_maps(name), make_targets(6)
        mixed = targets.view(2, 6, 6).transpose(0, 1).reshape(12, 6)
        padding = torch.full((1, 6), -1.0)
        for ours, other in zip(
            value_and_gradients(loss, maps, torch.cat([mixed[:5], padding, mixed[5:]])),
            value_and_gradients(loss, maps, targets),
        ):
            torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6 * other.abs().max().item())

    def test_without_boxes(self, name: str) -> None:
        loss, maps = make_loss(name), make_maps(name)
        total, items = loss(maps, torch.zeros(0, 6))
        gradients = torch.autograd.grad(total, maps)
        assert total.isfinite() and all(
            gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients
        )
        background = "cls" if name == "yolov8" else "obj"
        assert {key: value.item() > 0 for key, value in items.items()} == {key: key == background for key in items}

    def test_total_and_items(self, name: str) -> None:
        maps, targets = make_maps(name), make_targets(4)
        total, items = make_loss(name)(maps, targets)
        assert total.shape == () and not any(value.requires_grad for value in items.values())
        assert total.item() == pytest.approx(3 * sum(value.item() for value in items.values()), rel=1e-6)  # 3 images
        _, doubled = make_loss(name, box=0.1)(maps, targets)
        default = 7.5 if name == "yolov8" else 0.05
        assert doubled["box"].item() == pytest.approx(items["box"].item() * 0.1 / default, rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, name: str, dtype: torch.dtype) -> None:
        loss, maps, targets = make_loss(name), make_maps(name, dtype=dtype), make_targets(5)
        expected, _ = loss([level.float() for level in maps], targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, items = loss(maps, targets)
        assert total.dtype == torch.float32 and all(value.dtype == torch.float32 for value in items.values())
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(total, maps))

    def test_errors_name_the_shapes(self, name: str) -> None:
        loss, maps, targets = make_loss(name), make_maps(name), make_targets(2)
        with pytest.raises(UserError, match=rf"gives {len(maps) - 1} maps; this loss expects {len(maps)}"):
            loss(maps[:-1], targets)
        wrong = torch.zeros(*maps[1].shape[:-1], 9) if name != "yolov8" else torch.zeros(3, 80, 4, 6)
        with pytest.raises(UserError, match=r"map 1 has shape \(3, .*\); expected \(images, .* 3 classes"):
            loss([maps[0], wrong, *maps[2:]], targets)
        with pytest.raises(UserError, match=r"targets have shape \(4, 5\); expected \(boxes, 6\)"):
            loss(maps, targets[:, :5])


def test_levels_must_agree() -> None:
    with pytest.raises(UserError, match=r"anchors have shape \(2, 2, 2\); expected \(3, anchors, 2\)"):
        YOLOv5Loss(ANCHORS, (8, 16, 32), NUM_CLASSES)
    with pytest.raises(UserError, match="balance has 3 values; expected 2"):
        YOLOv5Loss(ANCHORS, STRIDES, NUM_CLASSES, balance=(4.0, 1.0, 0.4))
