"""Distillation losses and their helpers on numbers worked out by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import DistillContext, DistillError, DistillSetup
from distill.boxes import diou, giou, iou
from distill.heads import anchor_table, decode_boxes, expected_sides, grid_points, score_maps, split_logits
from distill.losses import fgd
from distill.losses.box import Box
from distill.losses.fgd import FGD, RelationBlock, scale_masks
from distill.losses.kl import softened_binary_kl
from distill.losses.ld import LD
from distill.losses.mgd import MGD
from distill.losses.output import Output
from distill.losses.score_l2 import ScoreL2, score_weighted_l2
from distill.losses.self_distillation import SelfDistillation
from distill.losses.soft_label import SoftLabel, weighted_mean
from distill.regions import localization_regions
from engine.distilling.distillers import head_spec
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.distill import distill_toys as toys

NO_BOXES = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def context(targets: Tensor = toys.TARGETS) -> DistillContext:
    return DistillContext.from_targets(targets, toys.IMAGE_HW)


def one_image(*boxes: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.long)


def test_targets_become_boxes_in_pixels() -> None:
    found = DistillContext.from_targets(torch.tensor([[1, 2, 0.5, 0.25, 0.5, 0.5]]), (64, 96))
    # x: 96 * (0.5 -+ 0.25), y: 64 * (0.25 -+ 0.25)
    assert found.boxes_xyxy.tolist() == [[24, 0, 72, 32]]
    assert found.box_images.tolist() == [1] and found.box_classes.tolist() == [2]


# FGD's masks


def test_a_box_covers_one_cell_more_than_it_fills() -> None:
    """Stride 8: x 8..16 fills column 1 and covers 1..2; y 4..20 covers rows 0..3; 2 * 4 cells of 1/8 each."""
    foreground, background = scale_masks(*one_image((8, 4, 16, 20)), 1, (32, 32), (4, 4))
    expected = torch.zeros(4, 4)
    expected[0:4, 1:3] = 1 / 8
    assert torch.equal(foreground[0], expected)
    assert torch.equal(background[0], (expected == 0) / 8)


def test_the_border_cuts_a_box_after_its_cells_were_counted() -> None:
    """x 24..32 covers columns 3..4, of which 4 does not exist; y 0..8 covers rows 0..1."""
    foreground, _ = scale_masks(*one_image((24, 0, 32, 8)), 1, (32, 32), (4, 4))
    assert foreground[0, :2, 3].tolist() == [0.25, 0.25]
    assert foreground.sum().item() == 0.5


def test_the_smallest_box_wins_in_any_order() -> None:
    boxes = [(0.0, 0.0, 31.0, 31.0), (8.0, 8.0, 12.0, 12.0)]
    first, _ = scale_masks(*one_image(*boxes), 1, (32, 32), (4, 4))
    second, _ = scale_masks(*one_image(*reversed(boxes)), 1, (32, 32), (4, 4))
    assert torch.equal(first, second)
    assert first[0, 1, 1].item() == 0.25 and first[0, 0, 0].item() == pytest.approx(1 / 25)


def test_boxes_beyond_the_border_are_clipped_and_others_ignored() -> None:
    clipped, _ = scale_masks(*one_image((-20, -20, 10, 10)), 1, (32, 32), (4, 4))
    inside, _ = scale_masks(*one_image((0, 0, 10, 10)), 1, (32, 32), (4, 4))
    assert torch.equal(clipped, inside) and clipped.any()
    for box in ((40, 0, 50, 10), (-9, 0, -1, 10), (10, 10, 5, 20)):
        foreground, background = scale_masks(*one_image(box), 1, (32, 32), (4, 4))
        assert not foreground.any() and background.unique().tolist() == [1 / 16]


def test_no_background_and_no_boxes() -> None:
    foreground, background = scale_masks(*one_image((0, 0, 32, 32)), 1, (32, 32), (4, 4))
    assert foreground.unique().tolist() == [pytest.approx(1 / 25)] and not background.any()
    foreground, background = scale_masks(*NO_BOXES, 2, (32, 32), (4, 4))
    assert foreground.shape == (2, 4, 4) and not foreground.any() and background.unique().tolist() == [1 / 16]


def test_masks_do_not_depend_on_how_many_boxes_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, 2, generator=generator).sort(1).values.flatten(1) * 64
    images = torch.randint(0, 3, (50,), generator=generator)
    expected = scale_masks(corners, images, 3, (64, 64), (8, 8))
    monkeypatch.setattr(fgd, "_CELLS_AT_ONCE", 7 * 64)
    for found, wanted in zip(scale_masks(corners, images, 3, (64, 64), (8, 8)), expected):
        assert torch.equal(found, wanted)


def test_a_fresh_relation_block_adds_nothing() -> None:
    assert not RelationBlock(8)(torch.randn(2, 8, 4, 4)).any()


def test_fgd_is_the_sum_of_its_weighted_parts() -> None:
    torch.manual_seed(0)
    student, teacher = toys.feature_maps(8, 1), toys.feature_maps(12, 2)
    whole = FGD(toys.setup(), alpha=0.3, beta=0.2, gamma=0.05, lambda_=0.01)
    value = whole(student, teacher, context())["P3"].item()
    parts = 0.0
    for name in ("alpha", "beta", "gamma", "lambda_"):
        single = copy.deepcopy(whole)
        for other in {"alpha", "beta", "gamma", "lambda_"} - {name}:
            setattr(single, other, 0.0)
        parts += single(student, teacher, context())["P3"].item()
    assert value == pytest.approx(parts, rel=1e-5)


# MGD


def test_masks_hide_the_asked_share_and_follow_seed_epoch_and_step() -> None:
    maps = torch.zeros(8, 4, 40, 40)
    loss = MGD(toys.setup(), lambda_=0.65)
    first, second = loss.draw_mask(maps), loss.draw_mask(maps)
    assert first.shape == (8, 1, 40, 40) and set(first.unique().tolist()) == {0.0, 1.0}
    assert first.mean().item() == pytest.approx(0.35, abs=0.02)  # 12800 draws: a standard deviation of 0.004
    assert not torch.equal(first, second)
    loss.start_epoch(1)
    other_epoch = loss.draw_mask(maps)
    loss.start_epoch(0)
    assert torch.equal(first, loss.draw_mask(maps)) and torch.equal(second, loss.draw_mask(maps))
    assert not torch.equal(first, other_epoch)
    assert not torch.equal(first, MGD(toys.setup(), seed=1).draw_mask(maps))
    channels = MGD(toys.setup(), lambda_=0.15, mask="channel").draw_mask(torch.zeros(8, 500, 4, 4))
    assert channels.shape == (8, 500, 1, 1) and channels.mean().item() == pytest.approx(0.85, abs=0.03)


def test_masks_leave_the_global_random_stream_alone() -> None:
    loss = MGD(toys.setup())
    stream = torch.get_rng_state()
    loss(toys.feature_maps(8, 1), toys.feature_maps(12, 2), context())
    assert torch.equal(stream, torch.get_rng_state())


# Heads


def test_a_head_map_is_split_by_location() -> None:
    raw = toys.head_maps("anchor", 1)[0]  # (2, 2, 8, 12, 8)
    logits = split_logits(raw, toys.head_spec())
    location = 1 * 96 + 3 * 12 + 5  # anchor 1, row 3, column 5
    assert logits.obj is not None
    assert torch.equal(logits.box[0, location], raw[0, 1, 3, 5, :4])
    assert logits.obj[0, location] == raw[0, 1, 3, 5, 4]
    assert torch.equal(logits.cls[0, location], raw[0, 1, 3, 5, 5:])
    raw = toys.head_maps("anchor_free", 1)[0]  # (2, 67, 8, 12)
    logits = split_logits(raw, toys.head_spec("anchor_free"))
    assert logits.obj is None and logits.box.shape == (2, 96, 4, 16)
    assert torch.equal(logits.box[0, 41, 2], raw[0, 32:48, 3, 5])
    assert torch.equal(logits.cls[0, 41], raw[0, 64:, 3, 5])


@pytest.mark.parametrize("kind", ["anchor", "anchor_free"])
def test_a_map_of_another_head_is_refused(kind: str) -> None:
    other = toys.head_maps("anchor" if kind == "anchor_free" else "anchor_free", 1)[0]
    with pytest.raises(DistillError, match=r"head map of shape .* expected \(N, "):
        split_logits(other, toys.head_spec(kind))


def test_scores_take_the_best_anchor_or_class() -> None:
    raw = [torch.full((1, 2, 1, 1, 8), -9.0), torch.full((1, 2, 1, 1, 8), -9.0)]
    raw[0][0, 1, 0, 0, 4] = 0.0
    raw[1][0, 0, 0, 0, 5] = 0.0  # a class without objectness
    scores = score_maps(raw, toys.head_spec())
    assert scores[8].item() == 0.5 and scores[16].item() < 1e-3
    free = torch.full((1, 67, 1, 1), -9.0)
    free[0, 65] = 0.0
    assert score_maps([free], toys.head_spec("anchor_free"))[8].item() == 0.5


def test_expected_sides_are_means_of_the_bins() -> None:
    logits = torch.full((4, 16), -1e4)
    logits[0, 3] = logits[1, 0] = logits[2, 15] = 0.0
    logits[3, 4] = logits[3, 7] = 0.0  # even odds
    assert expected_sides(logits).tolist() == [3.0, 0.0, 15.0, 5.5]


@pytest.mark.parametrize("name", ["yolov5/yolov5n", "yolov7/yolov7-tiny", "yolov8/yolov8n"])
def test_boxes_are_decoded_as_the_model_decodes_them(name: str) -> None:
    torch.manual_seed(0)
    model = Model(ROOT / "cfg" / f"{name}.yaml", nc=3).eval()
    with torch.no_grad():
        decoded, raw = model(torch.rand(2, 3, 64, 96))
    spec = head_spec(model)
    anchors = anchor_table(spec)
    boxes = torch.cat([decode_boxes(x, spec, level, anchors[level]) for level, x in enumerate(raw)], 1)
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    found = torch.cat((centre, 2 * half), -1)
    wanted = decoded[..., :4] if decoded.shape[1] == boxes.shape[1] else decoded.transpose(1, 2)[..., :4]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


# Overlaps and regions


def test_overlaps_by_hand() -> None:
    a, b = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([2.0, 2.0, 6.0, 6.0])
    # intersection 4, union 28, hull 36; centres differ by (2, 2), the hull's diagonal squared is 72
    assert iou(a, b).item() == pytest.approx(4 / 28)
    assert giou(a, b).item() == pytest.approx(4 / 28 - 8 / 36)
    assert diou(a, b).item() == pytest.approx(4 / 28 - 8 / 72)
    apart = torch.tensor([8.0, 0.0, 12.0, 4.0])
    # union 32, hull 48; centres differ by 8, diagonal squared 144 + 16
    assert iou(a, apart).item() == 0
    assert giou(a, apart).item() == pytest.approx(-16 / 48)
    assert diou(a, apart).item() == pytest.approx(-64 / 160)
    for measure in (iou, giou, diou):
        assert measure(a, a).item() == pytest.approx(1)
        assert math.isfinite(measure(torch.zeros(4), torch.zeros(4)).item())


def regions_by_loops(boxes: Tensor, images: Tensor, num_images: int, sizes: list[int], strides: list[int]) -> Any:
    """The paper's regions, box by box and anchor by anchor."""
    anchors = []
    for size, stride in zip(sizes, strides):
        for row in range(size):
            for column in range(size):
                anchors.append(((column + 0.5) * stride, (row + 0.5) * stride, 4.0 * stride))
    main = torch.zeros(num_images, len(anchors))
    valuable = torch.zeros(num_images, len(anchors))
    for box, image in zip(boxes, images):
        squares = [torch.tensor([x - h, y - h, x + h, y + h]) for x, y, h in anchors]
        overlaps = [iou(square, box).item() for square in squares]
        middle = (box[:2] + box[2:]) / 2
        candidates, start = [], 0
        for size in sizes:
            level = range(start, start + size * size)
            distance = [math.hypot(anchors[i][0] - middle[0], anchors[i][1] - middle[1]) for i in level]
            candidates += sorted(level, key=lambda i, d=distance, s=start: d[i - s])[:9]
            start += size * size
        kept = torch.tensor([overlaps[i] for i in candidates])
        theta = (kept.mean() + kept.std()).item()
        for i, (x, y, _) in enumerate(anchors):
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if i in candidates and overlaps[i] >= theta and inside:
                main[image, i] = 1
            if 0.25 * theta <= diou(squares[i], box).item() < theta:
                valuable[image, i] = max(valuable[image, i].item(), overlaps[i])
    return main, valuable * (1 - main)


