"""Boxes, letterbox and suppression on hand-worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.exported import LAYOUT_NAMES
from utils.boxes import clip_boxes, cxcywh_to_xyxy, pairwise_iou, scale_boxes, xyxy_to_cxcywh
from utils.detector import ANCHOR_LAYOUT
from utils.letterbox import letterbox
from utils.nms import non_max_suppression

KINDS = pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensor", "array"])


@KINDS
def test_formats_convert_both_ways(kind: Any) -> None:
    xyxy = cxcywh_to_xyxy(kind([[10.0, 20.0, 4.0, 6.0]]))  # 10 -+ 2, 20 -+ 3
    assert xyxy.tolist() == [[8, 17, 12, 23]]
    assert xyxy_to_cxcywh(xyxy).tolist() == [[10, 20, 4, 6]]
    assert type(xyxy) is type(kind([1.0]))


@KINDS
def test_conversion_keeps_leading_shape_and_input(kind: Any) -> None:
    boxes = kind([[[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]]])
    before = boxes.tolist()
    assert cxcywh_to_xyxy(boxes).shape == (2, 1, 4)
    clip_boxes(boxes, (2, 2))
    scale_boxes(boxes, (10, 10), (5, 5))
    assert boxes.tolist() == before


@KINDS
def test_clip_cuts_each_axis_at_its_own_side(kind: Any) -> None:
    assert clip_boxes(kind([[-5.0, -5.0, 50.0, 50.0]]), (20, 30)).tolist() == [[0, 0, 30, 20]]


@KINDS
def test_scale_undoes_letterbox(kind: Any) -> None:
    # 100 x 200 into 128 x 128: ratio 0.64, 64 rows of content, (128 - 64) / 2 = 32 rows of padding
    scaled = scale_boxes(kind([[0.0, 32.0, 64.0, 96.0]]), (128, 128), (100, 200))
    assert scaled.tolist() == [[0, 0, 100, 100]]


def test_scale_uses_a_ratio_for_each_axis() -> None:
    # x: (60 - 10) / 0.5 = 100; y: (50 - 10) / 0.4 = 100
    scaled = scale_boxes(np.array([[10.0, 10.0, 60.0, 50.0]]), (200, 200), (400, 400), ((0.4, 0.5), (10, 10)))
    assert scaled.tolist() == [[0, 0, 100, 100]]


@KINDS
def test_pairwise_iou(kind: Any) -> None:
    a, b = kind([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]]), kind([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0]])
    # overlap 1 of 4 + 4 - 1; itself; a box without area overlaps nothing
    np.testing.assert_allclose(np.asarray(pairwise_iou(a, b)), np.array([[1 / 7, 1], [0, 0]]), rtol=1e-6)
    assert pairwise_iou(a[:0], b).shape == (0, 2)


def test_pairwise_iou_of_an_empty_box_with_itself_is_finite() -> None:
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(point, point).item() == 0


# ------------------------------------------------------------------------------------------------ letterbox


def test_letterbox_centres_and_pads_with_grey() -> None:
    image, ratios, pads = letterbox(np.full((50, 100, 3), 7, np.uint8), 64, auto=False)
    assert image.shape == (64, 64, 3) and ratios == (0.64, 0.64) and pads == (0.0, 16.0)
    assert (image[:16] == 114).all() and (image[48:] == 114).all() and (image[16:48] == 7).all()


def test_letterbox_takes_grey_images_and_keeps_thin_ones() -> None:
    image, _, _ = letterbox(np.zeros((1, 2000), np.uint8), 640)  # one row, 0.32 of it: must not vanish
    assert image.shape == (32, 640)


def test_letterbox_without_scaleup_only_pads() -> None:
    image, ratios, pads = letterbox(np.zeros((10, 10, 3), np.uint8), 32, auto=False, scaleup=False)
    assert ratios == (1.0, 1.0) and pads == (11.0, 11.0) and (image[11:21, 11:21] == 0).all()


# ------------------------------------------------------------------------------------------------ suppression


def prediction(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows])


def suppressed(rows: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """NMS of predictions with anchors."""
    return non_max_suppression(rows, layout=ANCHOR_LAYOUT, **options)


def test_nms_keeps_the_better_of_two_overlapping() -> None:
    rows = prediction([50, 50, 20, 20, 0.9, 0.9], [51, 50, 20, 20, 0.9, 0.8], [90, 90, 20, 20, 0.9, 0.7])
    kept = suppressed(rows)[0]
    assert kept[:, 4].tolist() == pytest.approx([0.81, 0.63])
    assert kept[0].tolist() == pytest.approx([40, 40, 60, 60, 0.81, 0])


def test_nms_keeps_classes_apart_unless_agnostic() -> None:
    rows = prediction([50, 50, 20, 20, 0.9, 0.9, 0.1], [50, 50, 20, 20, 0.9, 0.1, 0.8])
    assert suppressed(rows)[0][:, 5].tolist() == [0, 1]
    assert suppressed(rows, agnostic=True)[0][:, 5].tolist() == [0]


def test_nms_multi_label_gives_a_row_for_each_class() -> None:
    rows = prediction([50, 50, 20, 20, 1.0, 0.9, 0.8])
    assert suppressed(rows)[0][:, 5].tolist() == [0]
    assert suppressed(rows, multi_label=True)[0][:, 5].tolist() == [0, 1]
    assert suppressed(rows, multi_label=True, classes=[1])[0][:, 5].tolist() == [1]


def test_nms_confidence_of_one_class_follows_the_family() -> None:
    rows = prediction([50, 50, 20, 20, 0.8, 0.5])
    assert non_max_suppression(rows, layout=LAYOUT_NAMES["yolov5"])[0][0, 4].item() == pytest.approx(0.4)
    assert non_max_suppression(rows, layout=LAYOUT_NAMES["yolov7"])[0][0, 4].item() == pytest.approx(0.8)
    transposed = prediction([50, 50, 20, 20, 0.5]).transpose(1, 2)
    assert non_max_suppression(transposed, layout=LAYOUT_NAMES["yolov8"])[0][0, 4].item() == pytest.approx(0.5)


@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_by_prefixes_equals_nms_of_everything(agnostic: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(1, 3000, 2, generator=generator) * 200
    sizes = torch.rand(1, 3000, 2, generator=generator) * 60 + 5
    scores = torch.rand(1, 3000, 4, generator=generator)
    rows = torch.cat([centres, sizes, scores], dim=2)
    options: dict[str, Any] = {"conf_thres": 0.01, "multi_label": True, "agnostic": agnostic}
    everything = suppressed(rows, max_det=10000, **options)[0]
    assert len(everything) > 200
    for max_det in (1, 7, 60, 200):  # looks at 8, 56, 480, 1600 candidates first
        assert torch.equal(suppressed(rows, max_det=max_det, **options)[0], everything[:max_det])


def test_nms_of_nothing_is_empty() -> None:
    kept = suppressed(torch.zeros(2, 0, 9))
    assert [rows.shape for rows in kept] == [(0, 6), (0, 6)]
    assert suppressed(torch.full((1, 5, 9), float("nan")))[0].shape == (0, 6)


def test_nms_takes_half_precision_and_leaves_its_input() -> None:
    rows = prediction([50, 50, 20, 20, 0.9, 0.9]).half()
    before = rows.clone()
    assert suppressed(rows)[0].dtype == torch.float32
    assert torch.equal(rows, before)
