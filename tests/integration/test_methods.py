"""Every method trains students of every family on the built-in set at its default weight, alone and mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.config import load_dataset_config
from data.dataset import DetectionDataset
from data.labels import build_index
from data.loader import DetectionLoader, create_loader
from distill import LOSSES, Distiller
from engine.config.hyp import Hyp, read_hyp
from engine.distilling.distillers import head_spec
from engine.training.criterion import build_criteria
from models.yolo import Model
from tests.golden import ROOT
from tests.unit.engine.training.training_toys import toy_trainer

FAMILIES = {"yolov5": "yolov5/yolov5n", "yolov7": "yolov7/yolov7-tiny", "yolov8": "yolov8/yolov8n"}
ANCHOR_FREE_ONLY = {"ld"}
IMAGE_SIZE = 96
STEPS = 3

CASES = [
    pytest.param(family, {name: {}}, id=f"{family}-{name}", marks=pytest.mark.slow)
    for family in FAMILIES
    for name in LOSSES
    if family == "yolov8" or name not in ANCHOR_FREE_ONLY
]
CASES += [
    pytest.param(
        family,
        {name: {} for name in LOSSES if family == "yolov8" or name not in ANCHOR_FREE_ONLY},
        id=f"{family}-all of them",
    )
    for family in FAMILIES
]
CASES += [
    pytest.param("yolov8", {"crosskd": {"at": at}}, id=f"yolov8-crosskd at {at}", marks=pytest.mark.slow)
    for at in (1, 2)
]


def network(family: str, share: float, nc: int) -> Model:
    """A detector of a small share of the smallest one's width."""
    config = yaml.safe_load((ROOT / f"cfg/{FAMILIES[family]}.yaml").read_text())
    if family == "yolov8":
        config["scales"] = {"n": [0.1, 0.25 * share, 1024]}
    else:
        config["width_multiple"] *= share
    torch.manual_seed(0)
    return Model(config, nc=nc)


def hyper_parameters(family: str) -> Hyp:
    return read_hyp(ROOT / "hyp" / ("scratch.v8.yaml" if family == "yolov8" else "scratch-low.yaml"))


@pytest.fixture(scope="module")
def loader(tiny: Path) -> DetectionLoader:
    config = load_dataset_config(tiny / "tiny.yaml")
    index = build_index(config.train, config.nc, quiet=True)
    index.records[: len(index.records) - 4 * STEPS] = []
    dataset = DetectionDataset(index, IMAGE_SIZE, None)
    return create_loader(dataset, 4, workers=0)


@pytest.mark.parametrize(("family", "losses"), CASES)
def test_a_method_trains(family: str, losses: dict[str, Any], loader: DetectionLoader, tmp_path: Path) -> None:
    hyp = hyper_parameters(family)
    nc = 12
    student, teacher = network(family, 0.25, nc), network(family, 0.5, nc)
    heads: dict[str, Any] = {"student_head": head_spec(student), "teacher_head": head_spec(teacher)}
    kd = Distiller(student, teacher, "auto", "auto", losses, image_size=IMAGE_SIZE, **heads)
    criterion, _ = build_criteria(student, hyp, IMAGE_SIZE, 0.0, torch.device("cpu"))
    before = {name: parameter.clone() for name, parameter in kd.named_parameters()}
    trainer = toy_trainer(
        tmp_path,
        model=student,
        criterion=criterion,
        extra_losses=[kd],
        loader=loader,  # type: ignore[arg-type]
        hyp={"lr0": hyp.lr0, "momentum": hyp.momentum},
        epochs=1,
    )
    row = trainer.train_epoch(0)  # raises where a term or a weight is not finite
    assert len(loader) == STEPS and trainer.state.last_step == STEPS - 1
    assert {f"train/{name}" for name in kd.item_names} <= set(row)
    assert sum(row[f"train/{name}"] for name in kd.item_names) > 0
    learning = [name for name in before if ".adapters." in name]  # other parts start where their gradient is 0
    parameters = dict(kd.named_parameters())
    assert [name for name in learning if torch.equal(parameters[name], before[name])] == []
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())
