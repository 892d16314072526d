"""Students that start as a part of their teacher, in real trainings."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoints.checkpoint import load_checkpoint, load_model, save_checkpoint
from engine.config.options import TrainOptions
from engine.training.loop import Trainer
from engine.training.state import model_entry
from engine.training.train import run_training
from models.yolo import Model
from tests.golden import ROOT
from tests.integration.conftest import checked
from tests.integration.test_training import assert_same_weights, rows_of
from utils.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Leaves the logger as it is, so that what a training says can be read."""
    monkeypatch.setattr("engine.training.train.setup_logging", lambda rank: None)
    caplog.set_level(logging.INFO, "yolo-distill")


@pytest.fixture
def options(tiny: Path, teacher: Path, tmp_path: Path) -> TrainOptions:
    """Two epochs of a student without a teacher, from scratch."""
    return TrainOptions(
        cfg=str(tiny / "small.yaml"), data=str(tiny / "tiny.yaml"), hyp=str(tiny / "hyp.yaml"), epochs=2,
        batch_size=8, img_size=(96, 96), workers=0, noplots=True, device="cpu", project=str(tmp_path), name="plain",
    )  # fmt: skip


def distilled(options: TrainOptions, teacher: Path, **changes: Any) -> TrainOptions:
    hyp = str(Path(options.hyp).with_name("zero.yaml"))
    return replace(options, **{"hyp": hyp, "teacher_weights": str(teacher), "name": "distilled", **changes})


def trained(options: TrainOptions, distil: bool = False) -> tuple[Path, dict[str, Any]]:
    """Trains; the run folder, and what its manifest says of the start."""
    folder = run_training(options, distil=distil).folder
    return folder, json.loads((folder / "manifest.json").read_text())["init"]


