"""The architecture of a pruned model: kept in its yaml, built again everywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from checkpoints.checkpoint import load_checkpoint, load_model, save_checkpoint, strip_checkpoint
from engine.training.ema import ModelEMA
from engine.training.state import model_entry
from models.channel_plan import PLAN_KEY, plan_from_state_dict
from models.yolo import Model, with_channel_plan
from pruning import prune
from tests.unit.models.architectures import TINY, tiny_mobile, tiny_yolov5
from utils.errors import UserError

IMAGE = torch.zeros(1, 3, 64, 64)


def pruned(family: str = "yolov5") -> Model:
    torch.manual_seed(0)
    model = Model(TINY[family]())
    prune(model, 0.3, round_to=2, min_keep=0.1, image=IMAGE, importance="random")
    return model.eval()


def assert_same(one: nn.Module, other: nn.Module, atol: float = 0.0) -> None:
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(other(images)[0], one(images)[0], rtol=atol, atol=atol)


@pytest.mark.parametrize("family", TINY)
def test_a_pruned_model_is_built_again_from_its_yaml(family: str) -> None:
    model = pruned(family)
    assert model.yaml[PLAN_KEY]
    again = Model(copy.deepcopy(model.yaml))
    again.load_state_dict(model.state_dict())
    assert_same(model, again.eval())
    assert again.summary(64).parameters == model.summary(64).parameters


@pytest.mark.parametrize("family", TINY)
def test_the_plan_follows_from_the_weights_alone(family: str) -> None:
    model = pruned(family)
    assert plan_from_state_dict(Model(TINY[family]()), model.state_dict()) == model.yaml[PLAN_KEY]
    assert (
        with_channel_plan({**TINY[family](), PLAN_KEY: {"stale": [1]}}, model.state_dict())[PLAN_KEY]
        == (model.yaml[PLAN_KEY])
    )
    full = Model(TINY[family]())
    assert PLAN_KEY not in with_channel_plan(full.yaml, full.state_dict())


def test_an_entry_has_the_widths_that_differ() -> None:
    model = Model(tiny_yolov5())
    shapes = {key: value.clone() for key, value in model.state_dict().items()}
    for key in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"model.0.bn.{key}"] = torch.zeros(6)
    shapes["model.0.conv.weight"] = torch.zeros(6, 3, 3, 3)
    shapes["model.1.conv.weight"] = torch.zeros(16, 6, 3, 3)
    expected = {"model.0.conv": [None, 6], "model.0.bn": [6], "model.1.conv": [6, None]}
    assert plan_from_state_dict(model, shapes) == expected


@pytest.mark.parametrize("family", TINY)
def test_a_checkpoint_round_trip(family: str, tmp_path: Path) -> None:
    model, path = pruned(family), tmp_path / "pruned.pt"
    save_checkpoint(path, {"model": model_entry(model), "hyp": {}, "epoch": -1, "best_fitness": None})
    assert torch.load(path, weights_only=True)["model"]["yaml"][PLAN_KEY] == model.yaml[PLAN_KEY]
    assert_same(model, load_model(path, fuse=False))
    assert_same(model, load_model(path), atol=1e-4)  # folded
    strip_checkpoint(path, half=True)
    assert load_checkpoint(path).yaml[PLAN_KEY] == model.yaml[PLAN_KEY]


def test_a_folded_checkpoint_round_trip(tmp_path: Path) -> None:
    model, path = pruned(), tmp_path / "folded.pt"
    folded = copy.deepcopy(model).fuse()
    save_checkpoint(path, {"model": model_entry(folded), "hyp": {}, "epoch": -1, "best_fitness": None})
    assert_same(folded, load_model(path))


def test_the_deployment_form_has_a_plan_of_its_own() -> None:
    model = pruned("yolov7")
    plain = copy.deepcopy(model).reparameterize()
    assert_same(model, plain, atol=1e-4)
    again = Model(plain.yaml)
    again.load_state_dict(plain.state_dict())
    assert_same(plain, again.eval())


def test_copies_and_the_average_have_the_widths() -> None:
    model = pruned()
    ema = ModelEMA(model)
    ema.update(model)
    assert_same(model, ema.module, atol=1e-5)
    assert_same(model, copy.deepcopy(model))


def test_another_number_of_classes_changes_the_head_alone() -> None:
    model = pruned()
    other = Model(model.yaml, nc=7)
    assert other.head.m[0].out_channels == 2 * 12 and other.head.m[0].in_channels == model.head.m[0].in_channels
    assert other.model[2].cv1.conv.weight.shape == model.model[2].cv1.conv.weight.shape


def test_a_new_start_is_initialised_as_any_other() -> None:
    again = Model(pruned("yolov7").yaml)
    assert all(value.isfinite().all() for value in again.state_dict().values())
    assert again.state_dict()["model.8.im.0.implicit"].mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "plan, message",
    [
        ([1, 2], "must map modules to widths"),
        ({"model.99.conv": [3]}, "no such layer"),
        ({"model.0.conv": [3]}, "expected 2 number"),
        ({"model.0.conv": [None, 0]}, "expected 2 number"),
        ({"model.0.conv": [None, "8"]}, "expected 2 number"),
        ({"model.0.act": [8]}, "no such layer"),
        ({"model.0.conv": [None, 4]}, "layer 0 .Conv.: the channel_plan does not fit"),
        ({"model.0.conv": [None, 4], "model.0.bn": [4]}, "layer 1 .Conv.: the channel_plan does not fit"),
    ],
)
def test_a_wrong_plan_is_one_line(plan: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Model(tiny_yolov5(channel_plan=plan))
    assert "\n" not in str(caught.value)


def test_depthwise_convolutions_change_their_groups() -> None:
    model = Model(tiny_mobile())
    weight = "model.0.conv.1.0.weight"
    width = model.state_dict()[weight].shape[0]
    plan = plan_from_state_dict(model, {weight: torch.zeros(width - 2, 1, 3, 3)})
    assert plan == {"model.0.conv.1.0": [width - 2, width - 2]}