def test_regions_equal_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.tensor(
        [[3.1, 5.2, 51.3, 47.7], [30.3, 31.1, 44.9, 60.2], [9.7, 11.3, 90.1, 95.2], [70.2, 8.1, 94.3, 30.9]]
    )
    images = torch.tensor([0, 0, 1, 1])
    sizes, strides = [12, 6, 3], [8, 16, 32]
    points = [grid_points((size, size), stride, torch.device("cpu")) for size, stride in zip(sizes, strides)]
    expected = regions_by_loops(boxes, images, 3, sizes, strides)
    found = localization_regions(boxes, images, 3, points, strides)
    monkeypatch.setattr("distill.regions._PAIRS_AT_ONCE", 1)
    one_by_one = localization_regions(boxes, images, 3, points, strides)
    for region, wanted, again in zip(found, expected, one_by_one):
        assert wanted[:2].any(1).all() and not region[2].any()
        torch.testing.assert_close(region, wanted)
        assert torch.equal(region, again)


# Losses on the output


def raw_anchor(obj: float, box: float = 0.0, cls: float = 0.0) -> list[Tensor]:
    """Two levels of one cell and two anchors; every logit of a kind has one value."""
    raw = torch.full((1, 2, 1, 1, 8), cls)
    raw[..., :4], raw[..., 4] = box, obj
    return [raw, raw.clone()]


