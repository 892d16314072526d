"""Run folders, checkpoints and recipes that an earlier version wrote still load, resume and give the same."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.config.hyp import read_hyp
from tests.golden import ROOT

EARLIER = Path(__file__).resolve().parents[1] / "data" / "earlier"
RECIPES = sorted((EARLIER / "hyp").glob("*.yaml"))


def call(folder: Path, script: str, *words: object) -> str:
    """Runs a command line from another folder, on one thread, and returns what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as stream:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]


def test_an_interrupted_distillation_resumes_as_it_did(folder: Path) -> None:
    said = call(folder, "train_distill.py", "--resume", "runs/interrupted/weights/last.pt")
    assert "data have changed" not in said
    found, expected = rows(folder / "runs/interrupted/results.csv"), rows(folder / "resumed.csv")
    assert [row["epoch"] for row in found] == [0, 1, 2, 3]
    for mine, theirs in zip(found, expected):
        losses = {key: value for key, value in theirs.items() if key.startswith(("train/", "x/lr"))}
        assert losses and {key: mine[key] for key in losses} == pytest.approx(losses, rel=1e-3)  # of other processors


def test_a_finished_run_is_evaluated_and_taught_from(folder: Path) -> None:
    weights = "runs/finished/weights/best.pt"
    flags = ("--data", "data.yaml", "--img-size", 64, "--device", "cpu", "--workers", 0, "--noplots")
    assert "AP" in call(folder, "test.py", "--weights", weights, *flags)
    call(
        folder, "train_distill.py", "--cfg", "tiny.yaml", "--teacher-weights", weights, *flags,
        "--hyp", "hyp/distill.fgd-output.yaml", "--batch-size", 8, "--epochs", 1, "--name", "again",
    )  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_mean_what_they_meant(recipe: Path) -> None:
    hyp, written = read_hyp(recipe), yaml.safe_load(recipe.read_text())
    assert dict(hyp.kd_losses) == (written.get("kd_losses") or {})
    assert all(getattr(hyp, key) == value for key, value in written.items() if key not in ("base", "kd_losses"))
