"""Stages of several trainings: what is left of one is taken for no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from checkpoints.checkpoint import save_checkpoint
from engine.config.hyp import read_hyp
from engine.config.options import TrainOptions
from engine.runfolder import RunFolder
from engine.training.stages import check_stage, tell_of_changed_data
from engine.training.state import model_entry
from engine.training.state_check import RUN_VERSION
from models.yolo import Model
from utils.errors import UserError
from utils.paths import file_hash


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainOptions]:
    """A finished run folder, and the options of its training."""
    folder = tmp_path_factory.mktemp("stage")
    for name in ("start.pt", "teacher.pt"):
        (folder / name).write_text(name)
    (folder / "hyp.yaml").write_text("lr0: 0.02")
    options = TrainOptions(
        weights=str(folder / "start.pt"), teacher_weights=str(folder / "teacher.pt"), hyp=str(folder / "hyp.yaml"),
        data="nowhere.yaml", img_size=(64, 64), epochs=3,
    )  # fmt: skip
    run = RunFolder(folder / "run")
    facts = {"options": options.to_dict(), "version": RUN_VERSION, "state": {}, "data": {}, "world_size": 1}
    save_checkpoint(
        run.last,
        {
            "model": model_entry(Model("cfg/yolov5/yolov5p.yaml", nc=1)), "hyp": read_hyp(options.hyp).to_dict(),
            "epoch": 2, "teacher": {"sha256": file_hash(options.teacher_weights)}, "run": facts,
        },
    )  # fmt: skip
    run.update_manifest({"start": {"sha256": file_hash(options.weights)}})
    return run.path, options


def test_the_same_training_is_taken(stage: tuple[Path, TrainOptions], tmp_path: Path) -> None:
    folder, options = stage
    check_stage(folder, options)
    moved = tmp_path / "moved.pt"
    moved.write_text("start.pt")
    check_stage(folder, replace(options, weights=str(moved), img_size=(50, 60), device="cpu", workers=3, name="x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("hyp.yaml", r"its hyper-parameters are others: lr0 was 0\.02, now 0\.3\); remove that folder, or use another"),
        ("start.pt", r"the content of '.*start\.pt' was another"),
        ("teacher.pt", r"the content of '.*teacher\.pt' was another"),
        ("epochs", "--epochs was 3, now 4"),
        ("img_size", r"--img-size was \[64, 64\], now \[96, 96\]"),
    ],
)
def test_another_training_is_not_taken(stage: tuple[Path, TrainOptions], change: str, message: str) -> None:
    folder, options = stage
    file = folder.parent / change
    content = file.read_bytes() if file.is_file() else None
    if content is None:
        options = replace(options, **{change: {"epochs": 4, "img_size": (65, 65)}[change]})
    try:
        if content is not None:
            file.write_text("lr0: 0.3")
        with pytest.raises(UserError, match=f"holds another training .*{message}"):
            check_stage(folder, options)
    finally:
        if content is not None:
            file.write_bytes(content)


def test_data_that_have_changed_since_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data.labels import build_index

    monkeypatch.setattr("utils.logging.LOGGER.propagate", True)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        cv2.imwrite(str(tmp_path / split / "a.png"), np.zeros((16, 16, 3), np.uint8))
    run = RunFolder(tmp_path / "run")
    hashes = {f"{split}_hash": build_index([tmp_path / split], 1).content_hash for split in ("train", "val")}
    run.update_manifest(hashes)
    for name in ("same", "changed"):  # each is looked through once in a command
        (tmp_path / f"{name}.yaml").write_text("train: train\nval: val\nnames: [a]")
    tell_of_changed_data(run, str(tmp_path / "same.yaml"))
    assert not caplog.text
    (tmp_path / "train/a.txt").write_text("0 0.5 0.5 0.2 0.2")
    tell_of_changed_data(run, str(tmp_path / "changed.yaml"))
    assert "have changed since" in caplog.text and caplog.text.count("\n") == 1