def raw_free(bin_index: int, cls: float) -> list[Tensor]:
    raw = torch.full((1, 67, 1, 1), -1e4)
    raw[:, [side * 16 + bin_index for side in range(4)]] = 0.0
    raw[:, 64:] = cls
    return [raw, raw.clone()]


def test_output_of_an_anchor_head_by_hand() -> None:
    loss = Output(toys.setup(), box=1, obj=1, cls=1)
    terms = loss(raw_anchor(1.0, 2.0, 4.0), raw_anchor(0.0, 0.0, 1.0), context())
    # weight sigmoid(0) = 0.5; two levels: 2 * 0.5 * (4, 1, 9)
    assert {name: term.item() for name, term in terms.items()} == {"box": 4.0, "obj": 1.0, "cls": 9.0}
    terms = Output(toys.setup(), obj=1, scale_obj=False)(raw_anchor(1.0), raw_anchor(0.0), context())
    assert terms["obj"].item() == 2.0


def test_output_of_an_anchor_free_head_by_hand() -> None:
    loss = Output(toys.setup(kind="anchor_free"), box=1, obj=1, cls=1)
    terms = loss(raw_free(5, 2.0), raw_free(3, 0.0), context())
    # best class sigmoid(0) = 0.5; sides differ by 2 cells, class logits by 2; two levels
    assert {name: term.item() for name, term in terms.items()} == {"box": 4.0, "obj": 0.0, "cls": 4.0}


