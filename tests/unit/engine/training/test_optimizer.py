from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.training.ema import ModelEMA
from engine.training.optimizer import apply_plan, build_optimizer, parameter_groups
from engine.training.schedule import StepPlan
from tests.golden import load_json
from utils.errors import UserError


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.implicit = nn.Parameter(torch.zeros(1))


def test_groups_by_treatment() -> None:
    model = Tiny()
    groups = parameter_groups([model])
    assert [id(p) for p in groups["bias"]] == [id(model.conv.bias), id(model.bn.bias)]
    assert [id(p) for p in groups["decay"]] == [id(model.conv.weight)]
    assert {id(p) for p in groups["no_decay"]} == {id(model.bn.weight), id(model.implicit)}


def test_frozen_parameters_and_adapters() -> None:
    model, adapter = Tiny(), nn.Conv2d(2, 3, 1)
    model.conv.requires_grad_(False)
    groups = parameter_groups([model, adapter])
    assert [id(p) for p in groups["decay"]] == [id(adapter.weight)]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_plan_reaches_every_group(name: str) -> None:
    optimizer = build_optimizer(name, [Tiny()], 0.01, 0.9, 5e-4)
    apply_plan(optimizer, StepPlan(lr=0.001, bias_lr=0.1, momentum=0.8, accumulate=1))
    by_kind = {g["kind"]: g for g in optimizer.param_groups}
    assert (by_kind["bias"]["lr"], by_kind["decay"]["lr"], by_kind["no_decay"]["lr"]) == (0.1, 0.001, 0.001)
    assert (by_kind["bias"]["weight_decay"], by_kind["decay"]["weight_decay"]) == (0.0, 5e-4)
    assert all(g.get("momentum", g.get("betas", [0])[0]) == 0.8 for g in optimizer.param_groups)


def test_unknown_optimizer() -> None:
    with pytest.raises(UserError, match="did you mean 'AdamW'"):
        build_optimizer("adamW2", [Tiny()], 0.01, 0.9, 0)


def test_average_follows_as_the_reference() -> None:
    golden = load_json("postprocess/schedules.json")["yolov7"]["ema"]
    import zlib

    import numpy as np

    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 2, 1))
    model.add_module("bn", nn.BatchNorm2d(2))
    for key, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            uniform = np.random.RandomState(zlib.crc32(key.encode())).random_sample(value.numel())
            value.copy_(torch.tensor(2 * uniform - 1).view_as(value))
    ema = ModelEMA(model)
    for updates, decay in golden["decay"].items():
        assert ema.decay(int(updates)) == pytest.approx(decay, rel=1e-12)
    for step, expected in enumerate(golden["trace"], 1):
        for value in model.state_dict().values():
            value += 0.1 * step if value.dtype.is_floating_point else 1
        ema.update(model)
        for key, values in expected.items():
            if key != "updates":
                got = ema.module.state_dict()[key].flatten().tolist()
                assert got == pytest.approx(values, rel=1e-5, abs=1e-6), key
