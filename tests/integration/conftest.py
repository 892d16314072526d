"""The real command lines on a small rendering of the built-in data set, with a tiny network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.golden import ROOT

Command = Callable[..., subprocess.CompletedProcess[str]]


def run_command(
    *words: object, timeout: float = 240, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of the command lines from the repository root, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | (env or {})
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def checked(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command that must succeed."""
    done = run_command(*words, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml (28 + 12 images of 96 pixels), and small.yaml, of some 60,000 parameters."""
    from data.synthetic import render_dataset

    folder = tmp_path_factory.mktemp("tiny")
    data = render_dataset(folder / "images", num_train=28, num_val=12, num_test=4, img_size=96, seed=5)
    content = yaml.safe_load(Path(data).read_text())
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content | {"path": str(folder / "images")}))
    for name, width in (("small", 0.0625), ("large", 0.125)):
        architecture = yaml.safe_load((ROOT / "cfg/yolov5/yolov5n.yaml").read_text())
        architecture |= {"width_multiple": width, "depth_multiple": 0.1}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(architecture))
    hyp = yaml.safe_load((ROOT / "hyp/scratch-low.yaml").read_text())
    recipe = {
        "student_kd_layers": "auto",
        "teacher_kd_layers": "auto",
        "kd_losses": {"fgd": {"weight": 1.0}, "output": {"weight": 1.0}},
    }
    zero = {**recipe, "kd_losses": {"fgd": {"weight": 0}, "output": {"weight": 0}}}
    (folder / "hyp.yaml").write_text(yaml.safe_dump(hyp))
    (folder / "distill.yaml").write_text(yaml.safe_dump(hyp | recipe))
    (folder / "zero.yaml").write_text(yaml.safe_dump(hyp | zero))
    return folder


@pytest.fixture(scope="session")
def base(tiny: Path) -> list[str]:
    """Flags that every training of these tests shares."""
    words = f"--data {tiny}/tiny.yaml --img 96 --batch 8 --workers 1 --noplots --device cpu --project {tiny}/runs"
    return words.split()


@pytest.fixture(scope="session")
def teacher(tiny: Path, base: list[str]) -> Path:
    """A teacher of one epoch."""
    checked(
        "train.py", *base, "--cfg", tiny / "large.yaml", "--hyp", tiny / "hyp.yaml", "--epochs", 1, "--name", "teacher"
    )
    return tiny / "runs" / "teacher" / "weights" / "best.pt"