def different_anchors() -> DistillSetup:
    other = [[[w * 2, h * 2] for w, h in level] for level in toys.ANCHORS]
    return DistillSetup((), toys.head_spec(), toys.head_spec(anchors=other))


def test_output_ignores_anchors_without_a_box_part() -> None:
    assert Output(different_anchors()).on_grid
    assert Output(different_anchors(), box=0)(raw_anchor(1.0, 5.0), raw_anchor(0.0), context())["box"].item() == 0


def test_box_compares_decoded_boxes() -> None:
    """Equal logits and doubled anchors: concentric boxes of a quarter of the area, IoU 1/4."""
    terms = Box(different_anchors(), measure="iou")(raw_anchor(0.0), raw_anchor(30.0), context())
    assert terms["box"].item() == pytest.approx(0.75)
    # wh = 4 * sigmoid(z)^2 * anchor: twice the sigmoid squared is sqrt(2) times the sigmoid
    half = math.log(math.sqrt(0.5) / 2 / (1 - math.sqrt(0.5) / 2))
    teacher = raw_anchor(30.0)
    for raw in teacher:
        raw[..., 2:4] = half
    assert Box(different_anchors())(raw_anchor(0.0), teacher, context())["box"].item() == pytest.approx(0, abs=1e-6)


def test_box_of_an_anchor_free_head() -> None:
    """Sides of 2 and 4 cells around one point: IoU 1/4, weighted by sigmoid(0) at two locations, whose sum is 1."""
    loss = Box(toys.setup(kind="anchor_free"), measure="iou")
    assert loss(raw_free(2, 0.0), raw_free(4, 0.0), context())["box"].item() == pytest.approx(0.75)