def cut_short(epoch: int, start: Callable[[], Any]) -> None:
    """Runs a training that ends when it has begun this epoch."""
    train_epoch = Trainer.train_epoch

    def ending(self: Trainer, number: int) -> dict[str, float]:
        if number == epoch:
            raise KeyboardInterrupt
        return train_epoch(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_epoch", ending)
        start()


@pytest.mark.parametrize("init", ["inherit", "scratch"])
def test_with_weights_of_zero_the_start_is_all_that_counts(
    options: TrainOptions, teacher: Path, init: str, caplog: pytest.LogCaptureFixture
) -> None:
    same = {"inherit": str(teacher), "init": "inherit"} if init == "inherit" else {}
    plain, start = trained(replace(options, **same))
    other, also = trained(distilled(options, teacher, init=init), distil=True)
    assert_same_weights(plain, other)
    assert start == also and start["from"] == ("teacher" if init == "inherit" else "scratch")
    assert ("AP right after the cut" in caplog.text) == (init == "inherit")


def test_what_is_inherited_is_said_and_kept(
    options: TrainOptions, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, start = trained(distilled(options, teacher, epochs=1), distil=True)  # auto
    assert f"{teacher}: inherited all of" in caplog.text and "near 0 is normal" in caplog.text
    assert start["path"] == str(teacher) and len(start["sha256"]) == 64 and start["importance"] == "taylor"
    assert start["parameters"][0] == start["parameters"][1]
    lines = (folder / "inherited.txt").read_text().splitlines()
    assert lines[0].startswith("model.0.conv (Conv)") and "channels of the teacher's" in lines[0]
    model, source = load_model(folder / "weights" / "best.pt", fuse=False), load_model(teacher, fuse=False)
    assert torch.equal(model.head.anchors_px, source.head.anchors_px)
    assert Model(model.yaml).head.anchors_px.tolist() == source.head.anchors_px.tolist()  # the yaml says them too


def test_a_resumed_run_equals_an_uninterrupted_one(options: TrainOptions, teacher: Path) -> None:
    asked = distilled(options, teacher, hyp=options.hyp.replace("hyp.yaml", "distill.yaml"), epochs=3)
    whole, start = trained(asked, distil=True)
    assert start["from"] == "teacher"
    cut_short(1, lambda: run_training(replace(asked, name="cut"), distil=True))
    cut = Path(options.project) / "cut"
    run_training(asked, resume=str(cut / "weights" / "last.pt"))
    assert_same_weights(whole, cut)


def test_weights_are_a_start_of_their_own(options: TrainOptions, teacher: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "start.pt", {"model": model_entry(Model(options.cfg, nc=12))})
    asked = distilled(options, teacher, weights=str(tmp_path / "start.pt"), epochs=1)
    assert trained(asked, distil=True)[1]["from"] == "weights"
    with pytest.raises(UsageError, match="--weights and --init inherit both say what the student starts as"):
        run_training(replace(asked, init="inherit"), distil=True)
    with pytest.raises(UsageError, match="--weights and --inherit both say"):
        run_training(replace(asked, inherit=str(teacher), init="inherit"))


def test_the_first_teacher_that_fits(
    options: TrainOptions, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.pt"
    save_checkpoint(other, {"model": model_entry(Model("cfg/yolov8/yolov8p.yaml", nc=12))})
    asked = distilled(options, other, epochs=1, hyp=str(tmp_path / "features.yaml"))
    hyp = yaml.safe_load(Path(options.hyp).read_text())
    Path(asked.hyp).write_text(yaml.safe_dump(hyp | {"kd_losses": {"fgd": {"weight": 0}}}))
    assert trained(replace(asked, more_teachers=("ema", str(teacher))), distil=True)[1]["path"] == str(teacher)
    caplog.clear()
    assert trained(asked, distil=True)[1] == {"from": "scratch"}
    line = next(line for line in caplog.messages if "from scratch" in line)
    assert line.startswith(f"the student starts from scratch, since it cannot inherit from {other}: row ")
    with pytest.raises(UserError, match=f"--init inherit {other}: row "):
        run_training(replace(asked, init="inherit"), distil=True)
    with pytest.raises(UsageError, match="own average has nothing to pass on"):
        run_training(replace(asked, teacher_weights="ema", init="inherit"), distil=True)


def test_a_folded_teacher_passes_nothing_on(
    options: TrainOptions, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folded = tmp_path / "folded.pt"
    save_checkpoint(folded, {"model": model_entry(load_model(teacher, fuse=True))})
    assert trained(distilled(options, folded, epochs=1), distil=True)[1] == {"from": "scratch"}
    assert "folded" in next(line for line in caplog.messages if "from scratch" in line)


def test_without_a_common_class(options: TrainOptions, teacher: Path, tmp_path: Path) -> None:
    content = torch.load(teacher, weights_only=True)
    content["model"]["names"] = [f"another {index}" for index in range(12)]
    torch.save(content, tmp_path / "other.pt")
    _, start = trained(replace(options, inherit=str(tmp_path / "other.pt"), init="inherit", epochs=1))
    assert start["importance"] == "l1" and start["classes"] == [0, 12]


def test_frozen_layers_are_inherited_and_stay(options: TrainOptions, teacher: Path) -> None:
    asked = replace(options, inherit=str(teacher), init="inherit", inherit_importance="random", freeze=(3,))
    folder, start = trained(asked)
    assert start["importance"] == "random"
    other, _ = trained(replace(asked, name="short", epochs=1))
    one, two = (load_checkpoint(run / "weights" / "last.pt").state_dict for run in (folder, other))
    assert all(torch.equal(one[key], two[key]) for key in one if key.split(".")[1] in "012")


def test_the_command_lines(tiny: Path, base: list[str], teacher: Path) -> None:
    words = [*base, "--cfg", tiny / "small.yaml", "--hyp", tiny / "hyp.yaml", "--epochs", 1]
    said = checked("train.py", *words, "--inherit", teacher, "--inherit-importance", "l1", "--name", "inherited")
    assert "channels chosen by l1" in said.stdout + said.stderr
    assert yaml.safe_load((tiny / "runs/inherited/opt.yaml").read_text())["init"] == "inherit"


@pytest.mark.slow
def test_each_of_a_chain_inherits_from_the_one_before(tiny: Path, base: list[str], teacher: Path) -> None:
    middle = yaml.safe_load((tiny / "small.yaml").read_text()) | {"width_multiple": 0.1}
    (tiny / "middle.yaml").write_text(yaml.safe_dump(middle))
    mark = tiny / "low.pt"  # a baseline that nothing can be worse than
    torch.save(torch.load(teacher, weights_only=True) | {"metrics": {"metrics/AP": 0.0}}, mark)
    listed = tiny / "inheriting.yaml"
    listed.write_text(f"assistants:\n- {{cfg: {tiny}/middle.yaml, baseline: {mark}}}\n")
    hyp = yaml.safe_load((tiny / "zero.yaml").read_text()) | {"nbs": "auto", "ema_ramp": "auto"}
    (tiny / "auto.yaml").write_text(yaml.safe_dump(hyp))
    words = [*base, "--cfg", tiny / "small.yaml", "--epochs", 1, "--hyp", tiny / "auto.yaml", "--name", "heirs"]
    words += ["--teacher-weights", teacher, "--teacher-assistants", listed]
    said = checked("train_distill.py", *words)
    assert (said.stdout + said.stderr).count("nbs is 16, ema_ramp is 1") == 2
    runs = tiny / "runs" / "heirs"
    starts = {name: json.loads((runs / name / "manifest.json").read_text())["init"] for name in ("1-middle", "student")}
    assert starts["1-middle"]["path"] == str(teacher)
    assert starts["student"]["path"] == str(runs / "1-middle" / "weights" / "best.pt")
    assert checked("train_distill.py", *words, "--exist-ok").stdout.count("already trained") == 2


@pytest.mark.slow
def test_arms_that_inherit(tiny: Path, teacher: Path) -> None:
    content = {
        "name": "heirs", "data": str(tiny / "tiny.yaml"), "student": str(tiny / "small.yaml"), "img_size": 96,
        "batch_size": 8, "workers": 0, "device": "cpu", "epochs": 1, "pictures": 0,
        "teacher": {"weights": str(teacher)}, "hyp": str(tiny / "hyp.yaml"), "flags": ["--noplots"],
        "arms": {
            "baseline": None,
            "inherited": {"init": "inherit", "importance": "bn"},
            "distilled": {"hyp": str(tiny / "zero.yaml"), "importance": "bn"},
        },
    }  # fmt: skip
    (tiny / "heirs.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    checked("compare.py", "--experiment", tiny / "heirs.yaml", "--project", tiny / "runs", "--name", "arms")
    runs = tiny / "runs" / "arms"
    starts = {arm: json.loads((runs / f"{arm}-seed0/manifest.json").read_text())["init"] for arm in content["arms"]}
    assert starts["baseline"] == {"from": "scratch"}
    assert starts["inherited"] == starts["distilled"] and starts["inherited"]["importance"] == "bn"
    assert_same_weights(runs / "inherited-seed0", runs / "distilled-seed0")
    assert json.loads((runs / "report.json").read_text())["summary"][2]["role"] == "inherited"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "wider", "hyp"),
    [
        ("yolov5/yolov5n", {"width_multiple": 0.125}, "scratch-low.yaml"),
        ("yolov7/yolov7-quarter", {"width_multiple": 0.125}, "scratch.custom.yaml"),
        ("yolov8/yolov8n", {"scales": {"n": [0.33, 0.125, 1024]}}, "scratch.v8.yaml"),
    ],
)
def test_the_first_epoch_after_inheriting_has_a_lower_loss(
    tiny: Path, base: list[str], tmp_path: Path, student: str, wider: dict[str, Any], hyp: str
) -> None:
    teacher = yaml.safe_load((ROOT / "cfg" / f"{student}.yaml").read_text())
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(teacher | wider))
    values = {"base": str(ROOT / "hyp" / hyp), "nbs": 8, "lr0": 0.002, "lrf": 0.5, "mosaic": 0.0, "warmup_epochs": 1.0}
    (tmp_path / "hyp.yaml").write_text(yaml.safe_dump(values))
    words = [*base, "--project", tmp_path, "--hyp", tmp_path / "hyp.yaml", "--optimizer", "AdamW", "--notest"]
    checked("train.py", *words, "--cfg", tmp_path / "teacher.yaml", "--epochs", 30, "--name", "teacher", timeout=900)
    weights = tmp_path / "teacher" / "weights" / "last.pt"
    losses = {}
    for name, flags in (("scratch", []), ("inherited", ["--inherit", weights])):
        checked("train.py", *words, "--cfg", tmp_path / "student.yaml", "--epochs", 1, "--name", name, *flags)
        row = rows_of(tmp_path / name)[0]
        losses[name] = sum(float(value) for key, value in row.items() if key.startswith("train/"))
    assert losses["inherited"] < losses["scratch"]
