from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoints.checkpoint import save_checkpoint
from data.synthetic import render_dataset
from engine.comparing.compare import run_experiment
from engine.comparing.experiment import Experiment, load_experiment
from engine.comparing.runs import finished_runs
from engine.runfolder import ResultsTable, RunFolder
from engine.training.state import model_entry
from models.yolo import Model
from tests.golden import ROOT
from utils.errors import UserError

EVIL = "<script>alert(1)</script>"
ARMS = ("baseline", "inherited", "both")


def prepared(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Experiment:
    """A finished experiment: a data set of eight images, and untrained networks in the place of trained ones."""
    data = render_dataset(folder / "set", num_train=2, num_val=8, num_test=2, img_size=64, seed=0)
    content = yaml.safe_load(data.read_text())
    content |= {"names": [EVIL, *list(content["names"])[1:]], "path": str(folder / "set")}
    (folder / "data.yaml").write_text(yaml.safe_dump(content))
    architecture = yaml.safe_load((ROOT / "cfg/yolov5/yolov5n.yaml").read_text())
    architecture |= {"width_multiple": 0.0625, "depth_multiple": 0.1, "nc": len(content["names"])}
    (folder / "small.yaml").write_text(yaml.safe_dump(architecture))
    hyp, kd = str(ROOT / "hyp/scratch-low.yaml"), str(ROOT / "hyp/distill.bckd.yaml")
    values: dict[str, Any] = {
        "name": "try", "data": str(folder / "data.yaml"), "student": str(folder / "small.yaml"), "img_size": 64,
        "batch_size": 4, "workers": 0, "device": "cpu", "epochs": 3, "seeds": list(seeds), "pictures": 2,
        "teacher": {"weights": str(folder / "teacher/weights/best.pt")},
        "arms": {"baseline": {"hyp": hyp}, "inherited": {"hyp": hyp, "init": "inherit"},
                 "both": {"hyp": kd, "init": "inherit"}},
    }  # fmt: skip
    (folder / "try.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for number, name in enumerate(["teacher", *(f"{arm}-seed{seed}" for arm in ARMS for seed in seeds)]):
        run = RunFolder(folder / name if name == "teacher" else folder / "runs/try" / name)
        torch.manual_seed(number)
        model = Model(architecture)
        model.names = content["names"]
        save_checkpoint(run.best, {"model": model_entry(model)})
        table = ResultsTable(run.path / "results.csv")
        for epoch in range(3):
            table.add({"epoch": epoch, "time/epoch": 2.0, "metrics/AP": 0.1 + 0.001 * epoch})
        (run.path / "done.json").write_text("{}")
        run.write_manifest({"command": f"python train.py --name {EVIL}"})
    return load_experiment(folder / "try.yaml")


@pytest.mark.slow  # ten networks are measured
def test_the_page_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = run_experiment(prepared(tmp_path), str(tmp_path / "runs"), report_only=True)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Inherited and distilled: " in html and "95 % interval" in html
    for title in ("Arms", "Learning curves", "Accuracy against cost", "Change by class", "Precision and recall"):
        assert f"<h2>{title}</h2>" in html
    assert html.count("<details>") == 10, "a fold for each training"
    assert EVIL not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    text = (folder / "report.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| both |"))
    assert "| both minus inherited |" in text and "AP of it added by distillation over inherited" in html
    assert len(line.split("|")) == 15 and " to " in line.split("|")[-3], "the images' interval has its own column"


def test_a_report_on_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.chdir(ROOT)
    found = prepared(tmp_path)
    folder = tmp_path / "runs/try"
    (folder / "both-seed1/done.json").unlink()
    runs = finished_runs(found, folder)
    assert len(runs) == 9 and ("both", 1) not in {(run.role, run.seed) for run in runs}
    for seed in (0, 1, 2):
        (folder / f"baseline-seed{seed}/done.json").unlink()
    with pytest.raises(UserError, match="no trained baseline yet; run the experiment without --report-only"):
        finished_runs(found, folder)
    (tmp_path / "teacher/weights/best.pt").unlink()
    with pytest.raises(UserError, match="no trained teacher yet"):
        finished_runs(found, folder)
