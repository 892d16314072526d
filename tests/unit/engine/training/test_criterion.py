from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from engine.config.hyp import Hyp
from engine.training.criterion import build_criteria
from losses import SimOTAAuxLoss, SimOTALoss, YOLOv5Loss, YOLOv8Loss
from models.yolo import Model
from tests.unit.models.architectures import ANCHORS, TINY
from utils.errors import UserError

CPU = torch.device("cpu")
V8 = {"box": 7.5, "cls": 0.5, "dfl": 1.5}
TARGETS = torch.tensor([[0, 1, 0.5, 0.5, 0.6, 0.7], [0, 2, 0.3, 0.3, 0.3, 0.4], [1, 0, 0.6, 0.6, 0.9, 0.8]])


def criteria(family: str, hyp: dict[str, Any] | None = None, size: int = 640, **architecture: Any) -> Any:
    model = Model(TINY[family](**architecture))
    values = Hyp(**({**(V8 if family == "yolov8" else {}), **(hyp or {})}))
    return model, *build_criteria(model, values, size, 0.1, CPU)


def with_idetect() -> dict[str, Any]:
    """The small YOLOv7 without its auxiliary branch."""
    return {"head": [[-1, 1, "SPPCSPC", [24]], [2, 1, "Conv", [16, 3, 1]], [[5, 4], 1, "IDetect", ["nc", "anchors"]]]}


@pytest.mark.parametrize(
    ("family", "loss_ota", "architecture", "training", "validation"),
    [
        ("yolov5", None, {}, YOLOv5Loss, YOLOv5Loss),
        ("yolov5", 1, {}, SimOTALoss, SimOTALoss),
        ("mobile", None, {}, YOLOv5Loss, YOLOv5Loss),
        ("yolov7", None, with_idetect(), SimOTALoss, SimOTALoss),
        ("yolov7", 0, with_idetect(), YOLOv5Loss, YOLOv5Loss),
        ("yolov7", None, {}, SimOTAAuxLoss, SimOTALoss),
        ("yolov7", 0, {}, SimOTAAuxLoss, SimOTALoss),
        ("yolov8", None, {}, YOLOv8Loss, YOLOv8Loss),
        ("yolov8", 1, {}, YOLOv8Loss, YOLOv8Loss),
    ],
)
def test_the_loss_of_a_head(
    family: str, loss_ota: int | None, architecture: dict[str, Any], training: type, validation: type
) -> None:
    _, train, val = criteria(family, {"loss_ota": loss_ota}, **architecture)
    assert (type(train), type(val)) == (training, validation)


def test_gains_are_scaled_for_levels_classes_and_size() -> None:
    hyp = {"box": 0.05, "cls": 0.3, "obj": 0.7, "cls_pw": 2.0, "anchor_t": 5.0, "fl_gamma": 1.5}
    _, loss, _ = criteria("yolov5", hyp, size=320)
    # 2 levels: times 3 / 2; 3 classes: times 3 / 80; half of 640: times 1 / 4
    assert loss.gains == pytest.approx({"box": 0.075, "cls": 0.3 * 3 / 80 * 1.5, "obj": 0.7 / 4 * 1.5})
    assert (loss.cls_pw, loss.obj_pw, loss.anchor_t, loss.fl_gamma) == (2.0, 1.0, 5.0, 1.5)


def test_gains_of_an_anchor_free_head_are_those_of_the_file() -> None:
    _, loss, _ = criteria("yolov8", {"box": 6.0, "cls": 0.7, "dfl": 1.2}, size=320)
    assert loss.gains == {"box": 6.0, "cls": 0.7, "dfl": 1.2}


def test_small_boxes_of_an_anchor_free_head() -> None:
    for value, min_side in ((0, 0.0), (1, 8.0)):  # the second of the strides 4 and 8
        _, loss, _ = criteria("yolov8", {"enlarge_small_boxes": value})
        assert loss.assigner.min_side == min_side


def test_a_head_with_binned_boxes() -> None:
    """It is an anchor head with more outputs; no loss would fit them."""
    model = Model(TINY["yolov5"](head=[[-1, 1, "SPPF", [24, 5]], [[2, 4], 1, "IBin", ["nc", "anchors"]]]))
    with pytest.raises(UserError, match="no loss is known for the head IBin, so the model cannot be trained"):
        build_criteria(model, Hyp(), 640, 0.0, CPU)


def test_auxiliary_levels_do_not_count() -> None:
    _, train, val = criteria("yolov7", {"box": 0.05})
    assert train.gains["box"] == val.gains["box"] == pytest.approx(0.075)


def test_the_models_own_anchors_are_used() -> None:
    model, loss, _ = criteria("yolov5")
    first = torch.tensor(ANCHORS[0], dtype=torch.float32).view(2, 2)
    torch.testing.assert_close(loss.anchors[0], first / model.stride[0])


def test_gains_for_anchors_on_a_head_without(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("yolo-distill").propagate = True
    criteria("yolov8", {"box": 0.05})
    assert "hyp/scratch.v8.yaml" in caplog.text
    caplog.clear()
    criteria("yolov8")
    criteria("yolov5", {"box": 0.05})
    assert not caplog.text


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:0]], ids=["boxes", "no boxes"])
@pytest.mark.parametrize("family", list(TINY))
def test_every_parameter_gets_a_gradient(family: str, targets: torch.Tensor) -> None:
    """Without boxes too; otherwise DistributedDataParallel would wait for gradients that never come."""
    model, loss, _ = criteria(family)
    model.train()
    total, items = loss(model(torch.rand(2, 3, 64, 64)), targets)
    total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    torch.testing.assert_close(sum(items.values()) * 2, total.detach())


@pytest.mark.parametrize("family", list(TINY))
def test_the_validation_loss_takes_the_maps_of_evaluation(family: str) -> None:
    model, _, loss = criteria(family)
    model.eval()
    with torch.no_grad():
        total, _ = loss(model(torch.rand(2, 3, 64, 64))[1], TARGETS)
    assert total.isfinite()