def test_soft_labels_count_where_the_teacher_sees_something() -> None:
    loss = SoftLabel(toys.setup(), temperature=2.0)
    teacher = raw_anchor(30.0, cls=2.0)
    teacher[1][..., 4] = -30.0
    student = raw_anchor(0.0, cls=-1.0)
    student[1][..., 5:] = 77.0  # of no weight
    # three classes, p = sigmoid(-1/2), q = sigmoid(2/2), T^2 = 4
    p, q = 1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-1))
    kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert loss(student, teacher, context())["cls"].item() == pytest.approx(3 * 4 * kl, rel=1e-5)


def test_soft_labels_pull_by_the_difference_of_probabilities() -> None:
    student = torch.tensor([1.5, -3.0, 200.0], requires_grad=True)
    teacher = torch.tensor([-0.5, 2.0, -200.0])
    softened_binary_kl(student, teacher, 4.0).sum().backward()
    expected = 4.0 * ((student.detach() / 4).sigmoid() - (teacher / 4).sigmoid())
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected)


def test_a_weighted_mean_of_nothing_is_zero() -> None:
    values = torch.ones(2, 3, requires_grad=True)
    weighted_mean(values, torch.zeros(2, 3)).backward()
    assert values.grad is not None and not values.grad.any()
    assert weighted_mean(torch.tensor([4.0, 8.0]), torch.tensor([3.0, 1.0])).item() == 5.0


def test_score_weighted_l2_by_hand() -> None:
    student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 3.0]], [[1.0, 5.0]]]])
    # mean over the channels: 1 and 17; weights 1 and 3
    assert score_weighted_l2(student, teacher, torch.tensor([[[1.0, 3.0]]])).item() == (1 + 3 * 17) / 4


def test_score_weighted_l2_needs_the_teachers_strides() -> None:
    setup = toys.setup()
    with pytest.raises(DistillError, match="layers 4 and 7 have stride 8, the teacher's head has"):
        ScoreL2(DistillSetup(setup.levels, None, toys.head_spec(strides=(16, 32))))
    with pytest.raises(DistillError, match="give teacher_head"):
        ScoreL2(DistillSetup(setup.levels))


def test_ld_needs_distributions() -> None:
    with pytest.raises(DistillError, match="distributions of box sides, which anchor heads do not have"):
        LD(toys.setup())


def test_ld_is_the_mean_over_each_region() -> None:
    """One divergence everywhere, so that every weighted mean is that divergence."""
    row_s, row_t = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))

    def maps(row: Tensor) -> list[Tensor]:
        # classes of 30: the student is sure everywhere, and the weights of the main region sum to more than 1
        cell = torch.cat((row.repeat(4), torch.full((3,), 30.0)))
        return [cell[None, :, None, None].repeat(2, 1, size, size + 2) for size in (8, 4)]

    log_s, log_t = (row_s / 10).log_softmax(0), (row_t / 10).log_softmax(0)
    divergence = 100 * (log_t.exp() * (log_t - log_s)).mean().item()
    large = torch.tensor([[0, 1, 0.5, 0.5, 0.9, 0.9], [1, 0, 0.5, 0.5, 0.5, 0.6]])
    terms = LD(toys.setup(kind="anchor_free"), vlr=0.25)(maps(row_s), maps(row_t), context(large))
    assert terms["main"].item() == pytest.approx(divergence, rel=1e-4)
    assert terms["vlr"].item() == pytest.approx(0.25 * divergence, rel=1e-4)


def test_self_distillation_has_no_box_term_for_an_anchor_head() -> None:
    student, teacher = toys.head_maps("anchor", 1), toys.head_maps("anchor", 2)
    terms = SelfDistillation(toys.setup())(student, teacher, context())
    assert terms["cls"].item() > 0 and terms["dfl"].item() == 0
