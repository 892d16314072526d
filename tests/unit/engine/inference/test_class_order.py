"""The classes of a network in the order of the data set which it meets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint import save_checkpoint, transfer_weights
from engine.config.hyp import Hyp
from engine.config.options import TrainOptions
from engine.inference.class_order import adopt_names, reorder_classes, start_from_names, take_classes
from engine.training.model import build_model
from engine.training.state import model_entry
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.checkpoints.test_checkpoint import tiny
from utils.errors import UserError
from utils.logging import LOGGER

ARCHITECTURES = ("yolov5/yolov5p", "yolov7/yolov7-tiny", "yolov8/yolov8p", "mobile/mobilenetv2-yolov5s")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_move_with_their_classes_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = Model(ROOT / f"cfg/{name}.yaml", nc=3)
    for parameter in model.head.parameters():  # other than what the biases and implicit layers start as
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)[0]
        reorder_classes(model, [2, 0, 1])
        after = model(image)[0]
    if model.layout.class_axis == 1:
        before, after = before.transpose(1, 2), after.transpose(1, 2)
    classes = before.shape[-1] - 3
    moved = torch.cat([before[..., :classes], before[..., classes:][..., [2, 0, 1]]], -1)
    assert torch.equal(after, moved) and not torch.equal(after, before)


def test_a_model_takes_the_names_of_a_data_set() -> None:
    model = tiny()
    model.names = ["cat", "dog"]
    bias = model.head.m[0].bias.detach().clone()
    adopt_names(model, ["dog", "cat"], "d.yaml", "w.pt")
    after = model.head.m[0].bias.detach()
    assert model.names == ["dog", "cat"]
    assert torch.equal(after.view(-1, 7)[:, [0, 1, 2, 3, 4, 6, 5]], bias.view(-1, 7))
    with pytest.raises(UserError, match="class 0 of d.yaml is 'cat', which is class 1 of w.pt; the order differs"):
        adopt_names(model, ["cat", "wolf"], "d.yaml", "w.pt")
    with pytest.raises(UserError, match="w.pt has 2 classes, but d.yaml has 1"):
        adopt_names(model, ["cat"], "d.yaml", "w.pt")


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["dog", "cat"], [1, 0]),
        (["cat", "dog"], [0, 1]),
        (["Dog", "CAT "], [1, 0]),
        (["dog", "wolf"], [1, 0]),  # a wolf starts as what is left
        (["wolf", "bear"], [0, 1]),
    ],
)
def test_fine_tuning_starts_every_class_from_its_own_outputs(
    names: list[str], order: list[int], tmp_path: Path
) -> None:
    """Weights of cat, dog."""
    model = tiny()
    model.names = ["cat", "dog"]
    save_checkpoint(tmp_path / "w.pt", {"model": model_entry(model), "epoch": 0})
    started = build_model(TrainOptions(weights=str(tmp_path / "w.pt")), Hyp(), 2, names)
    wanted = model.head.m[0].weight.detach().unflatten(0, (-1, 7))[:, 5:][:, order]
    assert torch.equal(started.head.m[0].weight.detach().unflatten(0, (-1, 7))[:, 5:], wanted)
    assert started.names == names


def test_names_that_cannot_be_told_apart_start_by_index(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    model = tiny()
    model.names, before = ["a", "b"], model.head.m[0].bias.detach().clone()
    with caplog.at_level(logging.WARNING):
        start_from_names(model, ["A", " a"], "w.pt")
    assert "cannot be told apart by name" in caplog.text and torch.equal(model.head.m[0].bias, before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_classes_start_as_those_of_the_same_name(name: str) -> None:
    torch.manual_seed(0)
    source, model = (Model(ROOT / f"cfg/{name}.yaml", nc=nc) for nc in (4, 3))
    for parameter in source.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    source.names, model.names = ["cat", "dog", "cow", "fox"], ["fox", "owl", "Cat"]
    weights = source.state_dict()
    missed, before = transfer_weights(model, weights).mismatched, model.state_dict()["model.0.conv.weight"].clone()
    keys, count = take_classes(model, weights, source.names)
    assert count == 2 and set(keys) == {key for key, *_ in missed}, "all that did not fit is class outputs"
    assert torch.equal(model.state_dict()["model.0.conv.weight"], before)
    model.double().eval(), source.double().eval()
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = (one(image)[0] for one in (model, source))
    if model.layout.class_axis == 1:
        ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
    first = ours.shape[-1] - 3
    torch.testing.assert_close(ours[..., :first], theirs[..., :first])  # boxes and objectness
    torch.testing.assert_close(ours[..., [first, first + 2]], theirs[..., [first + 3, first]])
    owl = ours[..., first + 1]
    assert not any(torch.allclose(owl, theirs[..., first + index]) for index in range(4)), "it starts as built"


def test_fine_tuning_takes_classes_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    source = Model(ROOT / "cfg/yolov5/yolov5p.yaml", nc=3)
    source.names = ["cat", "dog", "cow"]
    save_checkpoint(tmp_path / "w.pt", {"model": model_entry(source)})
    options = TrainOptions(weights=str(tmp_path / "w.pt"))
    with caplog.at_level(logging.INFO, LOGGER.name):
        model = build_model(options, Hyp(), 2, ["cow", "owl"])
    assert (
        "1 of 2 classes start as those of the same name" in caplog.text and "took 349 of the model's 349" in caplog.text
    )
    mine, theirs = (one.head.m[0].bias.view(3, -1) for one in (model, source))
    assert torch.equal(mine[:, :6], theirs[:, [0, 1, 2, 3, 4, 7]])
    numbers = build_model(options, Hyp(), 4, ["class0", "class1", "class2", "class3"])
    assert torch.equal(numbers.head.m[0].bias.view(3, -1)[:, :5], theirs[:, :5])
