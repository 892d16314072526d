from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.golden import ROOT
from tests.integration.conftest import checked, run_command


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load(run / "weights" / "last.pt")["model"]["state_dict"]


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights_of(one), weights_of(other)
    assert list(a) == list(b)
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, such as {different[:3]}"


def rows_of(run: Path) -> list[dict[str, str]]:
    with open(run / "results.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_training_leaves_a_complete_folder(tiny: Path, base: list[str]) -> None:
    words = ["--cfg", tiny / "small.yaml", "--hyp", tiny / "hyp.yaml", "--epochs", 2, "--name", "complete"]
    out = checked("train.py", *(w for w in base if w != "--noplots"), *words).stdout
    run = tiny / "runs" / "complete"
    for name in ("opt.yaml", "hyp.yaml", "manifest.json", "results.csv", "results.png", "train_batch0.jpg"):
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents*"))
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(float(row["train/box"]) > 0 and float(row["val/box"]) > 0 for row in rows)
    best, last = load(run / "weights" / "best.pt"), load(run / "weights" / "last.pt")
    assert best["model"]["names"] == last["model"]["names"]
    assert len(best["model"]["names"]) == best["model"]["nc"]
    assert "training" not in last, "the finished file is a plain model"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["train_images"] == 28
    assert "epoch 2/2: AP" in out


def kill_and_resume(words: list[object], runs: Path, epochs: int, epochs_done: int) -> tuple[Path, Path]:
    """Two equal distillations, the second of them killed after so many epochs and resumed.

    Returns:
        Both run folders, whose weights and tables have been found equal.
    """
    checked("train_distill.py", *words, "--epochs", epochs, "--name", "whole", "--exist-ok")
    command = [sys.executable, "train_distill.py", *words, "--epochs", epochs, "--name", "killed"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    whole, killed = runs / "whole", runs / "killed"
    last = killed / "weights" / "last.pt"
    deadline = time.time() + 240
    while not (last.is_file() and len(rows_of(killed)) == epochs_done):
        assert process.poll() is None and time.time() < deadline, "the run ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.1)  # into the next epoch
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert load(last)["training"]["state"]["epoch"] < epochs
    checked("train_distill.py", "--resume", last)
    assert_same_weights(whole, killed)
    timeless = [[{k: v for k, v in row.items() if "time" not in k} for row in rows_of(run)] for run in (whole, killed)]
    assert timeless[0] == timeless[1]
    return whole, killed


def test_killed_in_an_epoch_and_resumed_equals_uninterrupted(tiny: Path, base: list[str], teacher: Path) -> None:
    words = [*base, "--cfg", tiny / "small.yaml", "--hyp", tiny / "distill.yaml", "--multi-scale"]
    kill_and_resume([*words, "--teacher-weights", teacher], tiny / "runs", epochs=5, epochs_done=2)


def test_weights_zero_change_nothing(tiny: Path, base: list[str], teacher: Path) -> None:
    common = [*base, "--cfg", tiny / "small.yaml", "--epochs", 2]
    checked("train.py", *common, "--hyp", tiny / "hyp.yaml", "--name", "plain")
    words = ["--hyp", tiny / "zero.yaml", "--teacher-weights", teacher, "--init", "scratch", "--name", "zero"]
    checked("train_distill.py", *common, *words)
    assert_same_weights(tiny / "runs" / "plain", tiny / "runs" / "zero")


def test_distilled_student_is_a_plain_student(tiny: Path, base: list[str], teacher: Path) -> None:
    words = [*base, "--cfg", tiny / "small.yaml", "--epochs", 2, "--hyp", tiny / "distill.yaml", "--name", "student"]
    before = teacher.read_bytes()
    checked("train_distill.py", *words, "--teacher-weights", teacher)
    assert teacher.read_bytes() == before
    run = tiny / "runs" / "student"
    columns = set(rows_of(run)[0])
    assert {f"train/kd/fgd/{level}" for level in ("P3", "P4", "P5")} <= columns
    assert {f"train/kd/output/{part}" for part in ("box", "obj", "cls")} <= columns
    assert all(float(rows_of(run)[0][c]) > 0 for c in columns if "kd/" in c)
    from models.yolo import Model

    expected = list(Model(tiny / "small.yaml", nc=load(run / "weights" / "best.pt")["model"]["nc"]).state_dict())
    for name in ("best.pt", "last.pt"):
        content = load(run / "weights" / name)
        assert list(content["model"]["state_dict"]) == expected
        assert content["teacher"]["sha256"]
    assert run.joinpath("weights", "last.pt").stat().st_size < 2 * teacher.stat().st_size


def test_two_processes_train_one_model(tiny: Path, base: list[str], teacher: Path) -> None:
    words = [*base, "--cfg", tiny / "small.yaml", "--epochs", 1, "--hyp", tiny / "distill.yaml", "--name", "ddp"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    out = checked(*torchrun, "train_distill.py", *words, "--teacher-weights", teacher).stdout
    run = tiny / "runs" / "ddp"
    assert len(rows_of(run)) == 1
    assert out.count("epoch 1/1: AP") == 1, "only the first process reports"
    assert out.count("AP right after the cut") == 1, "and inherits, for both"
    assert all(torch.isfinite(v).all() for v in weights_of(run).values() if v.is_floating_point())


def test_finished_run_is_not_resumed(tiny: Path, base: list[str], teacher: Path) -> None:
    done = run_command("train.py", "--resume", teacher.parent / "last.pt")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "finished" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "README.md"], "README.md"),
        ([], "--cfg"),
    ],
)
def test_mistakes_get_one_line(base: list[str], words: list[str], message: str) -> None:
    flags = base if "--data" not in words else [w for w in base if w not in ("--data", base[base.index("--data") + 1])]
    done = run_command("train.py", *flags, *words)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_ignored_flags_are_refused(base: list[str]) -> None:
    done = run_command("train.py", *base, "--evolve")
    assert done.returncode == 2
    assert "evolution is not built in" in done.stderr


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path('{}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    for script in ("train.py", "train_distill.py", "test.py", "detect.py", "compare.py"):
        checked("-c", code.format(script))
