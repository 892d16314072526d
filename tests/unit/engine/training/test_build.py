from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.checkpoint import load_checkpoint, save_checkpoint
from data.records import DatasetIndex, ImageRecord
from engine.config.hyp import Hyp
from engine.distilling.distillers import adopt_anchors
from engine.training.data import class_weights, image_weights
from engine.training.model import freeze_layers, resumed_model
from engine.training.state import model_entry
from models.yolo import Model
from tests.unit.models.architectures import tiny_yolov5
from utils.device import images_to_device
from utils.errors import UsageError, UserError


def index_of(*classes: list[int]) -> DatasetIndex:
    """Images with boxes of these classes."""
    records = [
        ImageRecord("", 1, 1, np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in each], np.float32).reshape(-1, 5))
        for each in classes
    ]
    return DatasetIndex(records, [], {}, "")


INDEX = index_of([0, 0, 1], [0], [], [0, 2])  # four boxes of class 0, one of 1 and 2, none of 3


def test_rare_classes_are_wanted_more() -> None:
    # inverses 1/4, 1, 1, 1 (an absent class counts once), over their sum 3.25
    assert class_weights(INDEX, 4) == pytest.approx(np.array([0.25, 1, 1, 1]) / 3.25)


def test_badly_found_classes_are_wanted_more() -> None:
    ap = [0.5, 0.9, float("nan"), 0.1]
    # (1 - AP)^2: 0.25, 0.01, and 0.25 for the unknown one, whose AP is taken as the mean 0.5; 0.81
    expected = np.array([0.25, 1, 1, 1]) / 3.25 * np.array([0.25, 0.01, 0.25, 0.81])
    assert class_weights(INDEX, 4, ap) == pytest.approx(expected)
    assert (class_weights(INDEX, 4, [1.0] * 4) > 0).all(), "weights of 0 alone could not be drawn from"
    assert class_weights(INDEX, 4, [float("nan")] * 4) == pytest.approx(class_weights(INDEX, 4))


def test_an_image_weighs_what_its_objects_do() -> None:
    assert image_weights(INDEX, np.array([1.0, 10.0, 100.0, 7.0])).tolist() == [12, 1, 0, 101]


@pytest.mark.parametrize(("freeze", "frozen"), [((0,), []), ((2,), [0, 1]), ((0, 3), [0, 3])])
def test_frozen_layers(freeze: tuple[int, ...], frozen: list[int]) -> None:
    model = Model(tiny_yolov5())
    assert freeze_layers(model, freeze) == frozen
    still = [i for i, layer in enumerate(model.model) if not any(p.requires_grad for p in layer.parameters())]
    assert still == frozen


@pytest.mark.parametrize(
    ("freeze", "message"), [((7,), "--freeze 6: the model has layers 0 to 5"), ((6,), "nothing to train")]
)
def test_freezing_too_much(freeze: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        freeze_layers(Model(tiny_yolov5()), freeze)


def test_images_become_floats_in_channels_last() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    moved = images_to_device(images, torch.device("cpu"))
    assert moved.dtype == torch.float32 and moved.is_contiguous(memory_format=torch.channels_last)
    assert moved[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])


def test_a_resumed_model_needs_the_checkpoint_alone(tmp_path: Path) -> None:
    model = Model(tiny_yolov5(), nc=2)
    model.head.set_anchors(model.head.anchors_px * 2)
    model.names = ["a", "b"]
    entry = model_entry(model)
    save_checkpoint(tmp_path / "last.pt", {"model": entry, "training": {"state_dict": {}}})
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    again = resumed_model(checkpoint, 2, ["a", "b"])
    assert again.names == ["a", "b"]
    assert all(torch.equal(value, entry["state_dict"][key]) for key, value in again.state_dict().items())
    with pytest.raises(UserError, match="this run has 2 classes, its data set has 3 now"):
        resumed_model(checkpoint, 3, ["a", "b", "c"])
    with pytest.raises(UserError, match="has the classes of this run in another order now"):
        resumed_model(checkpoint, 2, ["b", "a"])
    assert resumed_model(checkpoint, 2, ["a", "c"]).names == ["a", "c"], "another word for a class"


@pytest.mark.parametrize(
    ("losses", "adopted"),
    [
        ({"output": {"weight": 1.0}}, True),
        ({"output": None}, True),
        ({"output": {"weight": 0}}, False),
        ({"output": {"box": 0}}, False),
        ({"output": {"share": 0.3}}, True),
        ({"output": {"share": 0}}, False),
        ({"output": {"share": {"box": 0.2}}}, True),
        ({"output": {"share": {"cls": 0.2}}}, False),
        ({"fgd": {}}, False),
    ],
)
def test_the_students_anchors_where_box_logits_are_compared(losses: dict[str, Any], adopted: bool) -> None:
    student, teacher = Model(tiny_yolov5()), Model(tiny_yolov5())
    before = student.head.anchors_px.clone()
    teacher.head.set_anchors(before * 2)
    adopt_anchors(student, teacher, Hyp(kd_losses=losses))
    torch.testing.assert_close(student.head.anchors_px, before * 2 if adopted else before)
