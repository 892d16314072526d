"""Reports from the command lines; compare.py with several trainings at a time, killed and started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from checkpoints.checkpoint import load_checkpoint
from tests.golden import ROOT
from tests.integration.conftest import checked, run_command


@pytest.mark.slow
def test_a_training_ends_with_its_report(tiny: Path, base: list[str], teacher: Path) -> None:
    shared = ["--cfg", tiny / "small.yaml", "--epochs", 1, "--report"]
    checked("train.py", *base, *shared, "--hyp", tiny / "hyp.yaml", "--name", "r-train")
    words = ["--hyp", tiny / "distill.yaml", "--teacher-weights", teacher, "--name", "r-distill"]
    done = checked("train_distill.py", *base, *shared, *words)
    for name in ("r-train", "r-distill"):
        html = (tiny / "runs" / name / "report.html").read_text(encoding="utf-8")
        assert "val split, 12 images, 96 px" in html and "after 1 epoch;" in html
        assert "--report" in html, "the command to repeat it"
        assert "over the same student" not in html, "a single run claims no gain"
    assert str(tiny / "runs" / "r-distill" / "report.html") in done.stdout + done.stderr
    assert "kd/" in html, "the terms of the distillation have curves"
    report = tiny / "runs" / "r-train" / "report.html"
    report.unlink()
    checked("-m", "engine.reporting", tiny / "runs" / "r-train", "--device", "cpu", "--workers", 0)
    assert report.is_file()
    failed = run_command("-m", "engine.reporting", tiny)
    assert failed.returncode == 1 and "does not exist" in failed.stderr and "Traceback" not in failed.stderr


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "weights" / "last.pt").state_dict


def epochs_of(run: Path) -> int:
    table = run / "results.csv"
    return len(table.read_text().splitlines()) - 1 if table.is_file() else 0


@pytest.mark.slow
def test_trainings_side_by_side_killed_and_started_again(tiny: Path, teacher: Path, tmp_path: Path) -> None:
    experiment = {
        "name": "two", "data": f"{tiny}/tiny.yaml", "student": f"{tiny}/small.yaml", "img_size": 96, "batch_size": 8,
        "workers": 0, "device": "cpu", "epochs": 6, "seeds": [0, 1], "pictures": 0, "flags": ["--noplots"],
        "split": "val", "teacher": {"weights": str(teacher)},
        "arms": {"baseline": {"hyp": f"{tiny}/hyp.yaml"}},
    }  # fmt: skip
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(experiment, sort_keys=False))
    words = ["compare.py", "--experiment", str(file), "--threads", "1"]
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    runs = [killed / "two" / f"baseline-seed{seed}" for seed in (0, 1)]
    side_by_side = [*words, "--project", str(killed), "--jobs", "2"]
    process = subprocess.Popen([sys.executable, *side_by_side], cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ)
    until = time.monotonic() + 240
    while time.monotonic() < until and not all(epochs_of(run) >= 2 for run in runs):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not any((run / "done.json").exists() for run in runs), "it was killed amid both"
    done = checked(*side_by_side)
    assert (done.stdout + done.stderr).count("--resume") == 2, "both go on from where they were"
    checked(*words, "--project", alone, "--jobs", 1)
    for run in runs:
        one, other = weights_of(run), weights_of(alone / "two" / run.name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), run.name
        assert epochs_of(run) == 6
    assert (killed / "two" / "report.html").is_file() and (killed / "two" / "baseline-seed1" / "train.log").is_file()
