"""The distillation recipes in hyp/: readable, complete, and buildable as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill import Distiller
from engine.config.defaults import PLAIN_FILES, resolve_hyp
from engine.config.hyp import AUTO, read_hyp
from tests.golden import ROOT
from tests.unit.distill.distill_toys import ToyDetector, head_spec

RECIPES = sorted((ROOT / "hyp").glob("distill.*yaml"))
ANCHOR_FREE = {"distill.ld"}
"""Recipes for heads that predict distributions of box sides."""
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_there_are_recipes() -> None:
    names = [
        "fgd",
        "l2",
        "output",
        "fgd-output",
        "output-paper",
        "cwd",
        "mgd",
        "pkd",
        "at",
        "fbkd",
        "soft-label",
        "bckd",
        "crosskd",
        "ld",
    ]
    assert {"distill"} | {f"distill.{name}" for name in names} <= {path.stem for path in RECIPES}


@each_recipe
def test_a_recipe_opens_with_the_command_that_uses_it(path: Path) -> None:
    opening = path.read_text().split("\n\n")[0]
    assert all(line.startswith("# ") for line in opening.splitlines())
    assert f"python train_distill.py --hyp hyp/{path.name} --teacher-weights" in opening


@each_recipe
def test_a_recipe_differs_from_plain_training_by_the_distillation_only(path: Path) -> None:
    for kind, plain_file in PLAIN_FILES.items():
        recipe, plain = resolve_hyp(path, kind, distil=True).hyp.to_dict(), read_hyp(ROOT / plain_file).to_dict()
        different = {name for name, value in recipe.items() if value != plain[name]}
        assert different == {"student_kd_layers", "teacher_kd_layers", "kd_losses", "kd_schedule", "nbs", "ema_ramp"}
        assert (recipe["nbs"], recipe["ema_ramp"]) == (AUTO, AUTO)


@each_recipe
def test_a_recipe_builds_a_distiller(path: Path) -> None:
    hyp = read_hyp(path)
    layers = hyp.student_kd_layers, hyp.teacher_kd_layers
    kind = "anchor_free" if path.stem in ANCHOR_FREE else "anchor"
    heads = {"student_head": head_spec(kind), "teacher_head": head_spec(kind)}
    kd = Distiller(ToyDetector(4), ToyDetector(6), *layers, hyp.kd_losses, hyp.kd_schedule, image_size=64, **heads)
    assert {name.split("/")[1] for name in kd.item_names} == set(hyp.kd_losses)


@each_recipe
def test_a_recipe_of_weight_zero_changes_no_bit(path: Path) -> None:
    """Two trainings of three steps, one with the distiller at weight 0, from the same seed."""

    def train(distilled: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        student, teacher = ToyDetector(4).train(), ToyDetector(6)
        extra, parameters = None, list(student.parameters())
        if distilled:
            hyp = read_hyp(path)
            losses = {
                name: {key: value for key, value in settings.items() if key != "share"} | {"weight": 0}
                for name, settings in hyp.kd_losses.items()
            }
            heads = {"student_head": head_spec(), "teacher_head": head_spec()}
            extra = Distiller(student, teacher, "auto", "auto", losses, hyp.kd_schedule, image_size=64, **heads)
            parameters += list(extra.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        for _ in range(3):
            images = torch.rand(2, 3, 64, 64)
            predictions = student(images)
            loss = torch.stack([raw.square().mean() for raw in predictions]).sum()
            if extra is not None:
                loss = loss + extra(images, predictions, [], torch.zeros(0, 6))[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return student.state_dict()

    plain, distilled = train(False), train(True)
    assert all(torch.equal(value, distilled[name]) for name, value in plain.items())
