"""train_distill.py without --hyp: students and teachers of every family."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from checkpoints.checkpoint import save_checkpoint
from data.synthetic import render_dataset
from engine.config.hyp import read_hyp
from engine.config.options import TrainOptions
from engine.training.state import model_entry
from engine.training.train import run_training
from models.yolo import Model
from tests.golden import ROOT

CFG = {
    "yolov5": "cfg/yolov5/yolov5p.yaml", "yolov7": "cfg/yolov7/yolov7-tiny.yaml", "yolov8": "cfg/yolov8/yolov8p.yaml",
    "mobile": "cfg/mobile/mobilenetv2-yolov5s.yaml",
}  # fmt: skip
PLAIN = {"yolov5": "scratch-low", "yolov7": "scratch.tiny", "yolov8": "scratch.v8", "mobile": "scratch-low"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_dataset(tmp_path_factory.mktemp("set"), num_train=4, num_val=2, num_test=0, img_size=64, seed=0)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks of random weights."""
    folder = tmp_path_factory.mktemp("teachers")
    paths = {}
    for family, cfg in CFG.items():
        torch.manual_seed(0)
        model = Model(ROOT / cfg, nc=12)
        paths[family] = folder / f"{family}.pt"
        save_checkpoint(paths[family], {"model": model_entry(model)})
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("teacher", CFG)
@pytest.mark.parametrize("student", CFG)
def test_any_student_under_any_teacher(
    data: Path, teachers: dict[str, Path], tmp_path: Path, student: str, teacher: str
) -> None:
    options = TrainOptions(
        cfg=str(ROOT / CFG[student]), teacher_weights=str(teachers[teacher]), data=str(data), epochs=1, batch_size=2,
        img_size=(64, 64), workers=0, device="cpu", noplots=True, project=str(tmp_path),
    )  # fmt: skip
    folder = run_training(options, distil=True).folder
    hyp, plain = read_hyp(folder / "hyp.yaml"), read_hyp(ROOT / "hyp" / f"{PLAIN[student]}.yaml")
    names = ("box", "cls", "obj", "lrf", "mosaic9", "mixup", "close_mosaic", "loss_ota")
    assert [getattr(hyp, name) for name in names] == [getattr(plain, name) for name in names]
    assert hyp.distills and (hyp.nbs, hyp.ema_ramp) == (16, 1.0), "auto, of one or two steps"
    with open(folder / "results.csv", newline="") as stream:
        row = next(csv.DictReader(stream))
    losses = {name: float(value) for name, value in row.items() if name.startswith("train/")}
    assert all(map(math.isfinite, losses.values()))
    assert sum(value for name, value in losses.items() if name.startswith("train/kd/bckd/")) > 0
