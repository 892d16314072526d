"""What is pruned together, what stays, and that a pruned network computes what the full one does without channels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from models.yolo import Model
from pruning import PruneResult, prune
from pruning.pruner import run_for_outputs
from tests.golden import ROOT

ARCHITECTURES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "cfg").rglob("*.yaml"))
IMAGE = 64


def narrow(path: str) -> dict[str, Any]:
    """An architecture that comes with the software, with few channels and no more repeats than it needs."""
    content = yaml.safe_load((ROOT / path).read_text())
    if "scales" in content:
        content["scales"], content["scale"] = {"n": [0.33, 0.125, 256]}, "n"
    else:
        content["width_multiple"] = 0.25 if "mobile" in path else 0.125
        content["depth_multiple"] = min(content["depth_multiple"], 0.67)
    return {**content, "nc": 3}


def lively(cfg: dict[str, Any]) -> Model:
    """A model in float64 whose BatchNorm has scales, shifts and statistics of every size."""
    torch.manual_seed(0)
    model = Model(cfg).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


@torch.no_grad()
def masked(model: nn.Module, result: PruneResult) -> nn.Module:
    """A copy at full width in which whatever makes a removed channel makes nothing but 0."""
    full = copy.deepcopy(model)
    modules, parameters = dict(full.named_modules()), dict(full.named_parameters())
    for (name, side), indices in result.removed.items():
        if side == "in":
            continue
        if name in parameters:
            parameters[name][:, indices] = 0
            continue
        assert not getattr(modules[name], "transposed", False)
        for parameter in modules[name].parameters():
            parameter[indices] = 0
    return full


@pytest.mark.parametrize("path", ARCHITECTURES)
def test_every_architecture_computes_what_the_masked_one_does(path: str) -> None:
    model = lively(narrow(path))
    full, size = copy.deepcopy(model), model.summary(64)
    result = prune(model, 0.4, round_to=4, min_keep=0.1, image=torch.zeros(1, 3, IMAGE, IMAGE, dtype=torch.float64))
    assert result.share >= 0.4 and result.removed
    assert model.summary(64).parameters == result.after.params < result.before.params == size.parameters
    assert model.summary(64).gflops < 0.68 * size.gflops  # which counts BatchNorm and the like besides
    side = 2 * int(max(model.stride))
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    expected = run_for_outputs(masked(full, result), images)
    for mine, theirs in zip(run_for_outputs(model, images), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected[0], run_for_outputs(full, images)[0])
