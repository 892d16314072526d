"""Layouts of predictions, and what a detector must say of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from checkpoints.exported import LAYOUT_NAMES, read_layout, read_strings
from engine.inference.evaluate import evaluate
from engine.inference.predict import Predictor
from models.families import FAMILIES
from models.yolo import Model
from tests.unit.models.architectures import TINY, tiny_yolov5
from utils.detector import ANCHOR_FREE_LAYOUT, ANCHOR_LAYOUT, Layout, as_detector
from utils.errors import UserError
from utils.nms import non_max_suppression

FINAL = Layout(end_to_end=True)
ALL = [*LAYOUT_NAMES.values(), FINAL]
BOXES = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 9.0, 9.0]])


@pytest.mark.parametrize("layout", ALL, ids=str)
def test_known_boxes_come_back(layout: Layout) -> None:
    """Two boxes of classes 2 and 0 with confidences 0.5 and 0.75, written in a layout and read by NMS."""
    rows = layout.of_finished(BOXES, torch.tensor([2, 0]), torch.tensor([0.5, 0.75]), 3)
    assert rows.shape == (2, layout.num_values(3))
    found = non_max_suppression(layout.rows(rows[None]), conf_thres=0.1, layout=layout)[0]
    assert found.tolist() == [[5, 5, 9, 9, 0.75, 0], [0, 0, 10, 20, 0.5, 2]]


@pytest.mark.parametrize("layout", ALL, ids=str)
def test_classes_in_another_order(layout: Layout) -> None:
    """The new order is the old classes 2, 0, 1: so old 2 is now 0, old 0 is now 1."""
    rows = layout.of_finished(BOXES, torch.tensor([2, 0]), torch.tensor([0.5, 0.75]), 3)
    moved = layout.reordered(layout.rows(rows[None]), [2, 0, 1])
    assert non_max_suppression(moved, conf_thres=0.1, layout=layout)[0][:, 5].tolist() == [1, 0]


def test_final_boxes_are_not_suppressed() -> None:
    """Four equal boxes: all that pass the threshold stay, the most confident first, at most max_det."""
    rows = torch.tensor([[[1.0, 2, 3, 4, confidence, 0] for confidence in (0.2, 0.9, 0.6, 0.05)]])
    kept = non_max_suppression(rows, conf_thres=0.1, agnostic=True, layout=FINAL)[0]
    assert kept[:, 4].tolist() == pytest.approx([0.9, 0.6, 0.2])
    assert non_max_suppression(rows, 0.1, max_det=1, layout=FINAL)[0][:, 4].tolist() == pytest.approx([0.9])
    assert non_max_suppression(rows, 0.1, classes=[1], layout=FINAL)[0].shape == (0, 6)
    label = torch.tensor([[3.0, 2.0, 3.0, 2.0, 2.0]])  # class 3 at x 1 to 3, y 2 to 4
    joined = non_max_suppression(rows, 0.5, labels=[label], layout=FINAL)[0]
    assert joined[0].tolist() == [1, 2, 3, 4, 1, 3] and len(joined) == 3


@pytest.mark.parametrize(
    "values", [{"class_axis": 0}, {"end_to_end": True, "objectness": True}, {"objectness_alone": True}]
)
def test_contradictions(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no layout|has none"):
        Layout(**values)


def test_layouts_of_the_families() -> None:
    found = {family: Model(TINY[family]()).layout for family in TINY}
    assert found == LAYOUT_NAMES | {"mobile": ANCHOR_LAYOUT}
    assert Model(tiny_yolov5(family="yolov7")).layout.objectness_alone, "the same head in another family"


def test_a_layout_is_never_guessed() -> None:
    class Silent(nn.Module):
        names, nc, stride, input_hw = ["a"], 1, torch.tensor([8.0]), None
        convention = FAMILIES["yolov5"].convention

    message = "Silent cannot be used as a detector: it has no layout; give it what utils.detector.Detector names"
    with pytest.raises(UserError, match=message):
        evaluate(Silent(), [], names=["a"], device=torch.device("cpu"))
    with pytest.raises(UserError, match=message):
        Predictor(Silent(), 64, torch.device("cpu"))
    named = Silent()
    named.layout = "yolov5"  # type: ignore[assignment]
    with pytest.raises(UserError, match="it has no Layout"):
        as_detector(named)


def test_what_an_exported_file_says_of_its_layout() -> None:
    assert read_layout("yolov8") == ANCHOR_FREE_LAYOUT, "as files of earlier versions say it"
    text = '{"class_axis": 2, "objectness": true, "objectness_alone": false, "end_to_end": false}'
    values = read_strings({"layout": text})["layout"]
    assert read_layout(values) == ANCHOR_LAYOUT
    for wrong in (
        None,
        "yolov9",
        3,
        {},
        values | {"class_axis": 3},
        values | {"class_axis": True},
        values | {"more": 1},
    ):
        assert read_layout(wrong) is None
